"""Things that run a network: one framework a file, all with the same three verbs.

`check_feeds` is the gate before every run, so that a wrong name, shape or dtype is named here and
not deep inside a framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from aff_deploy.errors import DataError
from aff_deploy.spec import TensorSpec, write_shape

Array: TypeAlias = "npt.NDArray[Any]"
Feeds: TypeAlias = "Mapping[str, Array]"


class Runner(Protocol):
    """A loaded network. Use it as a context manager; `infer` as often as wanted."""

    name: str
    """What messages and reports call it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs by name, in the order of `outputs`.

        Raises:
            DataError: `feeds` does not fit `inputs`.
        """

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def shape_text(shape: Sequence[int | str]) -> str:
    """``1x3x224x224``, as `TensorSpec.parse` reads it; a scalar's shape is ``scalar``."""
    return write_shape(shape) or "scalar"


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype that carries a `TensorSpec` dtype; numpy lacks bfloat16, which travels as float32."""
    return np.dtype("float32" if name == "bfloat16" else name)


def check_feeds(inputs: Sequence[TensorSpec], feeds: Feeds) -> None:
    """Hold `feeds` against `inputs`: names, rank, static and equally named dimensions, dtype.

    Raises:
        DataError: naming the input, what came and what was expected.
    """
    expected = [spec.name for spec in inputs]
    wrong = [f"no data for input {name!r}" for name in expected if name not in feeds]
    wrong += [f"data for {name!r}, which is no input" for name in feeds if name not in expected]
    if wrong:
        raise DataError(", ".join(wrong), fix=f"the inputs are {', '.join(expected)}")
    sizes: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        array = feeds[spec.name]
        came = shape_text(array.shape)
        if len(array.shape) != len(spec.shape):
            raise DataError(
                f"input {spec.name!r} got shape {came} of rank {len(array.shape)}",
                fix=f"expected {shape_text(spec.shape)} of rank {len(spec.shape)}",
            )
        if array.size == 0:
            raise DataError(f"input {spec.name!r} got empty data of shape {came}", fix=f"expected {shape_text(spec.shape)}")
        for axis, (size, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
            if isinstance(dim, int):
                if size != dim:
                    raise DataError(
                        f"input {spec.name!r} got shape {came}, {size} on axis {axis}",
                        fix=f"expected {shape_text(spec.shape)}, {dim} on that axis",
                    )
                continue
            first, owner = sizes.setdefault(dim, (size, spec.name))
            if first != size:
                raise DataError(
                    f"input {spec.name!r} got shape {came}, {size} on axis {axis}",
                    fix=f"dimension {dim!r} is {first} in input {owner!r} and must be one size everywhere",
                )
        if array.dtype != numpy_dtype(spec.dtype):
            raise DataError(
                f"input {spec.name!r} got dtype {array.dtype}",
                fix=f"expected {numpy_dtype(spec.dtype)}" + (" (for bfloat16)" if spec.dtype == "bfloat16" else ""),
            )
