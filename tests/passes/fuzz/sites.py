"""Places that are, or nearly are, attentional feature fusion, in random spellings."""

from __future__ import annotations

import numpy as np

from tests.passes.fuzz.branches import ACTIVATIONS, branch
from tests.passes.fuzz.branches import MISSES as BRANCH_MISSES
from tests.passes.fuzz.builder import Builder
from tests.passes.fuzz.nodes import Invalid
from tests.passes.fuzz.spellings import (
    add,
    clip,
    complement,
    ints,
    noop,
    number,
    times,
    transpose,
    with_axes,
)

MISSES = (
    *BRANCH_MISSES,
    *(
        "gate used twice",
        "inner tensor used",
        "not quite one",
        "y broadcast",
        "per-channel scale",
        "product context",
    ),
    *(
        "spatial shift",
        "gate transposed",
        "extra term",
        "x from inside",
        "shared gate",
        "gate squared",
        "other gate",
    ),
)


def site(b: Builder, x: str, y: str) -> list[str]:
    """A fusion of x and y, of one shape, or a near miss.

    Returns what it makes: more than one tensor where others see inside.
    """
    miss = b.pick(*MISSES) if b.chance(0.25) else ""
    if miss:
        b.note(f"miss: {miss}")
    if b.dtype == np.float64:
        b.note("site in double")
    b.note("site", f"site of rank {b.rank(x)}")
    if not b.fixed(x):
        b.note("site of dynamic size")
    blended = b.chance(0.8)
    if miss == "y broadcast" and blended:
        y = with_axes(b, "ReduceMean", y, list(range(2, b.rank(y))))
    context = _context(b, x, y, miss, blended=blended)
    logits = _logits(b, context, b.channels(x), miss)
    gate, value = _gate(b, logits, miss)
    made = _blend(b, x, y, gate, value, miss) if blended else _gated(b, x, gate, value)
    if miss == "gate used twice":
        made.append(b.op("Neg", gate))
    if miss == "inner tensor used":
        made.append(b.op(b.pick("Neg", "Tanh"), b.pick(logits, context, *b.nodes[-6].output[:1])))
    if miss == "shared gate":
        made += _blend(b, y, x, gate, value, "")
    if miss == "x from inside" and b.same_shape(logits, x):
        made += _blend(b, logits, y, gate, value, "")
    return made


def _context(b: Builder, x: str, y: str, miss: str, *, blended: bool) -> str:
    how = b.rng.random()
    if not blended:
        return x if how < 0.8 else y
    if miss == "product context":
        return b.op(b.pick("Mul", "Max", "Sub"), x, y)
    if how < 0.6:
        return add(b, x, y)
    if how < 0.7:
        return times(b, add(b, x, y), b.pick(0.5, 2.0, 0.3))
    if how < 0.8:
        b.note("concat context")
        return b.op("Concat", *b.rng.sample([x, y], 2), axis=1)
    b.note("explicit context")
    if how < 0.9:
        return b.pick(x, y)
    return b.op("Tanh", add(b, x, y))


def _logits(b: Builder, context: str, channels: int, miss: str) -> str:
    inner, act = b.rng.randint(1, 5), b.pick(*ACTIVATIONS)
    kinds = b.pick((False, True), (False, True), (False, True), (True, False), (False,), (True,))
    if miss == "extra term" and b.chance(0.5):
        kinds = (*kinds, b.pick(False, True))
    ends = []
    for pooled in kinds:
        width, own = (inner, act) if b.chance(0.95) else (b.rng.randint(1, 5), b.pick(*ACTIVATIONS))
        ends.append(_factored(b, branch(b, context, width, channels, own, pooled=pooled, miss=miss)))
    b.rng.shuffle(ends)
    total = ends[0]
    for end in ends[1:]:
        total = add(b, total, end)
    if miss == "extra term" and len(kinds) < 3 and b.same_shape(total, context):
        total = add(b, total, context)
    if miss == "spatial shift":
        last = b.shape(total)[-1]
        total = add(b, total, b.constant(b.numbers.normal(size=last)))
    if b.chance(0.15):
        b.note("shifted logits")
        total = add(b, total, number(b, b.pick(-1.5, 0.25, 3.0, 20.0), total))
    return _factored(b, total)


def _factored(b: Builder, x: str) -> str:
    if not b.chance(0.15):
        return x
    b.note("factor on logits")
    if b.chance(0.6):
        return times(b, x, b.pick(-1.0, 0.5, 2.0, 1.7, 1e3 if b.extreme else 3.0))
    factors = b.numbers.uniform(0.5, 2.0, size=[b.channels(x), *[1] * (b.rank(x) - 2)])
    return b.op("Mul", x, b.constant(factors))


def _gate(b: Builder, logits: str, miss: str) -> tuple[str, str]:
    """A gate, and how it is to be read.

    ``w`` as it is, ``tanh`` as (1 + w) / 2, ``stackN`` as the two items along axis N.
    """
    how = b.rng.random()
    value = "w"
    if miss == "other gate":
        gate = b.op(b.pick("Softplus", "Relu", "Abs", "Erf"), logits)
    elif how < 0.55:
        gate = b.op("Sigmoid", logits)
    elif how < 0.68:
        gate, value = b.op("Tanh", logits), "tanh"
    elif how < 0.76:
        attributes = b.pick({}, {"alpha": 1 / 6}, {"alpha": 0.25, "beta": 0.4})
        gate = b.op("HardSigmoid", logits, **attributes)
    elif how < 0.82:
        gate = clip(b, add(b, times(b, logits, 0.2), number(b, 0.5, logits)), 0.0, 1.0)
    elif how < 0.9:
        power = b.op("Exp", b.op("Neg", logits))
        total = add(b, power, b.constant(np.asarray(1.0)))
        one = b.constant(np.asarray(1.0))
        gate = b.op("Reciprocal", total) if b.chance(0.5) else b.op("Div", one, total)
    else:
        other = add(b, times(b, logits, -1.0), number(b, 0.5, logits))
        rank = b.rank(logits)
        axis = b.pick(0, 1, rank)
        stack = b.op("Concat", *[with_axes(b, "Unsqueeze", t, [axis]) for t in (logits, other)], axis=axis)
        gate, value = b.op("Softmax", stack, axis=axis), f"stack{axis}"
    b.note(f"gate {value}")
    if value[0] != "s" and b.chance(0.15):
        gate = _moved(b, gate)
    if miss == "gate transposed" and value[0] != "s":
        order = list(range(b.rank(gate)))
        order[-1], order[-2] = order[-2], order[-1]
        gate = transpose(b, gate, order)
    return gate, value


