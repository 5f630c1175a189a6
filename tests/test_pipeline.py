"""The pipeline: the whole order on trained and on unknown networks, and everything that stops it."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from aff_deploy import pipeline
from aff_deploy.artifact import read_manifest, sha256
from aff_deploy.engine_file import describe_engine
from aff_deploy.errors import CheckFailed, DataError, NetworkError
from aff_deploy.evaluate import Evaluated, evaluate
from aff_deploy.pipeline import deploy
from aff_deploy.recipe import Evaluation, dump_recipe, find_recipe, load_recipe
from aff_deploy.runtimes.backends import TENSORRT_RTX, is_installed
from aff_deploy.spec import Precision
from tests.networks import RECIPE, export_once, write_network
from tests.readme import blocks, structure

FILES = ["manifest.json", "model.onnx", "model.onnx.json", "recipe.toml", "report.html"]


@pytest.fixture(autouse=True)
def one_export_of_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "export_onnx", export_once)


def evaluated_recipe(folder: Path, *, extra: str = "", classes: int = 3, count: int = 20) -> Path:
    """The tiny network with data on which it is always right (labels from PyTorch itself)."""
    from aff_deploy.nets.resolve import resolve_network
    from aff_deploy.runtimes.pytorch import PyTorchRunner

    recipe = load_recipe(write_network(folder))
    raw = np.random.default_rng(1).integers(0, 255, (count, 6, 6, 4)).astype(np.uint8)
    network = resolve_network(str(recipe.folder))
    ready = (np.moveaxis(raw, -1, 1).astype(np.float32) * np.float32(1 / 255) - np.float32(0.5)) / np.float32(0.25)
    answers = PyTorchRunner(network.module, network.inputs).infer({"image": ready})["output"].argmax(1)
    np.savez(folder / "data.npz", pictures=raw, labels=(answers + 3 - classes) % 3)
    text = f"""{RECIPE}
