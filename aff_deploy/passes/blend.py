"""Forwards from a gate w: the tensor that is ``s (x w + y (1 - w))``, or ``s x w``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose

import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import ARITHMETIC, MAX_NODES, Polynomial, combine, is_zero, leaf, substitute
from aff_deploy.passes.branch import Refused
from aff_deploy.passes.graph import is_op, producer

MAX_LEAVES = 4
"""Tensors other than w that a blend may be made of while its leaves are being taken apart."""
MAX_EXPANSIONS = 40
"""Ways to take the leaves of one blend apart that are tried."""


@dataclass(frozen=True)
class Blend:
    """``output = scale * (x w + y (1 - w))``, or without y ``scale * x w``."""

    x: gs.Tensor
    y: gs.Tensor | None
    scale: float
    output: gs.Tensor


def read_blends(w: gs.Tensor, of_w: Polynomial, order: Mapping[int, int]) -> list[list[Blend]]:
    """Every tensor behind w that is a blend or a gate, with all the ways to read it as one.

    The tensor `w` is the polynomial `of_w` of the gate that goes by its name.

    Blends come first, the furthest first; the ways to read one tensor, the least taken apart first.
    """
    values: dict[str, Polynomial | None] = {w.name: of_w}
    tensors: dict[str, gs.Tensor] = {}

    def value(tensor: gs.Tensor) -> Polynomial | None:
        tensors[tensor.name] = tensor
        return values.get(tensor.name, leaf(tensor))

    blends: list[list[Blend]] = []
    for node in _arithmetic_cone(w, order):
        output = node.outputs[0]
        values[output.name] = polynomial = combine(node, value, lambda p: _vanishes(p, tensors))
        readings = [] if polynomial is None else _readings(polynomial, w, output, tensors)
        if readings:
            blends.append(readings)
    # The cone is topological, so the last is the furthest.
    blends.reverse()
    return [b for b in blends if b[0].y is not None] + [b for b in blends if b[0].y is None]


def _arithmetic_cone(w: gs.Tensor, order: Mapping[int, int]) -> list[gs.Node]:
    """Arithmetic nodes that depend on w through arithmetic alone, in topological order."""
    found: dict[int, gs.Node] = {}
    frontier = [w]
    while frontier and len(found) < MAX_NODES:
        for node in frontier.pop(0).outputs:
            if is_op(node, *ARITHMETIC) and id(node) in order and id(node) not in found:
                found[id(node)] = node
                frontier.append(node.outputs[0])
    return sorted(found.values(), key=lambda node: order[id(node)])


def _expansions(
    polynomial: Polynomial, tensors: Mapping[str, gs.Tensor], keep: str = ""
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


def _vanishes(difference: Polynomial, tensors: Mapping[str, gs.Tensor]) -> bool:
    """Whether the two sides of a Where are the same function, once their leaves are taken apart."""
    return any(is_zero(expanded) for expanded, _ in _expansions(difference, tensors))


def _readings(polynomial: Polynomial, w: gs.Tensor, output: gs.Tensor, tensors: Mapping[str, gs.Tensor]) -> list[Blend]:
    """Every way to read `polynomial` as a blend, or, if there is none, as a gate."""
    found: list[Blend] = []
    for expanded, known in _expansions(polynomial, tensors, keep=w.name):
        roles = _roles(expanded, w.name)
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


def _roles(polynomial: Polynomial, w: str) -> tuple[str, str | None, float] | None:
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
    if len(others) != 1 or not isclose(-weighted[y], scale, rel_tol=1e-6):
        return None
    (x,) = others
    if not isclose(weighted[x], scale, rel_tol=1e-6):
        return None
    return x, y, scale


def nodes_between(blend: Blend, w: gs.Tensor) -> tuple[gs.Node, ...]:
    """Nodes from the blend's output back to x, y and w; constants and their makers included.

    Raises:
        Refused: the output also depends on something else.
    """
    ends = {tensor.name for tensor in (blend.x, blend.y, w) if tensor is not None}
    nodes: dict[int, gs.Node] = {}
    stack = [blend.output]
    while stack:
        tensor = stack.pop()
        node = producer(tensor)
        if tensor.name in ends or isinstance(tensor, gs.Constant) or (node is not None and id(node) in nodes):
            continue
        if node is None or len(nodes) > MAX_NODES:
            raise Refused(f"the blend also depends on {tensor.name!r}")
        nodes[id(node)] = node
        # Of a Shape only the size matters, and `require_no_broadcast` sees to that.
        stack.extend(tensor for tensor in node.inputs if not tensor.is_empty() and not is_op(node, "Shape"))
    return tuple(nodes.values())


def require_no_broadcast(nodes: Iterable[gs.Node], like: gs.Tensor) -> None:
    """Numbers spread over a shape (ones_like) must not make anything larger than the tensor `like`.

    Raises:
        Refused: one does, or may.
    """
    for node in nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and is_op(node, *ARITHMETIC) and not _fits(tensor.shape, like):
                raise Refused(f"the constant {tensor.name!r} of shape {list(tensor.shape)} broadcasts the blend")
            spread = producer(tensor)
            if is_op(spread, "ConstantOfShape", "Expand") and not _fits(tensor.shape, like):
                raise Refused(f"{tensor.name!r} of shape {tensor.shape} may broadcast the blend")


def _fits(shape: Sequence[int | str | None] | None, like: gs.Tensor) -> bool:
    """Whether broadcasting something of `shape` with `like` gives the shape of `like`."""
    if shape is None or like.shape is None or len(shape) > len(like.shape):
        return False
    pairs = zip(reversed(shape), reversed(like.shape), strict=False)
    return all(mine == 1 or (mine == other and mine is not None) for mine, other in pairs)
