"""What a built engine holds: its layers with the types that they read and write.

Two sources, one reading: the builder's own report of the engine that it has just made (text, from its log at
detailed verbosity; the only one without a GPU), and the engine inspector's JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TENSORS = r"\[((?: ?\{[^{}]*\},?)*) ?\]"
_LAYER = re.compile(
    rf"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: {_TENSORS}, (?:Constants: {_TENSORS}, )?Outputs: {_TENSORS}, "
    r".*?Metadata: (?P<metadata>.*)$"
)
_TENSOR_TYPE = re.compile(r"(?:Format/)?Datatype: ([^,}\]]+)")
_IO = re.compile(
    r"^ ?Name: (?P<name>.*?), IOMode: (?P<mode>\w+), DataType: (?P<dtype>\w+), Dimensions: \[(?P<shape>[-\d, ]*)\]"
)
_SOURCE = re.compile(r"\[ONNX Layer: (.*)\]")

# How the two sources, and TensorRT's versions, spell a type; the first match counts.
_SPELLINGS = (
    ("bfloat16", ("bf16", "bfloat")),
    ("float16", ("fp16", "half")),
    ("float8", ("fp8", "float8")),
    ("float32", ("fp32", "float")),
    ("int8", ("int8",)),
    ("int32", ("int32",)),
    ("int64", ("int64",)),
    ("bool", ("bool",)),
    ("uint8", ("uint8",)),
)


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    Attributes:
        name: the builder's.
        kind: the builder's word for what it is.
        inputs, constants, outputs: types of the tensors (``float32``, ``float16``, ``int8``, ...).
        sources: names of the ONNX nodes that it computes.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine; a dynamic dimension is -1."""

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Listing:
    """The layers, inputs and outputs of an engine, and where they were read."""

    layers: tuple[Layer, ...]
    tensors: tuple[EngineTensor, ...]
    read_from: str


def type_name(text: str) -> str:
    """The numpy name of a type as TensorRT spells it (``Half``, ``kHALF``, ``Row major linear FP16 format``)."""
    lowered = text.lower()
    return next((name for name, spellings in _SPELLINGS if any(s in lowered for s in spellings)), text.strip())


def read_log(message: str) -> Listing:
    """The listing in the builder's log message that begins with ``Layers:``."""
    layers: list[Layer] = []
    tensors: list[EngineTensor] = []
    for line in message.split("\n"):  # not splitlines(), which also splits at the characters between two sources
        if found := _IO.match(line):
            shape = tuple(int(d) for d in found["shape"].split(",") if d.strip())
            tensors.append(EngineTensor(found["name"], found["mode"].lower(), type_name(found["dtype"]), shape))
        elif found := _LAYER.match(line):
            inputs, constants, outputs = (tuple(map(type_name, _TENSOR_TYPE.findall(found[i] or ""))) for i in (3, 4, 5))
            layers.append(Layer(found["name"], found["kind"], inputs, constants, outputs, _sources(found["metadata"])))
    return Listing(tuple(layers), tuple(tensors), "the builder's report of the engine")


def read_inspector(text: str) -> Listing:
    """The listing in the engine inspector's JSON, of TensorRT 10 (``Bindings``) or later (``I/O Tensors``)."""
    document = json.loads(text)
    found = [_layer(entry) for entry in document.get("Layers", ()) if isinstance(entry, Mapping)]
    tensors = [
        EngineTensor(
            str(entry.get("Name", "")),
            str(entry.get("IOMode", "")).lower(),
            type_name(str(entry.get("DataType", entry.get("Datatype", "")))),
            tuple(int(d) for d in entry.get("Dimensions", ())),
        )
        for entry in document.get("I/O Tensors", document.get("Bindings", ()))
        if isinstance(entry, Mapping)
    ]
    return Listing(tuple(found), tuple(tensors), "the engine inspector")


def _layer(entry: Mapping[str, Any]) -> Layer:
    def types(key: str) -> tuple[str, ...]:
        tensors: Sequence[Mapping[str, Any]] = entry.get(key) or ()
        return tuple(type_name(str(t.get("Datatype", t.get("Format/Datatype", "")))) for t in tensors)

    weights = entry.get("Weights")
    held = (type_name(str(weights.get("Type", ""))),) if isinstance(weights, Mapping) else ()
    return Layer(
        str(entry.get("Name", "")),
        str(entry.get("LayerType", "")),
        types("Inputs"),
        types("Constants") + held,
        types("Outputs"),
        _sources(str(entry.get("Metadata", ""))),
    )


def _sources(metadata: str) -> tuple[str, ...]:
    # A control character stands between the entries, and a word on what became of the node may follow one.
    found = (_SOURCE.search(entry) for entry in re.split(r"[\x00-\x1f]+", metadata))
    return tuple(dict.fromkeys(match[1] for match in found if match))
