"""Weights from a file into a network, without ever running code that the file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from aff_deploy.artifact import check_input
from aff_deploy.artifact import sha256 as sha256_of
from aff_deploy.errors import WeightsError
from aff_deploy.nets.architectures import recognise
from aff_deploy.nets.fusion import AFF
from aff_deploy.nets.names import common_prefixes, is_gluon, is_port, readings, unwrapped
from aff_deploy.nets.sharing import dead_names, second_branches, settle_sharing
from aff_deploy.nets.weight_files import MAX_WEIGHTS_BYTES, Checkpoint, kind_of, read_checkpoint

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


def load_weights(
    net: nn.Module,
    path: Path,
    *,
    sha256: str | None = None,
    key: str | None = None,
    share_global: bool | None = None,
) -> LoadedWeights:
    """Copy the weights in `path` into `net`, all of them or none.

    The file is safetensors; a PyTorch file with a state dict, plain or under ``state_dict``, ``model``
    or an EMA copy's name; or MXNet's ``.params``. Names may be wrapped by training (``module.``,
    ``_orig_mod.``), all have another prefix, or be those of the authors' Gluon networks. Floating-point
    weights are converted to the dtype of the parameter they fill. BatchNorm's ``num_batches_tracked`` may be missing.

    Where the file tells whether the second global branch of each iAFF is the first (`settle_sharing`),
    ``share_global`` of the network's iAFF modules is set to that.

    Args:
        net: the network to fill, in place.
        path: the weights file.
        sha256: what the file's SHA-256 must be, in hexadecimal.
        key: in a PyTorch file, under which name the state dict lies, such as ``model_ema``.
        share_global: what the caller knows it to be in `net` as it was built, which then stays so.

    Raises:
        WeightsError: the file is missing, damaged, altered or not a weights file, or its names, shapes
            or dtypes are not those of `net`.
    """
    path = Path(path)
    _check_file(path, sha256)
    checkpoint = read_checkpoint(path, key)
    wanted = net.state_dict()
    found, prefix = _fitted(net, checkpoint, wanted)
    for name, value in found.items():
        _check_tensor(checkpoint.path, name, value, wanted, found)
    _check_statistics(net, checkpoint.path, found)
    notes = [*checkpoint.notes, *_note_not_finite(net, found)]
    if prefix:
        notes.append(f"every name begins with {prefix!r}, which was left out")
    gluon = is_gluon(checkpoint.tensors) or checkpoint.format == "MXNet"
    origin = "mxnet" if gluon else "port" if is_port(checkpoint.tensors) else ""
    shared, said = settle_sharing(net, found, origin, checkpoint.share_global, share_global)
    notes += said
    if gluon and any(isinstance(module, AFF) and module.scale != 2.0 for module in net.modules()):
        notes.append("the authors' MXNet code scales AFF by 2, and this network's AFF has another scale: check 'scale'")
    with torch.no_grad():
        for name, value in found.items():
            wanted[name].copy_(value)
    return LoadedWeights(checkpoint.format, len(found), gluon, shared, tuple(notes))


def _check_file(path: Path, sha256: str | None) -> None:
    way_out = "give the path of a .safetensors, PyTorch or .params file"
    check_input(path, what="weights", error=WeightsError, most=MAX_WEIGHTS_BYTES, fix=way_out)
    if sha256 is None:
        return
    actual = sha256_of(path)
    if actual != sha256.lower():
        raise WeightsError(
            f"{path} has sha256 {actual}, not {sha256.lower()}", fix="fetch the original again, or correct the sha256"
        )


def _fitted(net: nn.Module, checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The checkpoint's tensors by the network's names, all of them, and the prefix that was left out for it.

    Raises:
        WeightsError: no reading of the names fits; the nearest is told.
    """
    stored = {short: name for name, short in unwrapped(checkpoint.tensors, wanted).items()}
    nearest: _Fit | None = None
    for prefix in ("", *common_prefixes(stored)):
        fit = _nearest(net, {short.removeprefix(prefix): checkpoint.tensors[name] for short, name in stored.items()}, wanted)
        if fit is not None and fit.fits:
            return dict(fit.found), prefix
        if fit is not None and (nearest is None or fit.distance < nearest.distance):
            nearest = replace(fit, unexpected=[stored[prefix + name] for name in fit.unexpected])
    raise _does_not_fit(net, checkpoint, wanted, nearest or _Fit({}, {}, list(wanted), list(checkpoint.tensors)))


