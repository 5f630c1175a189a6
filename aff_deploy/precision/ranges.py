"""What the values of tensors are on given data, seen by ONNX Runtime's CPU provider in fp32: how far they reach, and means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from aff_deploy.errors import DataError
from aff_deploy.onnx_file import opset_of
from aff_deploy.precision.prepare import Source, source_of
from aff_deploy.precision.wiring import copy_without_nodes, fresh, names_of, open_skeleton, require_size
from aff_deploy.runtimes import Array, Feeds

# In this order at every tensor; see `_add`.
_STATISTICS = ("ReduceMin", "ReduceMax", "ReduceSum")
FIRST_AXES_INPUT = 18
"""From this opset on, ReduceMean takes its axes as an input."""


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
    require_finite(batches)
    require_size(model)
    return dict(observe(source_of(model), batches).ranges)


@dataclass(frozen=True)
class Observed:
    """What was seen on data: `ranges` as of `observe_ranges`, and `means` by channel, float64."""

    ranges: Mapping[str, Range]
    means: Mapping[str, Array]


def observe(
    source: Source, batches: Sequence[Mapping[str, Array]], *, ranges: bool = True, means_of: Sequence[str] = ()
) -> Observed:
    """Run a model on data once, and keep of its tensors what precision is decided by.

    Args:
        source: the model.
        batches: inputs by name, of finite values.
        ranges: whether ranges are wanted.
        means_of: tensors of the expanded model whose mean by channel (axis 1) is wanted; of those of unknown rank,
            and those whose mean is not finite, there is none.

    Raises:
        DataError, ModelError: as `observe_ranges`.
    """
    if not batches:
        raise DataError("there is no data to observe ranges on", fix="give at least one batch")
    expanded = source.expanded
    flat = copy_without_nodes(expanded.model)
    graph = flat.graph
    del graph.output[:]
    taken = {*expanded.types, *names_of(expanded.model.graph)}
    statistics: dict[str, str] = {}
    averaged: dict[str, str] = {}
    watched: list[str] = []
    # Statistics stand behind what they are of, and run there: no more than a few tensors are in memory at a time.
    for name in source.inputs.intersection(means_of):
        averaged |= _add_mean(graph, source, name, taken)
    for node in expanded.model.graph.node:
        graph.node.append(node)
        for name in filter(source.is_float, node.output if node.op_type != "Constant" else ()):
            if ranges:
                watched.append(name)
                statistics |= _add_extremes(graph, name, taken)
            if name in means_of:
                averaged |= _add_mean(graph, source, name, taken)
    outputs = source.outputs
    extremes = {name: [np.inf, -np.inf] for name in watched}
    sums: dict[str, Array] = {}
    rows = 0
    with open_skeleton(flat, source.weights.values(), source.defaults) as runner:
        inputs = [spec.name for spec in runner.inputs if ranges and spec.dtype == "float32"]
        extremes |= {name: [np.inf, -np.inf] for name in inputs}
        for batch in batches:
            found = runner.infer(batch) if graph.output else {}
            means = {name: found.pop(statistic) for statistic, name in averaged.items()}
            _add(extremes, batch, inputs, found, statistics, outputs)
            # Scalars have no rows, and a model may have no inputs at all.
            count = next((len(array) for array in batch.values() if np.ndim(array)), 1)
            rows += count
            if count:
                sums = {name: sums.get(name, 0) + count * mean.astype(np.float64) for name, mean in means.items()}
    owners = expanded.owners
    named = {name: "/".join(owners.get(name, (name,))) for name in extremes}
    owned = {name: owners[name][0] if name in owners else "" for name in extremes}
    return Observed(
        {named[name]: Range(float(low), float(high), owned[name]) for name, (low, high) in extremes.items()},
        {name: total / rows for name, total in sums.items() if np.isfinite(total).all()},
    )


def _add_extremes(graph: GraphProto, name: str, taken: set[str]) -> dict[str, str]:
    """Add outputs with the smallest, the largest and the sum of a tensor's values; its name by theirs."""
    found: dict[str, str] = {}
    for op_type in _STATISTICS:
        statistic = fresh(f"{name}_{op_type}", taken)
        found[statistic] = name
        graph.node.append(helper.make_node(op_type, [name], [statistic], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(statistic, TensorProto.FLOAT, []))
    return found


def _add_mean(graph: GraphProto, source: Source, name: str, taken: set[str]) -> dict[str, str]:
    """Add an output with the mean of a tensor by channel; its name by that of the output."""
    kind = source.expanded.types[name]
    if not kind.HasField("shape") or len(kind.shape.dim) < 2:
        return {}
    axes = [axis for axis in range(len(kind.shape.dim)) if axis != 1]
    statistic = fresh(f"{name}_mean", taken)
    if opset_of(source.light) >= FIRST_AXES_INPUT:
        chosen = fresh(f"{name}_axes", taken)
        graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), chosen))
        graph.node.append(helper.make_node("ReduceMean", [name, chosen], [statistic], keepdims=0))
    else:
        graph.node.append(helper.make_node("ReduceMean", [name], [statistic], keepdims=0, axes=axes))
    graph.output.append(helper.make_tensor_value_info(statistic, TensorProto.FLOAT, [None]))
    return {statistic: name}


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
