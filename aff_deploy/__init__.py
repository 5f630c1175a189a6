"""Attentional-feature-fusion networks from PyTorch to optimised, validated ONNX.

Names load on first use, so that ``import aff_deploy`` imports no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aff_deploy.artifact import Artifact, read_manifest
    from aff_deploy.engine import BuildOptions, BuiltEngine, EngineRequest, build_engine
    from aff_deploy.engine_file import EngineManifest, describe_engine, read_engine_manifest
    from aff_deploy.errors import (
        AffDeployError,
        CheckFailed,
        DataError,
        EngineError,
        InputError,
        MissingDependency,
        ModelError,
        NetworkError,
        OutputError,
        RecipeError,
        UsageError,
        WeightsError,
    )
    from aff_deploy.export import export_onnx
    from aff_deploy.nets.resolve import Network, resolve_network
    from aff_deploy.onnx_file import check_onnx, load_onnx, save_onnx
    from aff_deploy.passes import Optimized, inspect_model, optimize
    from aff_deploy.pipeline import DeployResult, deploy
    from aff_deploy.recipe import Recipe, bundled_recipes, dump_recipe, find_recipe, load_recipe
    from aff_deploy.runtimes import Runner
    from aff_deploy.runtimes.feeds import load_npz_feeds, seeded_feeds
    from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
    from aff_deploy.runtimes.pytorch import PyTorchRunner
    from aff_deploy.runtimes.tensorrt import TensorRTRunner
    from aff_deploy.spec import Precision, ShapeProfile, TensorSpec, Tolerance
    from aff_deploy.validate import ValidationReport, compare_outputs

__version__ = "0.1.0"

_HOMES = {
    "artifact": ("Artifact", "read_manifest"),
    "engine": ("BuildOptions", "BuiltEngine", "EngineRequest", "build_engine"),
    "engine_file": ("EngineManifest", "describe_engine", "read_engine_manifest"),
    "errors": (
        *("AffDeployError", "CheckFailed", "DataError", "EngineError", "InputError", "MissingDependency", "ModelError"),
        *("NetworkError", "OutputError", "RecipeError", "UsageError", "WeightsError"),
    ),
    "export": ("export_onnx",),
    "nets.resolve": ("Network", "resolve_network"),
    "onnx_file": ("check_onnx", "load_onnx", "save_onnx"),
    "passes": ("Optimized", "inspect_model", "optimize"),
    "pipeline": ("DeployResult", "deploy"),
    "recipe": ("Recipe", "bundled_recipes", "dump_recipe", "find_recipe", "load_recipe"),
    "runtimes": ("Runner",),
    "runtimes.feeds": ("load_npz_feeds", "seeded_feeds"),
    "runtimes.onnxruntime": ("OnnxRuntimeRunner",),
    "runtimes.pytorch": ("PyTorchRunner",),
    "runtimes.tensorrt": ("TensorRTRunner",),
    "spec": ("Precision", "ShapeProfile", "TensorSpec", "Tolerance"),
    "validate": ("ValidationReport", "compare_outputs"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

# `validate.validate` is not among them: the submodule of that name takes the place of any function here.
__all__ = [
    "AffDeployError",
    "Artifact",
    "BuildOptions",
    "BuiltEngine",
    "CheckFailed",
    "DataError",
    "DeployResult",
    "EngineError",
    "EngineManifest",
    "EngineRequest",
    "InputError",
    "MissingDependency",
    "ModelError",
    "Network",
    "NetworkError",
    "OnnxRuntimeRunner",
    "Optimized",
    "OutputError",
    "Precision",
    "PyTorchRunner",
    "Recipe",
    "RecipeError",
    "Runner",
    "ShapeProfile",
    "TensorRTRunner",
    "TensorSpec",
    "Tolerance",
    "UsageError",
    "ValidationReport",
    "WeightsError",
    "__version__",
    "build_engine",
    "bundled_recipes",
    "check_onnx",
    "compare_outputs",
    "deploy",
    "describe_engine",
    "dump_recipe",
    "export_onnx",
    "find_recipe",
    "inspect_model",
    "load_npz_feeds",
    "load_onnx",
    "load_recipe",
    "optimize",
    "read_engine_manifest",
    "read_manifest",
    "resolve_network",
    "save_onnx",
    "seeded_feeds",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'aff_deploy' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"aff_deploy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
