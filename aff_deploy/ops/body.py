"""The operator written in standard ONNX, as a local function that any runtime can expand.

Forms. One function, several ways to write it; which is fastest was measured on ONNX Runtime's CPU
provider (docs/benchmarks). It runs convolutions in a blocked layout (channels in groups of 8 or
16) and falls out of it, reordering every tensor, at each operator without a blocked kernel: Sub and
ReduceMean among them. Hence ``blocked``:

* ``x - y`` is ``(x + y) - 2 y``, the subtraction being a depthwise 1x1 convolution with weight -2
  and the sum added inside it. Then x itself is read only by ``x + y``, which the runtime in turn
  adds inside the convolution that makes x: two passes over memory fewer.
* the last addition goes into a depthwise 1x1 convolution with weight 1, where a Relu behind the
  fusion becomes its activation.

and ``blocked_static``, where batch, height and width are known: the global logits are upsampled to full
size, so that their addition and the gate's nonlinearity happen inside the local branch's second
convolution. (A broadcast addition in the blocked layout runs 16 elements at a time.)

``convex`` is for half precision: ``x w + y (1 - w)`` stays between x and y, where ``x - y`` may overflow. There
`aff_deploy.ops.parts.PARTS` says which parts compute in fp32. It is also for whoever cannot do with the rounding of
the others, which is relative to the larger of x and y also where the gate has closed on the smaller
(docs/exactness.md).

But in that form, with scale 2 the gate is a tanh, exactly: ``2 (x w + y (1 - w)) = (x + y) + (x - y) tanh(z / 2)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from onnx import FunctionProto, TensorProto, parser

from aff_deploy.ops.operator import DOMAIN, DOMAIN_VERSION, TAKES_ALPHA, Branch, Variant
from aff_deploy.ops.parts import HALF_TYPES, PARTS, Part, widened

Form = Literal["convex", "plain", "blocked", "blocked_static"]

FIRST_CASTLIKE_OPSET = 15
FIRST_OPSET_OF_RESIZE_WITHOUT_ROI = 13

# Activation h of t for a branch b, as ONNX text, from operators of opset 13. Parameters that are
# attributes of the call are tensors here: onnx's reference evaluator cannot pass a function's
# attribute on to LeakyRelu or Elu.
_ACTIVATIONS = {
    "Relu": "{h} = Relu({t})",
    "Relu6": "{h}_low = Relu({t})\n{h} = Min({h}_low, six)",
    "LeakyRelu": "{h} = PRelu({t}, alpha)",
    "PRelu": "{h} = PRelu({t}, {b}_slope)",
    "Elu": "{h}_unit = Elu({t})\n{h}_up = Relu({t})\n{h}_down = Sub({h}_unit, {h}_up)\n"
    "{h}_scaled = Mul({h}_down, alpha)\n{h} = Add({h}_up, {h}_scaled)",
    "Silu": "{h}_gate = Sigmoid({t})\n{h} = Mul({t}, {h}_gate)",
    "HardSwish": "{h}_gate = HardSigmoid<alpha: float = 0.16666667, beta: float = 0.5>({t})\n{h} = Mul({t}, {h}_gate)",
    "Gelu": "{h}_in = Mul({t}, root_half)\n{h}_erf = Erf({h}_in)\n{h}_one = Add({h}_erf, one_number)\n"
    "{h}_half = Mul({t}, half_number)\n{h} = Mul({h}_half, {h}_one)",
    "Mish": "{h}_soft = Softplus({t})\n{h}_gate = Tanh({h}_soft)\n{h} = Mul({t}, {h}_gate)",
    "Tanh": "{h} = Tanh({t})",
    "Sigmoid": "{h} = Sigmoid({t})",
}
_ACTIVATION_NUMBERS = {
    "Relu6": {"six": "6.0"},
    "LeakyRelu": {"alpha": "@alpha"},
    "Elu": {"alpha": "@alpha"},
    "Gelu": {"root_half": "0.70710678", "one_number": "1.0", "half_number": "0.5"},
}
# In place of a call, where a parameter may be an operator's attribute: as others write them, so that they are recognised.
_IN_PLACE = {
    "LeakyRelu": "{h} = LeakyRelu<alpha: float = @alpha>({t})",
    "Elu": "{h} = Elu<alpha: float = @alpha>({t})",
    "Relu6": "{h} = Clip({t}, zero, six)",
}
_IN_PLACE_NUMBERS: dict[str, dict[str, str]] = {"LeakyRelu": {}, "Elu": {}, "Relu6": {"zero": "0.0", "six": "6.0"}}


_GATES = {"Sigmoid": "Sigmoid", "HardSigmoid": "HardSigmoid<alpha: float = 0.16666667, beta: float = 0.5>"}


def function_body(
    variant: Variant,
    *,
    form: Form,
    scale: float | None,
    opset: int,
    elem_type: int,
    total_at_hand: bool = False,
    in_place: bool = False,
) -> FunctionProto:
    """The local function of `variant`.

    Args:
        variant: which operator.
        form: how to write it; ``blocked_static`` expects 4-D tensors and the attribute ``upsample``
            (1, 1, H, W) on every call, both blocked forms the attribute ``channels``.
        scale: the scale s of every call where it is 1 or 2; None reads the attribute ``scale``.
        opset: version of the default ONNX domain to write against (12 or later).
        elem_type: element type of x (TensorProto). From opset 15 on the function serves other types too, a
            convex one only if `elem_type` is a half-precision type or no call is of one.
        total_at_hand: whether ``x + y`` is computed elsewhere for the same x and y, as in an iAFF, so
            that the runtime will share it.
        in_place: whether the body is for one call only, to stand in its place: then it casts to `elem_type` and not to
            the type of x, unless that is undefined, and a parameter may be an operator's attribute.
    """
    likes = opset >= FIRST_CASTLIKE_OPSET and (not in_place or elem_type == TensorProto.UNDEFINED)
    by_parts = form == "convex" and elem_type in HALF_TYPES
    types = _Types(opset, elem_type or TensorProto.FLOAT, likes=likes, by_parts=by_parts, in_place=in_place)
    lines = "\n".join(_lines(variant, form, scale, total_at_hand, types))
    attributes = ["channels"] * form.startswith("blocked") + ["upsample"] * _upsamples(variant, form)
    attributes += ["scale"] * (scale is None) + ["alpha"] * (variant.activation in TAKES_ALPHA)
    signature = f"{variant.op_type}{'<' + ', '.join(attributes) + '>' if attributes else ''}({', '.join(variant.inputs)})"
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{DOMAIN}" : {DOMAIN_VERSION}]>'
    function = parser.parse_function(f"{header}\n{signature} => ({', '.join(variant.outputs)}) {{\n{lines}\n}}")
    function.doc_string = "Attentional feature fusion: scale * (x * w + y * (1 - w)), w = sigmoid(local(a) + global(a))."
    return function


def _upsamples(variant: Variant, form: Form) -> bool:
    return form == "blocked_static" and variant.branches == ("local", "global")


class _Types:
    """Writes what depends on the type of x: constants, and the parts that compute in fp32."""

    def __init__(self, opset: int, elem_type: int, *, likes: bool, by_parts: bool, in_place: bool) -> None:
        self.opset = opset
        self.in_place = in_place
        fixed = f"Cast<to: int = {elem_type}>"
        self._cast = "CastLike({name}_f, x)" if likes else f"{fixed}({{name}}_f)"
        self._own_cast = "" if likes else fixed
        self._by_parts = by_parts

    def part(self, part: Part, lines: Iterable[str], *makes: str) -> Iterator[str]:
        """The lines of a part in the type that the table gives it; `makes` are the tensors that later lines read."""
        if not self._by_parts or PARTS[part] == "own":
            return iter(lines)
        return widened(part, lines, makes, cast_back=f"{{name}} = {self._cast}", own_cast=self._own_cast)

    def cast(self, name: str) -> str:
        return f"{name} = {self._cast.format(name=name)}"

    def scalar(self, name: str, value: str) -> Iterator[str]:
        yield f"{name}_f = Constant<value_float: float = {value}>()"
        yield self.cast(name)

    def depthwise(self, name: str, value: float, like: str) -> Iterator[str]:
        """Weights C x 1 x 1... filled with `value`; `like` is a weight C x inter x 1...."""
        for part, number in (("begin", 0), ("end", 1)):
            yield f"{name}_{part} = Constant<value_ints: ints = [{number}]>()"
        yield f"{name}_first = Slice({like}, {name}_begin, {name}_end, {name}_end)"
        yield f"{name}_shape = Shape({name}_first)"
        yield f"{name}_f = ConstantOfShape<value: tensor = float[1] {{{value}}}>({name}_shape)"
        yield self.cast(name)


def _lines(variant: Variant, form: Form, scale: float | None, total_at_hand: bool, types: _Types) -> Iterator[str]:
    as_tanh = variant.blend and not variant.split and scale == 2.0 and variant.gate == "Sigmoid" and form != "convex"
    blocked = form.startswith("blocked")
    has_total = variant.blend and (variant.context == "sum" or as_tanh or (total_at_hand and blocked))
    if has_total:
        yield "total = Add(x, y)"
    context = {"sum": "total", "self": "x", "explicit": "a"}[variant.context]
    if as_tanh:
        yield from types.scalar("half", "0.5")
    numbers = {**_ACTIVATION_NUMBERS, **_IN_PLACE_NUMBERS} if types.in_place else _ACTIVATION_NUMBERS
    for name, value in numbers.get(variant.activation, {}).items():
        yield from types.scalar(name, value)
    for branch in variant.branches:
        source = context
        if branch == "global":
            yield from types.part("pool", [f"pooled = GlobalAveragePool({context})"], "pooled")
            source = "pooled"
        yield from types.part(branch, _branch(branch, variant, source, halved=as_tanh, in_place=types.in_place), f"{branch}_z")
    if _upsamples(variant, form):
        yield "factors = Constant<value_floats: floats = @upsample>()"
        # Before opset 13 the region of interest may not be left out; this mode does not look at it.
        roi = "" if types.opset >= FIRST_OPSET_OF_RESIZE_WITHOUT_ROI else "roi"
        if roi:
            yield "roi = Constant<value_floats: floats = []>()"
        yield (
            'global_full = Resize<mode: string = "nearest", coordinate_transformation_mode: string = "asymmetric",'
            f' nearest_mode: string = "floor">(global_z, {roi}, factors)'
        )
        yield "z = Add(local_z, global_full)"
    elif len(variant.branches) == 2:
        yield from types.part("logits", ["z = Add(local_z, global_z)"], "z")
    z = "z" if len(variant.branches) == 2 else f"{variant.branches[0]}_z"
    yield from types.part("gate", [f"w = {'Tanh' if as_tanh else _GATES[variant.gate]}({z})"], "w")
    base = "total" if as_tanh else "y"
    combined = _combine(variant, form, scale, as_tanh=as_tanh, base=base, has_total=has_total, types=types)
    yield from types.part("blend", combined, *variant.outputs)


def _branch(branch: Branch, variant: Variant, source: str, *, halved: bool, in_place: bool) -> Iterator[str]:
    yield f"{branch}_t = Conv({source}, {branch}_w1, {branch}_b1)"
    texts = {**_ACTIVATIONS, **_IN_PLACE} if in_place else _ACTIVATIONS
    yield texts[variant.activation].format(h=f"{branch}_h", t=f"{branch}_t", b=branch)
    if halved:
        yield f"{branch}_w2_half = Mul({branch}_w2, half)"
        yield f"{branch}_b2_half = Mul({branch}_b2, half)"
    suffix = "_half" if halved else ""
    yield f"{branch}_z = Conv({branch}_h, {branch}_w2{suffix}, {branch}_b2{suffix})"


def _combine(
    variant: Variant, form: Form, scale: float | None, *, as_tanh: bool, base: str, has_total: bool, types: _Types
) -> Iterator[str]:
    """The outputs, of x, y and w."""
    if variant.split:
        yield from _shares(scale, types)
        return
    result = "out" if scale == 1.0 or as_tanh else "unscaled"
    if variant.blend:
        yield from _blend(variant, form, result, base=base, has_total=has_total, types=types)
    else:
        yield f"{result} = Mul(x, w)"
    if result != "out":
        yield from types.scalar("s", "@scale" if scale is None else str(scale))
        yield "out = Mul(unscaled, s)"


def _shares(scale: float | None, types: _Types) -> Iterator[str]:
    """``s x w`` and ``s y (1 - w)``."""
    yield from types.scalar("whole", "1.0")
    yield "rest = Sub(whole, w)"
    share_x, share_y = ("out_x", "out_y") if scale == 1.0 else ("share_x", "share_y")
    yield f"{share_x} = Mul(x, w)"
    yield f"{share_y} = Mul(y, rest)"
    if scale != 1.0:
        yield from types.scalar("s", "@scale" if scale is None else str(scale))
        yield "out_x = Mul(share_x, s)"
        yield "out_y = Mul(share_y, s)"


def _blend(variant: Variant, form: Form, result: str, *, base: str, has_total: bool, types: _Types) -> Iterator[str]:
    """``base + w (x - y)``: with a sigmoid the base is y, with a tanh it is x + y."""
    if form == "convex":
        yield from types.scalar("whole", "1.0")
        yield "rest = Sub(whole, w)"
        yield "weighted_x = Mul(x, w)"
        yield "weighted_y = Mul(y, rest)"
        yield f"{result} = Add(weighted_x, weighted_y)"
        return
    if form == "plain":
        yield "difference = Sub(x, y)"
        yield "weighted = Mul(w, difference)"
        yield f"{result} = Add({base}, weighted)"
        return
    weight = f"{variant.branches[0]}_w2"
    yield from types.depthwise("minus", -2.0 if has_total else -1.0, weight)
    yield from types.depthwise("one", 1.0, weight)
    yield "minus_y = Conv<group: int = @channels>(y, minus)"
    yield f"difference = Add({'total' if has_total else 'x'}, minus_y)"
    yield "weighted = Mul(w, difference)"
    yield "weighted_again = Conv<group: int = @channels>(weighted, one)"
    yield f"{result} = Add({base}, weighted_again)"
