"""Readers of weights files: safetensors, PyTorch's and MXNet's, none of which runs what the file holds."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from aff_deploy.artifact import open_input
from aff_deploy.errors import WeightsError
from aff_deploy.nets import mxnet_params
from aff_deploy.nets.refusals import AGAIN, check_archive, refused

PLAIN = ("state_dict", "model", "model_state_dict", "net")
EMA = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "ema_model", "module")
"""Keys under which training scripts keep the state dict, and a copy averaged over the steps; a key may lie in another."""

METADATA = "aff_deploy"
"""Under this key our safetensors files carry a JSON object: ``share_global`` and where the weights came from."""

MAX_WEIGHTS_BYTES = 16 * 2**30
MAX_METADATA = 65536
MAX_NESTING = 4
SHOWN_KEYS = 4
MAX_SHOWN = 120
CHOOSE = "choose with --key NAME"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file.

    Attributes:
        path: the file.
        format: ``safetensors``, ``PyTorch`` or ``MXNet``.
        tensors: as stored, on the CPU, by the names they have there.
        share_global: what a safetensors file of ours records of its iAFF modules.
        notes: lines for people about what was chosen.
    """

    path: Path
    format: str
    tensors: Mapping[str, Tensor]
    share_global: bool | None = None
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read `path`, whose format is told from its content.

    Args:
        path: a weights file.
        key: in a PyTorch file, under which name the state dict lies.

    Raises:
        WeightsError: it is damaged, or neither safetensors, a PyTorch file of plain tensors nor an
            MXNet ``.params`` file; or has nothing under `key`.
    """
    with open_input(path, what="weights", error=WeightsError, most=MAX_WEIGHTS_BYTES, fix="make it readable") as file:
        start = file.read(9)
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] != b"{" and path.suffix != ".safetensors":
        return _read_pytorch(path, key, start.startswith(b"PK"))
    if not start:
        raise WeightsError(f"{path} is empty", fix="fetch or write it again")
    if key is not None:
        raise WeightsError(f"{path} is no PyTorch file and has no key {key!r}", fix="leave --key out")
    if start.startswith(mxnet_params.MAGIC) or (path.suffix == ".params" and start[8:] != b"{"):
        return Checkpoint(path, "MXNet", mxnet_params.read_params(path))
    if start[8:] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise WeightsError(
        f"{path} is not a weights file", fix="give a .safetensors file, a PyTorch state dict or an MXNet .params file"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors in `path`, as stored, on the CPU.

    Raises:
        WeightsError: as `read_checkpoint`.
    """
    return dict(read_checkpoint(path).tensors)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        tensors = safetensors.torch.load_file(path, device="cpu")
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({_first_line(error)})", fix=AGAIN) from None
    return Checkpoint(path, "safetensors", tensors, _recorded_sharing(metadata))


def _recorded_sharing(metadata: Mapping[str, str]) -> bool | None:
    text = metadata.get(METADATA, "")
    if not 0 < len(text) <= MAX_METADATA:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    shared = content.get("share_global") if isinstance(content, dict) else None
    return shared if isinstance(shared, bool) else None


def _read_pytorch(path: Path, key: str | None, zipped: bool) -> Checkpoint:
    if zipped:
        check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols: what matters is an error anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refused(path, str(error), (*PLAIN, *EMA)) from None
    except Exception:  # damaged files make the reader fail in many ways, none of which says what to do
        raise WeightsError(f"{path} is not a whole PyTorch weights file: it ends too early, or is damaged", fix=AGAIN) from None
    notes: list[str] = []
    if key is not None:
        content = _under(path, content, key)
    for _ in range(MAX_NESTING):
        inside = _wrappers(content)
        if not inside:
            break
        if len(inside) > 1:
            others = ", ".join(inside[1:])
            notes.append(f"{path.name} holds several copies: {inside[0]} was taken, {others} was not ({CHOOSE})")
        content = content[inside[0]]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {kind_of(content)}, not a state dict", fix="save net.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _not_tensors(path, content, name)
    return Checkpoint(path, "PyTorch", dict(content), notes=tuple(notes))


def _not_tensors(path: Path, content: Mapping[Any, Any], name: object) -> WeightsError:
    """What to say of a dictionary with more than tensors: where in it the weights may lie."""
    inside = [key for key, value in content.items() if isinstance(key, str) and _holds_weights(value)][:SHOWN_KEYS]
    if not inside:
        said = f"{path} holds {kind_of(content[name])} under {_shown(name)}, not a tensor"
        return WeightsError(said, fix="save net.state_dict() alone")
    said = f"{path} holds {kind_of(content[inside[0]])} under {_shown(inside[0])}, not a tensor"
    which = " or ".join(f"--key {key if key.isidentifier() else _shown(key)}" for key in inside)
    return WeightsError(said, fix=f"{which} picks it")


def _holds_weights(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    plain = all(isinstance(name, str) and isinstance(inner, Tensor) for name, inner in value.items())
    return plain or bool(_wrappers(value))


def _shown(name: object) -> str:
    return repr(name)[:MAX_SHOWN]


def _wrappers(content: Any) -> list[str]:
    """The keys in `content` under which a state dict may lie, the trained weights before their averages."""
    if not isinstance(content, Mapping):
        return []
    return [key for key in (*PLAIN, *EMA) if isinstance(content.get(key), Mapping)]


def _under(path: Path, content: Any, key: str) -> Any:
    if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
        return content[key]
    keys = [name for name, value in content.items() if isinstance(value, Mapping)] if isinstance(content, Mapping) else []
    known = f"it has {', '.join(str(name)[:MAX_SHOWN] for name in keys[:8])}" if keys else "leave --key out"
    raise WeightsError(f"{path} has no state dict under {key!r}", fix=known)


def kind_of(value: Any) -> str:
    """What a value is, for an error."""
    if isinstance(value, Tensor):
        return f"{str(value.layout).removeprefix('torch.')} {str(value.dtype).removeprefix('torch.')}"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
