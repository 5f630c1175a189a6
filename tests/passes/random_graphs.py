"""Random ONNX graphs: chains of attentional fusions in random spellings, near misses among them, and what should fuse.

A graph is drawn from a `random.Random`: a seeded one for a long run, hypothesis's for one that shrinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import onnx
from onnx import helper

from aff_deploy.onnx_file import check_onnx
from aff_deploy.ops import is_fusion
from aff_deploy.passes import optimize
from tests.passes.graphs import Array, assert_settled, exactness
from tests.passes.random_pieces import Builder, Dims
from tests.passes.random_sites import MISSES, NEEDS_SQUARE, Site


@dataclass(frozen=True)
class RandomGraph:
    """A model; how many fused operators it must become; the near misses in it, which must all stay."""

    model: onnx.ModelProto
    fusions: int
    misses: tuple[str, ...]

    def feeds(self) -> dict[str, Array]:
        """Seeded inputs; dynamic dimensions are 2, 3, 4, 5."""
        rng = np.random.default_rng(0)
        sizes = {"N": 2, "D2": 3, "D3": 4, "D4": 5}
        found: dict[str, Array] = {}
        for value in self.model.graph.input:
            kind = value.type.tensor_type
            shape = [dim.dim_value or sizes[dim.dim_param] for dim in kind.shape.dim]
            found[value.name] = rng.normal(0, 1, shape).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        return found


@dataclass(frozen=True)
class Verdict:
    """How many fused operators there are after optimising, and the largest error relative to what exactness allows."""

    fused: int
    error: float


def random_graph(rng: Random) -> RandomGraph:
    """One model: one to three fusions in a chain; about every third holds a near miss."""
    miss = rng.choice(MISSES) if rng.random() < 0.35 else ""
    builder = Builder(rng, _dims(rng, miss), rng.randint(13, 20), np.float16 if rng.random() < 0.15 else np.float32)
    channels = builder.dims[1]
    assert isinstance(channels, int)
    x, y = (_source(builder, name, channels) for name in ("p", "q"))
    count = rng.choice([1, 1, 2, 3])
    spoiled = rng.randrange(count) if miss else -1
    fusions, extra = 0, []
    for i in range(count):
        out, made, outputs = _fusion(builder, x, y, miss if i == spoiled else "")
        fusions, extra = fusions + made, extra + outputs
        # A Relu twice becomes one, and an average of it then belongs to two fusions.
        x, y = out, rng.choice([x, y, builder.linear("p", "nchw", channels, channels)])
    out = builder.op("Relu", x) if builder.maybe(0.3) else x
    return RandomGraph(_model(builder, [out, *extra]), fusions, (miss,) if miss else ())


def _dims(rng: Random, miss: str) -> Dims:
    rank = rng.choice([3, 4, 4, 4, 4, 5])
    if miss in {"averaged over one axis", *NEEDS_SQUARE}:
        rank = max(rank, 4)
    batch: int | str = rng.choice(["N", "N", 1, 2, 3])
    channels = rng.choice([4, 6, 8, 16])
    if miss in NEEDS_SQUARE:
        return [batch, channels, *[rng.choice([3, 4, 6])] * (rank - 2)]
    return [batch, channels, *[f"D{i}" if rng.random() < 0.3 else rng.choice([2, 3, 4, 6, 8]) for i in range(2, rank)]]


def _source(b: Builder, name: str, channels: int) -> str:
    kind = b.rng.choice(["", "Relu", "Conv"])
    if kind == "Conv":
        return b.linear(name, "nchw", channels, channels)
    return b.op(kind, name) if kind else name


def _fusion(b: Builder, x: str, y: str, miss: str) -> tuple[str, int, list[str]]:
    """Its output, how many fused operators it must become, and inner tensors that are outputs of the model."""
    channels = int(b.dims[1])
    kind = b.rng.choice(["aff", "aff", "aff", "iaff", "ms-cam"]) if not miss else b.rng.choice(["aff", "aff", "iaff"])
    if kind == "ms-cam":
        branches = b.rng.choice([("local", "global"), ("local",)])
        return Site(b, channels, context="self", branches=branches).write(x, x), 1, []
    if kind == "iaff":
        first, second = b.rng.sample(["", miss], 2)
        inner, outer = Site(b, channels, first), Site(b, channels, second)
        out = outer.write(x, y, inner.write(x, y))
        return out, 1 if miss else 2, inner.extra_outputs + outer.extra_outputs
    if miss:
        site = Site(b, channels, miss)
        return site.write(x, y), 0, site.extra_outputs
    context = b.rng.choice(["sum", "sum", "sum", "concat", "product", "either"])
    branches = b.rng.choice([("local", "global"), ("local", "global"), ("local",), ("global",)])
    return Site(b, channels, context=context, branches=branches).write(x, y), 1, []


def _model(b: Builder, outputs: list[str]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, b.elem_type, b.dims) for name in ("p", "q")]
    inputs.append(helper.make_tensor_value_info("k", b.elem_type, [1]))
    read = {name for node in b.nodes for name in node.input}
    ends = [helper.make_tensor_value_info(name, b.elem_type, b.dims) for name in outputs]
    graph = helper.make_graph(b.nodes, "random", [i for i in inputs if i.name in read], ends, b.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=8)


def judge(graph: RandomGraph) -> Verdict:
    """Optimise, check, and run both."""
    result = optimize(graph.model)
    check_onnx(result.model)
    assert_settled(result.model)
    fused = sum(is_fusion(node.domain, node.op_type) for node in result.model.graph.node)
    error = 0.0
    for outputs in exactness(graph.model, result.model, graph.feeds()).values():
        for output in outputs:
            # Where an output is nothing but zeros nothing is allowed, and nothing is off.
            share = output.error / output.allowed if output.allowed else float(output.error > 0)
            error = max(error, float("inf") if output.broken else share)
    return Verdict(fused, error)
