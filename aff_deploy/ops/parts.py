"""Where a fusion in half precision computes in fp32: one table, and the rewriting of a part that says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from onnx import TensorProto

Part = Literal["pool", "local", "global", "logits", "gate", "blend"]
Width = Literal["fp32", "own"]

PARTS: Mapping[Part, Width] = {
    "pool": "fp32",
    "local": "own",
    "global": "own",
    "logits": "own",
    "gate": "own",
    "blend": "own",
}
"""What each part of a half-precision call computes in: fp32, or the type of its inputs.

The pool adds up as many numbers as there are positions, and a sum in half precision may overflow or
stop growing; its result is rounded once, at the end. Convolutions accumulate in fp32 on every GPU by
themselves, and the other parts look at one number at a time.
"""

HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

_LINE = re.compile(r"(\w+) = .*\(([^()]*)\)")


def widened(part: Part, lines: Iterable[str], makes: Iterable[str], *, cast_back: str, own_cast: str) -> Iterator[str]:
    """The lines of a part with everything they read cast to fp32, and what they make for others cast back.

    Args:
        part: which one.
        lines: ONNX text, an assignment a line, all of one output.
        makes: tensors that later lines read.
        cast_back: how a tensor ``{name}_f`` becomes one of the inputs' type, with a place for its name.
        own_cast: the text of casts to the inputs' type inside the lines that must become casts to fp32, or nothing.
    """
    body = "\n".join(lines)
    assigned = _LINE.findall(body)
    made = {name for name, _ in assigned}
    read = dict.fromkeys(name.strip() for _, arguments in assigned for name in arguments.split(","))
    outer = [name for name in read if name and name not in made]
    if own_cast:
        body = body.replace(own_cast, f"Cast<to: int = {TensorProto.FLOAT}>")
    renamed = {name: f"{name}_{part}" for name in outer} | {name: f"{name}_f" for name in makes}
    yield from (f"{name}_{part} = Cast<to: int = {TensorProto.FLOAT}>({name})" for name in outer)
    yield re.sub(r"\b(" + "|".join(renamed) + r")\b", lambda match: renamed[match[1]], body)
    yield from (cast_back.format(name=name) for name in makes)
