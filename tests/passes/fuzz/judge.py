"""Whether an optimised graph is what it was: DESIGN.md's definition of exact, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, checker

from aff_deploy.onnx_file import sorted_nodes
from aff_deploy.passes import optimize
from tests.passes.fuzz.operators import Array, Values

FACTOR = 8.0
"""How many times the original's own error, and a rounding of the largest magnitude, is still exact."""
SLACK = {np.dtype(np.float16): 0.05, np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-9}
"""An own error beyond this share of the largest value judges nothing."""


@dataclass(frozen=True)
class Verdict:
    """What became of a graph.

    Attributes:
        kind: ``ok``; ``invalid`` (the original is); ``ill`` (the original is far from the truth in some run);
            or a fault: ``crash``, ``unloadable``, ``shape``, ``infinite``, ``wrong``, ``unstable``
            (optimised again, it changes).
        detail: where, or the message.
        fused, refused: places of attention.
        share: the largest error as a share of what is allowed.
    """

    kind: str
    detail: str = ""
    fused: int = 0
    refused: int = 0
    share: float = 0.0

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("ok", "invalid", "ill")


def judge(model: ModelProto, feeds: Sequence[Values], values: Sequence[Mapping[str, Array]]) -> Verdict:
    """Optimise `model` and compare both with `values`, every tensor in double precision, by feed."""
    try:
        _check(model)
        before = [[_run(model, feed, optimised=on) for on in (False, True)] for feed in feeds]
    except Exception as error:  # whatever the checker or ONNX Runtime raises: no valid graph
        return Verdict("invalid", _line(error))
    kept = _serialised(model)
    try:
        result = optimize(model)
        again = optimize(result.model)
    except Exception as error:  # the fault that is looked for
        return Verdict("crash", _line(error))
    fused, refused = len(result.fusions), len(result.rejected)
    if _serialised(model) != kept:
        return Verdict("crash", "the model it was given has changed", fused, refused)
    try:
        _check(result.model)
        after = [[_run(result.model, feed, optimised=on) for on in (False, True)] for feed in feeds]
    except Exception as error:  # likewise
        return Verdict("unloadable", _line(error), fused, refused)
    compared = _Compared(_rounds_to_half(model))
    for i, exact in enumerate(values):
        largest = _magnitudes(result.model, exact)
        for name in largest:
            for one, other in zip(before[i], after[i], strict=True):
                if name in one:
                    compared.add(f"{name} of feed {i}", exact[name], one[name], other[name], largest[name])
    if not compared.kind and _serialised(again.model) != _serialised(result.model):
        compared.kind, compared.detail = "unstable", _difference(result.model, again.model)
    return Verdict(compared.kind or "ok", compared.detail, fused, refused, compared.share)


class _Compared:
    """The first fault of many comparisons, and the largest error as a share of what is allowed."""

    def __init__(self, half: bool) -> None:
        self.kind = self.detail = ""
        self.share = 0.0
        self._half = half

    def add(self, where: str, exact: Array, one: Array, other: Array, largest: float) -> None:
        """Compare what the original and the optimised graph give, both run in the same way."""
        kind, share = _compare(exact, one, other, largest, half=self._half)
        self.share = max(self.share, share)
        if kind and self.kind in ("", "ill"):
            self.kind, self.detail = kind, f"{where}: {share:.3g} of what is allowed"


def _compare(exact: Array, one: Array, other: Array, largest: float, *, half: bool) -> tuple[str, float]:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return "shape", 0.0
    if one.dtype.kind != "f":
        same = np.array_equal(one, other)
        return ("" if same else "wrong"), float(not same)
    if np.any(np.isfinite(one) & ~np.isfinite(other)):
        return "infinite", 0.0
    told = np.isfinite(exact) & np.isfinite(one)
    largest = max(largest, _largest(exact[told]))
    own, ours = (_largest(run[told].astype(np.float64) - exact[told]) for run in (one, other))
    dtype = np.dtype(np.float16) if half else one.dtype
    if own > SLACK[dtype] * largest:
        return "ill", 0.0
    allowed = FACTOR * (own + float(np.finfo(dtype).eps) * largest)
    share = ours / allowed if allowed else float(ours > 0)
    return ("wrong" if share > 1.0 else ""), share


def _rounds_to_half(model: ModelProto) -> bool:
    """Whether a Cast rounds to float16 on the way, which ONNX Runtime may leave out, and `values` do not show."""
    half = onnx.TensorProto.FLOAT16
    return any(node.op_type == "Cast" and node.attribute[0].i == half for node in model.graph.node)


def _largest(array: Array) -> float:
    return float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))


def _serialised(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _magnitudes(model: ModelProto, values: Mapping[str, Array]) -> dict[str, float]:
    """For each tensor, the largest magnitude of what it is made of that the optimised graph still names.

    The insides of a fusion are not among them: only what goes in and comes out.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, float] = {}

    def own(name: str) -> float:
        value = values.get(name)
        if value is None or value.dtype.kind != "f" or name in constants:
            return 0.0
        return _largest(value)

    for value in model.graph.input:
        found[value.name] = own(value.name)
    for node in sorted_nodes(model.graph):
        before = max((found.get(name, 0.0) for name in node.input), default=0.0)
        found.update((name, max(before, own(name))) for name in node.output)
    return {name: found.get(name, 0.0) for name in (*found, *(value.name for value in model.graph.output))}


def _check(model: ModelProto) -> None:
    ordered = ModelProto()
    ordered.CopyFrom(model)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in sorted_nodes(model.graph)]
    del ordered.graph.node[:]
    ordered.graph.node.extend(nodes)
    checker.check_model(ordered, full_check=True)


def _run(model: ModelProto, feed: Values, *, optimised: bool) -> dict[str, Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if _has_twins(model):
        # ONNX Runtime takes no such model; names of nodes mean nothing.
        model = _without_names(model)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    return dict(zip(names, session.run(None, {n: a for n, a in feed.items() if n in wanted}), strict=True))


def _has_twins(model: ModelProto) -> bool:
    names = [node.name for node in model.graph.node if node.name]
    return len(names) > len(set(names))


def _without_names(model: ModelProto) -> ModelProto:
    nameless = ModelProto()
    nameless.CopyFrom(model)
    for node in nameless.graph.node:
        node.name = ""
    return nameless


def _difference(one: ModelProto, other: ModelProto) -> str:
    before, after = ([node.op_type for node in m.graph.node] for m in (one, other))
    if before != after:
        return f"{len(before)} nodes, then {len(after)}"
    for field in ("node", "initializer", "value_info", "input", "output"):
        pairs = zip(getattr(one.graph, field), getattr(other.graph, field), strict=False)
        changed = next((a.name for a, b in pairs if a != b), None)
        if changed is not None or len(getattr(one.graph, field)) != len(getattr(other.graph, field)):
            return f"{field} {changed!r}"
    return "something beside the graph"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
