"""Random ONNX graphs from a seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import numpy as np
import onnx
from onnx import ModelProto, helper

from tests.passes.fuzz.builder import Builder
from tests.passes.fuzz.nodes import FIRST_IR_WITH_DEFAULTS, Invalid
from tests.passes.fuzz.operators import Values
from tests.passes.fuzz.pieces import PIECES
from tests.passes.fuzz.sites import chain, site

CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 8, 16, 16, 17, 32)


@dataclass(frozen=True)
class Case:
    """A model, what to feed it, and what it computes.

    Attributes:
        model: its nodes perhaps out of order.
        feeds: inputs in their own types; defaults that are overridden among them.
        values: every tensor in double precision, for each of the feeds.
        features: how often each thing occurs.
    """

    model: ModelProto
    feeds: tuple[Values, ...]
    values: tuple[Values, ...]
    features: Counter[str]


def random_case(seed: int) -> Case:
    """The graph of a seed: features of one shape, one or two places of attention among other layers."""
    b = Builder(Random(seed))
    shape = _feature_shape(b)
    large = 100.0 if b.dtype == np.float16 else 1e5
    scales = (1.0, 1.0, 1.0, 0.1, 5.0, large if b.extreme else 1.0)
    features = [b.input(shape, scale=b.pick(*scales)) for _ in range(b.pick(2, 2, 3))]
    tensors = list(features)
    for _ in range(b.rng.randint(0, 3)):
        _try_piece(b, tensors, features)
    for _ in range(b.pick(0, 1, 1, 1, 1, 2)):
        _try_site(b, tensors, features)
        for _ in range(b.rng.randint(0, 1)):
            _try_piece(b, tensors, features)
    for _ in range(b.rng.randint(0, 3)):
        _try_piece(b, tensors, features)
    if not b.nodes:
        tensors.append(b.op("Relu", features[0]))
    return Case(_model(b, tensors), tuple(b.feeds), tuple(b.values), b.features)


def _feature_shape(b: Builder) -> list[int | str]:
    rank = b.pick(3, 4, 4, 4, 5)
    batch: int | str = "n" if b.chance(0.6) else b.rng.randint(1, 3)
    names = b.pick(("h", "w", "d"), ("s", "s", "s"), ("n", "n", "n")) if b.chance(0.1) else ("h", "w", "d")
    dynamic = b.chance(0.35)
    sizes = [names[i] if dynamic and b.chance(0.8) else b.rng.randint(1, 6) for i in range(rank - 2)]
    return [batch, b.pick(*CHANNELS), *sizes]


def _try_piece(b: Builder, tensors: list[str], features: list[str]) -> None:
    try:
        with b.attempt():
            x = b.rng.choice(tensors)
            made = b.pick(*PIECES)(b, x)
            if b.dtypes[made] != b.dtype:
                return
            tensors.append(made)
            if b.same_shape(made, features[0]):
                features.append(made)
    except Invalid:
        pass


def _try_site(b: Builder, tensors: list[str], features: list[str]) -> None:
    for _ in range(5):
        x, y = b.rng.sample(features, 2)
        try:
            with b.attempt():
                made = chain(b, x, y) if b.chance(0.12) else site(b, x, y)
                tensors += [name for name in made if b.dtypes[name] == b.dtype]
                features += [name for name in made if b.same_shape(name, features[0])]
                return
        except Invalid:
            continue


def _model(b: Builder, tensors: list[str]) -> ModelProto:
    read = {name for node in b.nodes for name in reads(node)}
    made = [name for node in b.nodes for name in node.output]
    ends = [name for name in made if name not in read]
    # The others are dead, as a rule.
    outputs = [name for name in ends if b.chance(0.95 if name in tensors else 0.02)] or ends
    inner = [name for name in made if name in read]
    if inner and b.chance(0.15):
        b.note("inner output")
        outputs += b.rng.sample(inner, min(len(inner), b.rng.randint(1, 2)))
    inputs = list(b.inputs)
    if b.chance(0.05):
        b.note("input or constant as output")
        outputs.append(b.op("Identity", b.pick(*b.feeds[0], *b.initializers)))
    if b.ir < FIRST_IR_WITH_DEFAULTS:
        listed = list(b.initializers)
        b.note("IR 3")
    else:
        listed = [name for name in b.initializers if name in b.overridable]
    for name in listed:
        tensor = b.initializers[name]
        inputs.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    values = [_output(b, name) for name in outputs]
    graph = helper.make_graph(b.nodes, "fuzz", inputs, values, initializer=list(b.initializers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=b.ir)
    b.note(
        f"opset {b.opset}",
        f"type {b.dtype}",
        f"features of rank {len(b.inputs[0].type.tensor_type.shape.dim)}",
    )
    if b.extreme:
        b.note("extreme magnitudes")
    if b.chance(0.5):
        _infer(model, b)
    if b.chance(0.12):
        b.note("nodes out of order")
        shuffled = list(model.graph.node)
        b.rng.shuffle(shuffled)
        del model.graph.node[:]
        model.graph.node.extend(shuffled)
    return model


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, itself and in its nested graphs."""
    nested = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*node.input, *(name for g in nested for n in g.node for name in reads(n))]


def _output(b: Builder, name: str) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(b.dtypes[name])
    return helper.make_tensor_value_info(name, kind, [None] * b.rank(name))


def _infer(model: ModelProto, b: Builder) -> None:
    """Note the shapes of inner tensors and outputs, as exporters do."""
    b.note("noted shapes")
    inferred = onnx.shape_inference.infer_shapes(model)
    model.graph.value_info.extend(inferred.graph.value_info)
    if b.chance(0.5):
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
