"""Is the engine of the precision that was asked for? Decided node by node, from what the engine itself holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from aff_deploy.engine.listing import Layer, Listing
from aff_deploy.errors import CheckFailed
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
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
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
        return not self.dissent and not self.unseen and (self.in_precision > 0 or self.nodes == 0)

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
            named = ", ".join(f"{d.layer} ({d.node}: {' and '.join(d.found) or 'no type'})" for d in self.dissent[:5])
            more = f" and {len(self.dissent) - 5} more" if len(self.dissent) > 5 else ""
            raise CheckFailed(
                f"the engine is not {self.precision}: {len(self.dissent)} of {self.nodes} weighted nodes are of another type: "
                f"{named}{more}",
                fix="nothing was written; another precision, or another version of the builder, may do better",
            )
        if self.unseen:
            raise CheckFailed(
                f"{self.precision} cannot be proven: no layer of the engine names {', '.join(self.unseen[:5])}",
                fix="nothing was written; please report it with the model",
            )
        kept = ", ".join(self.wide_by_design[:5])
        raise CheckFailed(
            f"nothing in the engine is {self.precision}: every weighted node was kept in another type ({kept})",
            fix="nothing was written; ask for fp32, or for bf16, which has the range of fp32",
        )


def prove(model: onnx.ModelProto, listing: Listing, precision: Precision, weight_bytes: int | None) -> Proof:
    """Hold the layers of an engine against the typed model that it was built from.

    A layer computes a node in some type when it reads tensors of that type: accumulators, scales and
    biases may be wider.

    Args:
        model: the typed model.
        listing: what the engine holds.
        precision: what was asked for.
        weight_bytes: size of the engine's weights, where it is known.
    """
    expected = expected_types(model)
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
    return Proof(
        precision=precision,
        nodes=len(expected),
        in_precision=honoured,
        wide_by_design=tuple(node for node, dtype in expected.items() if dtype != wanted),
        dissent=tuple(dissent),
        unseen=tuple(unseen),
        weight_bytes=weight_bytes,
        read_from=listing.read_from,
    )


def expected_types(model: onnx.ModelProto) -> dict[str, str]:
    """The type in which each weighted node should compute, by the name that TensorRT's parser gives it.

    A node in a local function is called ``node_of_OUTPUT | CALL (FUNCTION)``.
    """
    from aff_deploy.onnx_file import infer_types

    types = {name: kind.elem_type for name, kind in infer_types(model).items()}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    functions = {function.name: function for function in model.functions}
    expected: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in functions:
            inner = [_parser_name(n) for n in functions[node.op_type].node if n.op_type in WEIGHTED]
            dtype = _type_of(node.input[0], types, producers)
            expected |= {f"{name} | {_parser_name(node)} ({node.op_type})": dtype for name in inner}
        elif node.op_type in WEIGHTED and node.domain in ("", "ai.onnx"):
            expected[_parser_name(node)] = _type_of(node.input[0], types, producers)
    return {name: dtype for name, dtype in expected.items() if dtype}


def _parser_name(node: onnx.NodeProto) -> str:
    return node.name or f"node_of_{node.output[0]}"


def _type_of(tensor: str, types: Mapping[str, int], producers: Mapping[str, onnx.NodeProto]) -> str:
    """The type behind a DequantizeLinear, where one makes the tensor: the engine computes in that."""
    from onnx import TensorProto

    maker = producers.get(tensor)
    if maker is not None and maker.op_type == "DequantizeLinear":
        tensor = maker.input[0]
        quantiser = producers.get(tensor)
        if quantiser is not None and len(quantiser.input) > 2:
            tensor = quantiser.input[2]
    names: dict[int | None, str] = {
        TensorProto.FLOAT: "float32",
        TensorProto.FLOAT16: "float16",
        TensorProto.BFLOAT16: "bfloat16",
        TensorProto.INT8: "int8",
        TensorProto.FLOAT8E4M3FN: "float8",
    }
    return names.get(types.get(tensor), "")
