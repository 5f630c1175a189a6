"""Memory that large weights take: read from mapped files where they can be, and given back once freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from aff_deploy.errors import ModelError, OutputError

if TYPE_CHECKING:
    import onnx

MAPPED_BYTES = 2**16
"""From this size on a weight of a model in memory is read from a file that is mapped."""
PAGE = 4096


def release_memory() -> None:
    """Give freed memory back to the system: glibc keeps most of it, after loading a model more than its size."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def map_weights(model: onnx.ModelProto, weights: Iterable[onnx.TensorProto], folder: Path) -> bytes:
    """A model's bytes, its large weights left out: they go to a file in `folder`, to which the bytes refer.

    Args:
        model: left as it is.
        weights: initializers that it lacks.
        folder: where the file is written.

    Raises:
        OutputError: there is no room.
        ModelError: the rest is over 2 GB.
    """
    from onnx import TensorProto

    from aff_deploy.onnx_file import copy_without

    light = copy_without(model, "graph")
    light.graph.CopyFrom(copy_without(model.graph, "initializer"))
    target = folder / "weights"
    try:
        with open(target, "wb") as file:
            for tensor in (*model.graph.initializer, *weights):
                if not tensor.HasField("raw_data") or tensor.ByteSize() < MAPPED_BYTES:
                    light.graph.initializer.append(tensor)
                    continue
                data = tensor.raw_data
                file.seek(-(-file.tell() // PAGE) * PAGE)
                mapped = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
                mapped.data_location = TensorProto.EXTERNAL
                for key, value in (("location", target.name), ("offset", file.tell()), ("length", len(data))):
                    mapped.external_data.add(key=key, value=str(value))
                file.write(data)
    except OSError as error:
        raise OutputError(
            f"cannot write the weights to {folder}: {error.strerror}", fix="give a folder with room for them in TMPDIR"
        ) from None
    try:
        return bytes(light.SerializeToString())
    except Exception:
        raise ModelError("the model in memory is over 2 GB", fix="save it with external data and give its path") from None
