"""A model typed anew: every fp32 tensor gets the types in which it is made and read.

Half precision, fp32, or both, with one Cast between them. The name stays with the half-precision tensor where there
is one, but inputs and outputs keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, defs, helper, numpy_helper

from aff_deploy.onnx_file import opset_of
from aff_deploy.precision.prepare import Source
from aff_deploy.precision.values import rounded
from aff_deploy.precision.wide import reads_wide
from aff_deploy.precision.wiring import ONNX_DOMAINS, add_weights, copy_without_nodes, fresh, names_of, reads, rename_reads

_SUFFIXES: Mapping[int, str] = {TensorProto.FLOAT: "_fp32", TensorProto.FLOAT16: "_fp16", TensorProto.BFLOAT16: "_bf16"}
# They take any type, and give of a half-precision tensor what they give of the same numbers in fp32.
_TAKING_ANY = ("Cast", "Shape", "Size")
# Attributes that name the type of what a node makes.
_TYPES = ("to", "dtype", "output_datatype")


def retype(
    model: ModelProto,
    source: Source,
    half: int,
    *,
    wide: AbstractSet[str],
    ends: AbstractSet[str] = frozenset(),
    weights: Mapping[str, TensorProto],
) -> ModelProto:
    """`model` in half precision, rounded from `weights`.

    Args:
        model: left as it is.
        source: what was made of it.
        half: TensorProto.FLOAT16 or BFLOAT16.
        wide: names of nodes that stay in fp32.
        ends: fp32 inputs and outputs that become half precision; names of others say nothing.
        weights: initializers by name, as of `source`.
    """
    ends = ends & (source.inputs | source.outputs)
    names = _choose_names(source, half, wide, ends)
    light = source.light
    typed = copy_without_nodes(light)
    graph = typed.graph
    del graph.initializer[:], graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.name in ends:
            value.type.tensor_type.elem_type = half
    taken = {node.name for node in light.graph.node}
    nodes = [cast for name in sorted(source.inputs) for cast in _casts(name, names, half, taken)]
    for node in light.graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        is_wide = node.name in wide
        if not is_wide and any(map(source.is_float, node.output)):
            _retype_attributes(copy, half, opset_of(light))
        names.rename(copy, is_wide=is_wide)
        nodes.append(copy)
        nodes += [cast for name in node.output for cast in _casts(name, names, half, taken)]
    graph.node.extend(nodes)
    graph.value_info.extend(_values(source, names, half))
    add_weights(typed, model, _initializers(source, names, half, weights))
    return typed


@dataclass(frozen=True)
class _Names:
    """What fp32 tensors are called once retyped.

    Attributes:
        narrow: names of half-precision tensors, by the names that they had.
        wide: names of fp32 tensors; of some there are both.
        made_narrow: had names of those that nodes make in half precision.
    """

    narrow: Mapping[str, str]
    wide: Mapping[str, str]
    made_narrow: AbstractSet[str]

    def rename(self, node: NodeProto, *, is_wide: bool) -> None:
        """Let a node read and make the tensors that suit it."""
        if is_wide and not _takes_any(node):
            rename_reads(node, self.wide)
        else:
            node.input[:] = [self._suiting(node, position, name) for position, name in enumerate(node.input)]
        made = self.wide if is_wide else self.narrow
        node.output[:] = [made.get(name, name) for name in node.output]

    def _suiting(self, node: NodeProto, position: int, name: str) -> str:
        is_wide = reads_wide(node, position)
        if _takes_any(node):
            is_wide = name in self.wide and name not in self.made_narrow
        return (self.wide if is_wide else self.narrow).get(name, name)


def _takes_any(node: NodeProto) -> bool:
    return node.op_type in _TAKING_ANY and node.domain in ONNX_DOMAINS


def _choose_names(source: Source, half: int, wide: AbstractSet[str], ends: AbstractSet[str]) -> _Names:
    graph = source.light.graph
    made_narrow: set[str] = set(source.inputs & ends)
    narrow_reads: set[str] = set()
    wide_reads: set[str] = set()
    for node in graph.node:
        if node.name not in wide:
            made_narrow.update(filter(source.is_float, node.output))
        if _takes_any(node):
            continue
        if node.name in wide:
            wide_reads.update(reads(node))
            continue
        for position, name in enumerate(node.input):
            (wide_reads if reads_wide(node, position) else narrow_reads).add(name)
    wide_ends = (source.inputs | source.outputs) - ends
    constants = source.weights.keys() - source.defaults
    listed = [value.name for value in graph.input]
    made = [name for node in graph.node for name in node.output]
    taken = names_of(graph) | source.weights.keys()
    narrow_names: dict[str, str] = {}
    wide_names: dict[str, str] = {}
    for name in filter(source.is_float, dict.fromkeys((*listed, *source.weights, *made))):
        is_narrow = name in made_narrow or name in narrow_reads or name in ends
        is_made_wide = name not in made_narrow and not (name in constants and is_narrow)
        is_wide = is_made_wide or name in wide_reads or name in wide_ends
        keeps_wide = is_wide and (name in wide_ends or not is_narrow)
        if is_narrow:
            narrow_names[name] = fresh(name + _SUFFIXES[half], taken) if keeps_wide else name
        if is_wide:
            wide_names[name] = name if keeps_wide else fresh(name + _SUFFIXES[TensorProto.FLOAT], taken)
    return _Names(narrow_names, wide_names, made_narrow)


def _casts(name: str, names: _Names, half: int, taken: set[str]) -> Iterator[NodeProto]:
    """The Cast between a tensor's two types, where it has two; `taken` are the names of nodes."""
    if name in names.narrow and name in names.wide:
        made, read, to = names.wide[name], names.narrow[name], half
        if name in names.made_narrow:
            made, read, to = read, made, TensorProto.FLOAT
        yield helper.make_node("Cast", [made], [read], name=fresh(f"{read}_cast", taken), to=to)


