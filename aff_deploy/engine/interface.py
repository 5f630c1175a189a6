"""Inputs and outputs of a model, as tensors with a type, sizes and names of dynamic dimensions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aff_deploy.errors import ModelError
from aff_deploy.spec import DTYPES, Dim, TensorSpec

if TYPE_CHECKING:
    import onnx


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """The specs of graph inputs or outputs; a dimension without a size or a name gets a name of its own.

    Raises:
        ModelError: a value of a type or rank that no engine takes.
    """
    from onnx import helper

    specs = []
    for value in values:
        kind = value.type.tensor_type
        dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else "no tensor"
        if dtype not in DTYPES or not kind.HasField("shape"):
            known = "of unknown rank" if dtype in DTYPES else f"of type {dtype}"
            raise ModelError(f"{value.name!r} is {known}", fix=f"give it a shape and one of {', '.join(DTYPES)}")
        shape: list[Dim] = []
        for i, dim in enumerate(kind.shape.dim):
            size = dim.dim_value if dim.HasField("dim_value") else 0
            shape.append(size if size > 0 else dim.dim_param or f"{value.name}_dim{i}")
        specs.append(TensorSpec(value.name, tuple(shape), dtype))
    return tuple(specs)
