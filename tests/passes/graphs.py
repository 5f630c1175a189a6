"""Graph tests start from ONNX text: what is written is what is tested, weights aside, which are drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import optimize
from aff_deploy.passes.convert import export_model, import_graph
from aff_deploy.runtimes.double import DoubleRunner, in_double
from aff_deploy.validate.exact import Answers, Exactness, measure_exactness
from aff_deploy.verify import eps_of, largest_at_sites

Array = NDArray[Any]


def model_of(
    body: str,
    *,
    opset: int = 18,
    ir: int = 8,
    domains: str = "",
    functions: str = "",
    seed: int = 0,
    **values: Array,
) -> onnx.ModelProto:
    """A model from the text of its graph.

    Initializers declared with a type alone (``<float[8, 4, 1, 1] W>``) get seeded values: variances (named
    ``var...``) positive, everything else normal; `values` gives some of them by name instead.
    """
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}{domains}]>'
    model = parser.parse_model(f"{header}\n{body}\n{functions}")
    generator = np.random.default_rng(seed)
    made = {node_output for node in model.graph.node for node_output in node.output}
    given = {tensor.name for tensor in model.graph.initializer}
    declared = [value for value in model.graph.value_info if value.name not in made | given]
    for value in declared:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = values.get(value.name)
        if array is None:
            array = generator.uniform(0.3, 3.0, dims) if value.name.startswith("var") else generator.normal(size=dims)
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array).astype(dtype), value.name))
        model.graph.value_info.remove(value)
    unknown = set(values) - {tensor.name for tensor in model.graph.initializer}
    assert not unknown, f"no such initializer: {unknown}"
    return model


def apply_passes(model: onnx.ModelProto, *passes: Callable[[gs.Graph], int]) -> tuple[int, onnx.ModelProto]:
    """How many rewrites the passes made, and the valid model that they leave; `model` stays as it is."""
    before = model.SerializeToString(deterministic=True)
    graph = import_graph(model)
    count = sum(apply(graph) for apply in passes)
    after = export_model(graph, model)
    assert model.SerializeToString(deterministic=True) == before, "a pass changed the model it was given"
    check_onnx(after)
    return count, after


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def feeds_of(model: onnx.ModelProto, *, seed: int = 1, size: int = 3, **given: Array) -> dict[str, Array]:
    """Seeded values for every input without a default; dynamic dimensions get `size`."""
    generator = np.random.default_rng(seed)
    defaults = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in defaults and value.name not in given:
            continue
        kind = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else size for dim in kind.shape.dim]
        array = given.get(value.name, generator.normal(size=dims))
        if kind.elem_type == TensorProto.BOOL and value.name not in given:
            array = array > 0
        feeds[value.name] = np.asarray(array).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds


def run_ort(model: onnx.ModelProto, feeds: Mapping[str, Array], *, optimised: bool = False) -> list[Array]:
    """What ONNX Runtime computes, its own rewrites off unless `optimised`, so that they hide nothing of ours."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def run_reference(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, dict(feeds)))


TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 2e-6, np.dtype(np.float16): 4e-3}
"""Largest error, relative to the scale of an output, that rounding may cause."""


def assert_same(expected: Sequence[Array], actual: Sequence[Array]) -> None:
    """Same number of outputs, same shapes and types, values equal up to rounding."""
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.dtype.kind != "f":
            np.testing.assert_array_equal(other, one)
            continue
        scale = float(np.max(np.abs(one.astype(np.float64)), initial=0.0))
        error = np.abs(one.astype(np.float64) - other.astype(np.float64))
        assert float(np.max(error, initial=0.0)) <= TOLERANCE[one.dtype] * max(scale, 1e-3), "the outputs differ"


