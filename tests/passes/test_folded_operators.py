"""Every operator that folding computes, in every version and type, gives what ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aff_deploy.passes import NEWEST_OPSET, OLDEST_OPSET
from aff_deploy.passes.convert import import_graph
from aff_deploy.passes.fold_constants import FOLDED, FOLDED_TYPES, HALF, fold_constants
from tests.passes.folded_cases import CASES, Case, DType, edges, whole
from tests.passes.graphs import Array, run_ort

BFLOAT16 = HALF[1]
# Where ONNX Runtime has no kernel for a type, the same values in another: those that are tried are in both.
STAND_INS = {
    BFLOAT16: np.dtype(np.float32),
    **{np.dtype(kind): np.dtype(np.int32) for kind in (np.int8, np.uint8, np.bool_)},
    np.dtype(np.float64): np.dtype(np.float32),
}
# Sums may be added up in another order, functions computed by another formula: a few units in the last place.
ROUNDED = frozenset(
    {"Cos", "Exp", "Log", "Pow", "Sin", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceProd", "MatMul", "CumSum"}
)
UNITS = 8


def versions(op: str) -> list[int]:
    """The opsets at which an operator was changed, from the first on that is read."""
    since = sorted(s.since_version for s in onnx.defs.get_all_schemas_with_history() if (s.name, s.domain) == (op, ""))
    first = [version for version in since if version <= OLDEST_OPSET][-1:]
    return [max(v, OLDEST_OPSET) for v in (*first, *(v for v in since if OLDEST_OPSET < v <= NEWEST_OPSET))]


def elem_type(kind: DType) -> int:
    return int(helper.np_dtype_to_tensor_dtype(kind))


def named(number: int, case: Case) -> dict[str, Array]:
    return {f"i{number}_{i}": np.asarray(value) for i, value in enumerate(case.inputs) if value is not None}


def node_of(op: str, number: int, case: Case) -> NodeProto:
    names = ["" if value is None else f"i{number}_{i}" for i, value in enumerate(case.inputs)]
    return helper.make_node(op, names, [f"t{number}"], **case.attributes)


def model_of(op: str, cases: Sequence[Case], opset: int) -> ModelProto | None:
    """A node for each case, with graph inputs; None where the operator does not take them."""
    nodes = [node_of(op, n, case) for n, case in enumerate(cases)]
    given = {name: value for n, case in enumerate(cases) for name, value in named(n, case).items()}
    inputs = [helper.make_tensor_value_info(name, elem_type(v.dtype), v.shape) for name, v in given.items()]
    outputs = [helper.make_empty_tensor_value_info(node.output[0]) for node in nodes]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return None
    for mine, other in zip(model.graph.output, inferred.graph.output, strict=True):
        mine.CopyFrom(other)
    return model


def run(op: str, cases: Sequence[Case], opset: int) -> list[Array]:
    """What ONNX Runtime gives; bfloat16, which numpy does not hand over, as float32."""
    model = model_of(op, cases, opset)
    assert model is not None
    feeds = {name: value for n, case in enumerate(cases) for name, value in named(n, case).items()}
    nodes = model.graph.node
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            nodes.insert(0, helper.make_node("Cast", [f"{value.name}_f"], [value.name], to=TensorProto.BFLOAT16))
            feeds[f"{value.name}_f"] = feeds.pop(value.name).astype(np.float32)
            value.name, value.type.tensor_type.elem_type = f"{value.name}_f", TensorProto.FLOAT
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            nodes.append(helper.make_node("Cast", [value.name], [f"{value.name}_f"], to=TensorProto.FLOAT))
            value.name, value.type.tensor_type.elem_type = f"{value.name}_f", TensorProto.FLOAT
    return run_ort(model, feeds)


def stand_in(op: str, case: Case, kind: DType, opset: int) -> Case | None:
    """The case in another type, or None where that has other values."""
    other = STAND_INS.get(kind)
    if other is None:
        return None
    # The condition of a Where stays what it is.
    fixed = 1 if op == "Where" else 0
    changed = list(case.inputs)
    with np.errstate(all="ignore"):
        for i, value in enumerate(case.inputs):
            if i < fixed or value is None or value.dtype != kind:
                continue
            changed[i] = wide = value.astype(other)
            if not np.array_equal(wide.astype(kind), value, equal_nan=True):
                return None
    made = Case(tuple(changed), case.attributes)
    return None if model_of(op, [made], opset) is None else made


def compute(op: str, cases: Sequence[Case], kind: DType, opset: int) -> list[Array | None]:
    """What ONNX Runtime gives, in a stand-in's type where it has no kernel for the own; None where neither."""
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    try:
        return list(run(op, cases, opset))
    except (states.NotImplemented, states.InvalidGraph, states.Fail):
        others = [stand_in(op, case, kind, opset) for case in cases]
    results = iter(run(op, [case for case in others if case is not None], opset))
    return [None if case is None else next(results) for case in others]


