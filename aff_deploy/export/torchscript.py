"""PyTorch's older exporter, which traces TorchScript."""

from __future__ import annotations

import contextlib
import io
import linecache
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import ModelProto
from torch.jit._trace import TracerWarning

from aff_deploy.artifact import scratch_folder
from aff_deploy.errors import NetworkError
from aff_deploy.export.tracing import Traced
from aff_deploy.onnx_file import MAX_MODEL_BYTES

SHOWN_CODE = 80


def export(traced: Traced, opset: int) -> tuple[ModelProto, list[str]]:
    """Export by tracing.

    Returns:
        The model, and where in the network's code a tensor became a Python value, of which a trace
        keeps only the one that it saw: lines such as ``net.py line 14 ("if len(rows) > 0:")``.

    Raises:
        NetworkError: the network cannot be traced or translated; without a fix.
    """
    with _quiet_log(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TracerWarning)
        model = _export_any_size(traced, opset)
    return model, _frozen_values(caught)


def _export_any_size(traced: Traced, opset: int) -> ModelProto:
    network = traced.network
    size = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    try:
        if size <= MAX_MODEL_BYTES:
            buffer = io.BytesIO()
            _export(traced, buffer, opset)
            return onnx.load_model_from_string(buffer.getvalue())
        # Given a path it writes large weights beside the file.
        with scratch_folder() as folder:
            path = folder / "model.onnx"
            _export(traced, str(path), opset)
            return onnx.load_model(path)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise NetworkError(f"the torchscript exporter cannot export the network: {reason}") from error


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep the exporter from printing the traced graph where it fails: C++ writes it to stdout past Python."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *words: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def _frozen_values(caught: list[warnings.WarningMessage]) -> list[str]:
    installed = Path(torch.__file__).parent
    places = {
        (warning.filename, warning.lineno)
        for warning in caught
        if issubclass(warning.category, TracerWarning) and not Path(warning.filename).is_relative_to(installed)
    }
    return [describe_line(file, line) for file, line in sorted(places)]


def describe_line(file: str, line: int) -> str:
    """A line of someone's code as a message shows it."""
    code = linecache.getline(file, line).strip()[:SHOWN_CODE]
    return f"{Path(file).name} line {line}" + (f" ({code!r})" if code else "")


def _export(traced: Traced, target: io.BytesIO | str, opset: int) -> None:
    axes = {spec.name: {i: d for i, d in enumerate(spec.shape) if isinstance(d, str)} for spec in traced.inputs}
    torch.onnx.export(
        traced.network,
        traced.tensors,
        target,  # type: ignore[arg-type]
        dynamo=False,
        opset_version=opset,
        input_names=[spec.name for spec in traced.inputs],
        output_names=list(traced.names),
        dynamic_axes={name: dims for name, dims in axes.items() if dims},
        verbose=False,
    )
