"""What the precision files ask of a graph: who reads what, of which type, and what lies inside local functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto
from onnx.inliner import inline_local_functions

from aff_deploy.errors import ModelError
from aff_deploy.onnx_data import first_line, iter_graphs, iter_tensors, nested_graphs, tensor_bytes
from aff_deploy.onnx_file import MAX_MODEL_BYTES, infer_types, overridable, skeleton, sorted_nodes
from aff_deploy.ops import is_fusion
from aff_deploy.runtimes.onnxruntime import import_onnxruntime

ONNX_DOMAINS = ("", "ai.onnx")
_MARK = "inside call "


def reads(node: NodeProto) -> Iterator[str]:
    """Names that a node reads: its inputs, and whatever its nested graphs read."""
    yield from (name for name in node.input if name)
    for graph in nested_graphs(node):
        for inner in graph.node:
            yield from reads(inner)
        yield from (value.name for value in graph.output)


def rename_reads(node: NodeProto, names: Mapping[str, str]) -> None:
    """Let a node, and its nested graphs, read other tensors."""
    for i, name in enumerate(node.input):
        if name in names:
            node.input[i] = names[name]
    for graph in nested_graphs(node):
        for inner in graph.node:
            rename_reads(inner, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Make these the nodes of a graph, in an order in which each comes after what it reads."""
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    ordered = [NodeProto.FromString(node.SerializeToString()) for node in sorted_nodes(graph)]
    del graph.node[:]
    graph.node.extend(ordered)


def names_of(graph: GraphProto) -> set[str]:
    """Every tensor's name in a graph and in those nested in it."""
    found: set[str] = set()
    for part in iter_graphs(graph):
        found.update(value.name for value in (*part.input, *part.output, *part.initializer))
        found.update(tensor.values.name for tensor in part.sparse_initializer)
        found.update(name for node in part.node for name in (*node.input, *node.output))
    return found


def fresh(name: str, taken: set[str]) -> str:
    """`name`, lengthened until it is not among `taken`, to which it is added."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def name_nodes(graph: GraphProto) -> None:
    """Give every node a name of its own."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in seen:
            node.name = fresh(f"{node.name or node.op_type}_{node.output[0]}" if node.output else node.op_type, taken)
        seen.add(node.name)


def tensor_types(model: ModelProto) -> dict[str, TypeProto.Tensor]:
    """The type of every tensor of the main graph, its shape where known.

    ONNX Runtime is asked for the element types that inference cannot tell.

    Raises:
        ModelError: it cannot tell either, or a value is no tensor.
    """
    types = {name: kind for name, kind in infer_types(model).items() if kind.elem_type}
    if unknown := [out for node in model.graph.node for out in node.output if out and out not in types]:
        types.update(_asked(model, unknown))
    return types


def _asked(model: ModelProto, unknown: list[str]) -> dict[str, TypeProto.Tensor]:
    light = skeleton(model)
    del light.graph.output[:]
    light.graph.output.extend(ValueInfoProto(name=name) for name in unknown)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(light.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ModelError(
            f"the type of tensor {unknown[0]!r} cannot be told: {first_line(error)}", fix="note it in the model's value_info"
        ) from None
    types = {}
    for value in session.get_outputs():
        if not value.type.startswith("tensor("):
            raise ModelError(f"{value.name!r} is a {value.type}, no tensor", fix="export the model without sequences and maps")
        name = _ELEMENTS.get(value.type[7:-1], value.type[7:-1].upper())
        types[value.name] = TypeProto.Tensor(elem_type=TensorProto.DataType.Value(name))
    return types


# ONNX Runtime's names where they are not ONNX's.
_ELEMENTS = {"float": "FLOAT", "double": "DOUBLE"}


def inlined(model: ModelProto) -> tuple[ModelProto, dict[str, tuple[str, str]]]:
    """A skeleton of `model` with every local function expanded, and where its tensors come from.

    Returns:
        The skeleton, and for each tensor made inside a fusion call the call node's name and the name that
        the function's body has for it; outputs of calls are tensors of the main graph. Calls need names.
    """
    light = skeleton(model)
    functions = {(f.domain, f.name, f.overload): f for f in light.functions}
    calls: dict[str, str] = {}
    for number, node in enumerate(light.graph.node):
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is None or not is_fusion(node.domain, node.op_type):
            continue
        # A function of its own for each call, its nodes marked: expanded, they still say where they are from.
        mark = f"{_MARK}{number}:"
        calls[mark] = node.name
        own = light.functions.add()
        own.CopyFrom(function)
        own.name = node.op_type = f"{node.op_type}_{number}"
        for inner in own.node:
            inner.name = f"{mark}{'|'.join(inner.output)}|"
    flat = inline_local_functions(light)
    owners: dict[str, tuple[str, str]] = {}
    main = {out for node in model.graph.node for out in node.output}
    for node in flat.graph.node:
        mark, colon, names = node.name.partition(":")
        if mark + colon in calls:
            node.name = ""
            pairs = zip(node.output, names.split("|"), strict=False)
            owners |= {out: (calls[mark + colon], name) for out, name in pairs if out not in main}
    return flat, owners


def with_weights(light: ModelProto, model: ModelProto, renamed: Mapping[str, str] | None = None) -> ModelProto:
    """Put the initializers of `model` back into a skeleton of it, which is changed in place.

    What the skeleton lost besides (who made it, its metadata) comes back too.

    Args:
        light: the skeleton.
        model: what it was made of.
        renamed: new names that initializers have in the skeleton, by their names in `model`.
    """
    graph = light.graph
    renamed = renamed or {}
    there = {tensor.name for tensor in graph.initializer}
    absent = [tensor for tensor in model.graph.initializer if renamed.get(tensor.name, tensor.name) not in there]
    names = {renamed.get(tensor.name, tensor.name) for tensor in absent} - overridable(model)
    inputs = [value for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend(inputs)
    for tensor in absent:
        graph.initializer.append(tensor)
        graph.initializer[-1].name = renamed.get(tensor.name, tensor.name)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(light, field, getattr(model, field))
    graph.doc_string = model.graph.doc_string
    for kept, source in ((light.metadata_props, model.metadata_props), (graph.metadata_props, model.graph.metadata_props)):
        del kept[:]
        kept.extend(source)
    return light


QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")


def require_unquantised(model: ModelProto) -> None:
    """Refuse a model that holds 8-bit operators.

    Raises:
        ModelError: it does.
    """
    nodes = (node for graph in iter_graphs(model.graph) for node in graph.node)
    inside = (node for function in model.functions for node in function.node)
    if any(node.op_type in QUANTISED for node in (*nodes, *inside)):
        raise ModelError(
            "the model is quantised already: it holds QuantizeLinear or its like",
            fix="build it without a precision option, or give the float32 model",
        )


def require_size(model: ModelProto) -> None:
    """Refuse a model whose weights one message cannot hold.

    Raises:
        ModelError: with the size.
    """
    size = sum(tensor_bytes(tensor) for tensor in iter_tensors(model))
    if size > MAX_MODEL_BYTES:
        raise ModelError(
            f"the model holds {size / 1e9:.1f} GB of weights, and precision is written up to {MAX_MODEL_BYTES / 1e9:.1f} GB",
            fix="build an fp32 engine of it, or export the network in parts",
        )