def _retype_attributes(node: NodeProto, half: int, opset: int) -> None:
    """Let a node make half precision where its attributes, or their defaults, say fp32."""
    if node.domain not in ONNX_DOMAINS:
        return
    known = {attribute.name: attribute for attribute in node.attribute}
    schema = defs.get_schema(node.op_type, opset, "")
    for name in _TYPES:
        if name in schema.attributes and name not in known and schema.attributes[name].default_value.i == TensorProto.FLOAT:
            node.attribute.append(helper.make_attribute(name, half))
        if name in known and known[name].i == TensorProto.FLOAT:
            known[name].i = half
    if node.op_type == "ConstantOfShape" and "value" not in known:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float32))))
    for attribute in node.attribute:
        if attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(rounded(attribute.t, half))


def _values(source: Source, names: _Names, half: int) -> Iterator[ValueInfoProto]:
    """The types of what lies between inputs and outputs."""
    graph = source.light.graph
    said = {value.name: value.type.tensor_type for value in graph.value_info}
    made = (name for node in graph.node for name in node.output if name)
    for name in (*sorted(source.inputs), *made):
        kind = source.expanded.types[name]
        kind = kind if kind.HasField("shape") or name not in said else said[name]
        types = {names.narrow.get(name): half, names.wide.get(name): TensorProto.FLOAT}
        if not source.is_float(name):
            types = {name: kind.elem_type}
        for new in types.keys() - {None} - source.inputs - source.outputs:
            value = ValueInfoProto(name=new)
            value.type.tensor_type.CopyFrom(kind)
            value.type.tensor_type.elem_type = types[new]
            yield value


def _initializers(source: Source, names: _Names, half: int, weights: Mapping[str, TensorProto]) -> Iterator[TensorProto]:
    for name, tensor in weights.items():
        if not source.is_float(name):
            yield tensor
        if name in names.narrow and (name not in source.defaults or name in names.made_narrow):
            narrow = rounded(tensor, half)
            narrow.name = names.narrow[name]
            yield narrow
        if name in names.wide and (name not in source.defaults or name not in names.made_narrow):
            wide = TensorProto()
            wide.CopyFrom(tensor)
            wide.name = names.wide[name]
            yield wide
