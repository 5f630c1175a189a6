"""What both exporters trace: a flat view of the network, seeded inputs, and quiet around it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from aff_deploy.errors import NetworkError, UsageError
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.feeds import free_sizes, seeded_feeds
from aff_deploy.runtimes.pytorch import device_of, flatten_outputs, output_names, run_forward, tensors_of
from aff_deploy.spec import TensorSpec

BATCH = 2
"""Rows to trace with: the smallest number that no exporter takes for a constant."""


class Flat(nn.Module):
    """The network with its outputs as a flat tuple of distinct tensors, none of them an input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # A file's output must be a tensor of its own: an input or an earlier output is copied.
        seen = {id(tensor) for tensor in inputs}
        outputs = []
        for tensor in flatten_outputs(self.module(*inputs))[1]:
            outputs.append(tensor.clone() if id(tensor) in seen else tensor)
            seen.add(id(tensor))
        return tuple(outputs)


@dataclass(frozen=True)
class Traced:
    """All that an exporter needs."""

    network: Flat
    inputs: tuple[TensorSpec, ...]
    feeds: dict[str, Array]
    tensors: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
    """Of the outputs."""


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """The random state restored, and the exporters' prints, logs and warnings kept from the user."""
    device = device_of(module)
    disabled = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, disabled)
        yield


def dim_sizes(inputs: Sequence[TensorSpec], batch: int) -> dict[str, int]:
    """A size for each dynamic dimension: `batch` for first axes, else the example's and never 1, else a middling one."""
    sizes = free_sizes(inputs)
    for spec in inputs:
        for dim, size in zip(spec.shape, spec.concrete(), strict=True):
            if isinstance(dim, str):
                sizes.setdefault(dim, max(2, size))
    sizes.update({str(spec.shape[0]): batch for spec in inputs if spec.shape and isinstance(spec.shape[0], str)})
    return sizes


def prepare(module: nn.Module, inputs: Sequence[TensorSpec], names: Sequence[str] | None) -> Traced:
    """Run the network once on what will be traced.

    Raises:
        NetworkError: the forward fails, or returns what is not tensors.
        UsageError: another number of `names` than outputs.
    """
    device = device_of(module)
    feeds = seeded_feeds(inputs, samples=1, sizes=dim_sizes(inputs, BATCH))[0]
    tensors = tensors_of(feeds, inputs, device)
    try:
        own, values = run_forward(module, inputs, tensors)
    except NetworkError:
        # A dynamic first axis need not be a batch: the example's own size may be what works.
        larger = dim_sizes(inputs, BATCH) | {d: s for d, s in _example_sizes(inputs).items() if s > 1}
        if larger == dim_sizes(inputs, BATCH):
            raise
        feeds = seeded_feeds(inputs, samples=1, sizes=larger)[0]
        tensors = tensors_of(feeds, inputs, device)
        own, values = run_forward(module, inputs, tensors)
    if names is not None and len(names) != len(values):
        raise UsageError(f"{len(names)} output names are given, the network returns {len(values)}", fix="give a name for each")
    chosen = tuple(names) if names is not None else output_names(own, len(values), inputs)
    # The forward may have written into its inputs.
    tensors = tensors_of(feeds, inputs, device)
    return Traced(Flat(module).eval(), tuple(inputs), feeds, tensors, chosen)


def _example_sizes(inputs: Sequence[TensorSpec]) -> dict[str, int]:
    return {d: s for spec in inputs for d, s in zip(spec.shape, spec.concrete(), strict=True) if isinstance(d, str)}


def other_sizes(inputs: Sequence[TensorSpec], traced: Mapping[str, Array], lowest: Mapping[str, int]) -> list[dict[str, Array]]:
    """Feeds to verify on, beside what was traced: a batch of 1; a batch of 3 with the other dimensions doubled.

    Doubled, because that keeps whatever divisibility the example had. `lowest` names dimensions for
    which the exporter assumed a least size: one less is where another branch of the network's code
    may begin.
    """
    used = _sizes_in(inputs, traced)
    first = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    wanted = []
    if first:
        wanted.append({d: 1 if d in first else s for d, s in used.items()})
    if set(used) - first:
        wanted.append({d: 3 if d in first else 2 * s for d, s in used.items()})
    wanted += [{**used, dim: size - 1} for dim, size in lowest.items()]
    return [seeded_feeds(inputs, seed=1, samples=1, sizes=sizes)[0] for sizes in wanted]


def followed_dims(module: nn.Module, traced: Traced) -> dict[str, dict[int, str]]:
    """Which axes of which outputs are a dynamic dimension of the inputs, found by varying each alone.

    The torchscript exporter invents a name for every dynamic dimension of an output.
    """
    used = _sizes_in(traced.inputs, traced.feeds)
    before = _output_shapes(module, traced, traced.feeds)
    follows: dict[str, dict[int, str]] = {name: {} for name in traced.names}
    for dim, size in used.items():
        changed = size + 1 if any(spec.shape[:1] == (dim,) for spec in traced.inputs) else 2 * size
        try:
            after = _output_shapes(module, traced, seeded_feeds(traced.inputs, samples=1, sizes={**used, dim: changed})[0])
        except NetworkError:
            continue
        for name in traced.names:
            if len(before[name]) == len(after[name]):
                pairs = enumerate(zip(before[name], after[name], strict=True))
                follows[name].update({axis: dim for axis, pair in pairs if pair == (size, changed)})
    return follows


def _output_shapes(module: nn.Module, traced: Traced, feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    _, values = run_forward(module, traced.inputs, tensors_of(feeds, traced.inputs, device_of(module)))
    return {name: tuple(value.shape) for name, value in zip(traced.names, values, strict=True)}


def _sizes_in(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> dict[str, int]:
    return {d: s for spec in inputs for d, s in zip(spec.shape, feeds[spec.name].shape, strict=True) if isinstance(d, str)}
