"""Kernels written into the call nodes: what TensorRT's plugin will read, and what everybody else goes on running."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from aff_deploy.errors import UsageError
from aff_deploy.ops.compile import KernelImage, compile_call
from aff_deploy.ops.launch import Call
from aff_deploy.passes import optimize
from aff_deploy.passes.functions import attributes, variant_of
from aff_deploy.passes.kernel_calls import bytes_by_kernels, bytes_natively
from aff_deploy.passes.kernels import KERNELS, ROW, Attached, attach_kernels, list_kernels
from tests.passes.attention import Attention
from tests.passes.graphs import assert_parity

pytest.importorskip("triton", reason="the kernels need triton: Linux, Python 3.11 or later")

LOCAL_ONLY = {"pool": "", "branch": "", "logits": "z = Identity(l)"}
SILU = "l_t = Conv(a, w1, b1)\nl_g = Sigmoid(l_t)\nl_h = Mul(l_t, l_g)\nl = Conv(l_h, w2, b2)"
LEAKY = "l_t = Conv(a, w1, b1)\nl_h = LeakyRelu(l_t)\nl = Conv(l_h, w2, b2)"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def attached(attention: Attention, cache: Path, **options: object) -> tuple[onnx.ModelProto, Attached]:
    model = attention.build()
    fused = optimize(model)
    assert len(fused.fusions) == 1
    return model, attach_kernels(fused.model, cache=cache, **options)  # type: ignore[arg-type]


def call_of(model: onnx.ModelProto) -> dict[str, object]:
    (node,) = (node for node in model.graph.node if node.domain == "aff_deploy")
    return attributes(node)


def rows(said: dict[str, object]) -> list[list[int]]:
    table = said["kernels_table"]
    assert isinstance(table, list)
    assert len(table) % ROW == 0
    return [table[i : i + ROW] for i in range(0, len(table), ROW)]


def test_a_call_carries_every_image_of_its_type(cache: Path) -> None:
    _, found = attached(Attention(dims="N,8,4,4"), cache)
    assert len(found.plugin) == 1
    assert found.native == ()
    said = call_of(found.model)
    expected = {"kernels_contract": 2, "kernels_branches": 3, "kernels_blend": 1, "context_channels": 8, "channels": 8}
    expected |= {"inter_channels": 3, "plugin_namespace": "aff_deploy", "plugin_version": "1"}
    assert {name: said.get(name) for name in expected} == expected
    text = said["kernels_text"]
    assert isinstance(text, str)
    assert text.isascii()
    images = {
        layout: compile_call(Call(8, 3, 8, "float32", layout, multiple=16), cache=cache)
        for layout in ("linear", "channels_last")
    }  # type: ignore[arg-type]
    told = {
        (KERNELS[kernel], layout): (text[start : start + size], threads, shared, tuple(sizes))
        for kernel, dtype, layout, capability, start, size, threads, shared, *sizes in rows(said)
        if (dtype, capability) == (0, 80)
    }
    assert told == {
        (image.kernel, layout): (image.ptx, image.threads, image.shared, image.sizes + (0,) * (4 - len(image.sizes)))
        for layout, found_images in enumerate(images.values())
        for image in found_images
    }


@pytest.mark.parametrize("dims", ["N,8,5,6", "N,8,H,W"])
def test_promises_are_made_only_where_sizes_are_known(cache: Path, dims: str) -> None:
    _, found = attached(Attention(dims=dims), cache)
    promised = {(row[0], row[2]): row[11 if row[0] == 0 else 10] for row in rows(call_of(found.model)) if row[0] != 1}
    assert promised == {(0, 0): 2 if "5" in dims else 1, (2, 0): 2 if "5" in dims else 1, (0, 1): 1, (2, 1): 1}


def test_the_file_is_valid_and_runs_as_before(cache: Path, tmp_path: Path) -> None:
    model, found = attached(Attention(), cache)
    path = tmp_path / "model.onnx"
    onnx.save(found.model, path)
    onnx.checker.check_model(str(path), full_check=True)
    assert_parity(model, onnx.load(path))


def test_asked_types_and_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(call: Call, capability: int, *, cache: Path | None) -> list[KernelImage]:
        text = f"{call.dtype} {call.layout} {capability}"
        return [KernelImage(kernel, f"{text} {kernel}", capability, 128, 0, (1,)) for kernel in KERNELS]

    monkeypatch.setattr("aff_deploy.passes.kernels.compile_call", compiled)
    model = optimize(Attention(local=SILU, **LOCAL_ONLY).build()).model  # type: ignore[arg-type]
    found = attach_kernels(model, dtypes=("bfloat16", "float16"), capabilities=(90, 80))
    said = call_of(found.model)
    assert said["kernels_branches"] == 1
    text = str(said["kernels_text"])
    told = [text[start : start + size] for _, _, _, _, start, size, *_ in rows(said)]
    assert told == [
        f"{dtype} {layout} {capability} {kernel}"
        for capability in (80, 90)
        for dtype in ("float16", "bfloat16")
        for layout in ("linear", "channels_last")
        for kernel in KERNELS
    ]
    keys = [(row[3], row[1], row[2], row[0]) for row in rows(said)]
    assert keys == [
        (cc, dtype, layout, kernel) for cc in (80, 90) for dtype in (1, 2) for layout in (0, 1) for kernel in (0, 1, 2)
    ]


def test_again_gives_the_same_and_leaves_its_input_alone(cache: Path) -> None:
    model = optimize(Attention().build()).model
    before = copy.deepcopy(model)
    once = attach_kernels(model, cache=cache)
    assert model == before
    assert attach_kernels(once.model, cache=cache).model == once.model


def widened(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The model with twice the inner channels behind the weights named."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            array = numpy_helper.to_array(tensor)
            axis = 1 if tensor.name.endswith("2") and array.ndim > 1 else 0
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate([array, array], axis), tensor.name))
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Attention(local=LEAKY, **LOCAL_ONLY).build(), "its activation is LeakyRelu"),  # type: ignore[arg-type]
        (Attention(dtype="double").build(), "the type of x"),
        (widened(Attention(dims="N,8,1,1").build(), "w1", "b1", "w2", "v1", "c1", "v2"), "reasoned, not measured"),
        (widened(Attention().build(), "v1", "c1", "v2"), "its two branches differ in inner channels"),
    ],
    ids=["activation", "type", "one position", "widths"],
)
def test_what_stays_native_says_why_and_is_not_offered_to_the_plugin(model: onnx.ModelProto, reason: str, cache: Path) -> None:
    fused = optimize(model).model
    assert "plugin_namespace" in call_of(fused)
    found = attach_kernels(fused, cache=cache)
    assert found.plugin == ()
    ((_, told),) = found.native
    assert reason in told
    said = call_of(found.model)
    assert not {name for name in said if name.startswith(("plugin", "kernels"))}


def test_unknown_capability(cache: Path) -> None:
    with pytest.raises(UsageError, match=r"compute capabilities \[70\]; choose among 80"):
        attached(Attention(), cache, capabilities=(70,))


def test_the_rule() -> None:
    """The numbers that docs/kernels.md and the module's docstring give."""
    paper = Call(2048, 128, 2048, "float16", "channels_last")
    assert (round(bytes_by_kernels(paper, 49), 1), round(bytes_natively(paper), 1)) == (10.8, 11.1)
    wide = Call(2048, 512, 2048, "float16", "channels_last")
    assert (round(bytes_by_kernels(wide, 49), 1), round(bytes_natively(wide), 1)) == (31.3, 14.5)
    middle = Call(1024, 64, 1024, "float16")
    assert (round(bytes_by_kernels(middle, 196), 1), round(bytes_natively(middle), 1)) == (7.5, 10.6)
    large = Call(256, 64, 256, "float16")
    assert (round(bytes_by_kernels(large, 3136), 1), round(bytes_natively(large), 1)) == (6.3, 11.0)


