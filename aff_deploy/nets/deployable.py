"""What a network may be made of to be deployed, and what to say of the rest."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from aff_deploy.errors import NetworkError

SHOWN_PARTS = 3
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
"""Packages whose modules hold packed 8-bit weights that no exporter writes."""


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``, whose weights it shares."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def require_deployable(module: nn.Module) -> None:
    """Refuse what cannot be exported by anyone, before something deep inside fails on it.

    Raises:
        NetworkError: naming the part and what to give instead.
    """
    for name, part in module.named_modules():
        _require_python(name, part)
    for name, tensor in _named_tensors(module):
        _require_values(name, tensor)


def _require_python(name: str, part: nn.Module) -> None:
    what = f"part {name!r} of the network" if name else "the network"
    kinds = {kind.__name__ for kind in type(part).__mro__}
    if isinstance(part, torch.jit.ScriptModule):
        raise NetworkError(
            f"{what} is TorchScript, a compiled program that neither exporter reads",
            fix="give the nn.Module that it was made of; its state_dict() has the weights",
        )
    if "_StatefulGraphModule" in kinds:
        raise NetworkError(
            f"{what} was captured by torch.export, for one mode and one device",
            fix="give the nn.Module that it was captured from; its state_dict() has the weights",
        )
    if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
        raise NetworkError(f"{what} is sharded by FSDP", fix="gather its full state_dict() and load it into the plain network")
    if type(part).__module__.startswith(QUANTISED):
        raise NetworkError(
            f"{what} is quantised by PyTorch ({type(part).__name__}), which neither exporter writes",
            fix="give the network before it was quantised; build-engine --int8 quantises",
        )


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _require_values(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise NetworkError(
            f"{name!r} of the network has no shape yet, because a lazy module has not run",
            fix="run the network once where it is built, or give its sizes",
        )
    if tensor.is_meta:
        raise NetworkError(
            f"{name!r} of the network is on the meta device, which holds no values", fix="build the network on the CPU"
        )
    wrapped: bool = is_traceable_wrapper_subclass(tensor)
    if wrapped:
        raise NetworkError(
            f"{name!r} of the network is a {type(tensor).__name__}, not a plain tensor",
            fix="give the network with plain tensors, before it was quantised or distributed",
        )


def require_evaluating(module: nn.Module) -> None:
    """Refuse a network that ``eval()`` leaves partly in training mode: it would compute something else for each batch.

    Raises:
        NetworkError: naming the parts.
    """
    stuck = [
        f"{name or 'the network'} ({type(part).__name__})"
        for name, part in module.named_modules()
        if part.training and _depends_on_mode(part)
    ]
    if stuck:
        listed = ", ".join(stuck[:SHOWN_PARTS])
        listed += f" and {len(stuck) - SHOWN_PARTS} more" if len(stuck) > SHOWN_PARTS else ""
        raise NetworkError(
            f"eval() leaves {listed} in training mode, where answers depend on the batch or on chance",
            fix="let the network's train() or eval() switch it, as nn.Module's own does",
        )


def _depends_on_mode(part: nn.Module) -> bool:
    if isinstance(part, (_BatchNorm, _InstanceNorm)):
        return part.running_mean is not None
    return isinstance(part, _DropoutNd) and part.p > 0
