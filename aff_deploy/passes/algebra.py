"""What a tensor is as a polynomial of others.

The recogniser does not compare graphs with templates: it works out what a tensor *is*. Every chain
of additions, subtractions and products with constants, however spelled, comes down to the same
polynomial; `y + w * (x - y)`, `x * w + y * (1 - w)` and `lerp(y, x, w)` are then one case.

A polynomial maps monomials (sorted tuples of tensor names) to float coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from math import isclose

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.passes.graph import is_op, producer, uniform_value

Monomial = tuple[str, ...]
Polynomial = Mapping[Monomial, float]

ONE: Monomial = ()
MAX_TERMS = 16
"""Beyond this many terms nothing in the family is meant, and products would grow without bound."""
MAX_DEGREE = 3
MAX_NODES = 48
"""Arithmetic nodes to look at on either side of a gate; a fusion has fewer than ten."""

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Neg", "Sum", "Where", "Identity")


def leaf(tensor: gs.Tensor) -> Polynomial:
    """The tensor as itself, or as a number if all its elements are one."""
    number = scalar(tensor)
    return {(tensor.name,): 1.0} if number is None else constant(number)


def constant(value: float) -> Polynomial:
    return {ONE: value} if value else {}


def scalar(tensor: gs.Tensor) -> float | None:
    """The number a tensor stands for in an elementwise expression without changing its shape.

    That is a constant all of whose elements are one number, or ones_like and its kin: a number
    spread over a shape. That it does not broadcast the rest is for the caller to see to.
    """
    if isinstance(tensor, gs.Constant):
        return uniform_value(tensor)
    node = producer(tensor)
    if is_op(node, "ConstantOfShape") and node is not None:
        fill = node.attrs.get("value")
        return 0.0 if fill is None else float(fill.values.flat[0])
    if is_op(node, "Expand") and node is not None:
        return scalar(node.inputs[0])
    return None


def is_spread_like(node: gs.Node, spread: gs.Tensor) -> bool:
    """Whether a number among the inputs of `node` is spread over the shape of one of the tensors beside it."""
    maker = producer(spread)
    if maker is None or not is_op(maker, "ConstantOfShape", "Expand"):
        return False
    shape = producer(maker.inputs[0 if is_op(maker, "ConstantOfShape") else 1])
    beside = [tensor.name for tensor in (*node.inputs, *node.outputs) if tensor is not spread]
    return shape is not None and is_op(shape, "Shape") and not shape.attrs and shape.inputs[0].name in beside


def add(p: Polynomial, q: Polynomial, factor: float = 1.0) -> Polynomial:
    """``p + factor * q``."""
    total = dict(p)
    for monomial, coefficient in q.items():
        total[monomial] = _sum(total.get(monomial, 0.0), factor * coefficient)
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def _sum(a: float, b: float) -> float:
    """``a + b``, and nothing at all where they cancel but for the rounding of this arithmetic."""
    total = a + b
    return 0.0 if abs(total) <= 2**-50 * max(abs(a), abs(b)) else total


def multiply(p: Polynomial, q: Polynomial) -> Polynomial | None:
    """``p * q``; None where it grows beyond what the family needs."""
    product: dict[Monomial, float] = {}
    for m, a in p.items():
        for n, b in q.items():
            key = tuple(sorted(m + n))
            product[key] = _sum(product.get(key, 0.0), a * b)
    if len(product) > MAX_TERMS or any(len(monomial) > MAX_DEGREE for monomial in product):
        return None
    return {monomial: coefficient for monomial, coefficient in product.items() if coefficient}


def combine(
    node: gs.Node,
    of: Callable[[gs.Tensor], Polynomial | None],
    vanishes: Callable[[Polynomial], bool] | None = None,
) -> Polynomial | None:
    """The polynomial of an arithmetic node's output, given those of its inputs; None if it is none.

    `vanishes` decides whether the difference of a Where's two sides is nothing; who gives it must see to
    the condition, which may broadcast. Without it a Where is not followed.
    """
    if not is_op(node, *ARITHMETIC) or (node.op == "Where" and vanishes is None):
        return None
    operands = node.inputs[1:] if node.op == "Where" else node.inputs
    terms = [of(tensor) for tensor in operands if not tensor.is_empty()]
    known = [term for term in terms if term is not None]
    if len(known) != len(terms):
        return None
    if node.op == "Where" and vanishes is not None:
        # Both sides the same function (lerp chooses the better rounded of two forms): either will do.
        return known[0] if vanishes(add(known[0], known[1], -1.0)) else None
    if node.op == "Mul":
        return multiply(known[0], known[1])
    if node.op == "Div":
        divisor = known[1].get(ONE, 0.0) if set(known[1]) == {ONE} else 0.0
        return {m: c / divisor for m, c in known[0].items()} if divisor else None
    if node.op == "Neg":
        return add({}, known[0], -1.0)
    if node.op == "Sub":
        return add(known[0], known[1], -1.0)
    total: Polynomial = {}
    for term in known:
        total = add(total, term)
    return total if len(total) <= MAX_TERMS else None


def precision(tensor: gs.Tensor) -> float:
    """The relative difference up to which two numbers in arithmetic of `tensor`'s type are one and the same."""
    return 2**-50 if tensor.dtype == np.float64 else 2**-21


def agree(p: Polynomial, q: Polynomial, tolerance: float) -> bool:
    """Whether two polynomials are the same but for the rounding of their coefficients."""
    # An additional term, however small its coefficient, may be anything: its tensors may be large.
    return p.keys() == q.keys() and all(isclose(p[m], q[m], rel_tol=tolerance) for m in p)


def substitute(p: Polynomial, name: str, value: Polynomial) -> Polynomial | None:
    """`p` with the tensor `name` replaced by `value`; None where it grows too large."""
    total: Polynomial = {}
    for monomial, coefficient in p.items():
        rest = tuple(n for n in monomial if n != name)
        term: Polynomial | None = {rest: coefficient}
        for _ in range(len(monomial) - len(rest)):
            term = None if term is None else multiply(term, value)
        if term is None:
            return None
        total = add(total, term)
    return total


def polynomial_in(
    tensor: gs.Tensor, ends: AbstractSet[str], nodes: list[gs.Node], known: dict[str, Polynomial | None] | None = None
) -> Polynomial | None:
    """`tensor` as a polynomial of the tensors named in `ends`, None if it needs others; adds its nodes to `nodes`.

    `known` keeps what has been worked out, so that a tensor used twice is not worked out twice.
    """
    known = {} if known is None else known
    if tensor.name in ends or scalar(tensor) is not None:
        return leaf(tensor)
    node = producer(tensor)
    if tensor.name not in known:
        known[tensor.name] = None
        if node is not None and is_op(node, *ARITHMETIC) and len(nodes) < MAX_NODES:
            nodes.append(node)
            known[tensor.name] = combine(node, lambda t: polynomial_in(t, ends, nodes, known))
    return known[tensor.name]
