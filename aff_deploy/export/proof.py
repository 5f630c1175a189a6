"""Proof that an exported model computes what the network does, at sizes that were not traced too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from torch import nn

from aff_deploy.artifact import scratch_folder
from aff_deploy.errors import CheckFailed, InputError, ModelError, NetworkError
from aff_deploy.export.sizes import feeds_of, further_sizes, sizes_in, usual_sizes
from aff_deploy.export.tidy import is_large, write_external
from aff_deploy.export.tracing import Traced
from aff_deploy.runtimes import Feeds, shape_text
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import TOLERANCES, Precision
from aff_deploy.validate import compare_outputs
from aff_deploy.validate.exact import FACTOR, Answers, Exactness, measure_exactness
from aff_deploy.validate.rows import adapt_feeds
from aff_deploy.verify import EPS

MOST_UNCERTAIN = 1e-2
"""Share of the output's scale: where PyTorch's own error is more, being as near to the truth as PyTorch proves nothing."""
SHOWN_SIZES = 6
SHOWN_REASON = 240
"""Characters of another's message."""


@dataclass
class Proof:
    """What was compared.

    Attributes:
        shapes: of the inputs, batch by batch, in words.
        refused: dynamic dimensions that could be compared at no other size, and why PyTorch took none.
        notes: what else a person should know.
    """

    shapes: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Where the comparison was made, in a line."""
        shown = list(dict.fromkeys(self.shapes))
        more = f" and {len(shown) - SHOWN_SIZES} more" if len(shown) > SHOWN_SIZES else ""
        return f"equal to PyTorch at {'; '.join(shown[:SHOWN_SIZES])}{more}"


def prove(model: onnx.ModelProto, module: nn.Module, traced: Traced, lowest: Mapping[str, int], data: Sequence[Feeds]) -> Proof:
    """Compare with eager PyTorch on what was traced, on `data`, and on other sizes of every dynamic dimension.

    Raises:
        CheckFailed: the model computes something else or fails, or a dynamic dimension could be
            compared at no size but the traced one; without a fix where the exporter is to blame.
        NetworkError: the network itself fails, is random, or is not finite.
        ModelError: ONNX Runtime cannot load the model.
    """
    inputs, proof = traced.inputs, Proof()
    used = sizes_in(inputs, traced.feeds)
    real = data[0] if data else None
    with scratch_folder() as folder:
        source: onnx.ModelProto | Path = model
        if is_large(model):
            source = folder / "model.onnx"
            write_external(model, source)
        with PyTorchRunner(module, inputs, traced.names) as reference, OnnxRuntimeRunner(source) as candidate:
            comparing = _Comparing(module, traced, reference, candidate, proof)
            for feeds in (traced.feeds, *data):
                comparing.compare(feeds)
            for position, sizes in enumerate(usual_sizes(inputs, used, lowest)):
                comparing.try_sizes(feeds_of(inputs, sizes, real, seed=position + 1))
            for dim in used:
                for sizes in further_sizes(inputs, used, dim):
                    if dim in comparing.covered:
                        break
                    comparing.try_sizes(feeds_of(inputs, sizes, real))
                if dim not in comparing.covered:
                    raise CheckFailed(
                        f"nothing proves that {dim!r} is free: PyTorch takes no size but {used[dim]} ({comparing.reason})",
                        fix="make it static, or give data of other sizes with --data",
                    )
    return proof


class _Comparing:
    """The two runners, and what has been compared so far."""

    def __init__(
        self, module: nn.Module, traced: Traced, reference: PyTorchRunner, candidate: OnnxRuntimeRunner, proof: Proof
    ) -> None:
        self._traced = traced
        self._reference, self._candidate, self._proof = reference, candidate, proof
        self._precision = _precision(module, traced)
        self._tolerance = TOLERANCES[self._precision]
        self._used = sizes_in(traced.inputs, traced.feeds)
        self.covered: set[str] = set()
        self.reason = ""

    def try_sizes(self, feeds: Feeds) -> None:
        """Compare on `feeds` unless the network itself does not take them."""
        try:
            self.compare(feeds)
        except NetworkError as error:
            if not isinstance(error.__cause__, Exception):
                raise
            self.reason = _one_line(error.__cause__)

    def compare(self, feeds: Feeds) -> None:
        expected = self._reference.infer(feeds)
        shapes = ", ".join(f"{name} {shape_text(array.shape)}" for name, array in feeds.items())
        try:
            got = self._candidate.infer(feeds)
        except ModelError as error:
            raise CheckFailed(f"the exported model fails where PyTorch does not: {error.message[:SHOWN_REASON]}") from None
        failures = [item.detail for item in compare_outputs(expected, got, self._tolerance) if not item.passed]
        if failures:
            self._explain(feeds, shapes, expected, got, failures[0])
        self._proof.shapes.append(shapes)
        sizes = sizes_in(self._traced.inputs, feeds)
        self.covered |= {dim for dim, size in sizes.items() if size != self._used[dim]}

    def _explain(self, feeds: Feeds, shapes: str, expected: Feeds, got: Feeds, failure: str) -> None:
        """Say whose fault a difference is; return where it is nobody's, with a note."""
        finite = all(np.isfinite(array).all() for array in expected.values() if array.dtype.kind == "f")
        if not finite:
            raise NetworkError(
                "the network's own output is not finite (NaN or infinity)",
                fix="check its weights, and the range of its input (--range, or distribution in a recipe)",
            )
        again = compare_outputs(expected, self._reference.infer(feeds), self._tolerance)
        if not all(item.passed for item in again):
            raise NetworkError(
                "the network gives different outputs for the same input, even in eval mode",
                fix="remove the randomness from its forward",
            )
        found = self._measure(feeds, expected, got)
        self._weigh(shapes, found)
        if not found or not all(output.holds for output in found):
            raise CheckFailed(f"the exported model does not compute what PyTorch does on {shapes}: {failure}")

    def _measure(self, feeds: Feeds, expected: Feeds, got: Feeds) -> tuple[Exactness, ...]:
        """How exact the file is; nothing where the network's code fixes another type than float64."""
        try:
            double = self._reference.copy_in_double()
            truth = double.infer(adapt_feeds(feeds, double.inputs))
        except InputError:
            return ()
        return measure_exactness([Answers(truth, expected, got)], EPS[self._precision])

    def _weigh(self, shapes: str, found: Sequence[Exactness]) -> None:
        for output in found:
            own, scale = output.original_error, output.magnitude
            if FACTOR * own <= self._tolerance.atol + self._tolerance.rtol * scale:
                continue
            said = (
                f"the network is ill-conditioned on {shapes}: PyTorch itself is {own:.2g} from its own float64 result "
                f"in output {output.name!r}, at scale {scale:.2g}"
            )
            if own > MOST_UNCERTAIN * scale:
                raise CheckFailed(
                    f"{said}: no file can be proven to compute it",
                    fix="check its weights and the range of its input, or compute what cancels in float64",
                )
            if not self._proof.notes:
                self._proof.notes.append(f"{said}; the file is {output.error:.2g} from it")


def _precision(module: nn.Module, traced: Traced) -> Precision:
    """That of the narrowest float type among weights and inputs."""
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in module.parameters()}
    dtypes |= {spec.dtype for spec in traced.inputs}
    if "bfloat16" in dtypes:
        return Precision.BF16
    return Precision.FP16 if "float16" in dtypes else Precision.FP32


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:SHOWN_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def float_types(module: nn.Module, traced: Traced) -> set[str]:
    """The float types among weights and inputs."""
    held = {tensor.dtype for tensor in (*module.parameters(), *module.buffers(), *traced.tensors)}
    return {str(dtype).removeprefix("torch.") for dtype in held if dtype.is_floating_point}
