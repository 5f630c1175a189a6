"""What both exporters trace: a flat view of the network, seeded inputs, and quiet around it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aff_deploy.errors import NetworkError, UsageError
from aff_deploy.export.sizes import feeds_of, first_dims, sizes_in
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.feeds import free_sizes
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
    shapes: dict[str, tuple[int, ...]]
    """Of the outputs, for these feeds."""


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


@contextlib.contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Put back what a forward writes into the network: buffers, and attributes of any part of it."""
    parts = [(part, dict(vars(part))) for part in module.modules()]
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, dict(table)) for part, _ in parts for table in (part._buffers, part._parameters, part._modules)
    ]
    values = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for part, attributes in parts:
            vars(part).clear()
            vars(part).update(attributes)
        for table, content in tables:
            table.clear()
            table.update(content)
        with torch.no_grad():
            for buffer, value in values:
                if buffer.shape != value.shape:
                    buffer.data = value
                elif not torch.equal(buffer, value):
                    buffer.copy_(value)


def prepare(
    module: nn.Module, inputs: Sequence[TensorSpec], names: Sequence[str] | None, data: Sequence[Mapping[str, Array]] = ()
) -> Traced:
    """Run the network once on what will be traced: the first rows of `data`, else seeded data.

    Raises:
        NetworkError: the forward fails, or returns what is not tensors.
        UsageError: another number of `names` than outputs.
    """
    device = device_of(module)
    sizes, real = dim_sizes(inputs, BATCH), data[0] if data else None
    if real is not None:
        first = first_dims(inputs)
        sizes = {d: BATCH if d in first else max(2, s) for d, s in sizes_in(inputs, real).items()}
    feeds = feeds_of(inputs, sizes, real, seed=0)
    tensors = tensors_of(feeds, inputs, device)
    try:
        own, values = run_forward(module, inputs, tensors)
    except NetworkError:
        # A dynamic first axis need not be a batch: the example's own size may be what works.
        larger = sizes | {d: s for d, s in _example_sizes(inputs).items() if s > 1}
        if larger == sizes:
            raise
        feeds = feeds_of(inputs, larger, real, seed=0)
        tensors = tensors_of(feeds, inputs, device)
        own, values = run_forward(module, inputs, tensors)
    if names is not None and len(names) != len(values):
        raise UsageError(f"{len(names)} output names are given, the network returns {len(values)}", fix="give a name for each")
    chosen = tuple(names) if names is not None else output_names(own, len(values), inputs)
    # The forward may have written into its inputs.
    tensors = tensors_of(feeds, inputs, device)
    shapes = {name: tuple(value.shape) for name, value in zip(chosen, values, strict=True)}
    return Traced(Flat(module).eval(), tuple(inputs), feeds, tensors, chosen, shapes)


def _example_sizes(inputs: Sequence[TensorSpec]) -> dict[str, int]:
    return {d: s for spec in inputs for d, s in zip(spec.shape, spec.concrete(), strict=True) if isinstance(d, str)}


def followed_dims(module: nn.Module, traced: Traced) -> dict[str, dict[int, str]]:
    """Which axes of which outputs are a dynamic dimension of the inputs, found by varying each alone.

    The torchscript exporter invents a name for every dynamic dimension of an output.
    """
    used = sizes_in(traced.inputs, traced.feeds)
    before = traced.shapes
    follows: dict[str, dict[int, str]] = {name: {} for name in traced.names}
    for dim, size in used.items():
        changed = size + 1 if any(spec.shape[:1] == (dim,) for spec in traced.inputs) else 2 * size
        try:
            after = _output_shapes(module, traced, feeds_of(traced.inputs, {**used, dim: changed}, None))
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
