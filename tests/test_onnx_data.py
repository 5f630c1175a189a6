"""Tensors in a model file: what they claim is measured, and external data stays within the folder."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from aff_deploy.errors import ModelError
from aff_deploy.onnx_data import tensor_bytes
from aff_deploy.onnx_file import load_onnx
from tests.onnx_files import edited, refusal, small_model, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


# ---- tensors that lie


def with_dims(dims: list[int], **fields: object) -> ModelProto:
    def lie(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        del tensor.dims[:]
        tensor.dims.extend(dims)
        for name, value in fields.items():
            tensor.ClearField("raw_data")
            getattr(tensor, name).extend(value)

    return edited(lie)


DIMS = {
    "more than there is": [8, 4, 1, 1000],
    "less than there is": [8, 4, 1, 0],
    "negative": [8, 4, -1, -1],
    "two negative ones": [-8, -4, 1, 1],
    "huge": [2**40, 2**20],
    "overflowing": [2**62, 2**62, 2**62],
    "smallest": [-(2**63)],
}


@pytest.mark.parametrize("dims", DIMS.values(), ids=DIMS.keys())
def test_dims_that_lie(path: Path, dims: list[int]) -> None:
    assert "'k'" in refusal(write(with_dims(dims), path))


@pytest.mark.parametrize("count", [0, 1, 2047, 2049])
def test_typed_data_of_another_length(path: Path, count: int) -> None:
    assert "'k'" in refusal(write(with_dims([8, 256, 1, 1], float_data=[1.0] * count), path))


def test_typed_data_of_the_right_length(path: Path) -> None:
    model = with_dims([8, 4, 1, 1], float_data=[0.5] * 32)
    assert numpy_helper.to_array(load_onnx(write(model, path)).graph.initializer[0]).shape == (8, 4, 1, 1)


def test_a_constant_that_lies(path: Path) -> None:
    def lie(model: ModelProto) -> None:
        tensor = numpy_helper.from_array(np.zeros(3, np.float32), "liar")
        tensor.dims[0] = 10**12
        model.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("value", tensor))

    assert "'liar'" in refusal(write(edited(lie), path))


def test_a_tensor_in_a_nested_graph_of_a_function_that_lies(path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "f" : 1]> g (float[2] x, bool c) => (float[2] y) { y = f.pick(x, c) }\n'
        '<domain: "f", opset_import: ["" : 18]> pick (a, c) => (b) { b = If (c) <then_branch = t () => (float[2] p) '
        "{ p = Constant<value: tensor = float[2] {1, 2}>() }, else_branch = e () => (float[2] q) { q = Abs(a) }> }"
    )
    tensor = model.functions[0].node[0].attribute[0].g.node[0].attribute[0].t
    tensor.name = "deep"
    assert load_onnx(write(model, path))
    external(tensor, "../secret")
    assert "outside" in refusal(write(model, path))


@pytest.mark.parametrize(
    ("type_name", "elements", "size"),
    [
        ("FLOAT", 3, 12),
        ("FLOAT16", 3, 6),
        ("BFLOAT16", 3, 6),
        ("INT4", 3, 2),
        ("UINT4", 4, 2),
        ("FLOAT8E4M3FN", 3, 3),
        ("BOOL", 3, 3),
    ],
)
def test_tensor_bytes(type_name: str, elements: int, size: int) -> None:
    assert tensor_bytes(TensorProto(data_type=getattr(TensorProto, type_name), dims=[elements])) == size


# ---- external data


def external(tensor: TensorProto, location: str, **entries: object) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))


def externalised(location: str, **entries: object) -> ModelProto:
    return edited(lambda m: external(m.graph.initializer[0], location, **entries))


WEIGHTS = numpy_helper.to_array(small_model().graph.initializer[0])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The bytes of the first weight, ten bytes into the file, ten before its end."""
    data = tmp_path / "model.data"
    data.write_bytes(bytes(10) + WEIGHTS.tobytes() + bytes(10))
    return data


@pytest.mark.parametrize("entries", [{"offset": 10, "length": 128}, {"offset": 10}], ids=["with length", "without"])
def test_external_data_is_loaded(path: Path, data: Path, entries: dict[str, int]) -> None:
    loaded = load_onnx(write(externalised("model.data", **entries), path))
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), WEIGHTS)


def test_external_data_in_a_folder_below(path: Path, data: Path) -> None:
    (path.parent / "weights").mkdir()
    data.rename(path.parent / "weights" / "w.data")
    load_onnx(write(externalised("weights/w.data", offset=10, length=128), path))


@pytest.mark.parametrize("key", ["checksum", "basepath", "colour"])
def test_other_keys_of_external_data_do_no_harm(path: Path, data: Path, key: str) -> None:
    load_onnx(write(externalised("model.data", offset=10, length=128, **{key: "x"}), path))


LIES = {
    "offset at the end": {"offset": 148, "length": 128},
    "offset beyond": {"offset": 10**15, "length": 128},
    "negative offset": {"offset": -1, "length": 128},
    "longer than the tensor": {"offset": 0, "length": 148},
    "shorter than the tensor": {"offset": 0, "length": 4},
    "negative length": {"offset": 0, "length": -128},
    "huge length": {"offset": 0, "length": 10**18},
    "offset no number": {"offset": "0x10", "length": 128},
    "length no number": {"offset": 0, "length": "all"},
    "length empty": {"offset": 0, "length": ""},
    "offset of ten thousand digits": {"offset": "9" * 10_000, "length": 128},
    "no length, beyond the end": {"offset": 30},
}


@pytest.mark.parametrize("entries", LIES.values(), ids=LIES.keys())
def test_external_offsets_that_lie(path: Path, data: Path, entries: dict[str, object]) -> None:
    assert "'k'" in refusal(write(externalised("model.data", **entries), path))


@pytest.mark.parametrize("dims", [[8, 4, 1, 10**9], [8, -4, 1, 1], [2**40, 2**20]])
def test_external_dims_that_lie(path: Path, data: Path, dims: list[int]) -> None:
    model = externalised("model.data", offset=0, length=128)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    assert "'k'" in refusal(write(model, path))


def test_missing_data_file(path: Path) -> None:
    assert "'nowhere.data' is missing" in refusal(write(externalised("nowhere.data"), path))


@pytest.mark.parametrize("location", ["", ".", "..", "a\0b", "x" * 5000, "../model/../../x"])
def test_locations_that_are_no_file_of_ours(path: Path, location: str) -> None:
    refusal(write(externalised(location), path))


def test_data_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(128))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model.onnx"
    for location in ("../secret", str(tmp_path / "secret"), "../models/../secret", "/etc/passwd"):
        assert "outside the model's folder" in refusal(write(externalised(location, offset=0, length=128), path))


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(128))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model.onnx"
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "models" / "folder").symlink_to(tmp_path)
    (tmp_path / "models" / "loop").symlink_to(tmp_path / "models" / "loop")
    for location in ("link", "folder/secret"):
        assert "outside the model's folder" in refusal(write(externalised(location, offset=0, length=128), path))
    refusal(write(externalised("loop", offset=0, length=128), path))


def test_a_link_within_the_folder_is_read_or_refused(path: Path, data: Path) -> None:
    (path.parent / "link").symlink_to(data)
    write(externalised("link", offset=10, length=128), path)
    # Newer releases of onnx refuse every link.
    with contextlib.suppress(ModelError):
        load_onnx(path)
