"""An ONNX model in double precision: what the others' rounding is measured against.

Built on onnx's reference evaluator, with operators of our own where that departs from the standard or
takes minutes (`aff_deploy.runtimes.double_operators`). Every float tensor is float64. A Cast to half
precision still rounds, because that is part of what the model computes; a Cast to float32 does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from aff_deploy.errors import ModelError
from aff_deploy.onnx_file import captured_names, sorted_nodes, static_shape
from aff_deploy.runtimes import Array, Feeds, check_feeds
from aff_deploy.runtimes.double_operators import OPERATORS
from aff_deploy.spec import TensorSpec

_NARROW = (np.dtype(np.float16), np.dtype(np.float32), helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))


def widened(value: Any) -> Any:
    """An array of a narrower float type as float64; everything else as it is."""
    is_narrow = isinstance(value, np.ndarray) and value.dtype in _NARROW
    return value.astype(np.float64) if is_narrow else value


class _Evaluator(ReferenceEvaluator):
    """The reference evaluator with our operators, in nested graphs and functions too, and float64 everywhere."""

    def __init__(self, proto: Any, **options: Any) -> None:
        super().__init__(proto, **{**options, "new_ops": list(OPERATORS)})

    def _init(self) -> None:
        super()._init()
        self.rt_inits_ = {name: widened(value) for name, value in self.rt_inits_.items()}
        for node in self.rt_nodes_:
            node.run = _widening(node.run)


def _widening(run: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    def run_wide(*args: Any, **options: Any) -> tuple[Any, ...]:
        return tuple(widened(value) for value in run(*args, **options))

    return run_wide


class DoubleRunner:
    """Evaluates an ONNX model in float64, with numpy alone; a ResNet-50 takes about a second a picture.

    Args:
        model: a valid model, its weights loaded; left as it is.

    Raises:
        ModelError: an operator has no definition here.
    """

    name = "float64"

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._defaults = frozenset(tensor.name for tensor in graph.initializer)
        self._inputs = tuple(_spec(value) for value in graph.input if value.name not in self._defaults)
        self._outputs = tuple(value.name for value in graph.output)
        source = ModelProto()
        source.CopyFrom(model)
        ordered = list(sorted_nodes(source.graph))
        del source.graph.node[:]
        source.graph.node.extend(ordered)
        functions = _callees_first(source)
        del source.functions[:]
        source.functions.extend(functions)
        try:
            self._evaluator = _Evaluator(source)
        except Exception as error:  # what it raises depends on the operator
            raise _failure(error) from None
        self._dropped = _last_readings(source)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._outputs

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs by name; floats are float64, as those of `feeds` must be. Initializers may be fed in place of their own.

        Raises:
            DataError: the feeds do not fit the inputs.
            ModelError: an operator failed.
        """
        check_feeds(self._inputs, {name: array for name, array in feeds.items() if name not in self._defaults})
        values: dict[str, Any] = {"": None, **self._evaluator.rt_inits_, **feeds}
        with np.errstate(all="ignore"):
            for node, dropped in zip(self._evaluator.rt_nodes_, self._dropped, strict=True):
                context = {"context": values} if node.need_context() else {}
                try:
                    results = node.run(*(values[name] for name in node.input), **context)
                except Exception as error:  # as above
                    raise _failure(error) from None
                values.update(zip(node.output, results, strict=False))
                for name in dropped:
                    values.pop(name, None)
        return {name: np.asarray(values[name]) for name in self._outputs}

    def __enter__(self) -> DoubleRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        return None


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dims = static_shape(kind) or ()
    shape = tuple(dim or f"{value.name}_dim{axis}" for axis, dim in enumerate(dims))
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else np.dtype(object)
    name = "float64" if dtype in _NARROW else dtype.name
    return TensorSpec(value.name, shape, name)


def _callees_first(model: ModelProto) -> list[onnx.FunctionProto]:
    """The model's functions, each behind those that it calls, as the evaluator wants them."""
    known = {(function.domain, function.name): function for function in model.functions}
    order: dict[tuple[str, str], onnx.FunctionProto] = {}

    def visit(function: onnx.FunctionProto) -> None:
        for key in ((node.domain, node.op_type) for node in function.node):
            if key in known and key not in order:
                visit(known[key])
        order[function.domain, function.name] = function

    for function in known.values():
        if (function.domain, function.name) not in order:
            visit(function)
    return list(order.values())


def _last_readings(model: ModelProto) -> list[tuple[str, ...]]:
    """For each node the tensors that no later node reads: held to the end, they would be all of a network at once."""
    last: dict[str, int] = {}
    for position, node in enumerate(model.graph.node):
        for name in (*node.output, *captured_names(node)):
            last[name] = position
    kept = {"", *(value.name for value in model.graph.output), *(tensor.name for tensor in model.graph.initializer)}
    found: list[list[str]] = [[] for _ in model.graph.node]
    for name, position in last.items():
        if name not in kept:
            found[position].append(name)
    return [tuple(names) for names in found]


def _failure(error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ModelError(f"the model cannot be evaluated in double precision: {reason}")


def in_double(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """`feeds` with every float array as float64."""
    return {name: widened(array) for name, array in feeds.items()}
