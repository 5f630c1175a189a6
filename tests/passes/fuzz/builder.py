"""A graph under construction whose constants are held in the many ways that there are."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from tests.passes.fuzz.nodes import FEEDS, FIRST_IR_WITH_DEFAULTS, Invalid, Nodes
from tests.passes.fuzz.operators import Array

FIRST_OPSET_OF_AXES = 13


class Builder(Nodes):
    """Adds constants to nodes and inputs."""

    def constant(self, value: Any, dtype: Any = None, *, plain: bool = False) -> str:
        """A constant, in one of the many ways to hold one."""
        kind = np.dtype(dtype or (self.dtype if np.asarray(value).dtype.kind == "f" else np.int64))
        with np.errstate(over="ignore"):
            array = np.asarray(value).astype(kind)
        if kind.kind == "f" and not np.all(np.isfinite(array)):
            raise Invalid("a constant is not finite")
        how = self.rng.random()
        if plain or how < 0.75:
            return self._initializer(array)
        if how < 0.9:
            self.note("Constant node")
            return self._constant_node(array)
        if how < 0.925:
            self.note("constant behind Identity")
            return self.op("Identity", self._initializer(array))
        if how < 0.94 and array.ndim > 1:
            self.note("constant behind Transpose")
            return self.op("Transpose", self._initializer(array.T.copy()))
        if how < 0.96 and kind == np.float32:
            self.note("constant behind Cast")
            return self.op("Cast", self._initializer(array.astype(np.float16)), to=int(TensorProto.FLOAT))
        if how < 0.975 and kind == np.float32 and array.ndim > 1:
            return self._dequantized(array)
        return self._initializer(array, overridable=how > 0.994)

    def _dequantized(self, array: Array) -> str:
        """Int8 numbers with one scale, or one for each row."""
        self.note("quantised constant")
        by_row = self.opset >= FIRST_OPSET_OF_AXES and self.chance(0.5)
        largest = np.max(np.abs(array), axis=tuple(range(1, array.ndim)) if by_row else None)
        scale = np.asarray(np.maximum(largest, 1e-3) / 127.0, dtype=np.float32)
        rows = scale.reshape(-1, *[1] * (array.ndim - 1)) if by_row else scale
        codes = self._initializer(np.clip(np.round(array / rows), -127, 127).astype(np.int8))
        axis = {"axis": 0} if by_row else {}
        return self.op("DequantizeLinear", codes, self._initializer(scale), dtype=np.float32, **axis)

    def _initializer(self, array: Array, *, overridable: bool = False) -> str:
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape))
        if not overridable and self.chance(0.7):
            found = next(
                (n for n, t in self.initializers.items() if n not in self.overridable and _equal(t, tensor)),
                None,
            )
            if found is not None:
                self.note("shared initializer")
                return found
        tensor.name = self.name("c")
        self.initializers[tensor.name] = tensor
        self.dtypes[tensor.name] = array.dtype
        for i in range(FEEDS):
            self._set(i, tensor.name, array)
        if overridable and self.ir >= FIRST_IR_WITH_DEFAULTS:
            self.note("overridable initializer")
            self.overridable.add(tensor.name)
            if array.dtype.kind == "f":
                other = np.asarray(array * self.pick(0.5, 2.0, -1.0), dtype=array.dtype)
                self._set(FEEDS - 1, tensor.name, other)
                self.feeds[FEEDS - 1][tensor.name] = other
        return tensor.name

    def _constant_node(self, array: Array) -> str:
        if self.opset >= 12 and array.dtype == np.float32 and array.ndim < 2 and self.chance(0.3):
            value = {"value_floats": array.tolist()} if array.ndim else {"value_float": float(array)}
            return self.op("Constant", dtype=array.dtype, **value)
        return self.op("Constant", dtype=array.dtype, value=numpy_helper.from_array(array))

    def weights(self, *shape: int, fan: int = 1, scale: float = 1.0) -> Array:
        """Normal values; in extreme graphs of any magnitude, by row."""
        drawn = self.numbers.normal(size=shape) * scale / np.sqrt(fan)
        if self.extreme and self.chance(0.4):
            self.note("extreme weights")
            reach = 2.0 if self.dtype == np.float16 else 6.0
            rows = (shape[0], *[1] * (len(shape) - 1))
            drawn *= 10.0 ** self.numbers.uniform(-reach, reach / 2, size=rows)
        return drawn


def _equal(one: TensorProto, other: TensorProto) -> bool:
    return (one.data_type, one.dims, one.raw_data) == (other.data_type, other.dims, other.raw_data)
