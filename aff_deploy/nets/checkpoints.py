"""Weights from a file into a network, without ever running code that the file holds."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from aff_deploy.artifact import sha256 as sha256_of
from aff_deploy.errors import WeightsError

WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts keep the state dict."""

SHOWN_NAMES = 4
AGAIN = "it may be truncated: fetch or write it again"


def load_weights(net: nn.Module, path: Path, *, sha256: str | None = None) -> None:
    """Copy the weights in `path` into `net`, all of them or none.

    The file is safetensors, or a PyTorch file with a state dict: plain, or under ``state_dict`` or
    ``model``; names may all begin with ``module.``. Floating-point weights are converted to the dtype
    of the parameter they fill. BatchNorm's ``num_batches_tracked`` may be missing.

    Args:
        net: the network to fill, in place.
        path: the weights file.
        sha256: what the file's SHA-256 must be, in hexadecimal.

    Raises:
        WeightsError: the file is missing, damaged, altered or not a weights file, or its names, shapes
            or dtypes are not those of `net`.
    """
    _check_file(path, sha256)
    found = _without_prefix(read_weights(path))
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    if missing or unexpected:
        parts = [_listed("missing", missing)] * bool(missing) + [_listed("unexpected", unexpected)] * bool(unexpected)
        raise WeightsError(f"{path} does not fit the network: {'; '.join(parts)}", fix="give weights that this network saved")
    for name, value in found.items():
        _check_tensor(path, name, value, wanted[name])
    with torch.no_grad():
        for name, value in found.items():
            wanted[name].copy_(value)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors in `path`, as stored, on the CPU.

    Raises:
        WeightsError: it is damaged, or neither safetensors nor a PyTorch file of plain tensors.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror}", fix="make it readable") from None
    if start[8:] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _read_pytorch(path)
    raise WeightsError(f"{path} is not a weights file", fix="give a .safetensors file or a PyTorch state dict")


def _check_file(path: Path, sha256: str | None) -> None:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights {path} {problem}", fix="give the path of a .safetensors or PyTorch weights file")
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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({_first_line(error)})", fix=AGAIN) from None


def _read_pytorch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols: what matters is an error anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a plain weights file: {_unpickling_cause(error)}",
            fix="save only the state dict, best as safetensors; nothing in it was run",
        ) from None
    except Exception as error:  # damaged files make the readers below fail in many ways
        raise WeightsError(f"{path} is not a whole PyTorch weights file ({_first_line(error)})", fix=AGAIN) from None
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {_kind(content)}, not a state dict", fix="save net.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path} holds {_kind(value)} under {name!r}, not a tensor", fix="save net.state_dict() alone")
    return dict(content)


def _without_prefix(found: dict[str, Tensor]) -> dict[str, Tensor]:
    if found and all(name.startswith("module.") for name in found):
        return {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _check_tensor(path: Path, name: str, value: Tensor, wanted: Tensor) -> None:
    if value.shape != wanted.shape:
        raise WeightsError(
            f"{path}: {name} has shape {tuple(value.shape)}, the network's has {tuple(wanted.shape)}",
            fix="check the network's arguments (classes, layers, r)",
        )
    if value.is_floating_point() != wanted.is_floating_point() or value.is_complex() or value.layout != torch.strided:
        raise WeightsError(
            f"{path}: {name} is {_kind(value)}, the network's is {_kind(wanted)}", fix="give dense floating-point weights"
        )


def _listed(what: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    return f"{len(names)} {what} ({', '.join(names[:SHOWN_NAMES])}{more})"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.layout).removeprefix('torch.')} {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _unpickling_cause(error: pickle.UnpicklingError) -> str:
    """What PyTorch's long message about weights_only says was in the way."""
    for line in str(error).splitlines():
        if "WeightsUnpickler error:" in line:
            return line.split("WeightsUnpickler error:")[1].strip()[:160]
    return _first_line(error)