def folded(op: str, cases: Sequence[Case], opset: int) -> list[Array | None]:
    """What the pass makes of each case; None where it leaves it."""
    given = {name: value for n, case in enumerate(cases) for name, value in named(n, case).items()}
    inits = [numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name) for name, value in given.items()]
    nodes = [node_of(op, n, case) for n, case in enumerate(cases)]
    nodes += [helper.make_node("Identity", [f"t{n}"], [f"out{n}"]) for n in range(len(cases))]
    outputs = [helper.make_empty_tensor_value_info(f"out{n}") for n in range(len(cases))]
    graph = helper.make_graph(nodes, "g", [], outputs, inits)
    imported = import_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))
    fold_constants(imported)
    made = {node.outputs[0].name: node.inputs[0] for node in imported.nodes}
    results = [made[f"out{n}"] for n in range(len(cases))]
    return [np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None for tensor in results]


def assert_equal(op: str, want: Array, got: Array, case: Case) -> None:
    assert want.shape == got.shape, (want.shape, got.shape, case)
    if got.dtype not in FOLDED_TYPES[:4]:
        np.testing.assert_array_equal(got.astype(want.dtype), want, err_msg=str(case))
        return
    limits = ml_dtypes.finfo(got.dtype)
    wide, mine = want.astype(got.dtype).astype(np.float64), got.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (wide == mine) | (np.isnan(wide) & np.isnan(mine))
        if op in ROUNDED:
            terms = max(
                (float(np.abs(v.astype(np.float64)[np.isfinite(v)]).max(initial=0.0)) for v in case.inputs[:1]), default=0.0
            )
            scale = np.abs(wide) + (terms if op not in ("Exp", "Log", "Pow") else 0.0)
            same |= np.isfinite(wide) & (np.abs(wide - mine) <= UNITS * (float(limits.eps) * scale + float(limits.tiny)))
    assert np.all(same), f"{op}: want {wide[~same][:3]}, got {mine[~same][:3]} of {case}"


def test_the_list_is_what_is_tried() -> None:
    assert set(CASES) == FOLDED


@pytest.mark.parametrize("op", sorted(FOLDED))
def test_folded_as_onnx_runtime_computes(op: str) -> None:
    done: set[tuple[int, DType]] = set()
    for opset, kind in product(versions(op), FOLDED_TYPES):
        cases = [case for case in CASES[op](kind, opset) if model_of(op, [case], opset) is not None]
        pairs = [(case, got) for case, got in zip(cases, folded(op, cases, opset), strict=True) if got is not None]
        wanted = compute(op, [case for case, _ in pairs], kind, opset) if pairs else []
        for (case, got), want in zip(pairs, wanted, strict=True):
            if want is not None:
                assert_equal(op, want, got, case)
                done.add((opset, kind))
        assert not pairs or (opset, kind) in done, f"{op} of {kind} is folded, and nothing says that it is right"
    assert {opset for opset, _ in done} == set(versions(op)), "a version of which nothing is folded"


UNDEFINED = {
    "an integer by zero": ("Div", Case((whole(1, 2), whole(0, 1)))),
    "the least integer by -1": ("Div", Case((whole(-(2**63)), whole(-1)))),
    "the rest of an integer by zero": ("Mod", Case((whole(1), whole(0)))),
    "NaN as an integer": ("Cast", Case((np.array([np.nan], np.float32),), {"to": TensorProto.INT64})),
    "a large float as an integer": ("Cast", Case((np.array([2.0**63]),), {"to": TensorProto.INT64})),
    "a negative float as uint8": ("Cast", Case((np.array([-1.0], np.float32),), {"to": TensorProto.UINT8})),
    "an average of nothing": ("ReduceMean", Case((np.zeros((0, 2), np.float32),))),
    "infinity, unbounded": ("Clip", Case((edges(np.dtype(np.float32)), np.float32(0.0)))),
    "positions of a number": ("NonZero", Case((np.float32(3.0),))),
    "an integer to a negative power": ("Pow", Case((whole(2), whole(-1)))),
    "a range in steps of no whole number": ("Range", Case(tuple(np.float32(n) for n in (0.0, 0.3, 0.1)))),
    "added at indices": ("ScatterND", Case((np.zeros(2), whole(1, 1).reshape(2, 1), np.ones(2)), {"reduction": "add"})),
}


@pytest.mark.parametrize(("op", "case"), UNDEFINED.values(), ids=UNDEFINED.keys())
def test_what_runtimes_do_not_agree_on_is_left_to_them(op: str, case: Case) -> None:
    assert folded(op, [case], 18) == [None]


UNLISTED = {
    "Softmax": Case((np.ones((2, 3, 4), np.float32),)),
    "LogSoftmax": Case((np.ones((2, 3), np.float32),)),
    "Hardmax": Case((np.ones((2, 3), np.float32),)),
    "LpNormalization": Case((np.ones((2, 3), np.float32),), {"p": 1}),
    "GlobalMaxPool": Case((np.ones((2, 3, 4), np.float32),)),
    "LRN": Case((np.ones((1, 6, 2, 2), np.float32),), {"size": 5}),
    "MeanVarianceNormalization": Case((np.ones((2, 3, 2, 2), np.float32),)),
    "Softplus": Case((np.ones(2, np.float16),)),
}


@pytest.mark.parametrize("op", UNLISTED)
def test_operators_that_the_reference_computes_otherwise_are_not_folded(op: str) -> None:
    assert folded(op, [UNLISTED[op]], 12) == [None]
