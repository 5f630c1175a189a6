"""Whether an optimised graph is what it was: DESIGN.md's definition of exact, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from onnx import ModelProto, checker

from aff_deploy.onnx_file import sorted_nodes
from aff_deploy.ops import DOMAIN
from aff_deploy.passes import optimize
from aff_deploy.validate.exact import Answers, measure_exactness
from tests.passes.fuzz.operators import Array, Values

SLACK = {np.dtype(np.float16): 0.05, np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-9}
"""An own error beyond this share of the largest value judges nothing."""


_Runs: TypeAlias = "list[list[Values]]"
"""By feed, the outputs without ONNX Runtime's own rewrites and with them."""


@dataclass(frozen=True)
class Verdict:
    """What became of a graph.

    Attributes:
        kind: ``ok``; ``invalid`` (the original is); ``ill`` (the original is far from the truth in some run);
            ``amplified`` (what each fusion makes is exact, but its rounding grows beyond the bound behind
            it, and ``convex`` does without); or a fault: ``crash``, ``unloadable``, ``shape``, ``wrong``,
            ``unstable`` (optimised again, it changes).
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
        return self.kind not in ("ok", "invalid", "ill", "amplified")


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
    case = _Case(model, result.model, feeds, values)
    kind, share, detail = case.compare(before, after)
    if kind == "wrong" and case.holds_at_sites():
        convex = optimize(model, convex=True).model
        runs = [[_run(convex, feed, optimised=on) for on in (False, True)] for feed in feeds]
        if case.compare(before, runs)[0] in ("", "ill"):
            kind = "amplified"
    if not kind and _serialised(again.model) != _serialised(result.model):
        kind, detail = "unstable", _difference(result.model, again.model)
    return Verdict(kind or "ok", detail, fused, refused, share)


class _Case:
    """An original, what it became, and what both are compared on."""

    def __init__(
        self, model: ModelProto, optimised: ModelProto, feeds: Sequence[Values], values: Sequence[Mapping[str, Array]]
    ) -> None:
        self.model, self.optimised, self.feeds, self.values = model, optimised, feeds, values
        self.runs = [_run_whole(optimised, feed) for feed in feeds]
        self._half = _rounds_to_half(model)

    def compare(self, before: _Runs, after: _Runs) -> tuple[str, float, str]:
        """The first fault among the outputs, the largest share of what is allowed, and what it is about."""
        pairs = zip(self.runs, self.values, strict=True)
        largest = [_magnitudes(self.model, self.optimised, run, exact) for run, exact in pairs]
        kind = detail = ""
        share = 0.0
        for name in largest[0]:
            for way in (0, 1):
                runs = [[tried[way][name] for tried in each] for each in (before, after)]
                exact = [tensors[name] for tensors in self.values]
                found = _compare(name, exact, *runs, max(each[name] for each in largest), half=self._half)
                share = max(share, found[1])
                if found[0] and kind in ("", "ill"):
                    kind, _, detail = found
        return kind, share, detail

    def holds_at_sites(self) -> bool:
        """Whether what each fusion makes is exact where it is made, whatever becomes of it behind."""
        originals = [_run_whole(self.model, feed) for feed in self.feeds]
        for node in self.optimised.graph.node:
            if node.domain != DOMAIN:
                continue
            # The second input may be a weight, which is not run.
            ends = [name for name in (*node.input[:2], *node.output) if name in self.runs[0]]
            largest = max(_largest(run[name]) for run in self.runs for name in ends)
            for name in node.output:
                tensors = [[each[name] for each in tried] for tried in (self.values, originals, self.runs)]
                if _compare(name, *tensors, largest, half=self._half)[0] not in ("", "ill"):
                    return False
        return True


def _compare(
    name: str, exact: list[Array], ones: list[Array], others: list[Array], largest: float, *, half: bool
) -> tuple[str, float, str]:
    """What is wrong with an output, its error as a share of what is allowed, and why; by feed, run in one way."""
    for one, other in zip(ones, others, strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return "shape", 0.0, f"{name} is {other.dtype}{other.shape}, not {one.dtype}{one.shape}"
    dtype = np.dtype(np.float16) if half else ones[0].dtype
    eps = float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    answers = [Answers(*({name: array} for array in each)) for each in zip(exact, ones, others, strict=True)]
    (found,) = measure_exactness(answers, eps, largest)
    if found.broken:
        return "wrong", 0.0, found.detail
    if dtype.kind == "f" and found.original_error > SLACK[dtype] * found.magnitude:
        return "ill", 0.0, f"{name} of the original is {found.original_error:.3g} off"
    share = found.error / found.allowed if found.allowed else 0.0
    return ("" if found.holds else "wrong"), share, found.detail


def _rounds_to_half(model: ModelProto) -> bool:
    """Whether a Cast rounds to float16 on the way, which ONNX Runtime may leave out, and `values` do not show."""
    half = onnx.TensorProto.FLOAT16
    return any(node.op_type == "Cast" and node.attribute[0].i == half for node in model.graph.node)


def _largest(array: Array) -> float:
    return float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))


def _serialised(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _magnitudes(model: ModelProto, optimised: ModelProto, run: Values, exact: Mapping[str, Array]) -> dict[str, float]:
    """For each output, the largest magnitude among the ends of what was rewritten on its way.

    These are all that the optimised graph still names, but not the insides of a fusion, and the ends of each
    BatchNormalization that was folded, wherever its output went.
    """
    kept = {node.output[0] for node in optimised.graph.node if node.op_type == "BatchNormalization"}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    folded = {name: exact[name] for node in norms if node.output[0] not in kept for name in (node.input[0], node.output[0])}
    ways = [_carried(optimised, run), _carried(model, folded)]
    return {value.name: max(way.get(value.name, 0.0) for way in ways) for value in model.graph.output}


def _carried(model: ModelProto, values: Mapping[str, Array]) -> dict[str, float]:
    """For each tensor, the largest of `values` among what it is made of."""
    own = {name: _largest(value) for name, value in values.items() if value.dtype.kind == "f"}
    found = {value.name: own.get(value.name, 0.0) for value in model.graph.input}
    for node in sorted_nodes(model.graph):
        before = max((found.get(name, 0.0) for name in node.input), default=0.0)
        found.update((name, max(before, own.get(name, 0.0))) for name in node.output)
    return found


def _run_whole(model: ModelProto, feed: Values) -> Values:
    """Every tensor of the main graph, those that are fed among them."""
    exposed = ModelProto()
    exposed.CopyFrom(model)
    ends = {value.name for value in model.graph.output}
    made = [name for node in model.graph.node for name in node.output if name]
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in made if n not in ends)
    return {**feed, **_run(exposed, feed, optimised=False)}


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
