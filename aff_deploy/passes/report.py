"""What a graph holds: operators, fusions, refusals, inputs and outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from aff_deploy.onnx_file import static_shape
from aff_deploy.ops import is_fusion
from aff_deploy.passes.functions import attributes


@dataclass(frozen=True)
class Fusion:
    """One attentional fusion as a person counts them: an iAFF, two calls in a chain, is one.

    Attributes:
        name: where it is, the module path where weights tell it.
        kind: ``aff``, ``iaff`` or ``mscam``.
        channels, inter_channels: of the features, and between the two convolutions of a branch.
        scale: the factor s on the output.
        activation: between the two convolutions.
        context: what the attention looks at: ``sum`` of the inputs, the one input it``self``, their
            ``concat``, or an ``explicit`` tensor.
        branches: ``local``, ``global`` or both.
        share_global: for an iaff, whether both of its fusions use the same global branch; None otherwise.
    """

    name: str
    kind: str
    channels: int
    inter_channels: int
    scale: float
    activation: str
    context: str
    branches: tuple[str, ...]
    share_global: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "branches": list(self.branches)}


def list_fusions(model: ModelProto) -> tuple[Fusion, ...]:
    """Every fusion that the main graph of an optimised model calls, in order."""
    calls = {node.output[0]: node for node in model.graph.node if is_fusion(node.domain, node.op_type)}
    readers = Counter(name for node in model.graph.node for name in node.input) + Counter(v.name for v in model.graph.output)
    inner = {call.input[2] for call in calls.values() if _is_second(call, calls, readers)}
    return tuple(_fusion(call, calls, readers) for name, call in calls.items() if name not in inner)


def _is_second(call: NodeProto, calls: Mapping[str, NodeProto], readers: Mapping[str, int]) -> bool:
    """Whether a call is the second half of an iAFF: it alone looks at what a fusion of the same x and y gave."""
    said = attributes(call)
    if said.get("context") != "explicit" or len(call.input) < 3 or call.input[2] not in calls:
        return False
    first = calls[call.input[2]]
    return attributes(first).get("context") == "sum" and first.input[:2] == call.input[:2] and readers[call.input[2]] == 1


def _fusion(call: NodeProto, calls: Mapping[str, NodeProto], readers: Mapping[str, int]) -> Fusion:
    said = attributes(call)
    named = said
    kind = "mscam" if call.op_type.startswith("AttentionalGate") else "aff"
    share_global = None
    if _is_second(call, calls, readers):
        first = calls[call.input[2]]
        kind, named = "iaff", attributes(first)
        share_global = "global" in str(said.get("branches")) and call.input[-4:] == first.input[-4:]
    branches = said.get("branches")
    return Fusion(
        name=str(named.get("site", call.name)),
        kind=kind,
        channels=_int(said.get("channels")),
        inter_channels=_int(said.get("inter_channels")),
        scale=_float(said.get("scale")),
        activation=str(said.get("activation", "Relu")).lower(),
        context=str(named.get("context", "sum")),
        branches=tuple(str(branch) for branch in branches) if isinstance(branches, list) else (),
        share_global=share_global,
    )


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 1.0


def count_ops(model: ModelProto) -> dict[str, int]:
    """Nodes of the main graph by operator type, most frequent first; foreign domains as ``domain::Op``."""
    counts = Counter(_op_name(node) for node in model.graph.node)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _op_name(node: NodeProto) -> str:
    plain = node.domain in ("", "ai.onnx") or is_fusion(node.domain, node.op_type)
    return node.op_type if plain else f"{node.domain}::{node.op_type}"


def _dtype(elem_type: int) -> str | None:
    try:
        return str(helper.tensor_dtype_to_np_dtype(elem_type)) if elem_type else None
    except KeyError:
        return f"unknown type {elem_type}"


def describe_values(values: list[ValueInfoProto]) -> Iterator[dict[str, Any]]:
    """Name, dtype and shape of graph inputs or outputs; unknown dimensions are None, and so is an unknown rank.

    What is no tensor has the dtype ``sequence``, ``optional`` or ``map``.
    """
    for value in values:
        tensor = value.type.tensor_type
        dtype = _dtype(tensor.elem_type) or (value.type.WhichOneof("value") or "").removesuffix("_type") or None
        shape = static_shape(tensor)
        yield {"name": value.name, "dtype": dtype, "shape": None if shape is None else list(shape)}
