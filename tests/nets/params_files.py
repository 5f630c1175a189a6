"""MXNet .params files, byte by byte."""

from __future__ import annotations

import struct

import numpy as np

TYPES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6, "int16": 8}
VERSIONS = {1: 0xF993FAC8, 2: 0xF993FAC9, 3: 0xF993FACA}


def header(version: int, shape: tuple[int, ...], element: int = 0, storage: int = 0) -> bytes:
    start = struct.pack("<I", VERSIONS[version]) + (struct.pack("<i", storage) if version > 1 else b"")
    return start + struct.pack(f"<i{len(shape)}qiii", len(shape), *shape, 1, 0, element)


def array(value: np.ndarray, version: int = 2) -> bytes:
    return header(version, value.shape, TYPES[str(value.dtype)]) + value.tobytes()


def listing(arrays: list[bytes], names: list[bytes]) -> bytes:
    named = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(arrays) + struct.pack("<Q", len(names)) + named
