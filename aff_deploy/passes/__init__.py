"""Graph passes: ONNX in, the same function in fewer and faster operators out.

A pass is a function over a graph that returns how many rewrites it made; `DEFAULT_PASSES` is their
order. Every rewrite preserves the function up to rounding, or does not happen.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from aff_deploy.errors import ModelError
from aff_deploy.passes.cleanup import cleanup
from aff_deploy.passes.convert import export_model, import_graph, is_settled, note_types
from aff_deploy.passes.convex import convex_calls, make_convex
from aff_deploy.passes.fold_batchnorm import fold_batchnorm
from aff_deploy.passes.fold_constants import fold_constants
from aff_deploy.passes.functions import attach_functions
from aff_deploy.passes.fuse_attention import Rejection, find_rejections, fuse_attention
from aff_deploy.passes.graph import Array
from aff_deploy.passes.inline import inline_calls
from aff_deploy.passes.report import Fusion, count_ops, describe_values, list_fusions
from aff_deploy.passes.simplify_shapes import simplify_shapes

__all__ = [
    "DEFAULT_PASSES",
    "FUSION_PASSES",
    "Fusion",
    "Optimized",
    "PassResult",
    "Rejection",
    "inspect_model",
    "optimize",
]

Pass = Callable[[gs.Graph], int]
Step = Callable[[onnx.ModelProto], tuple[int, onnx.ModelProto]]

DEFAULT_PASSES: tuple[Pass, ...] = (cleanup, fold_constants, simplify_shapes, fold_batchnorm, cleanup)
FUSION_PASSES: tuple[Pass, ...] = (fuse_attention,)

OLDEST_OPSET, NEWEST_OPSET = 11, 25


@dataclass(frozen=True)
class PassResult:
    """What a pass did: how many rewrites, in how many seconds, and how many nodes it left."""

    name: str
    rewrites: int
    seconds: float
    nodes: int


@dataclass(frozen=True)
class Optimized:
    """An optimised model and the account of how it came about.

    `convex` names the calls whose blend stays between x and y, because that was asked for or their data need it.
    """

    model: onnx.ModelProto
    passes: tuple[PassResult, ...]
    fusions: tuple[Fusion, ...]
    rejected: tuple[Rejection, ...]
    convex: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document of ``optimize --json``."""
        return {
            "passes": [asdict(result) for result in self.passes],
            "fusions": [fusion.to_dict() for fusion in self.fusions],
            "rejected": [asdict(rejection) for rejection in self.rejected],
            "convex": list(self.convex),
        }


def optimize(
    model: onnx.ModelProto,
    *,
    fuse: bool = True,
    convex: bool = False,
    inline: bool = False,
    data: Iterable[Mapping[str, Array]] | None = None,
    after_pass: Callable[[str, onnx.ModelProto], None] | None = None,
) -> Optimized:
    """Clean up, fold constants and BatchNormalization, and fuse attention.

    Args:
        model: a valid model of opset 11 to 25; left as it is.
        fuse: whether to fuse attention; without, only the other passes run.
        convex: whether to write every blend as ``x w + y (1 - w)``, which does not lose an x that is small beside y.
            A file that was written so stays so.
        inline: whether to write the fused operator's body in place of its calls, for runtimes that read no local functions.
        data: what the model is really fed, by input name: calls that would lose x on it are made convex. Needs ONNX Runtime.
        after_pass: called with the pass's name and the model so far after each pass that changed
            something; what it raises ends the optimisation.

    Returns:
        A new model of the same inputs and outputs, and what was done.

    Raises:
        ModelError: the opset is out of range, or ONNX Runtime cannot run the model on `data`.
    """
    _require_opset(model)
    graph = import_graph(model)
    results = _apply_until_settled(graph, model, [DEFAULT_PASSES, *([FUSION_PASSES] if fuse else [])], after_pass)
    rejected = find_rejections(graph)
    optimized = _finished(graph, model)
    # graphsurgeon's nodes and tensors refer to each other, and through their weights to all of `model`.
    del graph
    gc.collect()
    fusions = list_fusions(optimized)
    noted_convex = convex_calls(optimized)
    for name, step in _last_steps(convex, inline, data).items():
        start = time.perf_counter()
        count, optimized = step(optimized)
        results.append(PassResult(name, count, time.perf_counter() - start, len(optimized.graph.node)))
        # What is written in place is no call any more.
        noted_convex = convex_calls(optimized) or noted_convex
        if after_pass is not None and count:
            after_pass(name, optimized)
    return Optimized(optimized, tuple(results), fusions, rejected, noted_convex)


def _last_steps(convex: bool, inline: bool, data: Iterable[Mapping[str, Array]] | None) -> dict[str, Step]:
    """What is done to the fused model on request, by name."""
    steps: dict[str, Step] = {}
    if convex or data is not None:
        steps[make_convex.__name__] = partial(make_convex, data=None if convex else data)
    if inline:
        steps[inline_calls.__name__] = inline_calls
    return steps


def _apply_until_settled(
    graph: gs.Graph,
    model: onnx.ModelProto,
    rounds: Sequence[tuple[Pass, ...]],
    after_pass: Callable[[str, onnx.ModelProto], None] | None,
) -> list[PassResult]:
    """Run each round of passes until it does nothing, from the first again whenever one did something.

    What a pass made constant tells shapes that were not known, and what it took away leaves tensors with one
    reader: the passes before it may then do more. A second optimisation finds nothing left.
    """
    results: list[PassResult] = []
    told, i = 0, 0
    while i < len(rounds):
        found = [_apply(graph, model, apply, after_pass) for apply in rounds[i]]
        changed = any(result.rewrites for result in found)
        if changed or i == told:
            results += found
        told = max(told, i + 1)
        if changed and not is_settled(graph):
            note_types(graph, model)
        i = 0 if changed else i + 1
    return results


def _apply(
    graph: gs.Graph, model: onnx.ModelProto, apply: Pass, after_pass: Callable[[str, onnx.ModelProto], None] | None
) -> PassResult:
    start = time.perf_counter()
    rewrites = apply(graph)
    result = PassResult(apply.__name__, rewrites, time.perf_counter() - start, len(graph.nodes))
    if after_pass is not None and rewrites:
        after_pass(apply.__name__, _finished(graph, model))
    return result


def inspect_model(model: onnx.ModelProto) -> dict[str, Any]:
    """The document of ``inspect --json``: operators, nodes once optimised, fusions (made or possible), refusals, ends."""
    found = optimize(model)
    return {
        "ops": count_ops(model),
        "nodes": [node.name or node.output[0] for node in found.model.graph.node],
        "fusions": [fusion.to_dict() for fusion in found.fusions],
        "rejected": [asdict(rejection) for rejection in found.rejected],
        "inputs": list(describe_values(list(model.graph.input))),
        "outputs": list(describe_values(list(model.graph.output))),
    }


def _require_opset(model: onnx.ModelProto) -> None:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if version is None or not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise ModelError(
            f"the model is of ONNX opset {version}; {OLDEST_OPSET} to {NEWEST_OPSET} are supported",
            fix="export it again with --opset 18",
        )


def _finished(graph: gs.Graph, original: onnx.ModelProto) -> onnx.ModelProto:
    model = export_model(graph, original)
    attach_functions(model)
    return model
