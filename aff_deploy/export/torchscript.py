"""PyTorch's older exporter, which traces TorchScript."""

from __future__ import annotations

import io

import onnx
import torch
from onnx import ModelProto

from aff_deploy.artifact import scratch_folder
from aff_deploy.errors import NetworkError
from aff_deploy.export.tracing import Traced
from aff_deploy.onnx_file import MAX_MODEL_BYTES


def export(traced: Traced, opset: int) -> ModelProto:
    """Export by tracing.

    Raises:
        NetworkError: the network cannot be traced or translated.
    """
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
        raise NetworkError(
            f"the torchscript exporter cannot export the network: {reason}", fix="try the dynamo exporter (--exporter dynamo)"
        ) from error


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
