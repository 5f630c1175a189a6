"""The shapes that inference notes are those that ONNX Runtime makes, however a shape was computed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from aff_deploy.onnx_file import infer_types, static_shape
from tests.passes.graphs import run_ort

NUMBERS = (
    "".join(f"i{i} = Constant<value_ints: ints = [{i}]>()\n" for i in range(5))
    + "n0 = Constant<value_int: int = 0>()\nn2 = Constant<value_int: int = 2>()\nall = Constant<value_ints: ints = [-1]>()\n"
)
SHAPE = NUMBERS + "s = Shape(x)\n"

# Each makes `t`, a shape for x, which is 2 x 3 x 4 x 5; `k` is an input that says where to cut.
WRONG = {
    "a start that is an input": "h = Slice(s, k, i4, i0)\nt = Concat<axis: int = 0>(h, all)",
    "a start that is computed": "c = Add(k, i0)\nh = Slice(s, c, i4, i0)\nt = Concat<axis: int = 0>(h, all)",
    "an end that is an input": "h = Slice(s, i1, k, i0)\nt = Concat<axis: int = 0>(h, all)",
    "an end counted from the back": "e = Neg(k)\nm = Sub(i0, i4)\nh = Slice(s, m, e, i0)\nt = Concat<axis: int = 0>(h, all)",
    "steps that are an input": "h = Slice(s, i0, i4, i0, k)\nt = Concat<axis: int = 0>(h, all)",
    "through bool": (
        "b = Cast<to: int = 9>(s)\nc = Cast<to: int = 7>(b)\nh = Slice(c, i0, i1, i0)\nt = Concat<axis: int = 0>(h, all)"
    ),
    "a type too narrow": (
        "big = Constant<value_ints: ints = [258]>()\nb = Cast<to: int = 2>(big)\nc = Cast<to: int = 7>(b)\n"
        "t = Concat<axis: int = 0>(c, all)"
    ),
    "the row of a matrix": "m = Unsqueeze(s, i0)\nr = Gather(m, n0)\nt = Identity(r)",
    "a slice of a matrix": "m = Unsqueeze(s, i0)\nc = Slice(m, i0, i1, i0)\nr = Squeeze(c, i0)\nt = Identity(r)",
    "the row of a table": (
        "table = Constant<value: tensor = int64[2, 2] {2, 60, 3, 40}>()\nv = Gather(table, n0)\nm = Unsqueeze(v, i0)\n"
        "t = Gather(m, n0)"
    ),
}
END = "\nt = Concat<axis: int = 0>(u, all)"
RIGHT = {
    "flatten": ("b = Gather(s, n0)\nu = Unsqueeze(b, i0)", (2, 60)),
    "a constant slice": ("u = Slice(s, i0, i2, i0)", (2, 3, 20)),
    "a product": ("a = Gather(s, n2)\nb = Gather(s, n0)\nm = Mul(a, b)\nu = Unsqueeze(m, i0)", (8, 15)),
    "reshaped to a vector": ("b = Gather(s, n0)\nr = Reshape(b, all)\nu = Reshape(r, all)", (2, 60)),
    "through int32": ("c = Cast<to: int = 6>(s)\nd = Cast<to: int = 7>(c)\nu = Slice(d, i0, i1, i0)", (2, 60)),
    "squeezed": ("h = Slice(s, i1, i2, i0)\nq = Squeeze(h, i0)\nu = Unsqueeze(q, i0)", (3, 40)),
}


def model_of(lines: str, *, within: str = "") -> onnx.ModelProto:
    """A Reshape to the shape that the lines make, in the main graph, in an If, or in a local function."""
    body = f"{SHAPE}{lines}\ny = Reshape(x, t)"
    functions, domains = "", ""
    if within == "if":
        inner = body.replace("y =", "inner =")
        branches = f"then_branch = a () => (then) {{ {inner}\nthen = Identity(inner) }}, "
        branches += f"else_branch = b () => (else) {{ {inner}\nelse = Identity(inner) }}"
        body = f"yes = Constant<value: tensor = bool {{1}}>()\ny = If (yes) <{branches}>"
    elif within == "function":
        functions = f'<domain: "f", opset_import: ["" : 18]> f (x, k) => (y) {{ {body} }}'
        domains, body = ', "f" : 1', "y = f.f(x, k)"
    header = f'<ir_version: 8, opset_import: ["" : 18{domains}]>\ng (float[2, 3, 4, 5] x, int64[1] k) => (float[A] out)'
    model: onnx.ModelProto = parser.parse_model(f"{header} {{\n{body}\nout = Relu(y)\n}}\n{functions}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def noted(model: onnx.ModelProto) -> tuple[int | str | None, ...] | None:
    return static_shape(infer_types(model, strict=True).get("y"))


@pytest.mark.parametrize("within", ["", "if", "function"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_known_is_not_noted(name: str, within: str) -> None:
    model = model_of(WRONG[name], within=within)
    shape = noted(model)
    feeds = {"x": np.zeros((2, 3, 4, 5), np.float32), "k": np.array([2])}
    (actual,) = run_ort(model, feeds)
    if shape is not None:
        assert len(shape) == actual.ndim
        assert all(not isinstance(dim, int) or dim == size for dim, size in zip(shape, actual.shape, strict=True))


def test_branches_that_use_a_name_twice() -> None:
    model = model_of("t = Concat<axis: int = 0>(i2, all)", within="if")
    (choice,) = (node for node in model.graph.node if node.op_type == "If")
    for attribute, number in zip(choice.attribute, (2, 3), strict=True):
        (made,) = (node for node in attribute.g.node if "i2" in node.output)
        made.attribute[0].ints[:] = [number]
    # One branch gives 2 x 60, the other 3 x 40.
    shape = noted(model)
    assert shape is None or not any(isinstance(dim, int) for dim in shape)


@pytest.mark.parametrize("within", ["", "function"])
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_known_is_noted(name: str, within: str) -> None:
    lines, shape = RIGHT[name]
    assert noted(model_of(lines + END, within=within)) == shape
