"""Weights from a file into a network, without ever running code that the file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aff_deploy.artifact import sha256 as sha256_of
from aff_deploy.errors import WeightsError
from aff_deploy.nets.architectures import recognise
from aff_deploy.nets.fusion import AFF
from aff_deploy.nets.names import is_gluon, is_port, readings, unwrapped
from aff_deploy.nets.sharing import dead_names, settle_sharing
from aff_deploy.nets.weight_files import Checkpoint, kind_of, read_checkpoint

SHOWN_NAMES = 4
SHOWN_LENGTH = 120
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_weights` found and did.

    Attributes:
        format: ``safetensors``, ``PyTorch`` or ``MXNet``.
        tensors: how many tensors were copied into the network.
        gluon: the names are those of MXNet's Gluon.
        share_global: what was set in every iAFF of the network because the file's origin is known; None
            where it is not, and what the network was built with holds.
        notes: lines for people about what was chosen.
    """

    format: str
    tensors: int
    gluon: bool = False
    share_global: bool | None = None
    notes: tuple[str, ...] = ()


def load_weights(net: nn.Module, path: Path, *, sha256: str | None = None, key: str | None = None) -> LoadedWeights:
    """Copy the weights in `path` into `net`, all of them or none.

    The file is safetensors; a PyTorch file with a state dict, plain or under ``state_dict``, ``model``
    or an EMA copy's name; or MXNet's ``.params``. Names may be wrapped by training (``module.``,
    ``_orig_mod.``) or be those of the authors' Gluon networks. Floating-point weights are converted to
    the dtype of the parameter they fill. BatchNorm's ``num_batches_tracked`` may be missing.

    Where the file tells whether the second global branch of each iAFF is the first (`settle_sharing`),
    ``share_global`` of the network's iAFF modules is set to that.

    Args:
        net: the network to fill, in place.
        path: the weights file.
        sha256: what the file's SHA-256 must be, in hexadecimal.
        key: in a PyTorch file, under which name the state dict lies, such as ``model_ema``.

    Raises:
        WeightsError: the file is missing, damaged, altered or not a weights file, or its names, shapes
            or dtypes are not those of `net`.
    """
    path = Path(path)
    _check_file(path, sha256)
    checkpoint = read_checkpoint(path, key)
    wanted = net.state_dict()
    found = _fitted(net, checkpoint, wanted)
    for name, value in found.items():
        _check_tensor(checkpoint, name, value, wanted)
    notes = list(checkpoint.notes)
    gluon = is_gluon(checkpoint.tensors) or checkpoint.format == "MXNet"
    origin = "mxnet" if gluon else "port" if is_port(checkpoint.tensors) else ""
    shared, said = settle_sharing(net, found, origin, checkpoint.share_global)
    notes += said
    if gluon and any(isinstance(module, AFF) and module.scale != 2.0 for module in net.modules()):
        notes.append("the authors' MXNet code scales AFF by 2, and this network's AFF has another scale: check 'scale'")
    with torch.no_grad():
        for name, value in found.items():
            wanted[name].copy_(value)
    return LoadedWeights(checkpoint.format, len(found), gluon, shared, tuple(notes))


def _check_file(path: Path, sha256: str | None) -> None:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights {path} {problem}", fix="give the path of a .safetensors, PyTorch or .params file")
    if sha256 is None:
        return
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror}", fix="make it readable") from None
    if actual != sha256.lower():
        raise WeightsError(
            f"{path} has sha256 {actual}, not {sha256.lower()}", fix="fetch the original again, or correct the sha256"
        )


def _fitted(net: nn.Module, checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors by the network's names, all of them.

    Raises:
        WeightsError: no reading of the names fits; the nearest is told.
    """
    stored = {short: name for name, short in unwrapped(checkpoint.tensors, wanted).items()}
    tensors = {short: checkpoint.tensors[name] for short, name in stored.items()}
    bare = {name for name, module in net.named_modules() if isinstance(module, _BatchNorm) and not module.affine}
    dead = dead_names(net)
    nearest: tuple[list[str], list[str]] | None = None
    for names in readings(tensors, wanted):
        if len(set(names.values())) < len(names):
            continue
        found = {new: tensors[old] for old, new in names.items()}
        extra = [name for name in found if name not in wanted]
        idle = {name for name in extra if name.rpartition(".")[0] in bare and _is_identity(name, found[name])}
        found = {name: value for name, value in found.items() if name not in idle}
        missing = [name for name in wanted if name not in found and not name.endswith(COUNTER)]
        if not any(name in found for name in dead):
            missing = [name for name in missing if name not in dead]
        unexpected = [stored[old] for old, new in names.items() if new in extra and new not in idle]
        if not missing and not unexpected:
            return found
        if nearest is None or len(missing) + len(unexpected) < sum(map(len, nearest)):
            nearest = missing, unexpected
    missing, unexpected = nearest or (list(wanted), list(checkpoint.tensors))
    parts = [_listed("missing", missing)] * bool(missing) + [_listed("unexpected", unexpected)] * bool(unexpected)
    said, fix = _identities(tensors, wanted)
    if checkpoint.format == "MXNet" and not any("." in name for name in tensors):
        fix = "its names are those of an exported symbol: save with save_parameters"
    raise WeightsError(
        f"{checkpoint.path} does not fit the network: {'; '.join(parts)}{said}",
        fix=fix or "give weights that this network saved",
    )


def _is_identity(name: str, value: Tensor) -> bool:
    """Whether a stored BatchNorm weight or bias does nothing; Gluon stores them for a BatchNorm without affine parameters."""
    expected = {"weight": 1.0, "bias": 0.0}.get(name.rpartition(".")[2])
    return expected is not None and bool((value == expected).all())


def _identities(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[str, str]:
    """Which architectures checkpoint and network are, as the end of a sentence, and what to do about it."""
    theirs = recognise({name: tuple(value.shape) for name, value in tensors.items()})
    if theirs is None:
        return "", ""
    ours = recognise({name: tuple(value.shape) for name, value in wanted.items()})
    said = f"; the checkpoint is of {theirs}" + (f", the network is {ours}" if ours not in (None, theirs) else "")
    if "PyTorch port" in theirs:
        return said, "build the port's own network (file.py:callable) and load it there"
    return said, "build the network of the checkpoint, or give weights of this one"


def _check_tensor(checkpoint: Checkpoint, name: str, value: Tensor, tensors: Mapping[str, Tensor]) -> None:
    path, wanted = checkpoint.path, tensors[name]
    if value.shape != wanted.shape:
        said, _ = _identities(checkpoint.tensors, tensors)
        raise WeightsError(
            f"{path}: {name} has shape {tuple(value.shape)}, the network's has {tuple(wanted.shape)}{said}",
            fix="check the network's arguments (classes, layers, r)",
        )
    if value.is_floating_point() != wanted.is_floating_point() or value.is_complex() or value.layout != torch.strided:
        raise WeightsError(
            f"{path}: {name} is {kind_of(value)}, the network's is {kind_of(wanted)}", fix="give dense floating-point weights"
        )


def _listed(what: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    shown = (name[:SHOWN_LENGTH] if name.isprintable() else repr(name[:SHOWN_LENGTH]) for name in names[:SHOWN_NAMES])
    return f"{len(names)} {what} ({', '.join(shown)}{more})"
