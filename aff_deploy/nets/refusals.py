"""What to say of a PyTorch file that the safe reader refuses, without running anything in it.

PyTorch's own messages advise to load the file unsafely, or name a list of its documentation. These
name what is in the way and the line that makes a plain file of it, to be run where the file is trusted.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from aff_deploy.artifact import open_archive
from aff_deploy.errors import WeightsError

AGAIN = "it may be truncated: fetch or write it again"
MAX_ARCHIVE = 16 << 30
MAX_PICKLE = 64 << 20
MAX_OPERATIONS = 1_000_000
MAX_NAME = 100
CHUNK = 1 << 20
"""Bytes of a record read at a time."""

PROGRAMS = (
    "posix.",
    "nt.",
    "os.",
    "subprocess.",
    "builtins.e",
    "builtins.__import__",
    "__builtin__.e",
    "__builtin__.__import__",
)
"""What no checkpoint needs; ``e`` is of ``eval`` and ``exec``."""

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "FRAME", "PROTO", "MARK")
_PLAIN = ("collections OrderedDict", "builtins dict", "__builtin__ dict")
_NEWEST_PROTOCOL = 3

Operations: TypeAlias = "Sequence[tuple[str, object]]"
"""Name and argument of each operation of a pickle, those that only remember left out."""


def check_archive(path: Path) -> None:
    """Refuse a zip that is whole but no checkpoint, or is cut short.

    Raises:
        WeightsError: it is TorchScript, an .npz, another archive, or not whole.
    """
    try:
        with open_archive(path, what="weights", error=WeightsError, most=MAX_ARCHIVE, fix=AGAIN) as archive:
            names = archive.namelist()
            declared = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise WeightsError(f"{path} is not a whole PyTorch weights file: its archive has no end", fix=AGAIN) from None
    if any(name.endswith("/constants.pkl") for name in names):
        made = f'torch.save(torch.jit.load("{path.name}", map_location="cpu").state_dict(), "weights.pt")'
        raise WeightsError(f"{path} is TorchScript, a program, not a state dict", fix=_where_trusted(made))
    if declared > path.stat().st_size:
        # torch.save packs nothing, and PyTorch reads nothing that is packed: this was made to fill memory.
        raise WeightsError(f"{path} claims to unpack to {declared} bytes", fix="give the file that torch.save wrote")
    if names and all(name.endswith(".npy") for name in names):
        made = f'safetensors.numpy.save_file(dict(numpy.load("{path.name}")), "weights.safetensors")'
        raise WeightsError(f"{path} is a NumPy .npz file, not a weights file", fix=f"make one of it: {made}")
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        raise WeightsError(f"{path} is a zip archive without a PyTorch file in it", fix="give the file that torch.save wrote")
    if (damaged := _damaged_record(path)) is not None:
        raise WeightsError(f"{path} is damaged: its record {damaged[:MAX_NAME]!r} does not have its checksum", fix=AGAIN)


def _damaged_record(path: Path) -> str | None:
    """The first record whose content is not what its CRC-32 says, which PyTorch's reader does not look at.

    Where all are 0, whoever wrote the file left them out (``torch.serialization.set_crc32_options``). Compressed
    records, which PyTorch does not write, are left to its reader: they could unpack to anything.
    """
    with zipfile.ZipFile(path) as archive:
        if not any(record.CRC for record in archive.infolist()):
            return None
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                continue
            try:
                with archive.open(record) as stream:
                    while stream.read(CHUNK):
                        pass
            except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError):
                return record.filename
    return None


def refused(path: Path, complaint: str, keys: Sequence[str]) -> WeightsError:
    """The error for the file at `path`, whose pickle needs more than tensors and containers.

    Args:
        path: the file.
        complaint: PyTorch's message, which may name what it refuses.
        keys: under which names a state dict may lie in it, the likeliest first.
    """
    operations = _operations(path)
    if operations is None:
        return WeightsError(f"{path} is not a whole PyTorch weights file: its pickle is damaged", fix=AGAIN)
    match = _GLOBAL.search(complaint)
    needed = match[1] if match else _first_global(operations)
    protocol = next((arg for name, arg in operations if name == "PROTO"), 0)
    if needed.startswith(PROGRAMS):
        said = f"{path} is not a plain weights file: it calls {needed[:MAX_NAME]}"
        return WeightsError(said, fix="take the weights from another place; nothing in it was run")
    if needed:
        cause = f"it needs {needed[:MAX_NAME]}, and nothing but tensors and plain containers is loaded"
    elif isinstance(protocol, int) and protocol > _NEWEST_PROTOCOL:
        cause = f"it has pickle protocol {protocol}, which PyTorch's safe reader does not know"
    else:
        cause = "it holds more than tensors and plain containers"
    fix = f"{_where_trusted(_plain_copy(path, operations, keys))}; nothing in it was run"
    return WeightsError(f"{path} is not a plain weights file: {cause}", fix=fix)


def _where_trusted(line: str) -> str:
    return f"in a place where you trust the file, run {line} and give what it writes"


def _plain_copy(path: Path, operations: Operations, keys: Sequence[str]) -> str:
    """The line of Python that makes a plain state dict of the file, as far as its pickle tells what it is."""
    loaded = f'torch.load("{path.name}", map_location="cpu", weights_only=False)'
    steps = [(name, arg) for name, arg in operations if name not in _MEMO]
    if steps and _is_object(steps[0], steps[1:3]):
        return f'torch.save({loaded}.state_dict(), "weights.pt")'
    after = {arg: index + 1 for index, (name, arg) in reversed(list(enumerate(steps))) if "UNICODE" in name}
    for key in keys:
        if key in after:
            at = after[key]
            found = ".state_dict()" if at < len(steps) and _is_object(steps[at], steps[at + 1 : at + 3]) else ""
            return f'torch.save({loaded}["{key}"]{found}, "weights.pt")'
    return f'torch.save({{k: v for k, v in {loaded}.items() if torch.is_tensor(v)}}, "weights.pt")'


def _is_object(step: tuple[str, object], after: Operations) -> bool:
    """Whether a value that begins so is an instance of a class that is no dict."""
    name, arg = step
    if name == "GLOBAL":
        return arg not in _PLAIN and not str(arg).startswith("torch._utils ")
    if arg == "module" and after and after[0][0] == "GLOBAL":  # how PyTorch's old format writes an instance of a module
        return True
    return "UNICODE" in name and any(name == "STACK_GLOBAL" for name, _ in after) and arg != "collections"


def _operations(path: Path) -> list[tuple[str, object]] | None:
    """The operations of the pickle that holds the file's content; None where it does not reach its end."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.split("/")[-1] == "data.pkl")
                with archive.open(name) as member:
                    content = BytesIO(member.read(MAX_PICKLE))
        else:
            with open(path, "rb") as file:
                content = BytesIO(file.read(MAX_PICKLE))
        found = _one_pickle(content)
        if any(name in ("LONG1", "LONG") for name, _ in found[:2]):  # PyTorch's old format: a magic number first
            _one_pickle(content)
            _one_pickle(content)
            found = _one_pickle(content)
    except Exception:  # damaged files make the readers above fail in many ways
        return None
    return found


def _one_pickle(content: BytesIO) -> list[tuple[str, object]]:
    """Name and argument of each operation up to the end of one pickle.

    Raises:
        ValueError: it does not end, or not soon.
    """
    found = [(operation.name, arg) for operation, arg, _ in islice(pickletools.genops(content), MAX_OPERATIONS)]
    if not found or found[-1][0] != "STOP":
        raise ValueError("the pickle has no end")
    return found


def _first_global(operations: Operations) -> str:
    """The first class or function that newer protocols name with two strings; empty where they do not."""
    steps = [(name, arg) for name, arg in operations if name not in _MEMO]
    for index, (name, _) in enumerate(steps):
        if name == "STACK_GLOBAL" and index > 1 and all("UNICODE" in kind for kind, _ in steps[index - 2 : index]):
            (_, module), (_, attribute) = steps[index - 2 : index]
            text = f"{module}.{attribute}"
            tensor = text.startswith("torch.") and not text.startswith("torch.nn.")
            if not tensor and f"{module} {attribute}" not in _PLAIN:
                return text if text.isprintable() else repr(text)
    return ""
