"""``nn.Module`` to ONNX, by either of PyTorch's exporters, and proven before it is returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from aff_deploy.artifact import confine_libraries
from aff_deploy.errors import AffDeployError, CheckFailed, MissingDependency, ModelError, NetworkError, UsageError
from aff_deploy.spec import TensorSpec

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from aff_deploy.export.tracing import Traced
    from aff_deploy.runtimes import Feeds

__all__ = ["DEFAULT_OPSET", "EXPORTERS", "OPSETS", "export_onnx"]

DEFAULT_OPSET = 18
OPSETS = range(13, 21)
EXPORTERS = ("dynamo", "torchscript")
SHOWN_PLACES = 3
SHOWN_REASON = 200
UNUSUAL_TYPES = {
    "bfloat16": "export net.float(), whose weights are the same values, and build the engine with --bf16",
    "float64": "export net.float(): neither ONNX Runtime nor TensorRT computes every operator in float64",
}
"""Types that only some operators have, and what to do."""


def export_onnx(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    *,
    opset: int = DEFAULT_OPSET,
    exporter: str = "dynamo",
    output_names: Sequence[str] | None = None,
    verify: bool = True,
    data: Sequence[Feeds] = (),
    note: Callable[[str], None] | None = None,
) -> onnx.ModelProto:
    """Export a network in eval mode.

    Nothing of the caller's changes: training flags, ``requires_grad``, buffers, attributes and the
    random state are as before, and nothing is printed. The network is traced with a batch of 2 (and no
    dynamic dimension of 1), because both exporters take a 1 for a constant.

    Args:
        module: the network, of fp32 or fp16; of bf16 or fp64 where every operator has it in ONNX.
            ``torch.compile`` and ``DataParallel`` around it are taken off.
        inputs: the forward's positional arguments. A dimension with a name is dynamic; equal names
            are equal sizes.
        opset: 13 to 20. The dynamo exporter writes 18 to 20; its model is converted to a lower one
            where that changes notation only (see `aff_deploy.export.lowering`).
        exporter: ``dynamo`` or ``torchscript``.
        output_names: by default the network's own (dict keys, named tuple fields), else ``output``
            or ``output_0``, ``output_1`` ...
        verify: compare the result with eager PyTorch on ONNX Runtime, at other sizes than the traced
            one of every dynamic dimension.
        data: batches of real data, by input name, to trace and to compare on; their values are used at
            other sizes too. Without any, data is drawn as the inputs' distributions say.
        note: called with each line that a person should know: where the file was compared, and what
            was found beside.

    Returns:
        A model that onnx's checker and strict shape inference accept. Over 2 GB it can only be
        saved with external data, as `aff_deploy.onnx_file.save_onnx` does.

    Raises:
        UsageError: an impossible request: opset, exporter, names.
        NetworkError: the forward fails, returns something other than tensors, cannot be exported,
            or needs a fixed size where a dynamic one was asked.
        CheckFailed: the exported model computes something else than the network, or a dynamic dimension
            could be compared at no size but the traced one.
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
    from aff_deploy.export import tracing
    from aff_deploy.nets.deployable import require_deployable, require_evaluating, unwrap
    from aff_deploy.ops.modules import FusedAttention
    from aff_deploy.runtimes.pytorch import evaluating

    if not isinstance(module, nn.Module):
        raise NetworkError(f"{type(module).__name__} is not a torch.nn.Module", fix="give a network")
    module = unwrap(module)
    require_deployable(module)
    if any(isinstance(part, FusedAttention) for part in module.modules()):
        raise NetworkError(
            "the network went through fuse_module, whose operator no exporter writes",
            fix="export it before; aff-deploy optimize fuses the file",
        )
    tell = note or (lambda line: None)
    with tracing.preserved(module), evaluating(module):
        require_evaluating(module)
        with tracing.undisturbed(module):
            traced = tracing.prepare(module, inputs, output_names, data)
            try:
                return _write(module, traced, exporter, opset, data if verify else None, tell)
            except (NetworkError, CheckFailed) as error:
                if error.fix:
                    raise
                fix = _find_way_out(module, traced, exporter, opset, data if verify else None)
                raise type(error)(error.message, fix=fix) from error.__cause__


def _write(
    module: nn.Module,
    traced: Traced,
    exporter: str,
    opset: int,
    data: Sequence[Feeds] | None,
    tell: Callable[[str], None],
) -> onnx.ModelProto:
    """Export by one exporter, put the file right, and compare it on `data` and more unless that is None.

    Raises:
        NetworkError, CheckFailed: as `export_onnx`; without a fix where another exporter may do.
    """
    from aff_deploy.export import dynamo, lowering, pools, tidy, torchscript, tracing
    from aff_deploy.export.proof import prove
    from aff_deploy.onnx_file import check_onnx, opset_of

    lowest: Mapping[str, int] = {}
    frozen: list[str] = []
    if exporter == "dynamo":
        model, lowest = dynamo.export(traced, max(opset, dynamo.LOWEST_OPSET))
    else:
        model, frozen = torchscript.export(traced, opset)
    if (found := opset_of(model)) > opset:
        lowering.lower_opset(model, opset)
    elif found != opset:
        raise NetworkError(f"the {exporter} exporter wrote opset {found} instead of {opset}", fix="use another opset")
    tidy.tidy(model, traced.names, traced.inputs)
    if exporter == "torchscript":
        tidy.name_output_dims(model, tracing.followed_dims(module, traced))
    pools.round_down_pools(model)
    pools.declare_outputs(model.graph, traced.shapes)
    try:
        check_onnx(model, "it")
        if data is None:
            return model
        proof = prove(model, module, traced, lowest, data)
    except ModelError as error:
        raise _unusable(module, traced, exporter, error) from None
    except CheckFailed as error:
        if not frozen or error.fix:
            raise
        raise CheckFailed(
            f"only one branch was traced of what the network's code decides by a value at {_listed(frozen)}: {error.message}"
        ) from None
    tell(proof.describe())
    for line in proof.notes:
        tell(line)
    if frozen:
        tell(f"only one branch was traced of what the network's code decides by a value at {_listed(frozen)}")
    return model


def _listed(places: Sequence[str]) -> str:
    more = f" and {len(places) - SHOWN_PLACES} more" if len(places) > SHOWN_PLACES else ""
    return ", ".join(places[:SHOWN_PLACES]) + more


def _unusable(module: nn.Module, traced: Traced, exporter: str, error: ModelError) -> NetworkError:
    """What to say of an exported file that onnx or ONNX Runtime does not take."""
    from aff_deploy.export.proof import float_types

    for name, why in UNUSUAL_TYPES.items():
        if name in float_types(module, traced):
            return NetworkError(f"the network computes in {name}, and its file cannot be used: {error.message}", fix=why)
    return NetworkError(f"the file of the {exporter} exporter cannot be used: {error.message}")


def _find_way_out(module: nn.Module, traced: Traced, failed: str, opset: int, data: Sequence[Feeds] | None) -> str:
    """What to do where one exporter failed, found by trying the other, so that the two never send to each other."""
    other = next(name for name in EXPORTERS if name != failed)
    try:
        _write(module, traced, other, opset, data, lambda line: None)
    except AffDeployError as error:
        reason = error.message[:SHOWN_REASON]
        return (
            f"nor does the {other} exporter ({reason}): change that part of the network, make dynamic dimensions fixed, "
            "or give values that occur with --data"
        )
    return f"the {other} exporter does: --exporter {other}"


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