def test_what_a_file_carries_is_read_from_the_file(cache: Path) -> None:
    _, found = attached(Attention(dims="N,8,4,4"), cache, capabilities=(80, 90), dtypes=("float32", "float16"))
    (carried,) = list_kernels(found.model)
    text = attributes(found.model.graph.node[-1])["kernels_text"]
    expected = {"contract": 2, "dtypes": ["float32", "float16"], "capabilities": [80, 90], "bytes": len(text)}  # type: ignore[arg-type]
    assert carried == {"name": found.plugin[0], **expected}
    node = next(node for node in found.model.graph.node if node.domain == "aff_deploy")
    table = next(attribute for attribute in node.attribute if attribute.name == "kernels_table")
    good = list(table.ints)
    for bad in ([7] * 13, [], [*good[:3], -5, *good[4:]], [9, *good[1:]], [*good[:4], 10**9, *good[5:]]):
        table.ints[:] = bad
        assert list_kernels(found.model)[0]["dtypes"] == ["malformed"]
    table.CopyFrom(onnx.helper.make_attribute("kernels_table", [float(one) for one in good]))
    assert list_kernels(found.model)[0]["dtypes"] == ["malformed"]
    assert list_kernels(attached(Attention(), cache)[0]) == ()


@pytest.mark.parametrize(
    "asked", [{"capabilities": ()}, {"capabilities": (80.0,)}, {"dtypes": ()}, {"dtypes": ("float64",)}], ids=str
)
def test_what_there_are_no_kernels_for_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="there are no kernels for"):
        attach_kernels(optimize(Attention().build()).model, **asked)  # type: ignore[arg-type]


