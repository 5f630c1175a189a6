"""Which engine a recipe asks for, with which shapes and data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aff_deploy.engine import EngineRequest, check_profiles, default_profiles, find_backend, suggest_keys
from aff_deploy.engine.data import EngineData, engine_data
from aff_deploy.errors import MissingDependency, RecipeError, UsageError
from aff_deploy.recipe import Recipe
from aff_deploy.recipe.remedies import in_keys_of
from aff_deploy.spec import ShapeProfile, TensorSpec


@dataclass(frozen=True)
class EnginePlan:
    """The engine that will be built beside the model, and its data."""

    request: EngineRequest
    data: EngineData


def plan_engine(recipe: Recipe, inputs: Sequence[TensorSpec]) -> EnginePlan | str:
    """What to build, told before the work begins, or why there will be no engine.

    Raises:
        MissingDependency, RecipeError: the recipe asks for an engine that cannot be built here.
        DataError: its data does not fit.
    """
    settings = recipe.engine
    if settings.enabled is False:
        return "the recipe says enabled = false"
    try:
        backend = find_backend(settings.backend or None)
        profiles = _profiles(recipe, inputs)
    except (MissingDependency, RecipeError) as error:
        if settings.enabled:
            raise
        return in_keys_of(recipe, str(error))
    request = EngineRequest(
        precision=settings.precision,
        backend=backend,
        tolerance=recipe.tolerance[settings.precision],
        io=settings.io,
        profiles=profiles,
        default_profiles=bool(profiles) and not recipe.engine_profiles,
        keep_fp32=settings.keep_fp32,
    )
    return EnginePlan(request, engine_data(settings.precision, inputs, recipe=recipe, calib=None))


def _profiles(recipe: Recipe, inputs: Sequence[TensorSpec]) -> tuple[ShapeProfile, ...]:
    try:
        return check_profiles(inputs, recipe.engine_profiles or default_profiles(inputs), suggest=suggest_keys)
    except UsageError as error:
        raise RecipeError(f"recipe {recipe.name!r}: {error.message}", fix=error.fix) from None
