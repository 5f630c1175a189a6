"""ONNX Runtime's static quantisation, with the options that TensorRT's parser wants, and without its noise."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from aff_deploy.artifact import scratch_folder
from aff_deploy.errors import ModelError
from aff_deploy.onnx_data import first_line
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.onnxruntime import import_onnxruntime

OP_TYPES = ("Conv", "Gemm", "MatMul")


def quantize_layers(
    model: ModelProto, names: list[str], scales: Mapping[str, float], batches: Sequence[Mapping[str, Array]]
) -> ModelProto:
    """A copy of `model` with int8 weights and Q/DQ pairs at the inputs of some layers.

    Args:
        model: float32, below 2 GB, every node with a name of its own.
        names: of the nodes to quantise, of `OP_TYPES`.
        scales: of the activations that they read, by tensor.
        batches: a little data that fits; nothing is taken from it.

    Raises:
        ModelError: ONNX Runtime cannot, with its reason.
        MissingDependency: onnxruntime is not installed.
    """
    quantization = import_onnxruntime("onnxruntime.quantization")
    # Ranges are given: it measures them all the same, on what little it is fed.
    remaining = iter(batches)
    reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda self: next(remaining, None)})()
    overrides = {
        name: [{"scale": np.array(scale, np.float32), "zero_point": np.array(0, np.int8)}] for name, scale in scales.items()
    }
    with scratch_folder() as folder, _quiet(Path(quantization.__file__).parent):
        source, target = folder / "model.onnx", folder / "quantised.onnx"
        onnx.save_model(model, source)
        try:
            quantization.quantize_static(
                source,
                target,
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=list(OP_TYPES),
                nodes_to_quantize=names,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    # TensorRT's parser takes no quantised bias.
                    "QuantizeBias": False,
                    "DedicatedQDQPair": True,
                    "OpTypesToExcludeOutputQuantization": list(OP_TYPES),
                    "TensorQuantOverrides": overrides,
                },
            )
        except Exception as error:  # whatever it stumbles over it raises as it comes
            raise ModelError(
                f"ONNX Runtime cannot quantise the model: {first_line(error)}",
                fix="use --fp16, or keep that layer with --keep-fp32",
            ) from error
        return onnx.load_model(target)


@contextlib.contextmanager
def _quiet(package: Path) -> Iterator[None]:
    """Keep what the modules of `package` say to the root logger to themselves."""

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return not Path(record.pathname).is_relative_to(package)

    root, silent = logging.getLogger(), logging.NullHandler()
    # Without a handler the first message would set up logging to stderr, for good.
    root.addHandler(silent)
    root.addFilter(from_elsewhere)
    try:
        yield
    finally:
        root.removeFilter(from_elsewhere)
        root.removeHandler(silent)
