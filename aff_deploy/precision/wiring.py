"""What the precision files ask of a graph: who reads what, of which type, and what lies inside local functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto
from onnx.inliner import inline_local_functions

from aff_deploy.errors import ModelError, UsageError
from aff_deploy.onnx_data import first_line, iter_graphs, iter_tensors, nested_graphs, tensor_bytes
from aff_deploy.onnx_file import MAX_MODEL_BYTES, copy_without, infer_types, overridable
from aff_deploy.ops import is_fusion
from aff_deploy.recipe import nearest
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner, import_onnxruntime

ONNX_DOMAINS = ("", "ai.onnx")
_MARK = "inside call "


def reads(node: NodeProto) -> Iterator[str]:
    """Names that a node reads: its inputs, and whatever its nested graphs read."""
    yield from (name for name in node.input if name)
    for graph in nested_graphs(node):
        for inner in graph.node:
            yield from reads(inner)
        yield from (value.name for value in graph.output)


def cast_target(node: NodeProto) -> int:
    """The element type that a Cast casts to; 0 of any other node."""
    return next((a.i for a in node.attribute if a.name == "to"), 0) if node.op_type == "Cast" and not node.domain else 0


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


def copy_without_nodes(model: ModelProto) -> ModelProto:
    """A copy of a model that lacks the nodes of its main graph."""
    copy = copy_without(model, "graph")
    copy.graph.CopyFrom(copy_without(model.graph, "node"))
    return copy


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


def require_names(graph: GraphProto, asked: Iterable[str]) -> None:
    """Refuse names that no node has.

    Raises:
        UsageError: naming the first, and the nearest that there is.
    """
    names = [node.name for node in graph.node]
    for name in asked:
        if name not in names:
            near = nearest(name, names)
            raise UsageError(
                f"no node of the model is called {name!r}",
                fix=f"did you mean {near!r}?" if near else "list the nodes with: aff-deploy inspect FILE --json",
            )


def tensor_types(light: ModelProto, *, strict: bool = False) -> dict[str, TypeProto.Tensor]:
    """The type of every tensor of the main graph of a skeleton, its shape where known.

    ONNX Runtime is asked for the element types that inference cannot tell.

    Raises:
        ModelError: it cannot tell either, or a value is no tensor; with `strict`, where types contradict each other.
    """
    copy = ModelProto()
    copy.CopyFrom(light)
    # Names with a zero are of tensors that inference itself put in.
    inferred = infer_types(copy, strict=strict, is_light=True).items()
    types = {name: kind for name, kind in inferred if kind.elem_type and "\0" not in name}
    if unknown := [out for node in light.graph.node for out in node.output if out and out not in types]:
        types.update(_asked(light, unknown))
    return types


def _asked(light: ModelProto, unknown: list[str]) -> dict[str, TypeProto.Tensor]:
    asking = ModelProto()
    asking.CopyFrom(light)
    del asking.graph.output[:]
    asking.graph.output.extend(ValueInfoProto(name=name) for name in unknown)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(asking.SerializeToString(), options, providers=["CPUExecutionProvider"])
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


@dataclass(frozen=True)
class Expanded:
    """A skeleton in which every local function is expanded.

    Attributes:
        model: the skeleton.
        owners: for each tensor made inside a fusion call the call node's name, and the name that the function's
            body has for it; outputs of calls are tensors of the main graph.
        types: the type of every tensor.
    """

    model: ModelProto
    owners: Mapping[str, tuple[str, str]]
    types: Mapping[str, TypeProto.Tensor]


def expand(light: ModelProto, *, strict: bool = False) -> Expanded:
    """Expand the local functions of a skeleton, which is left as it is; fusion calls need names.

    Raises:
        ModelError: as `tensor_types`.
    """
    copy = ModelProto()
    copy.CopyFrom(light)
    functions = {(f.domain, f.name, f.overload): f for f in copy.functions}
    calls: dict[str, str] = {}
    for number, node in enumerate(copy.graph.node):
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is None or not is_fusion(node.domain, node.op_type):
            continue
        # A function of its own for each call, its nodes marked: expanded, they still say where they are from.
        mark = f"{_MARK}{number}:"
        calls[mark] = node.name
        own = copy.functions.add()
        own.CopyFrom(function)
        own.name = node.op_type = f"{node.op_type}_{number}"
        for inner in own.node:
            inner.name = f"{mark}{'|'.join(inner.output)}|"
    flat = inline_local_functions(copy)
    owners: dict[str, tuple[str, str]] = {}
    main = {out for node in light.graph.node for out in node.output}
    for node in flat.graph.node:
        mark, colon, names = node.name.partition(":")
        if mark + colon in calls:
            node.name = ""
            pairs = zip(node.output, names.split("|"), strict=False)
            owners |= {out: (calls[mark + colon], name) for out, name in pairs if out not in main}
    return Expanded(flat, owners, tensor_types(flat, strict=strict))


def add_weights(light: ModelProto, model: ModelProto, weights: Iterable[TensorProto] | None = None) -> None:
    """Give a skeleton of `model` initializers, and what else it lost: who made the model, and its metadata.

    Args:
        light: changed in place.
        model: what it was made of.
        weights: in place of those of `model`.
    """
    graph = light.graph
    there = {tensor.name for tensor in graph.initializer}
    wanted = model.graph.initializer if weights is None else weights
    graph.initializer.extend(tensor for tensor in wanted if tensor.name not in there)
    names = {tensor.name for tensor in graph.initializer} - overridable(model)
    inputs = [value for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend(inputs)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(light, field, getattr(model, field))
    graph.doc_string = model.graph.doc_string
    for kept, source in ((light.metadata_props, model.metadata_props), (graph.metadata_props, model.graph.metadata_props)):
        del kept[:]
        kept.extend(source)


def open_skeleton(light: ModelProto, weights: Iterable[TensorProto], defaults: Collection[str] = ()) -> OnnxRuntimeRunner:
    """A runner of a skeleton, which needs little memory: not even the weights are copied.

    Args:
        light: changed in place: what weights are for is no input any more.
        weights: what it lacks, and perhaps what it has.
        defaults: names of weights that a caller may override.

    Raises:
        MissingDependency: onnxruntime is not installed.
        ModelError: it cannot load the model.
    """
    there = {tensor.name for tensor in light.graph.initializer}
    absent = [tensor for tensor in weights if tensor.name not in there]
    constants = {tensor.name for tensor in absent}.difference(defaults)
    inputs = [value for value in light.graph.input if value.name not in constants]
    del light.graph.input[:]
    light.graph.input.extend(inputs)
    return OnnxRuntimeRunner(light, weights=absent, frugal=True)


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