def test_more_positions_than_kernels_count_stay_native(cache: Path) -> None:
    found = attach_kernels(optimize(Attention(dims="1,8,5000,5000").build()).model, cache=cache)
    assert found.plugin == ()
    assert "25000000 positions" in found.native[0][1]


def changed_weight(model: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    (node,) = (node for node in model.graph.node if node.domain == "aff_deploy")
    index = variant_of(node).inputs.index(name)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[index])
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("local_w1", np.zeros((3, 8, 1, 1), np.float16), "not of the type of x"),
        ("local_w1", np.zeros((3, 8, 3, 3), np.float32), "1x1 convolutions that fit"),
        ("local_w1", np.zeros((3, 8), np.float32), "1x1 convolutions that fit"),
        ("local_w1", np.zeros((3, 5, 1, 1), np.float32), "1x1 convolutions that fit"),
        ("global_b1", np.zeros((4,), np.float32), "1x1 convolutions that fit"),
        ("global_b2", np.zeros((8, 1), np.float32), "1x1 convolutions that fit"),
    ],
)
def test_weights_that_no_kernel_takes_stay_native(name: str, array: np.ndarray, reason: str, cache: Path) -> None:
    model = changed_weight(optimize(Attention(dims="N,8,4,4").build()).model, name, array)
    found = attach_kernels(model, cache=cache)
    assert found.plugin == ()
    assert reason in found.native[0][1]


def test_a_missing_input_stays_native(cache: Path) -> None:
    model = optimize(Attention(dims="N,8,4,4").build()).model
    (node,) = (node for node in model.graph.node if node.domain == "aff_deploy")
    node.input[3] = ""
    assert "inputs" in attach_kernels(model, cache=cache).native[0][1]
    del node.input[:]
    assert "inputs" in attach_kernels(model, cache=cache).native[0][1]


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("activation", "Silu", "not those of its name"),
        ("branches", ["local"], "not those of its name"),
        ("gate", "Tanh", "not those of its name"),
        ("context", "else", "not those of its name"),
        ("scale", 1, "no scale"),
    ],
)
def test_attributes_that_the_plugin_refuses_stay_native(attribute: str, value: object, reason: str, cache: Path) -> None:
    model = optimize(Attention(dims="N,8,4,4").build()).model
    (node,) = (node for node in model.graph.node if node.domain == "aff_deploy")
    kept = [one for one in node.attribute if one.name != attribute]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])
    assert reason in attach_kernels(model, cache=cache).native[0][1]


def test_tensors_that_do_not_fit_stay_native(cache: Path) -> None:
    model = optimize(Attention(dims="N,8,4,4").build()).model
    (node,) = (node for node in model.graph.node if node.domain == "aff_deploy")
    described = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.value_info)}
    described[node.input[1]].elem_type = onnx.TensorProto.FLOAT16
    assert "y is not of the type of x" in attach_kernels(model, cache=cache).native[0][1]
    described[node.input[1]].elem_type = onnx.TensorProto.FLOAT
    described[node.input[0]].shape.dim[1].dim_value = 16
    assert "x has not 8 channels and 2 spatial axes" in attach_kernels(model, cache=cache).native[0][1]


def test_a_call_inside_a_branch_stays_native_and_is_not_the_plugins(cache: Path) -> None:
    model = optimize(Attention(dims="N,8,4,4").build()).model
    (node,) = (node for node in model.graph.node if node.domain == "aff_deploy")
    values = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    branch = onnx.helper.make_graph([node], "branch", [], values)
    outer = onnx.helper.make_node("If", ["condition"], list(node.output), then_branch=branch, else_branch=branch)
    model.graph.node.remove(node)
    model.graph.node.append(outer)
    model.graph.input.append(onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, ()))
    found = attach_kernels(model, cache=cache)
    assert found.plugin == ()
    assert [reason for _, reason in found.native] == ["it stands inside a branch, a loop or a function"] * 2
    for attribute in found.model.graph.node[-1].attribute:
        assert "plugin_namespace" not in {inner.name for inner in attribute.g.node[0].attribute}