[preprocessing]
layout = "channels-last"
scale = {1 / 255}
mean = 0.5
std = 0.25
[evaluation]
data = "data.npz"
sha256 = "{sha256(folder / "data.npz")}"
input = "pictures"
labels = "labels"
accuracy = 1.0
{extra}
"""
    return write_network(folder, text)


@pytest.mark.parametrize(("name", "kind"), [("aff_resnet_digits", "aff"), ("iaff_resnet_digits", "iaff")])
def test_a_trained_network(name: str, kind: str, tmp_path: Path) -> None:
    recipe = find_recipe(name)
    assert recipe is not None
    stages: list[str] = []
    result = deploy(recipe, tmp_path / "out", progress=stages.append)

    engine = ["model.engine", "model.engine.json"] if is_installed(TENSORRT_RTX) else []
    assert sorted(path.name for path in result.folder.iterdir()) == sorted(FILES + engine)
    assert result.manifest == json.loads((result.folder / "manifest.json").read_text())
    assert [site["kind"] for site in result.manifest["fusions"]] == [kind] * 6
    assert result.manifest["rejected"] == []
    assert result.manifest["ops"]["after"]["AttentionalFusion"] >= 6
    assert "Sigmoid" not in result.manifest["ops"]["after"]
    for output in result.validation.outputs:
        assert output.max_abs <= 1e-5 * output.scale
    assert result.evaluation is not None
    assert (result.evaluation.samples, result.evaluation.same) == (360, 360)
    assert result.evaluation.correct is not None
    assert result.evaluation.correct >= 0.98 * 360
    assert len(stages) == (9 if engine else 5)

    manifest = read_manifest(result.model)
    assert manifest is not None
    assert manifest["sha256"] == result.manifest["model"]["sha256"]
    assert result.manifest["network"]["weights"]["sha256"] == recipe.weights_sha256
    onnx.checker.check_model(str(result.model), full_check=True)
    page = result.report.read_text()
    for part in (name, "360 of 360", recipe.weights_sha256, "AttentionalFusion"):
        assert part in page
    assert (result.folder / "recipe.toml").read_text() == dump_recipe(recipe)
    assert any("same answer as PyTorch on 360 of 360" in line for line in result.summary())
    if name == "aff_resnet_digits" and engine and result.manifest["engine"]["not_run"]:
        printed = [f"{stage} 1.0 s" for stage in ("load PyTorch", *stages)] + [
            line.replace(str(result.folder), f"build/{name}") for line in result.summary()
        ]
        (sample,) = blocks("")
        assert structure(sample.splitlines()) == structure(printed)


def test_a_network_without_weights_or_data_again_into_the_same_folder(tmp_path: Path) -> None:
    recipe = load_recipe(write_network(tmp_path / "net"))
    first = deploy(recipe, tmp_path / "out")
    again = deploy(recipe, tmp_path / "out")
    assert first.manifest["model"]["sha256"] == again.manifest["model"]["sha256"]
    assert again.evaluation is None
    assert "as the network's code made them" in "\n".join(again.summary())
    assert "code made them" in again.report.read_text()
    assert again.manifest["validation"]["sources"] == [{"kind": "seeded", "samples": 16}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "out"]


def test_raw_data_is_preprocessed_for_both_sides(tmp_path: Path) -> None:
    result = deploy(load_recipe(evaluated_recipe(tmp_path / "net")), tmp_path / "out")
    assert result.evaluation == Evaluated(20, 20, 20, 20, 1.0)
    assert result.manifest["validation"]["sources"][0]["samples"] == 20


def nothing_written(tmp_path: Path) -> bool:
    return sorted(path.name for path in tmp_path.iterdir()) == ["net"]


def test_less_accuracy_than_recorded_stops_it(tmp_path: Path) -> None:
    recipe = load_recipe(evaluated_recipe(tmp_path / "net", classes=2))
    with pytest.raises(CheckFailed, match=r"accuracy is 0\.00 % on 20 samples, the recipe records 100\.00 %"):
        deploy(recipe, tmp_path / "made/out")
    assert nothing_written(tmp_path)


def test_another_number_of_samples_stops_it(tmp_path: Path) -> None:
    recipe = load_recipe(evaluated_recipe(tmp_path / "net", extra="samples = 21"))
    with pytest.raises(DataError, match="has 20 samples, the recipe says 21"):
        deploy(recipe, tmp_path / "out")
    assert nothing_written(tmp_path)


def test_a_pass_that_changes_the_function_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_network(tmp_path / "net"))
    right = pipeline.optimize

    def wrong(model: onnx.ModelProto, **options: Any) -> Any:
        result = right(model, **options)
        bias = next(tensor for tensor in result.model.graph.initializer if list(tensor.dims) == [3])
        values = onnx.numpy_helper.to_array(bias).copy()
        values[1] += 0.01
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return result

    monkeypatch.setattr(pipeline, "optimize", wrong)
    with pytest.raises(CheckFailed, match=r"tiny: the optimised file differs from PyTorch: output 'output'"):
        deploy(recipe, tmp_path / "out")
    assert nothing_written(tmp_path)


def test_a_changed_file_stops_it_before_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(evaluated_recipe(tmp_path / "net"))
    (tmp_path / "net/data.npz").write_bytes(b"other")
    monkeypatch.setattr(pipeline, "export_onnx", None)
    with pytest.raises(DataError, match="sha256"):
        deploy(recipe, tmp_path / "out")
    assert nothing_written(tmp_path)


def test_a_network_that_is_none_stops_it(tmp_path: Path) -> None:
    recipe = load_recipe(write_network(tmp_path / "net", RECIPE.replace("net.py:build", "net.py:not_a_module")))
    with pytest.raises(NetworkError, match=r"not a torch\.nn\.Module"):
        deploy(recipe, tmp_path / "out")
    assert nothing_written(tmp_path)


def test_evaluate_counts() -> None:
    batches = [np.array([0, 1]), np.array([2])]
    labels = np.array([0, 1, 1, 9])
    assert evaluate(batches, [np.array([0, 2]), np.array([2])], labels, None) == Evaluated(3, 2, 2, 1, None)
    assert evaluate(batches, batches, None, None) == Evaluated(3, 3, None, None, None)
    with pytest.raises(DataError, match="2 labels for answers of shape"):
        evaluate(batches, batches, labels[:2], None)
    with pytest.raises(DataError, match="3 samples"):
        evaluate(batches, batches, labels, Evaluation(Path("x"), "", {}, samples=4))


@pytest.mark.parametrize(("correct", "fine"), [(980, True), (976, True), (974, False)])
def test_accuracy_may_fall_by_half_a_percent(correct: int, fine: bool) -> None:
    found = Evaluated(1000, 1000, 980, correct, 0.98)
    if fine:
        found.require_accuracy("net")
    else:
        with pytest.raises(CheckFailed, match=r"97\.40 %"):
            found.require_accuracy("net")


needs_rtx = pytest.mark.skipif(not is_installed(TENSORRT_RTX), reason="TensorRT-RTX is not installed")


@needs_rtx
@pytest.mark.parametrize(("precision", "least"), [("fp16", 359), ("bf16", 358), ("int8", 356)])
def test_the_engine_of_a_trained_network_decides_as_pytorch(precision: str, least: int, tmp_path: Path) -> None:
    recipe = find_recipe("iaff_resnet_digits")
    assert recipe is not None
    wanted = replace(recipe, engine=replace(recipe.engine, precision=Precision(precision)))
    result = deploy(wanted, tmp_path / "out")
    engine = result.manifest["engine"]
    assert engine["built"] is True
    assert engine["precision"]["proven"] == precision
    assert engine["onnx"] == {"file": "model.onnx", "sha256": result.manifest["model"]["sha256"]}
    (output,) = engine["checks"][0]["outputs"]
    # Beside the 360 there are a few drawn from a seed, and fewer of them than may differ of any.
    assert output["argmax_agreement"] * engine["checks"][0]["samples"] >= least
    assert describe_engine(result.folder / "model.engine")["problem"] is None
    said = "\n".join(result.summary())
    assert f"{precision} proven" in said
    assert "  not run   model.engine, " in said
    assert "Not proven to the end: model.engine" in said
    assert "the builder's report of the engine" in html.unescape(result.report.read_text())
