"""How far the values of every tensor reach on given data, seen by ONNX Runtime's CPU provider in fp32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

from aff_deploy.errors import DataError
from aff_deploy.precision.wiring import fresh, inlined, names_of, require_size, tensor_types, with_weights
from aff_deploy.runtimes import Array, Feeds
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

# In this order at every tensor; see `_add`.
_STATISTICS = ("ReduceMin", "ReduceMax", "ReduceSum")


@dataclass(frozen=True)
class Range:
    """The smallest and largest value of a tensor; both infinite the wrong way round where it was always empty.

    Attributes:
        lowest: the smallest value.
        highest: the largest value.
        owner: the name of the fusion call that the tensor lies in; empty in the main graph.
    """

    lowest: float
    highest: float
    owner: str = ""

    @property
    def reach(self) -> float:
        """The largest magnitude; 0 of an empty tensor."""
        return max(self.highest, -self.lowest, 0.0)


def observe_ranges(model: ModelProto, batches: Sequence[Mapping[str, Array]]) -> dict[str, Range]:
    """The range of every fp32 tensor over all batches: inputs, what nodes make, and what fusion calls hold inside.

    The extremes are taken inside the graph, so that no more than a few tensors are in memory at a time.
    Nested graphs (of If, Loop, Scan) are not looked into.

    Args:
        model: of fp32, below 2 GB, its nodes named.
        batches: inputs by name, of the model's own shapes and dtypes.

    Returns:
        By name; a tensor inside a call is ``<call>/<name in the function>``.

    Raises:
        DataError: there are no batches, they do not fit, or a tensor is not a number (NaN) on them, or
            an output infinite.
        ModelError: the model cannot be run.
    """
    if not batches:
        raise DataError("there is no data to observe ranges on", fix="give at least one batch")
    require_finite(batches)
    require_size(model)
    flat, owners = inlined(model)
    types = tensor_types(flat)
    graph = flat.graph
    outputs = {value.name for value in graph.output}
    made = [out for node in graph.node if node.op_type != "Constant" for out in node.output if out]
    watched = [name for name in made if types[name].elem_type == TensorProto.FLOAT]
    del graph.output[:]
    taken = {*types, *names_of(graph)}
    statistics: dict[str, str] = {}
    for position, name in enumerate(watched):
        for which, op_type in enumerate(_STATISTICS):
            statistic = fresh(f"statistic_{position}_{which}", taken)
            statistics[statistic] = name
            graph.node.append(helper.make_node(op_type, [name], [statistic], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(statistic, TensorProto.FLOAT, []))
    extremes = {name: [np.inf, -np.inf] for name in watched}
    runner = OnnxRuntimeRunner(with_weights(flat, model))
    inputs = [spec.name for spec in runner.inputs if spec.dtype == "float32"]
    extremes |= {name: [np.inf, -np.inf] for name in inputs}
    with runner:
        for batch in batches:
            _add(extremes, batch, inputs, runner.infer(batch) if statistics else {}, statistics, outputs)
    named = {name: f"{owners[name][0]}/{owners[name][1]}" if name in owners else name for name in extremes}
    return {
        named[name]: Range(float(low), float(high), owners[name][0] if name in owners else "")
        for name, (low, high) in extremes.items()
    }


def require_finite(batches: Sequence[Mapping[str, Array]]) -> None:
    """Refuse data with NaN or infinities.

    Raises:
        DataError: naming the input.
    """
    for batch in batches:
        for name, array in batch.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"input {name!r} holds values that are not finite", fix="clean the data")


def _add(
    extremes: dict[str, list[float]],
    batch: Feeds,
    inputs: Sequence[str],
    found: Mapping[str, Array],
    statistics: Mapping[str, str],
    outputs: Set[str],
) -> None:
    for name in inputs:
        if name in batch and batch[name].size:
            _widen(extremes[name], float(batch[name].min()), float(batch[name].max()))
    values = [(name, float(value)) for name, value in found.items()]
    for (statistic, low), (_, high), (_, total) in zip(values[0::3], values[1::3], values[2::3], strict=True):
        name = statistics[statistic]
        if low > high:
            continue  # an empty tensor
        # Minimum and maximum pass over what is not a number; a sum does not, but infinities of both signs make one.
        if np.isnan(total) and not (np.isinf(low) and np.isinf(high)):
            raise DataError(f"tensor {name!r} is not a number (NaN) in fp32 on this data", fix=_SOURCES)
        if name in outputs and not np.isfinite([low, high]).all():
            raise DataError(f"output {name!r} is infinite in fp32 on this data", fix=_SOURCES)
        _widen(extremes[name], low, high)


_SOURCES = "check the weights, and that the data went through the network's preprocessing"


def _widen(extremes: list[float], low: float, high: float) -> None:
    extremes[:] = [min(extremes[0], low), max(extremes[1], high)]
