"""Parity after every pass: which rewrite, if any, changed what a model computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aff_deploy.errors import CheckFailed
from aff_deploy.runtimes.feeds import free_sizes, seeded_feeds
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.spec import TOLERANCES, Precision, TensorSpec
from aff_deploy.validate import validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from aff_deploy.runtimes import Array


def precision_of(model: onnx.ModelProto) -> Precision:
    """The precision that decides how exact a model can be: the lowest of its weights and operators."""
    from onnx import TensorProto

    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return Precision.INT8
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    if TensorProto.BFLOAT16 in types:
        return Precision.BF16
    return Precision.FP16 if TensorProto.FLOAT16 in types else Precision.FP32


def seeded_batches(inputs: Sequence[TensorSpec], *, samples: int = 4) -> Sequence[Mapping[str, Array]]:
    """Seeded data for a model of which only its own inputs are known."""
    return seeded_feeds(inputs, samples=samples, sizes=free_sizes(inputs))


def pass_verifier(
    model: onnx.ModelProto, batches: Sequence[Mapping[str, Array]] | None = None
) -> Callable[[str, onnx.ModelProto], None]:
    """An ``after_pass`` for `aff_deploy.passes.optimize` that holds each result against `model` on ONNX Runtime.

    Args:
        model: what the passes start from; loaded into a session now, so it may change afterwards.
        batches: data to compare on, by input name; by default seeded.

    Raises:
        CheckFailed: from the returned function, naming the pass, the output and the distance.
    """
    reference = OnnxRuntimeRunner(model)
    tolerance = TOLERANCES[precision_of(model)]
    compared_on = seeded_batches(reference.inputs) if batches is None else batches

    def after_pass(name: str, rewritten: onnx.ModelProto) -> None:
        with OnnxRuntimeRunner(rewritten) as candidate:
            report = validate(reference, candidate, compared_on, tolerance, metamorphic=False)
        if not report.passed:
            raise CheckFailed(
                f"pass {name!r} changed what the model computes: {report.failures[0]}",
                fix="please report it with the model; --no-fuse leaves the attention blocks alone",
            )

    return after_pass
