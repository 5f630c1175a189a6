"""Half precision written into the graph: float16, or bfloat16, with what cannot bear it kept in fp32.

`aff_deploy.precision.wide` decides what stays in fp32, `aff_deploy.precision.retype` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, TensorProto

from aff_deploy.passes.functions import attach_functions
from aff_deploy.precision.bias import corrected_biases, find_layers
from aff_deploy.precision.ends import half_ends, require_reach
from aff_deploy.precision.prepare import prepare
from aff_deploy.precision.ranges import Observed, observe, require_finite
from aff_deploy.precision.retype import retype
from aff_deploy.precision.weights import require_finite_weights
from aff_deploy.precision.wide import KeptWide, faint, kept_wide
from aff_deploy.precision.wiring import require_size
from aff_deploy.runtimes import Array
from aff_deploy.spec import Ends


def to_half(
    model: ModelProto,
    half: int,
    *,
    batches: Sequence[Mapping[str, Array]],
    observed: str,
    keep_fp32: Sequence[str] = (),
    io: Ends = "fp32",
) -> tuple[ModelProto, tuple[KeptWide, ...], tuple[str, ...]]:
    """`model` in half precision.

    Args:
        model: of fp32, below 2 GB; left as it is.
        half: TensorProto.FLOAT16 or BFLOAT16.
        batches: inputs by name, on which the ranges of tensors are observed for float16.
        observed: what they are, in words.
        keep_fp32: names of nodes to keep in fp32.
        io: the type of float inputs and outputs, ``fp16`` only with float16.

    Returns:
        The typed model, the nodes kept in fp32, and notes.

    Raises:
        ModelError: the model cannot be retyped.
        DataError: there are no batches, NaN or infinities come of them, or inputs or outputs do not fit `io`.
        UsageError: `keep_fp32` names no node.
    """
    require_size(model)
    require_finite_weights(model)
    require_finite(batches)
    source, notes = prepare(model, half)
    layers = find_layers(source)
    seen = Observed({}, {})
    is_narrow = half == TensorProto.FLOAT16
    if is_narrow or (batches and layers):
        seen = observe(source, batches, ranges=is_narrow, means_of=[layer.node.input[0] for layer in layers])
    kept = kept_wide(source, half, ranges=seen.ranges if is_narrow else None, observed=observed, asked=keep_fp32)
    wide = frozenset(node.name for node in kept)
    narrowed = [layer for layer in layers if layer.name not in wide]
    corrected = corrected_biases(narrowed, source.weights, seen.means, half)
    ends = half_ends(source.light.graph, source.elements) if io == "fp16" else frozenset[str]()
    graph = source.light.graph
    listed = [value.name for value in (*graph.input, *graph.output) if value.name in ends]
    require_reach({name: seen.ranges[name].reach for name in listed if name in seen.ranges})
    typed = retype(model, source, half, wide=wide, ends=ends, weights={**source.weights, **corrected})
    attach_functions(typed, target="gpu")
    if corrected:
        notes += (f"{len(corrected)} biases make up for the mean error of rounded weights, as seen on {observed}",)
    return typed, kept, notes + faint(seen.ranges, observed)
