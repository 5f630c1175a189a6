"""Exactness after every pass: which rewrite, if any, changed what a model computes; and what its sites are fed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aff_deploy.errors import CheckFailed, ModelError
from aff_deploy.ops import count_features, is_fusion
from aff_deploy.runtimes.feeds import free_sizes, seeded_feeds
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.spec import TOLERANCES, Precision, TensorSpec
from aff_deploy.validate import validate
from aff_deploy.validate.exact import FACTOR, Answers, measure_exactness
from aff_deploy.validate.rows import adapt_feeds

if TYPE_CHECKING:
    import onnx

    from aff_deploy.runtimes import Array, Feeds

EPS: Mapping[Precision, float] = {
    Precision.FP32: 2**-23,
    Precision.FP16: 2**-10,
    Precision.BF16: 2**-7,
    Precision.INT8: 2**-7,
    Precision.FP8: 2**-3,
}
"""The machine epsilon of each precision; of 8 bits, one step of a symmetric range."""
EPS_OF_DOUBLE = 2**-52


def precision_of(model: onnx.ModelProto) -> Precision:
    """The precision that decides how exact a model can be: the lowest of its weights and operators."""
    from onnx import TensorProto

    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return Precision.INT8
    types = _types(model)
    if TensorProto.BFLOAT16 in types:
        return Precision.BF16
    return Precision.FP16 if TensorProto.FLOAT16 in types else Precision.FP32


def eps_of(model: onnx.ModelProto) -> float:
    """The machine epsilon of the narrowest float type among a model's weights, ends and casts."""
    from onnx import TensorProto

    from aff_deploy.onnx_data import iter_graphs

    casts = [n for graph in iter_graphs(model.graph) for n in graph.node if n.op_type == "Cast"]
    targets = {attribute.i for node in casts for attribute in node.attribute if attribute.name == "to"}
    eps = EPS[precision_of(model)]
    if TensorProto.BFLOAT16 in targets:
        eps = max(eps, EPS[Precision.BF16])
    if TensorProto.FLOAT16 in targets:
        eps = max(eps, EPS[Precision.FP16])
    types = _types(model) | targets
    is_double = TensorProto.DOUBLE in types and TensorProto.FLOAT not in types
    return EPS_OF_DOUBLE if is_double and eps == EPS[Precision.FP32] else eps


def _types(model: onnx.ModelProto) -> set[int]:
    types = {tensor.data_type for tensor in model.graph.initializer}
    return types | {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}


def seeded_batches(inputs: Sequence[TensorSpec], *, samples: int = 4) -> Sequence[Mapping[str, Array]]:
    """Seeded data for a model of which only its own inputs are known."""
    return seeded_feeds(inputs, samples=samples, sizes=free_sizes(inputs))


@dataclass(frozen=True)
class SiteRange:
    """The largest magnitudes that were seen at a fused call.

    Attributes:
        name: the site's.
        blended: of x and y; 0 for a call that blends nothing.
        read: of x, y and the context.
        written: of the outputs, before the factor on them.
    """

    name: str
    blended: float
    read: float
    written: float

    @property
    def loses_x(self) -> bool:
        """Whether ``y + w (x - y)`` rounds further from the truth than `FACTOR` times what ``x w + y (1 - w)`` does.

        The first rounds relative to x and y, the second relative to the result, which is smaller where
        the gate closes on the smaller of the two.
        """
        return self.blended > FACTOR * self.written