def exactness(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, Array], *, truth: onnx.ModelProto | None = None
) -> dict[str, tuple[Exactness, ...]]:
    """How exactly `after` computes what `before` does: in ONNX Runtime, plain and optimising, and in float64.

    `truth` is a model of the same function that can be evaluated in float64, where `before` itself cannot.
    """
    names = [value.name for value in before.graph.output]
    right = dict(zip(names, DoubleRunner(truth or before).infer(in_double(feeds)).values(), strict=True))
    original = dict(zip(names, run_ort(before, feeds), strict=True))
    candidates = {
        "ONNX Runtime": run_ort(after, feeds),
        "ONNX Runtime, optimising": run_ort(after, feeds, optimised=True),
    }
    if truth is None:
        candidates["float64"] = list(DoubleRunner(after).infer(in_double(feeds)).values())
    magnitude = largest_at_sites(after, [feeds])
    eps = max(eps_of(before), eps_of(after))
    return {
        runtime: measure_exactness([Answers(right, original, dict(zip(names, outputs, strict=True)))], eps, magnitude)
        for runtime, outputs in candidates.items()
    }


def assert_exact(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, Array], *, truth: onnx.ModelProto | None = None
) -> None:
    """`after` computes what `before` does, by the one definition of exact."""
    for runtime, outputs in exactness(before, after, feeds, truth=truth).items():
        problems = [found.detail for found in outputs if not found.holds]
        assert not problems, f"{runtime}: {problems[0]}"


def assert_parity(before: onnx.ModelProto, after: onnx.ModelProto, **given: Array) -> None:
    """`after` has the inputs and outputs of `before` and computes the same on seeded data."""
    for mine, other in ((before.graph.input, after.graph.input), (before.graph.output, after.graph.output)):
        assert [value.name for value in mine] == [value.name for value in other]
    assert_exact(before, after, feeds_of(before, **given))


def assert_settled(model: onnx.ModelProto) -> None:
    """Optimising an optimised model changes nothing, to the byte."""
    again = optimize(model)
    assert not any(done.rewrites for done in again.passes), [done for done in again.passes if done.rewrites]
    assert again.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def check_rewrite(body: str, count: int, *passes: Callable[[gs.Graph], int], **options: Any) -> onnx.ModelProto:
    """BEFORE, count, parity: the whole of most tests. Returns the model after the passes."""
    before = model_of(body, **options)
    check_onnx(before)
    rewrites, after = apply_passes(before, *passes)
    assert_parity(before, after)
    assert rewrites == count, f"{rewrites} rewrites; left are {op_types(after)}"
    return after


C = 16
BN = "".join(f", float[{C}] gamma{i}, float[{C}] beta{i}, float[{C}] mean{i}, float[{C}] var{i}" for i in range(2))
AFF = f"""g (float[N, {C}, 5, 6] x, float[N, {C}, 5, 6] skip) => (float[N, {C}, 5, 6] out)
<float[{C}, {C}, 1, 1] k, float[4, {C}, 1, 1] w1, float[4] b1, float[{C}, 4, 1, 1] w2, float[{C}] b2,
 float[4, {C}, 1, 1] v1, float[4] c1, float[{C}, 4, 1, 1] v2, float[{C}] c2{BN}> {{
  conv = Conv(skip, k)
  y = BatchNormalization(conv, gamma0, beta0, mean0, var0)
  a = Add(x, y)
  same = Identity(a)
  l_t = Conv(same, w1, b1)
  l_h = Relu(l_t)
  l_c = Conv(l_h, w2, b2)
  l = BatchNormalization(l_c, gamma1, beta1, mean1, var1)
  p = GlobalAveragePool(a)
  g_t = Conv(p, v1, c1)
  g_h = Relu(g_t)
  g = Conv(g_h, v2, c2)
  z = Add(l, g)
  w = Sigmoid(z)
  one = Constant<value_float: float = 1.0>()
  rest = Sub(one, w)
  xw = Mul(x, w)
  yw = Mul(y, rest)
  out = Add(xw, yw)
}}"""


def aff(**options: object) -> onnx.ModelProto:
    return model_of(AFF, **options)  # type: ignore[arg-type]
