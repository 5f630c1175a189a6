"""The small frozen values that every stage speaks: tensors, shape ranges, tolerances."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, TypeAlias

from aff_deploy.errors import UsageError

Dim: TypeAlias = "int | str"

DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool")

# An input this large is a typing error, not a wish (1 GiB of float32).
MAX_ELEMENTS = 2**28
# numpy has 64 dimensions at the most, and older ones 32.
MAX_RANK = 32
# Python reads numbers of some thousand digits, and no more.
MAX_TEXT = 4000


_PLAIN = "[A-Za-wyz_][A-Za-wyz0-9_]*"
"""A dimension's name that stands as it is among sizes: without the x that separates them."""
_DIM = rf"[0-9]{{1,18}}|{_PLAIN}|\{{(?:[^\\{{}}]|\\.)+\}}"
_SHAPE = rf"(?:{_DIM})(?:x(?:{_DIM}))*"
_TYPED = re.compile(rf"(?P<name>.+):(?P<shape>{_SHAPE})?:(?P<dtype>{'|'.join(DTYPES)})", re.DOTALL)
_UNTYPED = re.compile(rf"(?P<name>.+):(?P<shape>{_SHAPE})", re.DOTALL)


class Precision(str, Enum):
    """What the weights and arithmetic of an artefact are."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"

    def __str__(self) -> str:
        return self.value


Ends: TypeAlias = Literal["fp32", "fp16"]
"""The type of an engine's float inputs and outputs."""

