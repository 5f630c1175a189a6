"""Calls of the fused operator: weights, feeds, and models of a single node."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from aff_deploy.ops import DOMAIN, DOMAIN_VERSION, Form, Variant, function_body

Array = NDArray[Any]
CHANNELS, INTER = 16, 4
ELEM_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


def arrays_of(variant: Variant, *, spatial: tuple[int, ...] = (5, 6), batch: int = 2, seed: int = 0) -> dict[str, Array]:
    """Seeded float64 arrays by the names of the operator's inputs; an explicit context has other channels than x."""
    generator = np.random.default_rng(seed)
    context_channels = CHANNELS + 3 if variant.context == "explicit" else CHANNELS
    ones = (1,) * len(spatial)
    shapes = {
        "x": (batch, CHANNELS, *spatial),
        "y": (batch, CHANNELS, *spatial),
        "a": (batch, context_channels, *spatial),
        "w1": (INTER, context_channels, *ones),
        "b1": (INTER,),
        "w2": (CHANNELS, INTER, *ones),
        "b2": (CHANNELS,),
        "slope": (INTER, *ones),
    }
    arrays = {}
    for name in variant.inputs:
        shape = shapes[name.split("_")[-1]]
        fan_in = shape[1] if name.endswith(("w1", "w2")) else 1
        arrays[name] = generator.normal(size=shape) / np.sqrt(fan_in)
    return arrays


def call_model(
    variant: Variant,
    arrays: dict[str, Array],
    *,
    form: Form = "plain",
    scale: float = 1.0,
    scale_by_attribute: bool = False,
    alpha: float = 0.2,
    opset: int = 18,
    dtype: str = "float32",
    **options: bool,
) -> ModelProto:
    """A model that calls the operator once on its inputs x, y and a; weights are initializers."""
    elem_type = ELEM_TYPES[dtype]
    function = function_body(
        variant, form=form, scale=None if scale_by_attribute else scale, opset=opset, elem_type=elem_type, **options
    )
    spatial = arrays["x"].shape[2:]
    attributes = {"channels": CHANNELS, "scale": scale, "alpha": alpha, "upsample": [1.0, 1.0, *map(float, spatial)]}
    node = helper.make_node(variant.op_type, list(variant.inputs), list(variant.outputs), domain=DOMAIN, **attributes)
    tensors = {name: array.astype(dtype) for name, array in arrays.items()}
    data = [name for name in tensors if name in ("x", "y", "a")]
    graph = helper.make_graph(
        [node],
        "call",
        [helper.make_tensor_value_info(name, elem_type, tensors[name].shape) for name in data],
        [helper.make_tensor_value_info(name, elem_type, tensors["x"].shape) for name in variant.outputs],
        [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items() if name not in data],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)


BRANCHES = (("local", "global"), ("local",), ("global",))
VARIANTS = tuple(
    Variant(context=context, blend=blend, branches=branches)  # type: ignore[arg-type]
    for context, blend, branches in product(("sum", "self", "explicit"), (True, False), BRANCHES)
    if blend or context != "sum"
)


def feeds_for(model: ModelProto, arrays: dict[str, Array], dtype: str = "float32") -> dict[str, Array]:
    return {value.name: arrays[value.name].astype(dtype) for value in model.graph.input}


def assert_computes(expected: Array, actual: Array, dtype: str = "float32") -> None:
    tolerance = {"float32": 1e-5, "float16": 6e-3, "float64": 1e-6}[dtype]
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    assert np.max(np.abs(actual.astype(np.float64) - expected)) <= tolerance * np.max(np.abs(expected))