@dataclass(frozen=True)
class _Fit:
    """One reading of a checkpoint: its `tensors`, what was `found` for the network, what is `missing` and `unexpected`."""

    tensors: Mapping[str, Tensor]
    found: Mapping[str, Tensor]
    missing: Sequence[str]
    unexpected: Sequence[str]

    @property
    def distance(self) -> int:
        return len(self.missing) + len(self.unexpected)

    @property
    def fits(self) -> bool:
        return self.distance == 0


def _nearest(net: nn.Module, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> _Fit | None:
    """The first reading that fits, else the nearest; None where every reading gives two tensors one name."""
    bare = {name for name, module in net.named_modules() if isinstance(module, _BatchNorm) and not module.affine}
    dead = dead_names(net)
    nearest: _Fit | None = None
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
        fit = _Fit(tensors, found, missing, [old for old, new in names.items() if new in extra and new not in idle])
        if fit.fits:
            return fit
        if nearest is None or fit.distance < nearest.distance:
            nearest = fit
    return nearest


def _does_not_fit(net: nn.Module, checkpoint: Checkpoint, wanted: Mapping[str, Tensor], fit: _Fit) -> WeightsError:
    missing, unexpected = fit.missing, fit.unexpected
    parts = [_listed("missing", missing)] * bool(missing) + [_listed("unexpected", unexpected)] * bool(unexpected)
    said, fix = _identities(fit.tensors, wanted)
    if checkpoint.format == "MXNet" and not any("." in name for name in fit.tensors):
        fix = "its names are those of an exported symbol: save with save_parameters"
    if not unexpected and set(missing) <= second_branches(net):
        said = "; it has no global_att2, which a network whose iAFFs share the first global branch has no use for"
        fix = "build the network so, with --arguments share_global=true"
    return WeightsError(
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
    said = f"; the checkpoint is of {theirs.words}"
    if ours is not None and ours.words != theirs.words:
        said += f", the network is {ours.words}"
    if theirs.port:
        return said, "build the port's own network (file.py:callable) and load it there"
    how = f", {theirs.build}" if theirs.build else ""
    return said, f"build the network of the checkpoint{how}, or give weights of this one"


def _check_tensor(path: Path, name: str, value: Tensor, tensors: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    wanted = tensors[name]
    if value.shape != wanted.shape:
        said, fix = _identities(found, tensors)
        raise WeightsError(
            f"{path}: {name} has shape {tuple(value.shape)}, the network's has {tuple(wanted.shape)}{said}",
            fix=fix or "build the network with the sizes that the checkpoint has, or give weights that this network saved",
        )
    if value.is_floating_point() != wanted.is_floating_point() or value.is_complex() or value.layout != torch.strided:
        raise WeightsError(
            f"{path}: {name} is {kind_of(value)}, the network's is {kind_of(wanted)}", fix="give dense floating-point weights"
        )


def _check_statistics(net: nn.Module, path: Path, found: Mapping[str, Tensor]) -> None:
    """Refuse statistics that no training makes: an infinite variance would silence a channel without a trace."""
    for place, module in net.named_modules():
        if not isinstance(module, _NormBase):
            continue
        for kind in ("running_mean", "running_var"):
            name = f"{place}.{kind}" if place else kind
            value = found.get(name)
            if value is None:
                continue
            broken = "infinite or NaN" if not _is_finite(value) else ""
            if kind == "running_var" and bool((value < 0).any()):
                broken = "negative"
            if broken:
                raise WeightsError(
                    f"{path}: {name} of a {type(module).__name__} has {broken} values",
                    fix="give weights of a training that did not diverge, or write them again",
                )


def _note_not_finite(net: nn.Module, found: Mapping[str, Tensor]) -> list[str]:
    """A line that names the parameters with infinite or NaN values, which may lie in parts that are not used."""
    parameters = {name for name, _ in net.named_parameters()}
    bad = [name for name, value in found.items() if name in parameters and not _is_finite(value)]
    return [f"infinite or NaN values in {_listed('tensors', bad)}"] if bad else []


def _is_finite(value: Tensor) -> bool:
    """Whether all values are; types of 8 bits have no such question of their own."""
    return bool((value.float() if value.is_floating_point() and value.itemsize == 1 else value).isfinite().all())


def _listed(what: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    shown = (name[:SHOWN_LENGTH] if name.isprintable() else repr(name[:SHOWN_LENGTH]) for name in names[:SHOWN_NAMES])
    return f"{len(names)} {what} ({', '.join(shown)}{more})"
