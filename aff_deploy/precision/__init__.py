"""Precision written into the ONNX: strongly typed engines compute in what the graph says, and in nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnx import ModelProto, TensorProto

from aff_deploy.errors import UsageError
from aff_deploy.passes.functions import attach_functions
from aff_deploy.precision.ends import narrow_ends
from aff_deploy.precision.half import to_half
from aff_deploy.precision.ranges import Range, observe_ranges
from aff_deploy.precision.rounding import open_rounding, rounding_model
from aff_deploy.precision.wide import KeptWide
from aff_deploy.runtimes import Array, Runner
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.spec import Ends, Precision

__all__ = ["KeptWide", "Range", "Typed", "evaluator", "observe_ranges", "rounding_model", "to_precision"]

_HALVES = {Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}
_HOW = {
    Precision.FP32: "ONNX Runtime CPU",
    Precision.FP16: "ONNX Runtime CPU, every tensor rounded to float16",
    Precision.BF16: "ONNX Runtime CPU, every tensor rounded to bfloat16",
    Precision.INT8: "ONNX Runtime CPU, tensors quantised to int8 as the graph says",
    Precision.FP8: "ONNX Runtime CPU, tensors quantised to fp8 as the graph says",
}


@dataclass(frozen=True)
class Typed:
    """A model whose tensors have the types that an engine is to compute in.

    Attributes:
        model: the model, its fusions written for a GPU.
        precision: what was asked for.
        io: the type of float inputs and outputs, ``fp32`` or ``fp16``; inputs that integers are computed from stay fp32.
        kept_wide: nodes and fusion calls that stay in fp32, and why.
        observed: on what data ranges were observed, in words.
        notes: what else a person should know.
    """

    model: ModelProto
    precision: Precision
    io: str
    kept_wide: tuple[KeptWide, ...]
    observed: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the model."""
        return {
            "precision": str(self.precision),
            "io": self.io,
            "kept_wide": [asdict(kept) for kept in self.kept_wide],
            "observed": self.observed,
            "notes": list(self.notes),
        }


def to_precision(
    model: ModelProto,
    precision: Precision,
    *,
    batches: Sequence[Mapping[str, Array]],
    observed: str,
    io: Ends = "fp32",
    keep_fp32: Sequence[str] = (),
) -> Typed:
    """Write a precision into a model.

    Args:
        model: of fp32, below 2 GB unless it stays fp32; left as it is.
        precision: fp32 rewrites the fusions for a GPU and no more.
        batches: inputs by name; fp16 observes ranges on them, int8 and fp8 are calibrated on them, and
            float16 inputs and outputs are held against them. Only fp32 and bf16 do without.
        observed: what they are, in words.
        io: the type of float inputs and outputs, ``fp32`` or ``fp16``.
        keep_fp32: names of nodes and fusion calls to keep in fp32.

    Raises:
        ModelError: the model cannot be retyped.
        DataError: there is no data, it does not fit, or inputs or outputs do not fit into float16.
        UsageError: `io` is neither, or `keep_fp32` names no node.
    """
    if io not in ("fp32", "fp16"):
        raise UsageError(f"inputs and outputs cannot be {io!r}", fix="use fp32 or fp16")
    kept: tuple[KeptWide, ...] = ()
    notes: tuple[str, ...] = ()
    if precision in _HALVES:
        inside: Ends = io if precision is Precision.FP16 else "fp32"
        half = _HALVES[precision]
        typed, kept, notes = to_half(model, half, batches=batches, observed=observed, keep_fp32=keep_fp32, io=inside)
    elif precision is Precision.FP32:
        typed = ModelProto()
        typed.CopyFrom(model)
        attach_functions(typed, target="gpu")
    else:
        from aff_deploy.precision.quantize import quantize

        typed, kept = quantize(model, precision, batches, keep_fp32=keep_fp32)
        attach_functions(typed, target="gpu")
    if io == "fp16":
        if precision is not Precision.FP16:
            typed = narrow_ends(typed, model, batches)
        floats = (value.name for value in typed.graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT)
        notes += tuple(f"input {name!r} stays fp32: integers are computed from it" for name in sorted(floats))
    return Typed(typed, precision, io, kept, observed, notes)


def evaluator(typed: Typed) -> Runner:
    """A runner that computes on a CPU what the typed graph computes; its name says how.

    Raises:
        MissingDependency: onnxruntime is not installed.
        ModelError: it cannot run the model.
    """
    rounds = typed.precision in _HALVES or typed.io == "fp16"
    runner = open_rounding(typed.model) if rounds else OnnxRuntimeRunner(typed.model)
    runner.name = _HOW[typed.precision]
    return runner
