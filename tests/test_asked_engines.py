"""The engine that a recipe asks for is made, or nothing is; one that nobody asks for is made where it can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aff_deploy import pipeline
from aff_deploy.engine import from_recipe
from aff_deploy.engine.from_recipe import plan_engine
from aff_deploy.errors import CheckFailed, DataError, EngineError, MissingDependency, RecipeError
from aff_deploy.pipeline import DeployResult, deploy
from aff_deploy.recipe import Recipe, load_recipe
from aff_deploy.runtimes.backends import TENSORRT_RTX, is_installed
from aff_deploy.spec import Precision, TensorSpec
from tests.networks import RECIPE, write_network

SHAPELESS = "\n".join(line for line in RECIPE.splitlines() if not line.startswith(("min =", "opt =", "max =")))
FREE = SHAPELESS.replace('shape = ["batch", 4, 6, 6]', 'shape = ["batch", 4, "h", "w"]')
needs_rtx = pytest.mark.skipif(not is_installed(TENSORRT_RTX), reason="TensorRT-RTX is not installed")


def recipe_of(folder: Path, *parts: str) -> Recipe:
    return load_recipe(write_network(folder / "net", "\n".join(parts)))


def only_the_network(folder: Path) -> bool:
    return [path.name for path in folder.iterdir()] == ["net"]


@needs_rtx
def test_a_lone_dynamic_batch_is_1_8_32_and_said_to_be(tmp_path: Path) -> None:
    result = deploy(recipe_of(tmp_path, SHAPELESS), tmp_path / "out")
    engine = result.manifest["engine"]
    assert engine["profiles"] == [
        {"min": {"image": [1, 4, 6, 6]}, "opt": {"image": [8, 4, 6, 6]}, "max": {"image": [32, 4, 6, 6]}}
    ]
    assert engine["default_profiles"] is True
    said = "\n".join(result.summary())
    assert "image 1x4x6x6 to 32x4x6x6, fastest at 8x4x6x6, the default for a dynamic batch: no shapes were given" in said


def test_shapes_of_a_recipe_go_before_the_default(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = recipe_of(tmp_path, RECIPE)
    plan = plan_engine(recipe, recipe.inputs)
    assert not isinstance(plan, str)
    assert (plan.request.profiles[0].max["image"], plan.request.default_profiles) == ((16, 4, 6, 6), False)
    alone = recipe_of(tmp_path, RECIPE.replace("min =", "#").replace("max =", "#").replace("opt = [2", "opt = [4"))
    plan = plan_engine(alone, alone.inputs)
    assert not isinstance(plan, str)
    assert [bound["image"][0] for bound in vars(plan.request.profiles[0]).values()] == [1, 4, 32]
    assert plan.request.default_profiles


LINES = "add to [[inputs]] 'image' the lines min = [1, 4, 64, 64] / opt = [8, 4, 64, 64] / max = [32, 4, 64, 64]"


@needs_rtx
def test_other_dynamic_dimensions_need_shapes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        deploy(recipe_of(tmp_path, FREE, "[engine]"), tmp_path / "out")
    assert caught.value.fix == LINES
    assert only_the_network(tmp_path)
    recipe = recipe_of(tmp_path, FREE)
    assert LINES in str(plan_engine(recipe, recipe.inputs))
    assert plan_engine(recipe, (TensorSpec("image", (1, 4, 6, 6)),)) != ""


def raising(error: Exception) -> Any:
    def refuse(*words: object, **more: object) -> None:
        raise error

    return refuse


@pytest.mark.parametrize("table", ["[engine]", "[engine]\nenabled = true", "[engine]\nio = 'fp16'"])
def test_without_a_backend_a_recipe_that_asks_fails(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = MissingDependency("neither TensorRT nor TensorRT-RTX is installed", extra="rtx")
    monkeypatch.setattr(from_recipe, "find_backend", raising(missing))
    monkeypatch.setattr(pipeline, "export_onnx", raising(AssertionError("the work began")))
    with pytest.raises(MissingDependency, match="aff-deploy\\[rtx\\]"):
        deploy(recipe_of(tmp_path, RECIPE, table), tmp_path / "out")
    assert only_the_network(tmp_path)


def deployed(tmp_path: Path, *parts: str) -> DeployResult:
    return deploy(recipe_of(tmp_path, *parts), tmp_path / "out")


def test_without_a_backend_the_rest_is_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = MissingDependency("neither TensorRT nor TensorRT-RTX is installed", extra="rtx")
    monkeypatch.setattr(from_recipe, "find_backend", raising(missing))
    result = deployed(tmp_path, RECIPE)
    assert "pip install 'aff-deploy[rtx]'" in result.manifest["engine"]["why"]
    said = result.summary()
    assert any(line.startswith("  no engine: neither TensorRT nor") for line in said)
    assert said[-1].startswith("  Passed: model.onnx ran here")


@needs_rtx
def test_a_builder_that_refuses_stops_only_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "build_engine", raising(EngineError("no importer", fix="export with another --opset")))
    result = deployed(tmp_path, RECIPE)
    assert result.manifest["engine"] == {"built": False, "why": "no importer; export with another [export] opset"}
    assert not (result.folder / "model.engine").exists()
    assert "No engine: no importer" in result.report.read_text()
    with pytest.raises(EngineError) as caught:
        deploy(recipe_of(tmp_path, RECIPE, "[engine]"), tmp_path / "other")
    assert caught.value.fix == "export with another [export] opset"
    assert not (tmp_path / "other").exists()


@needs_rtx
@pytest.mark.parametrize(("table", "way"), [("", "[engine] enabled = false"), ("[engine]", "[tolerance.fp16] rtol")])
def test_a_check_that_fails_is_never_passed_over(table: str, way: str, tmp_path: Path) -> None:
    tight = "[tolerance.fp16]\natol = 0\nrtol = 0\n" + table
    with pytest.raises(CheckFailed) as caught:
        deploy(recipe_of(tmp_path, RECIPE, tight), tmp_path / "out")
    assert way in caught.value.fix
    assert "[engine] keep_fp32" in caught.value.fix
    assert "--" not in caught.value.fix
    assert only_the_network(tmp_path)


@needs_rtx
def test_int8_without_data_is_told_where_a_recipe_has_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        deploy(recipe_of(tmp_path, RECIPE, "[engine]\nprecision = 'int8'"), tmp_path / "out")
    assert "[calibration] data" in caught.value.fix
    assert "--" not in caught.value.fix


@needs_rtx
def test_a_folder_of_images_calibrates(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    text = RECIPE.replace("4, 6, 6]", "3, 6, 6]").replace("[[inputs]]", "[arguments]\nchannels = 3\n[[inputs]]")
    net = tmp_path / "net"
    write_network(net, text + '[calibration]\ndata = "pictures"\n[preprocessing]\nscale = 0.01\n[engine]\nprecision = "int8"\n')
    (net / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3)).astype(np.uint8)
    for i, picture in enumerate(pixels):
        pillow.fromarray(picture).save(net / f"pictures/{i}.png")
    recipe = load_recipe(net)
    plan = plan_engine(recipe, recipe.inputs)
    assert not isinstance(plan, str)
    assert plan.data.observed == "3 of 4 samples of the recipe's calibration data, pictures (the last held out)"
    assert plan.request.precision is Precision.INT8


@needs_rtx
def test_nodes_that_a_recipe_keeps_in_fp32(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, RECIPE)
    result = deploy(replace(recipe, engine=replace(recipe.engine, keep_fp32=("node_conv2d",))), tmp_path / "out")
    assert result.manifest["engine"]["typed"]["kept_wide"][0]["name"] == "node_conv2d"


def test_an_engine_that_is_not_wanted_is_not_built(tmp_path: Path) -> None:
    result = deployed(tmp_path, RECIPE, "[engine]\nenabled = false")
    assert result.manifest["engine"] == {"built": False, "why": "the recipe says enabled = false"}
