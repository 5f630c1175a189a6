"""Forwards from a gate w: the tensor that is ``s (x w + y (1 - w))``, or ``s x w``.

Where the two shares ``s x w`` and ``s y (1 - w)`` are never added (both are outputs, or concatenated),
they are found as a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose

import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import ARITHMETIC, MAX_NODES, Polynomial, combine, leaf, precision, substitute
from aff_deploy.passes.branch import Refused
from aff_deploy.passes.gates import Gate, Tail
from aff_deploy.passes.graph import is_op, producer
from aff_deploy.passes.stacks import STACKING, Stack, Value, stack_nodes, stacked

MAX_LEAVES = 4
"""Tensors other than w that a blend may be made of while its leaves are being taken apart."""
MAX_EXPANSIONS = 40
"""Ways to take the leaves of one blend apart that are tried."""


_CONDITIONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "And", "Or", "Xor", "Not", "Abs", "Sign", "Cast")
"""Elementwise operators that the condition of a Where may be made of: its value does not count, but its shape does."""


@dataclass(frozen=True)
class Blend:
    """``output = scale * (x w + y (1 - w))``, or without y ``scale * x w``.

    With `other`, ``output = scale * x w`` and ``other = scale * y (1 - w)``.
    """

    x: gs.Tensor
    y: gs.Tensor | None
    scale: float
    output: gs.Tensor
    other: gs.Tensor | None = None
    stacking: frozenset[int] = frozenset()
    """Ids of nodes that stack tensors, and take the stacks apart, on the way."""

    @property
    def outputs(self) -> tuple[gs.Tensor, ...]:
        return (self.output,) if self.other is None else (self.output, self.other)


def read_blends(gate: Gate, order: Mapping[int, int]) -> list[list[Blend]]:
    """Every tensor behind a gate that is a blend or `x w`, with all the ways to read it as one.

    Blends come first, the furthest first; then, if there are none, pairs of shares; then gates. The
    ways to read one tensor come the least taken apart first.
    """
    w = gate.output
    values: dict[str, Value | None] = {tail.tensor.name: _value(tail) for tail in gate.tails}
    tensors: dict[str, gs.Tensor] = {}
    stacking: set[int] = set()

    def of(tensor: gs.Tensor) -> Value | None:
        tensors[tensor.name] = tensor
        maker = producer(tensor)
        if tensor.name not in values and maker is not None and is_op(maker, "Concat"):
            values[tensor.name] = stacked(maker, of)
            if values[tensor.name] is None:
                values[tensor.name] = leaf(tensor)
            else:
                stacking.update(id(node) for node in stack_nodes(maker))
        return values.get(tensor.name, leaf(tensor))

    def polynomial_of(tensor: gs.Tensor) -> Polynomial | None:
        value = of(tensor)
        return None if isinstance(value, Stack) else value

    blends: list[list[Blend]] = []
    shares: list[Blend] = []
    for node in _arithmetic_cone([tail.tensor for tail in gate.tails], order):
        output = node.outputs[0]
        if output.name in values:
            continue
        if is_op(node, "Expand"):
            # Of the gate or a part of the blend; that it is to the blend's own shape is checked later.
            values[output.name] = polynomial_of(node.inputs[0])
            continue
        polynomial = combine(node, polynomial_of, lambda p: _vanishes(p, tensors, w))
        value: Value | None = stacked(node, of) if polynomial is None else polynomial
        values[output.name] = value
        if value is not None and is_op(node, *STACKING):
            stacking.update(id(inner) for inner in stack_nodes(node))
        if value is None or isinstance(value, Stack):
            continue
        readings = _readings(value, w, output, tensors)
        if readings:
            blends.append(readings)
        else:
            shares += _second_shares(value, w, output, tensors)
    # The cone is topological, so the last is the furthest.
    blends.reverse()
    full, gates = [b for b in blends if b[0].y is not None], [b for b in blends if b[0].y is None]
    found = full + ([] if full else _pairs(gates, shares[::-1])) + gates
    return [[replace(blend, stacking=frozenset(stacking)) for blend in ways] for ways in found]


def _value(tail: Tail) -> Value:
    if tail.axis is None:
        return tail.values[0]
    return Stack(tail.values, tail.axis, len(tail.tensor.shape or ()))


def _pairs(gates: list[list[Blend]], shares: list[Blend]) -> list[list[Blend]]:
    """Each share of x with each share of y of the same scale."""
    pairs = [
        replace(gate, y=share.y, other=share.output)
        for readings in gates
        for gate in readings
        for share in shares
        if isclose(gate.scale, share.scale, rel_tol=precision(gate.x)) and gate.x is not share.y
    ]
    return [pairs] if pairs else []


def _second_shares(
    polynomial: Polynomial, w: gs.Tensor, output: gs.Tensor, tensors: Mapping[str, gs.Tensor]
) -> Iterator[Blend]:
    """Every way to read `polynomial` as ``s y (1 - w)``; x is not known yet, and y stands in for it."""
    for expanded, known in _expansions(polynomial, tensors, keep=w.name):
        names = {name for monomial in expanded for name in monomial if name != w.name}
        if len(names) == 1 and len(expanded) == 2:
            (y,) = names
            scale, weighted = expanded.get((y,), 0.0), expanded.get(tuple(sorted((y, w.name))), 0.0)
            if scale and isclose(-weighted, scale, rel_tol=precision(w)):
                yield Blend(known[y], known[y], scale, output)


def _arithmetic_cone(starts: Sequence[gs.Tensor], order: Mapping[int, int]) -> list[gs.Node]:
    """Arithmetic nodes that depend on w through arithmetic, stacks included, alone, in topological order."""
    found: dict[int, gs.Node] = {}
    frontier = list(starts)
    while frontier and len(found) < MAX_NODES:
        for node in frontier.pop(0).outputs:
            if is_op(node, *ARITHMETIC, *STACKING, "Expand") and id(node) in order and id(node) not in found:
                found[id(node)] = node
                frontier.append(node.outputs[0])
    return sorted(found.values(), key=lambda node: order[id(node)])


def _expansions(
    polynomial: Polynomial, tensors: Mapping[str, gs.Tensor], keep: str
) -> Iterator[tuple[Polynomial, Mapping[str, gs.Tensor]]]:
    """`polynomial`, then what it becomes as its leaves but `keep` are taken apart, the least far first."""
    frontier: list[tuple[Polynomial, Mapping[str, gs.Tensor]]] = [(polynomial, tensors)]
    seen = [polynomial]
    for current, known in frontier:
        yield current, known
        names = sorted({name for monomial in current for name in monomial if name != keep})
        for name in names if len(names) <= MAX_LEAVES else ():
            inner = dict(known)
            expanded = _take_apart(current, known[name], inner)
            if expanded is not None and expanded not in seen and len(seen) < MAX_EXPANSIONS:
                seen.append(expanded)
                frontier.append((expanded, inner))


def _vanishes(difference: Polynomial, tensors: Mapping[str, gs.Tensor], w: gs.Tensor) -> bool:
    """Whether the two sides of a Where are the same function of w, once their other leaves are taken apart."""
    return any(not expanded for expanded, _ in _expansions(difference, tensors, keep=w.name))


def _readings(polynomial: Polynomial, w: gs.Tensor, output: gs.Tensor, tensors: Mapping[str, gs.Tensor]) -> list[Blend]:
    """Every way to read `polynomial` as a blend, or, if there is none, as a gate."""
    found: list[Blend] = []
    for expanded, known in _expansions(polynomial, tensors, keep=w.name):
        roles = _roles(expanded, w.name, precision(w))
        if roles is not None:
            x, y, scale = roles
            found.append(Blend(known[x], None if y is None else known[y], scale, output))
    return [blend for blend in found if blend.y is not None] or found


def _take_apart(polynomial: Polynomial, tensor: gs.Tensor, tensors: dict[str, gs.Tensor]) -> Polynomial | None:
    """`polynomial` with the leaf `tensor` replaced by the arithmetic that makes it; notes the new leaves."""
    node = producer(tensor)
    value = None if node is None else combine(node, leaf)
    if node is None or value is None:
        return None
    tensors.update({operand.name: operand for operand in node.inputs})
    return substitute(polynomial, tensor.name, value)


def _roles(polynomial: Polynomial, w: str, tolerance: float) -> tuple[str, str | None, float] | None:
    """x, y and s if the polynomial is ``s (x w + y (1 - w))`` or ``s x w``."""
    free: dict[str, float] = {}
    weighted: dict[str, float] = {}
    for monomial, coefficient in polynomial.items():
        rest = [name for name in monomial if name != w]
        if len(rest) != 1 or len(monomial) - 1 not in (0, 1):
            return None
        (weighted if len(monomial) == 2 else free)[rest[0]] = coefficient
    if not free and len(weighted) == 1:
        ((x, scale),) = weighted.items()
        return x, None, scale
    if len(free) != 1 or len(weighted) != 2:
        return None
    ((y, scale),) = free.items()
    others = [name for name in weighted if name != y]
    if len(others) != 1 or not isclose(-weighted[y], scale, rel_tol=tolerance):
        return None
    (x,) = others
    if not isclose(weighted[x], scale, rel_tol=tolerance):
        return None
    return x, y, scale


def nodes_between(blend: Blend, gate: Gate) -> tuple[tuple[gs.Node, ...], tuple[Tail, ...]]:
    """Nodes from the blend's output back to x, y and w, constants and their makers included, and the tails it reads.

    Raises:
        Refused: the output also depends on something else.
    """
    tails = {tail.tensor.name: tail for tail in gate.tails}
    ends = {tensor.name for tensor in (blend.x, blend.y) if tensor is not None}
    nodes: dict[int, gs.Node] = {}
    read: dict[str, Tail] = {}
    stack = list(blend.outputs)
    while stack:
        tensor = stack.pop()
        node = producer(tensor)
        if tensor.name in tails and id(node) not in blend.stacking:
            read[tensor.name] = tails[tensor.name]
            continue
        if tensor.name in ends or isinstance(tensor, gs.Constant) or (node is not None and id(node) in nodes):
            continue
        if node is None or len(nodes) > MAX_NODES:
            raise Refused(f"the blend also depends on {tensor.name!r}")
        if not is_op(node, *ARITHMETIC, *_CONDITIONS, "ConstantOfShape", "Expand") and id(node) not in blend.stacking:
            raise Refused(f"a condition in the blend is computed by {node.op}, which may broadcast the blend")
        nodes[id(node)] = node
        stack.extend(tensor for tensor in _operands(node) if not tensor.is_empty())
    return tuple(nodes.values()), tuple(read.values())


def _operands(node: gs.Node) -> list[gs.Tensor]:
    """The inputs whose values count; of a shape only the size matters, and `require_no_broadcast` sees to that."""
    spread = is_op(node, "ConstantOfShape", "Expand")
    return list(node.inputs[: int(is_op(node, "Expand"))] if spread else node.inputs)


def without_gate(nodes: Iterable[gs.Node], gate: Gate) -> frozenset[int]:
    """Ids of those of a blend's nodes that do not depend on w, as ``x - y``: others may read what they make."""
    ordered = list(nodes)
    of_gate = {tail.tensor.name for tail in gate.tails}
    for _ in ordered:
        of_gate |= {node.outputs[0].name for node in ordered if any(t.name in of_gate for t in node.inputs)}
    return frozenset(id(node) for node in ordered if node.outputs[0].name not in of_gate)


