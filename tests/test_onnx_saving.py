"""Models written out: whole, with their manifest and what they need beside them, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from aff_deploy import onnx_file
from aff_deploy.artifact import manifest_path, read_manifest, sha256
from aff_deploy.errors import InputError, OutputError
from aff_deploy.onnx_file import load_onnx, save_onnx
from tests.onnx_files import small_model
from tests.passes.graphs import assert_same, feeds_of, model_of, run_ort


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_round_trip(path: Path) -> None:
    model = small_model()
    artifact = save_onnx(model, path, {"network": "small"})
    assert load_onnx(path) == model
    assert artifact.path == path
    assert artifact.manifest["network"] == "small"
    assert json.loads(manifest_path(path).read_text()) == artifact.manifest
    assert artifact.manifest["sha256"] == sha256(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.json"]


def test_large_models_keep_their_weights_in_a_file_of_their_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_MODEL_BYTES", 1000)
    model = model_of(
        "g (float[N, 64] x) => (float[N, 64] y) <float[64, 64] k, float[64] b> { c = MatMul(x, k)\ny = Add(c, b) }"
    )
    expected = run_ort(model, feeds := feeds_of(model))
    save_onnx(model, path, {})
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data", "model.onnx.json"]
    assert path.stat().st_size < 2000
    assert_same(expected, run_ort(load_onnx(path), feeds))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert_same(expected, session.run(None, feeds))


def test_the_manifest_vouches_for_external_weights_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_MODEL_BYTES", 1000)
    save_onnx(model_of("g (float[N, 64] x) => (float[N, 64] y) <float[64, 64] k> { y = MatMul(x, k) }"), path, {})
    assert read_manifest(path) is not None
    weights = path.with_name("model.onnx.data")
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(InputError, match=r"model\.onnx\.data is not the file"):
        read_manifest(path)


def test_large_models_of_typed_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_MODEL_BYTES", 1000)
    model = model_of("g (float[N, 64] x) => (float[N, 64] y) <float[64, 64] k> { y = MatMul(x, k) }")
    values = numpy_helper.to_array(model.graph.initializer[0])
    del model.graph.initializer[:]
    model.graph.initializer.append(helper.make_tensor("k", TensorProto.FLOAT, [64, 64], values.ravel()))
    save_onnx(model, path, {})
    np.testing.assert_array_equal(numpy_helper.to_array(load_onnx(path).graph.initializer[0]), values)


def test_saving_over_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder"):
        save_onnx(small_model(), tmp_path, {})


def test_a_failing_save_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_onnx(small_model(), path, {"take": 1})
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_file, "write_manifest", full)
    with pytest.raises(OutputError, match="no space"):
        save_onnx(small_model(), path, {"take": 2})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
