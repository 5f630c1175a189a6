"""``nn.Module`` to ONNX, by either of PyTorch's exporters, and proven before it is returned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aff_deploy.artifact import confine_libraries, scratch_folder
from aff_deploy.errors import CheckFailed, MissingDependency, NetworkError, UsageError
from aff_deploy.spec import TOLERANCES, Precision, TensorSpec, Tolerance

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from aff_deploy.runtimes import Array

__all__ = ["DEFAULT_OPSET", "EXPORTERS", "OPSETS", "export_onnx"]

DEFAULT_OPSET = 18
OPSETS = range(13, 21)
EXPORTERS = ("dynamo", "torchscript")


def export_onnx(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    *,
    opset: int = DEFAULT_OPSET,
    exporter: str = "dynamo",
    output_names: Sequence[str] | None = None,
    verify: bool = True,
) -> onnx.ModelProto:
    """Export a network in eval mode.

    Nothing of the caller's changes: training flags, ``requires_grad`` and the random state are as
    before, and nothing is printed. The network is traced on seeded data with a batch of 2 (and no
    dynamic dimension of 1), because both exporters take a 1 for a constant.

    Args:
        module: the network; fp32, fp16 or bf16.
        inputs: the forward's positional arguments. A dimension with a name is dynamic; equal names
            are equal sizes.
        opset: 13 to 20. The dynamo exporter writes 18 to 20; its model is converted to a lower one
            where that changes notation only (see `aff_deploy.export.lowering`).
        exporter: ``dynamo`` or ``torchscript``.
        output_names: by default the network's own (dict keys, named tuple fields), else ``output``
            or ``output_0``, ``output_1`` ...
        verify: compare the result with eager PyTorch on ONNX Runtime, in two shapes where any
            dimension is dynamic.

    Returns:
        A model that onnx's checker and strict shape inference accept. Over 2 GB it can only be
        saved with external data, as `aff_deploy.onnx_file.save_onnx` does.

    Raises:
        UsageError: an impossible request: opset, exporter, names.
        NetworkError: the forward fails, returns something other than tensors, cannot be exported,
            or needs a fixed size where a dynamic one was asked.
        CheckFailed: the exported model computes something else than the network.
        MissingDependency: a package that the export needs is not installed.
    """
    _check_request(inputs, opset, exporter, output_names)
    confine_libraries()
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        from torch import nn
    except ImportError as error:
        raise MissingDependency(f"{error.name} is not installed", extra="cpu") from None
    from aff_deploy.export import dynamo, lowering, tidy, torchscript, tracing
    from aff_deploy.onnx_file import check_onnx, opset_of
    from aff_deploy.ops.modules import FusedAttention
    from aff_deploy.runtimes.pytorch import evaluating

    if not isinstance(module, nn.Module):
        raise NetworkError(f"{type(module).__name__} is not a torch.nn.Module", fix="give a network")
    if any(isinstance(part, FusedAttention) for part in module.modules()):
        raise NetworkError(
            "the network went through fuse_module, whose operator no exporter writes",
            fix="export it before; aff-deploy optimize fuses the file",
        )
    with evaluating(module), tracing.undisturbed(module):
        traced = tracing.prepare(module, inputs, output_names)
        follows: dict[str, dict[int, str]] | None = None
        if exporter == "dynamo":
            model, lowest = dynamo.export(traced, max(opset, dynamo.LOWEST_OPSET))
        else:
            model, lowest = torchscript.export(traced, opset), {}
            follows = tracing.followed_dims(module, traced)
    if (found := opset_of(model)) > opset:
        lowering.lower_opset(model, opset)
    elif found != opset:
        raise NetworkError(
            f"the {exporter} exporter wrote opset {found} instead of {opset}", fix="use another opset or exporter"
        )
    tidy.tidy(model, traced.names, inputs)
    if follows is not None:
        tidy.name_output_dims(model, follows)
    check_onnx(model, "the exported model")
    if verify:
        batches = [traced.feeds, *tracing.other_sizes(inputs, traced.feeds, lowest)]
        # Again undisturbed: a forward may print or draw random numbers.
        with tracing.undisturbed(module):
            _verify(model, module, inputs, traced.names, batches, _tolerance(module, inputs))
    return model


def _check_request(inputs: Sequence[TensorSpec], opset: int, exporter: str, output_names: Sequence[str] | None) -> None:
    if exporter not in EXPORTERS:
        raise UsageError(f"unknown exporter {exporter!r}", fix=f"use {' or '.join(EXPORTERS)}")
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not supported", fix=f"use {OPSETS[0]} to {OPSETS[-1]}")
    if not inputs:
        raise UsageError("no inputs are given", fix="give at least one, as NAME:1x3x224x224")
    names = [spec.name for spec in inputs] + list(output_names or ())
    if doubled := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UsageError(f"the name {doubled[0]!r} is used twice among inputs and outputs", fix="give each its own name")
    if "" in names:
        raise UsageError("an input or output has an empty name", fix="give each a name")


def _tolerance(module: nn.Module, inputs: Sequence[TensorSpec]) -> Tolerance:
    """That of the narrowest float type among weights and inputs."""
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in module.parameters()} | {spec.dtype for spec in inputs}
    if "bfloat16" in dtypes:
        return TOLERANCES[Precision.BF16]
    return TOLERANCES[Precision.FP16 if "float16" in dtypes else Precision.FP32]


def _verify(
    model: onnx.ModelProto,
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    names: Sequence[str],
    batches: Sequence[dict[str, Array]],
    tolerance: Tolerance,
) -> None:
    from aff_deploy.export.tidy import is_large, write_external
    from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
    from aff_deploy.runtimes.pytorch import PyTorchRunner
    from aff_deploy.validate import compare_outputs

    with scratch_folder() as folder:
        source: onnx.ModelProto | Path = model
        if is_large(model):
            source = folder / "model.onnx"
            write_external(model, source)
        with PyTorchRunner(module, inputs, names) as reference, OnnxRuntimeRunner(source) as candidate:
            for position, feeds in enumerate(batches):
                try:
                    expected = reference.infer(feeds)
                except NetworkError:
                    if position == 0:
                        raise
                    # The network itself does not take this size.
                    continue
                got = candidate.infer(feeds)
                failures = [item.detail for item in compare_outputs(expected, got, tolerance) if not item.passed]
                if failures and all(item.passed for item in compare_outputs(expected, reference.infer(feeds), tolerance)):
                    shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in feeds.items())
                    raise CheckFailed(
                        f"the exported model does not compute what PyTorch does on {shapes}: {failures[0]}",
                        fix="try the other exporter (dynamo, torchscript), or make the dynamic dimensions fixed",
                    )
                if not all(np.isfinite(array).all() for array in expected.values() if array.dtype.kind == "f"):
                    raise NetworkError(
                        "the network's own output is not finite (NaN or infinity)",
                        fix="check its weights, and the input data's range in the recipe",
                    )
                if failures:
                    raise NetworkError(
                        "the network gives different outputs for the same input, even in eval mode",
                        fix="remove the randomness from its forward",
                    )
