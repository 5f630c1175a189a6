"""The smallest part of a graph that still goes wrong in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import ModelProto, helper, shape_inference

from aff_deploy.onnx_file import sorted_nodes
from tests.passes.fuzz.double import evaluate
from tests.passes.fuzz.graphs import Case, reads
from tests.passes.fuzz.judge import judge
from tests.passes.fuzz.operators import Array, Values


def minimise(case: Case, kind: str) -> Case:
    """Drop outputs, nodes, and what they read, as long as the verdict is `kind`."""
    model = _with_nodes(case.model, list(sorted_nodes(case.model.graph)))
    current = Case(model, case.feeds, case.values, case.features)
    smaller: Case | None = current
    while smaller is not None:
        current = smaller
        smaller = next((c for c in _smaller(current) if judge(c.model, c.feeds, c.values).kind == kind), None)
    return current


def _smaller(case: Case) -> Iterator[Case]:
    """Every graph that is one step smaller."""
    single = len(case.model.graph.output) == 1
    for output in () if single else case.model.graph.output:
        yield from _pruned(case, case.model, [output.name], case.feeds)
    outputs = [output.name for output in case.model.graph.output]
    nodes = list(case.model.graph.node)
    for node in reversed(nodes):
        yield from _cut(case, node.output, outputs)
        for source in node.input if len(node.output) == 1 else ():
            if source and all(_alike(values[source], values[node.output[0]]) for values in case.values):
                yield from _bypassed(case, node.output[0], source, outputs)


def _cut(case: Case, names: Sequence[str], outputs: list[str]) -> Iterator[Case]:
    """With tensors as inputs instead of what makes them."""
    types = {v.name: v.type.tensor_type for v in shape_inference.infer_shapes(case.model).graph.value_info}
    if set(names) & set(outputs) or any(name not in types for name in names if name):
        return
    model = _with_nodes(case.model, [n for n in case.model.graph.node if list(n.output) != list(names)])
    feeds = [dict(feed) for feed in case.feeds]
    for name in filter(None, names):
        shapes = [values[name].shape for values in case.values]
        by_axis = enumerate(zip(*shapes, strict=True))
        dims = [sizes[0] if len(set(sizes)) == 1 else f"{name}_{i}" for i, sizes in by_axis]
        kind = types[name].elem_type
        model.graph.input.append(helper.make_tensor_value_info(name, kind, dims))
        for feed, values in zip(feeds, case.values, strict=True):
            feed[name] = values[name].astype(helper.tensor_dtype_to_np_dtype(kind))
    yield from _pruned(case, model, outputs, feeds)


def _bypassed(case: Case, name: str, source: str, outputs: list[str]) -> Iterator[Case]:
    """With everybody who reads `name` reading `source`."""
    if name in outputs:
        return
    model = _with_nodes(case.model, [node for node in case.model.graph.node if node.output[0] != name])
    for node in model.graph.node:
        node.input[:] = [source if tensor == name else tensor for tensor in node.input]
    yield from _pruned(case, model, outputs, case.feeds)


def _pruned(case: Case, model: ModelProto, outputs: list[str], feeds: Sequence[Values]) -> Iterator[Case]:
    """Without what the outputs do not need."""
    needed, nodes = set(outputs), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed.update(reads(node))
    model = _with_nodes(model, nodes[::-1])
    for field, keep in (("output", set(outputs)), ("input", needed), ("initializer", needed)):
        kept = [item for item in getattr(model.graph, field) if item.name in keep]
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(kept)
    made = {name for node in model.graph.node for name in node.output}
    noted = [value for value in model.graph.value_info if value.name in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(noted)
    held = {item.name for item in (*model.graph.input, *model.graph.initializer)}
    feeds = [{name: array for name, array in feed.items() if name in held} for feed in feeds]
    try:
        yield Case(model, tuple(feeds), tuple(evaluate(model, feed) for feed in feeds), case.features)
    except Exception:  # of numpy or ONNX Runtime: something needed what was dropped
        return


def _alike(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _with_nodes(model: ModelProto, nodes: Sequence[object]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