def observe_sites(model: onnx.ModelProto, batches: Iterable[Feeds]) -> tuple[SiteRange, ...]:
    """What the fused calls of a model's main graph read and write on given data, on ONNX Runtime.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    calls = [node for node in model.graph.node if is_fusion(node.domain, node.op_type)]
    if not calls:
        return ()
    features = {id(call): list(call.input[: count_features(call.op_type)]) for call in calls}
    names = dict.fromkeys(name for call in calls for name in (*features[id(call)], *call.output))
    largest = _observe(model, list(names), batches)

    def of(tensors: Iterable[str]) -> float:
        return max((largest.get(name, 0.0) for name in tensors), default=0.0)

    found = []
    for call in calls:
        is_blend = call.op_type.startswith("AttentionalFusion")
        scale = next((attribute.f for attribute in call.attribute if attribute.name == "scale"), 1.0)
        written = of(call.output) / abs(scale) if scale else 0.0
        blended = of(features[id(call)][:2]) if is_blend else 0.0
        found.append(SiteRange(call.name, blended, of(features[id(call)]), written))
    return tuple(found)


def largest_at_sites(model: onnx.ModelProto, batches: Iterable[Feeds]) -> float:
    """The largest magnitude of an input or output of a fused call: the m of `aff_deploy.validate.exact`."""
    return max((max(site.read, site.written) for site in observe_sites(model, batches)), default=0.0)


def _observe(model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Feeds]) -> dict[str, float]:
    """The largest finite magnitude of each named tensor."""
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    there = {value.name for value in (*shown.graph.output, *shown.graph.input)}
    constants = {tensor.name for tensor in shown.graph.initializer}
    types = {value.name: value for value in shown.graph.value_info}
    shown.graph.output.extend(types[name] for name in names if name in types and name not in there | constants)
    largest: dict[str, float] = {}
    with OnnxRuntimeRunner(shown) as runner:
        for batch in batches:
            feeds = adapt_feeds(batch, runner.inputs)
            for name, array in {**feeds, **runner.infer(feeds)}.items():
                if name in names and array.dtype.kind == "f":
                    magnitude = np.abs(array)
                    seen = float(np.max(magnitude, initial=0.0, where=np.isfinite(magnitude)))
                    largest[name] = max(largest.get(name, 0.0), seen)
    return largest


class PassVerifier:
    """An ``after_pass`` for `aff_deploy.passes.optimize`: holds each result against the definition of exact.

    What the model itself and its float64 evaluation answer is computed once, when the first pass asks.

    Args:
        model: what the passes start from; read now, so it may change afterwards.
        batches: data to compare on, by input name; by default seeded.

    Attributes:
        weaker: why the definition cannot be applied, so that the precision's tolerance is held instead;
            empty where it is applied.
    """

    def __init__(self, model: onnx.ModelProto, batches: Sequence[Feeds] | None = None) -> None:
        from aff_deploy.runtimes.double import DoubleRunner

        self.weaker = ""
        self._original = OnnxRuntimeRunner(model)
        self._tolerance = TOLERANCES[precision_of(model)]
        self._eps = eps_of(model)
        given = seeded_batches(self._original.inputs) if batches is None else batches
        self._batches = [adapt_feeds(batch, self._original.inputs) for batch in given]
        self._magnitude = 0.0
        self._expected: list[tuple[Feeds, Feeds]] = []
        self._truth: DoubleRunner | None = None
        try:
            self._truth = DoubleRunner(model)
        except ModelError as error:
            self.weaker = error.message

    def __call__(self, name: str, rewritten: onnx.ModelProto) -> None:
        """Compare.

        Raises:
            CheckFailed: naming the pass, the output and the distance.
        """
        problem = self._compare(rewritten) if self._is_exact() else self._compare_loosely(rewritten)
        if problem:
            raise CheckFailed(
                f"pass {name!r} changed what the model computes: {problem}",
                fix="please report it with the model; --no-fuse leaves the attention blocks alone",
            )

    def _is_exact(self) -> bool:
        if self._truth is None or self._expected:
            return self._truth is not None
        try:
            for feeds in self._batches:
                truth = self._truth.infer(adapt_feeds(feeds, self._truth.inputs))
                self._expected.append((truth, self._original.infer(feeds)))
        except ModelError as error:
            self._truth, self.weaker = None, error.message
        return self._truth is not None

    def _compare(self, rewritten: onnx.ModelProto) -> str:
        # What an earlier pass fused may since have been written in place; the bound is still its sites'.
        self._magnitude = max(self._magnitude, largest_at_sites(rewritten, self._batches))
        with OnnxRuntimeRunner(rewritten) as candidate:
            found = measure_exactness(self._answers(candidate), self._eps, self._magnitude)
        return next((output.detail for output in found if not output.holds), "")

    def _answers(self, candidate: OnnxRuntimeRunner) -> Iterator[Answers]:
        for feeds, (truth, original) in zip(self._batches, self._expected, strict=True):
            yield Answers(truth, original, candidate.infer(feeds))

    def _compare_loosely(self, rewritten: onnx.ModelProto) -> str:
        with OnnxRuntimeRunner(rewritten) as candidate:
            report = validate(self._original, candidate, self._batches, self._tolerance, metamorphic=False)
        return report.failures[0] if report.failures else ""
