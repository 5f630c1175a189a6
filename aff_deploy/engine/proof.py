"""Is the engine of the precision that was asked for? Decided node by node, from what the engine itself holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from aff_deploy.engine.listing import Layer, Listing
from aff_deploy.errors import CheckFailed
from aff_deploy.onnx_data import iter_graphs, nested_graphs
from aff_deploy.spec import Precision

if TYPE_CHECKING:
    import onnx

COMPUTED_IN: Mapping[Precision, str] = {
    Precision.FP32: "float32",
    Precision.FP16: "float16",
    Precision.BF16: "bfloat16",
    Precision.INT8: "int8",
    Precision.FP8: "float8",
}
# By TensorProto.DataType, which is not imported for it: fp32, fp64 (engines have nothing wider than fp32), fp16, bf16, int8,
# fp8.
_TYPES: Mapping[int | None, str] = {1: "float32", 11: "float32", 10: "float16", 16: "bfloat16", 3: "int8", 17: "float8"}
WEIGHTED = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
"""The nodes that are held to their type: they hold the weights and nearly all of the arithmetic."""


@dataclass(frozen=True)
class Dissent:
    """A node that the engine computes in another type than the typed model does."""

    node: str
    layer: str
    asked: str
    found: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """What was asked of an engine and what it holds.

    Attributes:
        precision: what was asked for.
        nodes: weighted nodes (convolutions, matrix products) of the typed model.
        in_precision: those of them that the engine computes in `precision`.
        wide_by_design: those that the typed model itself keeps in another type.
        dissent: those that the engine computes in another type than the typed model.
        unseen: those that no layer of the engine names.
        weight_bytes: size of the engine's weights.
        read_from: where the layers were read.
    """

    precision: Precision
    nodes: int
    in_precision: int
    wide_by_design: tuple[str, ...]
    dissent: tuple[Dissent, ...]
    unseen: tuple[str, ...]
    weight_bytes: int | None
    read_from: str

    @property
    def passed(self) -> bool:
        # Without a node that is seen in the precision, nothing is proven of it; fp32 is what engines are anyway.
        return not self.dissent and not self.unseen and (self.in_precision > 0 or self.precision is Precision.FP32)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"passed": self.passed, **asdict(self), "precision": str(self.precision)}

    def require(self) -> None:
        """Raise where the engine is not what was asked for.

        Raises:
            CheckFailed: naming the layers.
        """
        if self.passed:
            return
        if self.dissent:
            named = ", ".join(f"{d.node} asks for {d.asked}, layer {d.layer} reads {_types(d.found)}" for d in self.dissent[:5])
            more = f", and {len(self.dissent) - 5} more" if len(self.dissent) > 5 else ""
            narrowed = all(d.asked == "float32" for d in self.dissent) and self.precision is not Precision.FP32
            raise CheckFailed(
                f"the engine does not compute in the types of the {self.precision} model: {named}{more}",
                fix="nothing was written; "
                + (
                    "the builder narrows a node that stands alone between casts: keep its neighbours in fp32 too, or none"
                    if narrowed
                    else "another precision, or another version of the builder, may do better"
                ),
            )
        if self.unseen:
            raise CheckFailed(
                f"{self.precision} cannot be proven: no layer of the engine names {', '.join(self.unseen[:5])}",
                fix="nothing was written; please report it with the model",
            )
        kept = f" was kept in another type ({', '.join(self.wide_by_design[:5])})" if self.nodes else " there is"
        raise CheckFailed(
            f"nothing in the engine is seen to be {self.precision}: every convolution or product{kept}",
            fix="nothing was written; build it without a precision option" + _OTHERS.get(self.precision, ""),
        )


def _types(found: tuple[str, ...]) -> str:
    return " and ".join(found) or "nothing"


_OTHERS = {Precision.FP16: ", or with --bf16, which has the range of fp32"}


def prove(
    model: onnx.ModelProto,
    listing: Listing,
    precision: Precision,
    weight_bytes: int | None,
    *,
    plugin_calls: Collection[str] = (),
) -> Proof:
    """Hold the layers of an engine against the typed model that it was built from.

    A layer computes a node in some type when it reads tensors of that type: accumulators, scales and
    biases may be wider.

    Args:
        model: the typed model.
        listing: what the engine holds.
        precision: what was asked for.
        weight_bytes: size of the engine's weights, where it is known.
        plugin_calls: names of the calls that a plugin computes, as one layer each.
    """
    expected = expected_types(model, plugin_calls)
    # Layers of nested graphs have names of the builder's own; the typed model keeps such graphs in fp32.
    nested = tuple(_parser_name(node) for graph in _nested(model) for node in graph.node if node.op_type in WEIGHTED)
    wanted = COMPUTED_IN[precision]
    layers: dict[str, list[Layer]] = {}
    for layer in listing.layers:
        for source in layer.sources:
            layers.setdefault(source, []).append(layer)
    dissent, unseen, honoured = [], [], 0
    for node, dtype in expected.items():
        holding = layers.get(node, [])
        if not holding:
            unseen.append(node)
        elif any(dtype in layer.inputs for layer in holding):
            honoured += dtype == wanted
        else:
            dissent.append(Dissent(node, holding[0].name, dtype, tuple(dict.fromkeys(holding[0].inputs))))
    dissent += _ends(model, listing)
    return Proof(
        precision=precision,
        nodes=len(expected) + len(nested),
        in_precision=honoured,
        wide_by_design=tuple(node for node, dtype in expected.items() if dtype != wanted)
        + (nested if precision is not Precision.FP32 else ()),
        dissent=tuple(dissent),
        unseen=tuple(unseen),
        weight_bytes=weight_bytes,
        read_from=listing.read_from,
    )


def expected_types(model: onnx.ModelProto, plugin_calls: Collection[str] = ()) -> dict[str, str]:
    """The type in which each weighted node should compute, by the name that TensorRT's parser gives it.

    A node in a local function is called ``node_of_OUTPUT | CALL (FUNCTION)``; a call that a plugin computes keeps its own.
    """
    from aff_deploy.onnx_file import infer_types

    types = {name: kind.elem_type for name, kind in infer_types(model).items()}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    functions = {function.name: function for function in model.functions}
    expected: dict[str, str] = {}
    for node in model.graph.node:
        if node.name in plugin_calls:
            expected[node.name] = _type_of(node.input[0], types, producers)
        elif node.op_type in functions:
            inner = [_parser_name(n) for n in functions[node.op_type].node if n.op_type in WEIGHTED]
            dtype = _type_of(node.input[0], types, producers)
            expected |= {f"{name} | {_parser_name(node)} ({node.op_type})": dtype for name in inner}
        elif node.op_type in WEIGHTED and node.domain in ("", "ai.onnx"):
            expected[_parser_name(node)] = _type_of(node.input[0], types, producers)
    return expected


def _ends(model: onnx.ModelProto, listing: Listing) -> Iterator[Dissent]:
    """Float inputs and outputs that the engine has in another type than the model."""
    there = {tensor.name: tensor.dtype for tensor in listing.tensors}
    for value in (*model.graph.input, *model.graph.output):
        dtype = _TYPES.get(value.type.tensor_type.elem_type)
        if dtype is not None and there.get(value.name, dtype) != dtype:
            yield Dissent(value.name, "(input or output)", dtype, (there[value.name],))


def _nested(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    for node in model.graph.node:
        for graph in nested_graphs(node):
            yield from iter_graphs(graph)


def _parser_name(node: onnx.NodeProto) -> str:
    return node.name or f"node_of_{node.output[0]}"


def _type_of(tensor: str, types: Mapping[str, int], producers: Mapping[str, onnx.NodeProto]) -> str:
    """The type behind a DequantizeLinear, where one makes the tensor: the engine computes in that."""
    maker = producers.get(tensor)
    if maker is not None and maker.op_type == "DequantizeLinear":
        tensor = maker.input[0]
        quantiser = producers.get(tensor)
        if quantiser is not None and len(quantiser.input) > 2:
            tensor = quantiser.input[2]
    return _TYPES.get(types.get(tensor), "unknown")
