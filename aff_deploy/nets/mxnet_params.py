"""Reader of MXNet's ``.params`` files, which Gluon's ``save_parameters`` writes.

The format is MXNet's own list of NDArrays (``src/ndarray/ndarray.cc``), little-endian throughout:

    uint64 0x112, uint64 0, uint64 count, count arrays, uint64 count, count names
    name     uint64 length, that many bytes of UTF-8
    array    uint32 magic: 0xF993FAC8 (V1), ...C9 (V2) or ...CA (V3)
             V2, V3: int32 storage type (0 is dense)
             int32 rank, rank times int64 size    (rank 0: never initialised; in V3 a scalar)
             int32 device type, int32 device number, int32 element type, the elements in C order

A file is data from a stranger: every count and size is compared with the bytes that are left before
anything is allocated, and whatever does not fit is a `WeightsError`.
"""

from __future__ import annotations

import math
import os
import struct
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aff_deploy.artifact import open_input
from aff_deploy.errors import WeightsError

LIST_MAGIC = 0x112
MAGIC = struct.pack("<Q", LIST_MAGIC)
"""What a file begins with."""

VERSIONS = {0xF993FAC8: 1, 0xF993FAC9: 2, 0xF993FACA: 3}
STORAGE_TYPES = {1: "row-sparse", 2: "CSR-sparse"}
DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "|u1", 4: "<i4", 5: "|i1", 6: "<i8", 8: "<i2"}
OTHER_DTYPES = {7: "bool", 9: "uint16", 10: "uint32", 11: "uint64", 12: "bfloat16"}

SMALLEST_ARRAY = 12
MAX_RANK = 8
MAX_NAME = 1024
MAX_FILE = 4 << 30
"""Bytes: some thirty times the largest of the paper's networks."""

AGAIN = "it may be truncated or damaged: fetch it again"


def read_params(path: Path) -> dict[str, Tensor]:
    """The named tensors in the ``.params`` file at `path`, as stored, on the CPU, in the file's order.

    Raises:
        WeightsError: it is truncated, damaged, not such a file, or holds what no dense parameter is.
    """
    with open_input(path, what="weights", error=WeightsError, most=MAX_FILE, fix="give the weights alone") as file:
        return _Reader(path, file, os.fstat(file.fileno()).st_size).read()


class _Reader:
    """One pass over one file, which counts the bytes that are left."""

    def __init__(self, path: Path, file: BufferedReader, size: int) -> None:
        self.path = path
        self.file = file
        self.left = size

    def read(self) -> dict[str, Tensor]:
        if self._number("<Q", "its magic") != LIST_MAGIC:
            raise WeightsError(f"{self.path} is not an MXNet .params file", fix="give a file that save_parameters wrote")
        if self._number("<Q", "its header") != 0:
            raise self._damaged("its header is not that of a list of arrays")
        count = self._number("<Q", "the number of arrays")
        if count > self.left // SMALLEST_ARRAY:
            raise self._damaged(f"it claims {count} arrays in {self.left} bytes")
        arrays = [self._array(f"array {index + 1} of {count}") for index in range(count)]
        named = self._number("<Q", "the number of names")
        if named == 0 and count:
            raise WeightsError(f"{self.path} holds {count} arrays without names", fix="save with save_parameters, by name")
        if named != count:
            raise self._damaged(f"it has {count} arrays and {named} names")
        found: dict[str, Tensor] = {}
        for index, array in enumerate(arrays):
            name = self._name(f"name {index + 1} of {count}")
            if name in found:
                raise self._damaged(f"it has two arrays {name!r}")
            found[name] = array
        if self.left:
            raise self._damaged(f"{self.left} bytes follow its end")
        if not found:
            raise WeightsError(f"{self.path} holds no arrays", fix="save the network after its parameters are initialised")
        return found

    def _array(self, what: str) -> Tensor:
        version = VERSIONS.get(self._number("<I", what))
        if version is None:
            raise self._damaged(f"{what} has no header of a known version")
        storage = self._number("<i", what) if version > 1 else 0
        if storage != 0:
            kind = STORAGE_TYPES.get(storage)
            if kind is None:
                raise self._damaged(f"{what} has storage type {storage}")
            raise WeightsError(f"{self.path}: {what} is {kind}", fix="save dense parameters: tostype('default')")
        shape = self._shape(what, version)
        self._bytes(8, what)  # The device that it was on.
        element = self._number("<i", what)
        if element not in DTYPES:
            if element in OTHER_DTYPES:
                raise WeightsError(
                    f"{self.path}: {what} is {OTHER_DTYPES[element]}", fix="cast the network to float32 and save it"
                )
            raise self._damaged(f"{what} has element type {element}")
        dtype = np.dtype(DTYPES[element])
        content = self._bytes(math.prod(shape) * dtype.itemsize, what)
        array = np.frombuffer(content, dtype).reshape(shape)
        return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))

    def _shape(self, what: str, version: int) -> tuple[int, ...]:
        rank = self._number("<i", what)
        if rank == (-1 if version == 3 else 0):
            raise WeightsError(f"{self.path}: {what} was never initialised", fix="run the network once before saving it")
        if not 0 <= rank <= MAX_RANK:
            raise self._damaged(f"{what} has rank {rank}")
        shape: tuple[int, ...] = struct.unpack(f"<{rank}q", self._bytes(8 * rank, what))
        if any(size < 1 for size in shape):
            raise self._damaged(f"{what} has shape {shape}")
        return shape

    def _name(self, what: str) -> str:
        length = self._number("<Q", what)
        if not 1 <= length <= MAX_NAME:
            raise self._damaged(f"{what} has {length} bytes")
        try:
            name = self._bytes(length, what).decode()
        except UnicodeDecodeError:
            raise self._damaged(f"{what} is not text") from None
        if not name.isprintable():
            raise self._damaged(f"{what} is {name!r}")
        return name

    def _number(self, layout: str, what: str) -> int:
        number: int = struct.unpack(layout, self._bytes(struct.calcsize(layout), what))[0]
        return number

    def _bytes(self, size: int, what: str) -> bytearray:
        """The next `size` bytes; memory is taken only for bytes that the file has."""
        if size > self.left:
            raise self._damaged(f"{what} needs {size} bytes and {self.left} are left")
        content = bytearray(size)
        if self.file.readinto(content) != size:
            raise self._damaged(f"{what} ends early")
        self.left -= size
        return content

    def _damaged(self, problem: str) -> WeightsError:
        return WeightsError(f"{self.path} is not a whole .params file: {problem}", fix=AGAIN)