def require_no_broadcast(nodes: Iterable[gs.Node], whole: Sequence[gs.Tensor]) -> None:
    """Constants, and numbers or gates spread over a shape, must not make anything larger than the tensors `whole`.

    Raises:
        Refused: one does, or may.
    """
    elementwise = [node for node in nodes if not is_op(node, "ConstantOfShape", "Expand")]
    like = whole[0]
    parts = {tensor.name for node in elementwise for tensor in (*node.inputs, *node.outputs, *whole)}
    for node in elementwise:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and not _fits(tensor.shape, like):
                raise Refused(f"the constant {tensor.name!r} of shape {list(tensor.shape)} broadcasts the blend")
            spread = producer(tensor)
            if spread is None or not is_op(spread, "ConstantOfShape", "Expand"):
                continue
            shape = producer(spread.inputs[0 if is_op(spread, "ConstantOfShape") else 1])
            # The shape of a part of the blend, which broadcasts into its output anyway, is small enough.
            of_part = shape is not None and is_op(shape, "Shape") and not shape.attrs and shape.inputs[0].name in parts
            if not of_part and not _fits(tensor.shape, like):
                raise Refused(f"{tensor.name!r} of shape {tensor.shape} may broadcast the blend")


def _fits(shape: Sequence[int | str | None] | None, like: gs.Tensor) -> bool:
    """Whether broadcasting something of `shape` with `like` gives the shape of `like`."""
    if shape is None or like.shape is None or len(shape) > len(like.shape):
        return False
    pairs = zip(reversed(shape), reversed(like.shape), strict=False)
    return all(mine == 1 or (mine == other and mine is not None) for mine, other in pairs)
