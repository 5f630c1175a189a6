"""Recipe to TOML: the inverse of reading."""

from __future__ import annotations

from typing import Any

import tomli_w

from aff_deploy.recipe.values import (
    CalibrationData,
    EngineSettings,
    Evaluation,
    ExportSettings,
    Preprocessing,
    Recipe,
)
from aff_deploy.spec import TOLERANCES, Distribution, ShapeProfile, TensorSpec


def dump_recipe(recipe: Recipe) -> str:
    """The TOML text that `load_recipe` reads back as an equal recipe (from a file in ``recipe.folder``)."""
    document: dict[str, Any] = {"name": recipe.name, "description": recipe.description, "network": recipe.network}
    document["arguments"] = dict(recipe.arguments)
    if recipe.weights is not None:
        file = recipe.weights.relative_to(recipe.folder).as_posix()
        entry = {"file": file, "sha256": recipe.weights_sha256, "key": recipe.weights_key}
        document["weights"] = {key: value for key, value in entry.items() if value}
    document["inputs"] = [_input(recipe, spec) for spec in recipe.inputs]
    document["profiles"] = [_profile(profile) for profile in recipe.profiles]
    document["preprocessing"] = _preprocessing(recipe.preprocessing)
    document["tolerance"] = {
        str(precision): {"atol": row.atol, "rtol": row.rtol, "min_cosine": row.min_cosine}
        for precision, row in recipe.tolerance.items()
        if row != TOLERANCES[precision]
    }
    if recipe.evaluation is not None:
        document["evaluation"] = _evaluation(recipe, recipe.evaluation)
    if recipe.calibration is not None:
        document["calibration"] = _data(recipe, recipe.calibration)
    if recipe.export != ExportSettings():
        document["export"] = {"opset": recipe.export.opset, "exporter": recipe.export.exporter}
    if recipe.engine != EngineSettings():
        document["engine"] = _engine(recipe.engine)
    document["serving"] = dict(recipe.serving)
    return tomli_w.dumps({key: value for key, value in document.items() if value not in ("", {}, [])})


def _input(recipe: Recipe, spec: TensorSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}
    if recipe.profile is not None and spec.is_dynamic:
        for bound in ("min", "opt", "max"):
            entry[bound] = list(getattr(recipe.profile, bound)[spec.name])
    elif spec.example is not None and spec.is_dynamic:
        entry["opt"] = list(spec.example)
    if spec.distribution is not None:
        entry["distribution"] = _distribution(spec.distribution)
    return entry


def _distribution(drawn: Distribution) -> dict[str, Any]:
    first, second = ("low", "high") if drawn.kind == "uniform" else ("mean", "std")
    return {"kind": drawn.kind, first: drawn.first, second: drawn.second}


def _profile(profile: ShapeProfile) -> dict[str, Any]:
    return {bound: {name: list(shape) for name, shape in getattr(profile, bound).items()} for bound in ("min", "opt", "max")}


def _preprocessing(steps: Preprocessing) -> dict[str, Any]:
    if steps == Preprocessing():
        return {}
    entry: dict[str, Any] = {"layout": steps.layout, "scale": steps.scale, "mean": list(steps.mean), "std": list(steps.std)}
    entry |= {"resize": steps.resize, "crop": list(steps.crop)}
    return {key: value for key, value in entry.items() if value not in (0, []) or key == "scale"}


def _data(recipe: Recipe, described: Evaluation | CalibrationData) -> dict[str, Any]:
    entry: dict[str, Any] = {"data": described.data.relative_to(recipe.folder).as_posix(), "sha256": described.sha256}
    entry |= {"inputs": dict(described.inputs), "samples": described.samples}
    return {key: value for key, value in entry.items() if value not in ("", None, {})}


def _evaluation(recipe: Recipe, evaluation: Evaluation) -> dict[str, Any]:
    entry = _data(recipe, evaluation) | {"labels": evaluation.labels, "accuracy": evaluation.accuracy}
    return {key: value for key, value in entry.items() if value not in ("", None)}


def _engine(settings: EngineSettings) -> dict[str, Any]:
    entry: dict[str, Any] = {"enabled": settings.enabled is not False, "precision": str(settings.precision), "io": settings.io}
    entry |= {"backend": settings.backend, "keep_fp32": list(settings.keep_fp32)}
    return {key: value for key, value in entry.items() if value not in ("", [])}