def _moved(b: Builder, x: str) -> str:
    """A tensor moved away and back, or by nothing."""
    b.note("moved gate")
    how, rank = b.rng.randrange(4), b.rank(x)
    if how == 0:
        order = list(range(rank))
        b.rng.shuffle(order)
        return transpose(b, transpose(b, x, order), [order.index(i) for i in range(rank)])
    if how == 1:
        axis = b.rng.randint(0, rank)
        return with_axes(b, "Squeeze", with_axes(b, "Unsqueeze", x, [axis]), [axis])
    if how == 2:
        flat = b.op("Reshape", x, ints(b, 0, 0, -1))
        return b.op("Reshape", flat, b.op("Shape", x))
    return noop(b, x)


def _read(b: Builder, gate: str, value: str) -> tuple[str, str]:
    """The gate and its complement."""
    if value == "tanh":
        half = times(b, gate, 0.5)
        w = add(b, half, number(b, 0.5, half))
        return w, complement(b, w) if b.chance(0.5) else complement(b, half, 0.5)
    if value.startswith("stack"):
        axis = int(value[5:])
        if b.chance(0.6):
            return tuple(  # type: ignore[return-value]
                b.op("Gather", gate, b.constant(np.asarray(i, dtype=np.int64)), axis=axis) for i in (0, 1)
            )
        halves = b.ops("Split", 2, gate, axis=axis)
        return tuple(with_axes(b, "Squeeze", half, [axis]) for half in halves)  # type: ignore[return-value]
    return gate, complement(b, gate)


def _blend(b: Builder, x: str, y: str, gate: str, value: str, miss: str) -> list[str]:
    w, rest = _read(b, gate, value)
    if miss == "not quite one":
        rest = complement(b, w, 0.99)
    if miss == "gate squared":
        w = b.op("Mul", w, w)
    if b.chance(0.15):
        w = _moved(b, w)
    scale = b.pick(1.0, 1.0, 1.0, 1.0, 2.0, 0.5, 1.3)
    how = b.rng.randrange(8)
    b.note(f"blend {how}")
    if how == 0:
        made = add(b, y, b.op("Mul", w, b.op("Sub", x, y)))
    elif how == 1:
        made = b.op("Sub", x, b.op("Mul", rest, b.op("Sub", x, y)))
    elif how == 2 and b.dtypes[w] == np.float32:
        condition = b.op("Less", b.op("Abs", w), b.constant(np.asarray(0.5)))
        near = b.op("Add", y, b.op("Mul", w, b.op("Sub", x, y)))
        far = b.op("Sub", x, b.op("Mul", b.op("Sub", x, y), complement(b, w)))
        made = b.op("Where", condition, near, far)
    elif how == 3 and b.same_shape(w, x) and b.same_shape(x, y):
        axis = b.pick(0, 1, b.rank(x))
        stacks = [
            b.op("Concat", *[with_axes(b, "Unsqueeze", t, [axis]) for t in pair], axis=axis) for pair in ((x, y), (w, rest))
        ]
        made = with_axes(b, "ReduceSum", b.op("Mul", *stacks), [axis], keepdims=0)
    elif how == 4:
        shares = [b.op("Mul", x, w), b.op("Mul", y, rest)]
        if scale != 1.0 and b.chance(0.7):
            shares = [times(b, share, scale) for share in shares]
        if b.chance(0.3):
            return [b.op("Concat", *shares, axis=1)]
        return shares
    elif how == 5:
        shares = [b.op("Mul", *b.rng.sample([times(b, t, scale), part], 2)) for t, part in ((x, w), (y, rest))]
        return [add(b, *shares)]
    else:
        made = add(
            b,
            b.op("Mul", *b.rng.sample([x, w], 2)),
            b.op("Mul", *b.rng.sample([rest, y], 2)),
        )
    if miss == "per-channel scale":
        return [
            b.op(
                "Mul",
                made,
                b.constant(b.numbers.normal(size=[b.channels(x), *[1] * (b.rank(x) - 2)])),
            )
        ]
    return [made if scale == 1.0 else times(b, made, scale)]


def _gated(b: Builder, x: str, gate: str, value: str) -> list[str]:
    w, _ = _read(b, gate, value)
    b.note("gate alone")
    made = b.op("Mul", *b.rng.sample([x, w], 2))
    return [add(b, made, x)] if b.chance(0.15) else [made]


def chain(b: Builder, x: str, y: str) -> list[str]:
    """Two fusions in a row, the second looking at what the first gave."""
    b.note("iterated")
    first = site(b, x, y)[0]
    if not b.same_shape(first, x):
        raise Invalid("the first fusion broadcast")
    logits = _logits(b, first, b.channels(x), "")
    gate, value = _gate(b, logits, "")
    return _blend(b, x, y, gate, value, "")
