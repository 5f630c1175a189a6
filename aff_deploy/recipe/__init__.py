"""A recipe: everything that the deployment of one network needs to know, in one TOML file.

The format is described key by key in ``docs/recipe.md``.
"""

from __future__ import annotations

from aff_deploy.recipe.library import bundled_recipes, find_recipe, models_folder
from aff_deploy.recipe.reading import load_recipe
from aff_deploy.recipe.tables import nearest
from aff_deploy.recipe.values import (
    CalibrationData,
    EngineSettings,
    Evaluation,
    ExportSettings,
    Preprocessing,
    Recipe,
)
from aff_deploy.recipe.writing import dump_recipe

__all__ = [
    "CalibrationData",
    "EngineSettings",
    "Evaluation",
    "ExportSettings",
    "Preprocessing",
    "Recipe",
    "bundled_recipes",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "models_folder",
    "nearest",
]
