"""A graph under construction that knows what each of its tensors is, in double precision, for two sets of inputs.

Whatever cannot be computed for both, is not finite, or outgrows the float type is refused at once, so
that a generator may try anything: what it built inside an `attempt` goes away again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from tests.passes.fuzz.double import run_node
from tests.passes.fuzz.operators import Array, Values, widened

FEEDS = 2
LARGEST = {np.dtype(np.float16): 6e3, np.dtype(np.float32): 1e12, np.dtype(np.float64): 1e30}
"""Magnitudes beyond these are refused: a float type must hold not only the values but also their sums."""
FIRST_IR_WITH_DEFAULTS = 4
_COUNTS = ("Shape", "Size", "ArgMax", "ArgMin", "NonZero")
_CONDITIONS = (
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "Equal",
    "And",
    "Or",
    "Xor",
    "Not",
    "IsNaN",
    "IsInf",
)


class Invalid(Exception):
    """What was tried is no valid graph, or not a sensible one."""


class Nodes:
    """Nodes, initializers and inputs, and the values of all tensors for each feed."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.numbers = np.random.default_rng(rng.getrandbits(32))
        self.opset = rng.randint(11, 22)
        self.ir = rng.choice((3, 4, 6, 7, 8, 8, 9, 10))
        self.dtype = np.dtype(rng.choice((np.float32,) * 8 + (np.float16,) + (np.float64,)))
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.feeds: list[Values] = [{} for _ in range(FEEDS)]
        self.values: list[Values] = [{} for _ in range(FEEDS)]
        self.dtypes: dict[str, np.dtype[Any]] = {}
        self.features: Counter[str] = Counter()
        self.overridable: set[str] = set()
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.extreme = rng.random() < 0.15
        self._count = 0

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def note(self, *features: str) -> None:
        """Count that something occurs."""
        self.features.update(features)

    def name(self, prefix: str = "t") -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    # What is known of a tensor.

    def shape(self, name: str) -> tuple[int, ...]:
        """In the first feed."""
        return tuple(self.values[0][name].shape)

    def rank(self, name: str) -> int:
        return len(self.shape(name))

    def channels(self, name: str) -> int:
        return self.shape(name)[1]

    def same_shape(self, one: str, other: str) -> bool:
        return all(values[one].shape == values[other].shape for values in self.values)

    def fixed(self, name: str) -> bool:
        """Whether both feeds give one shape."""
        return self.values[0][name].shape == self.values[1][name].shape

    # Making tensors.

    def input(self, shape: Sequence[int | str], *, scale: float = 1.0, dtype: Any = None) -> str:
        name, kind = self.name("in"), np.dtype(dtype or self.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), shape))
        for i in range(FEEDS):
            dims = [size if isinstance(size, int) else self._size(size)[i] for size in shape]
            drawn = self.numbers.normal(size=dims)
            drawn = drawn > 0 if kind == np.bool_ else drawn * scale
            self._set(i, name, drawn.astype(kind))
            self.feeds[i][name] = np.asarray(drawn, dtype=kind)
        self.dtypes[name] = kind
        return name

    def _size(self, dim: str) -> tuple[int, ...]:
        if dim not in self.sizes:
            sizes = self.rng.sample((1, 2, 3, 4, 5), FEEDS)
            self.sizes[dim] = tuple(sizes)
        return self.sizes[dim]

    def _set(self, feed: int, name: str, value: Array) -> None:
        self.values[feed][name] = widened(np.asarray(value))

    def op(self, op_type: str, *inputs: str, dtype: Any = None, **attributes: Any) -> str:
        """Add a node of one output; returns its name.

        Raises:
            Invalid: it cannot be computed, or gives what is not finite or too large.
        """
        return self.ops(op_type, 1, *inputs, dtype=dtype, **attributes)[0]

    def ops(self, op_type: str, count: int, *inputs: str, dtype: Any = None, **attributes: Any) -> list[str]:
        """Likewise a node of `count` outputs."""
        outputs = [self.name() for _ in range(count)]
        name = self._node_name(op_type)
        self.add(helper.make_node(op_type, list(inputs), outputs, name=name, **attributes), dtype)
        return outputs

    def add(self, node: NodeProto, dtype: Any = None) -> None:
        """Add a node made elsewhere."""
        try:
            onnx.checker.check_node(node, _context(self.opset, self.ir))
        except onnx.checker.ValidationError as error:
            raise Invalid(str(error)) from error
        for values in self.values:
            try:
                results = run_node(node, values, self.opset)
            except Exception as error:  # of numpy or ONNX Runtime: the node is not valid here
                raise Invalid(f"{node.op_type}: {error}") from error
            for name, result in zip(node.output, results, strict=True):
                self.dtypes[name] = np.dtype(dtype or self._dtype_of(node))
                _require_sane(result, self.dtypes[name])
                values[name] = result
        self.nodes.append(node)
        self.note(f"op {node.op_type}")

    def _dtype_of(self, node: NodeProto) -> Any:
        if node.op_type in _COUNTS:
            return np.int64
        if node.op_type in _CONDITIONS:
            return np.bool_
        if node.op_type == "Cast":
            return helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
        if node.op_type == "ConstantOfShape":
            return numpy_helper.to_array(node.attribute[0].t).dtype if node.attribute else np.float32
        return self.dtypes[node.input[1 if node.op_type == "Where" else 0]]

    def _node_name(self, op_type: str) -> str:
        how = self.rng.random()
        if how < 0.08:
            self.note("unnamed node")
            return ""
        if how < 0.12:
            self.note("duplicate node name")
            return "node"
        return self.pick(f"/m/{op_type}_{self._count}", f"n{self._count}")

    # Going back.

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo everything where what is built inside is invalid, and raise again."""
        lengths = [len(held) for held in (self.nodes, self.inputs, self.initializers)]
        features, overridable = self.features.copy(), self.overridable.copy()
        feeds = [dict(feed) for feed in self.feeds]
        try:
            yield
        except (Invalid, ValueError, IndexError) as error:  # of a spelling that does not suit the rank
            del self.nodes[lengths[0] :], self.inputs[lengths[1] :]
            for name in list(self.initializers)[lengths[2] :]:
                del self.initializers[name]
            self.features, self.overridable, self.feeds = features, overridable, feeds
            raise Invalid(str(error)) from error

    # Nested graphs.

    def nested(self, build: Callable[[], list[str]], arguments: Sequence[str] = ()) -> GraphProto:
        """A graph of what `build` adds; `arguments` are the names of its inputs, whose values are known."""
        nodes, initializers, self.nodes = self.nodes, self.initializers, []
        own = self.chance(0.5) and self.ir >= FIRST_IR_WITH_DEFAULTS
        self.initializers = {} if own else initializers
        try:
            results = build()
            made = {name for node in self.nodes for name in node.output}
            results = [name if name in made else self.op("Identity", name) for name in results]
            ends = [[self._end(name) for name in names] for names in (arguments, results)]
            held = list(self.initializers.values()) if own else []
            return helper.make_graph(self.nodes, self.name("body"), *ends, initializer=held)
        finally:
            if own:
                for name in self.initializers:
                    self.overridable.discard(name)
                    self.feeds[FEEDS - 1].pop(name, None)
            self.nodes, self.initializers = nodes, initializers

    def _end(self, name: str) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(self.dtypes[name])
        return helper.make_tensor_value_info(name, kind, [None] * self.rank(name))


def _context(opset: int, ir: int) -> Any:
    context = onnx.checker.C.CheckerContext()
    context.opset_imports, context.ir_version = {"": opset}, ir
    return context


def _require_sane(value: Array, dtype: np.dtype[Any]) -> None:
    if value.size > 20000:
        raise Invalid("large")
    if value.dtype.kind != "f":
        return
    if not np.all(np.isfinite(value)) or np.max(np.abs(value), initial=0.0) > LARGEST.get(dtype, 1e12):
        raise Invalid("not finite, or too large for the type")
