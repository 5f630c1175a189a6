"""What form the local functions take for which target and type."""

from __future__ import annotations

import onnx
import pytest
from onnx import ModelProto, TensorProto

from aff_deploy.passes import optimize
from aff_deploy.passes.functions import attach_functions, attributes
from tests.passes.graphs import aff, assert_parity


def operators(model: ModelProto) -> list[str]:
    (function,) = model.functions
    return [node.op_type for node in function.node]


def test_for_a_gpu_nothing_is_blocked() -> None:
    before = aff()
    model = optimize(before).model
    assert operators(model).count("Conv") == 6
    attach_functions(model, target="gpu")
    assert operators(model).count("Conv") == 4
    assert "Cast" not in operators(model)
    assert all("upsample" not in attributes(node) for node in model.graph.node)
    onnx.checker.check_model(model, full_check=True)
    assert_parity(before, model)


@pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_half_precision_is_convex_and_pools_in_fp32(half: int, target: str) -> None:
    model = optimize(aff()).model
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = half
    attach_functions(model, target=target)  # type: ignore[arg-type]
    found = operators(model)
    assert found.count("Mul") == 2
    assert found.count("Sub") == 1
    pool = found.index("GlobalAveragePool")
    assert found[pool - 1 : pool + 2] == ["Cast", "GlobalAveragePool", "CastLike"]


def test_one_half_precision_call_decides_for_all() -> None:
    model = optimize(aff()).model
    (call,) = (node for node in model.graph.node if node.op_type == "AttentionalFusion")
    second = model.graph.node.add()
    second.CopyFrom(call)
    second.input[0], second.output[0] = "narrow", "out_again"
    model.graph.value_info.add(name="narrow").type.tensor_type.elem_type = TensorProto.FLOAT16
    attach_functions(model, target="gpu")
    assert "Cast" in operators(model)


def test_a_form_can_be_asked_for() -> None:
    before = aff()
    model = optimize(before).model
    attach_functions(model, form="convex")
    assert operators(model).count("Mul") == 2
    assert_parity(before, model)