INTEGER_BOUNDS = {
    "int64": (-(2**63), 2**63 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int8": (-128, 127),
    "uint8": (0, 255),
}
"""What fits into the integer dtypes, both ends included."""


@dataclass(frozen=True)
class Distribution:
    """How generated data for an input is drawn: ``normal`` with (mean, std) or ``uniform`` with (low, high).

    It describes what the network sees, so *after* preprocessing. For integer inputs both ends of
    ``uniform`` are included, and ``normal`` is rounded and kept within what the dtype holds.
    """

    kind: str = "normal"
    first: float = 0.0
    second: float = 1.0


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one input or output.

    A dimension is a positive int, or a str that names a dynamic one. For an input,
    ``example`` is the concrete shape that tracing and generated data start from, and ``distribution``
    what the values of generated data are; None is the standard normal for floats, the whole range for
    uint8, and for other integers nothing that is known.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str = "float32"
    example: tuple[int, ...] | None = None
    distribution: Distribution | None = None

    def __post_init__(self) -> None:
        if any("\ud800" <= letter <= "\udfff" for letter in self.name):
            raise UsageError(f"the name {self.name!r} of an input is no text", fix="give a name in UTF-8")
        if self.dtype not in DTYPES:
            raise UsageError(f"input {self.name!r}: unknown dtype {self.dtype!r}", fix=f"use one of {', '.join(DTYPES)}")
        for dim in self.shape:
            if isinstance(dim, int) and dim < 1:
                raise UsageError(f"input {self.name!r}: dimension {dim} in {self.text}", fix="dimensions are positive")
        if self.distribution is not None:
            _check_distribution(self, self.distribution)

    @property
    def text(self) -> str:
        """``name:batchx3x224x224:float32``, the form that `parse` reads; a scalar is ``name::int64``."""
        return f"{self.name}:{write_shape(self.shape)}:{self.dtype}"

    @property
    def is_dynamic(self) -> bool:
        return any(isinstance(d, str) for d in self.shape)

    def concrete(self, /, **sizes: int) -> tuple[int, ...]:
        """The shape as integers: dynamic dimensions from `sizes` by name, else from ``example``, else 1."""
        example = self.example or tuple(d if isinstance(d, int) else 1 for d in self.shape)
        return tuple(d if isinstance(d, int) else sizes.get(d, e) for d, e in zip(self.shape, example, strict=True))

    @staticmethod
    def parse(text: str) -> TensorSpec:
        """Read ``NAME:1x3x224x224[:float32]``; a word in place of a size names a dynamic dimension, as in ``batchx3x64x64``.

        Raises:
            UsageError: the text is not of that form.
        """
        # By its length first: the patterns' work grows with the square of it.
        if len(text) > MAX_TEXT:
            raise UsageError(f"an input of {len(text)} characters cannot be read", fix="give it a shorter name")
        typed = _TYPED.fullmatch(text)
        found = typed or _UNTYPED.fullmatch(text)
        if found is None or (typed is None and found["shape"] in DTYPES):
            raise UsageError(f"cannot read input {text!r}", fix="write NAME:1x3x224x224 or NAME:batchx3x224x224:float32")
        name, written, dtype = found["name"], found["shape"] or "", typed["dtype"] if typed else "float32"
        before, _, middle = name.rpartition(":")
        if typed is None and before and re.fullmatch(_PLAIN, written) and re.fullmatch(_SHAPE, middle):
            # Not an input "x:1x3" of one dimension, but a type that there is not.
            raise UsageError(f"input {before!r}: unknown dtype {written!r}", fix=f"use one of {', '.join(DTYPES)}")
        shape = tuple(_read_dim(word) for word in re.findall(_DIM, written))
        size = 1
        for dim in shape:
            size *= dim if isinstance(dim, int) else 1
        if size > MAX_ELEMENTS:
            raise UsageError(f"input {text!r} has {size} elements", fix=f"at most {MAX_ELEMENTS} are supported")
        return TensorSpec(name, shape, dtype)

    def with_dynamic(self, axes: Mapping[int, str]) -> TensorSpec:
        """The same tensor with the given axes dynamic; sizes so far become the example."""
        for axis in axes:
            if not 0 <= axis < len(self.shape):
                raise UsageError(
                    f"input {self.name!r} has no axis {axis}", fix=f"its shape {self.text} has axes 0 to {len(self.shape) - 1}"
                )
        shape = tuple(axes.get(i, d) for i, d in enumerate(self.shape))
        unknown = self.is_dynamic and self.example is None
        return TensorSpec(self.name, shape, self.dtype, None if unknown else self.concrete(), self.distribution)


def write_shape(shape: Sequence[Dim]) -> str:
    """``batchx3x64x64``; the name of a dimension that would be misread stands in braces, as in ``{max_length}x80``."""
    return "x".join(_write_dim(dim) for dim in shape)


def _write_dim(dim: Dim) -> str:
    if not isinstance(dim, str) or re.fullmatch(_PLAIN, dim):
        return str(dim)
    return "{" + re.sub(r"([\\{}])", r"\\\1", dim) + "}"


def _read_dim(word: str) -> Dim:
    if word.isdecimal():
        return int(word)
    return re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith("{") else word


def _check_distribution(spec: TensorSpec, drawn: Distribution) -> None:
    if spec.dtype == "bool":
        raise UsageError(f"input {spec.name!r} is bool, which has no range", fix="leave the range out")
    if drawn.kind != "uniform":
        return
    low, high = drawn.first, drawn.second
    least, most = INTEGER_BOUNDS.get(spec.dtype, (-math.inf, math.inf))
    whole = spec.dtype not in INTEGER_BOUNDS or (low == int(low) and high == int(high))
    if not (least <= low <= high <= most and whole):
        wanted = f"whole numbers from {least} to {most}, " if spec.dtype in INTEGER_BOUNDS else ""
        raise UsageError(
            f"input {spec.name!r} is {spec.dtype}, whose values cannot range from {low:g} to {high:g}",
            fix=f"give {wanted}the smaller first",
        )


def apply_ranges(inputs: Sequence[TensorSpec], ranges: Sequence[str]) -> tuple[TensorSpec, ...]:
    """`inputs` with the values of generated data as ``NAME:LOW:HIGH`` says, both ends included.

    Raises:
        UsageError: a text that is not of that form, names no input, or does not fit its dtype.
    """
    drawn: dict[str, Distribution] = {}
    names = [spec.name for spec in inputs]
    for text in ranges:
        match = re.fullmatch(r"(?P<name>.+):(?P<low>[^:]+):(?P<high>[^:]+)", text.strip(), re.DOTALL)
        low, high = (_read_number(match[key]) for key in ("low", "high")) if match else (None, None)
        if match is None or low is None or high is None:
            raise UsageError(f"cannot read range {text!r}", fix="write NAME:LOW:HIGH, such as ids:0:999")
        if match["name"] not in names:
            raise UsageError(f"--range names no input {match['name']!r}", fix=f"the inputs are {', '.join(names)}")
        drawn[match["name"]] = Distribution("uniform", low, high)
    return tuple(replace(spec, distribution=drawn[spec.name]) if spec.name in drawn else spec for spec in inputs)


def _read_number(text: str) -> float | None:
    """A finite number, whole ones as int, which holds 64 bits; None for anything else."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None


def parse_dynamic(text: str) -> tuple[str, dict[int, str]]:
    """Read ``NAME:0=batch[,2=h,3=w]`` into the input's name and its dynamic axes.

    Raises:
        UsageError: the text is not of that form.
    """
    if len(text) > MAX_TEXT:
        raise UsageError(f"dynamic dimensions of {len(text)} characters cannot be read", fix="give shorter names")
    match = re.fullmatch(r"(?P<name>.+):(?P<axes>\d+=[A-Za-z_]\w*(?:,\d+=[A-Za-z_]\w*)*)", text.strip())
    if match is None:
        raise UsageError(f"cannot read dynamic dimensions {text!r}", fix="write NAME:0=batch or NAME:0=batch,2=h,3=w")
    axes = (pair.split("=") for pair in match["axes"].split(","))
    return match["name"], {int(axis): name for axis, name in axes}


def apply_dynamic(inputs: Sequence[TensorSpec], dynamic: Sequence[str]) -> tuple[TensorSpec, ...]:
    """`inputs` with every ``NAME:0=batch`` of `dynamic` applied.

    Raises:
        UsageError: a name that is not among the inputs, or an axis the input does not have.
    """
    wanted: dict[str, dict[int, str]] = {}
    for text in dynamic:
        name, axes = parse_dynamic(text)
        wanted.setdefault(name, {}).update(axes)
    names = [spec.name for spec in inputs]
    for name in wanted:
        if name not in names:
            raise UsageError(f"--dynamic names no input {name!r}", fix=f"the inputs are {', '.join(names)}")
    return tuple(spec.with_dynamic(wanted[spec.name]) if spec.name in wanted else spec for spec in inputs)


@dataclass(frozen=True)
class ShapeProfile:
    """Smallest, usual and largest shape of each input, by input name."""

    min: Mapping[str, tuple[int, ...]]
    opt: Mapping[str, tuple[int, ...]]
    max: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from the reference.

    An output passes when ``max|a - b| <= atol + rtol * max|b|`` (b is the reference, so `rtol`
    is relative to the scale of the whole output, not to each element, which would make
    near-zero elements decide) and its cosine similarity is at least `min_cosine`.
    """

    atol: float
    rtol: float
    min_cosine: float


TOLERANCES: Mapping[Precision, Tolerance] = {
    Precision.FP32: Tolerance(atol=1e-6, rtol=1e-4, min_cosine=0.99999),
    Precision.FP16: Tolerance(atol=1e-4, rtol=5e-3, min_cosine=0.9999),
    Precision.BF16: Tolerance(atol=1e-3, rtol=4e-2, min_cosine=0.999),
    Precision.INT8: Tolerance(atol=1e-2, rtol=2e-1, min_cosine=0.98),
    Precision.FP8: Tolerance(atol=1e-2, rtol=2e-1, min_cosine=0.98),
}
"""The one table of default tolerances; a recipe may override a row."""
