"""``torch.export``, then PyTorch's ONNX translation of it."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from onnx import ModelProto

from aff_deploy.errors import NetworkError
from aff_deploy.export.tidy import rename_dims
from aff_deploy.export.torchscript import describe_line
from aff_deploy.export.tracing import Traced

LOWEST_OPSET = 18
"""Asked for less, the exporter writes 18 without a word."""
UNBOUNDED = 2**31
"""Torch bounds some sizes by what an int holds, which is no limit."""


def export(traced: Traced, opset: int) -> tuple[ModelProto, dict[str, int]]:
    """Export by ``torch.export``; `opset` from `LOWEST_OPSET` on.

    Returns:
        The model, and the least size that it is known to be right for of each dynamic dimension
        where that is more than 2: below, the network may fail or take another branch.

    Raises:
        NetworkError: the network cannot be captured or translated (without a fix, where another
            exporter may do), or fixes a dynamic dimension.
    """
    # AUTO and not Dim(name): a named one is refused for any guard at all, even "height is at least 3".
    axes = tuple(
        {axis: torch.export.Dim.AUTO for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in traced.inputs
    )
    try:
        program = torch.export.export(traced.network, traced.tensors, dynamic_shapes=(axes,), strict=False)
    except Exception as error:
        if "DataDependent" in type(error).__name__ or "data-dependent" in str(error).lower():
            # Tracing would follow one branch of the network's code and drop the other without a word.
            raise NetworkError(
                f"torch.export cannot capture the network: {_first_line(error)}: its code branches on a value{_where(error)}",
                fix="write the branch with torch.where, or leave it out of the exported part",
            ) from error
        raise NetworkError(f"torch.export cannot capture the network: {_first_line(error)}") from error
    symbols = _symbols(program, traced)
    lowest = _lowest_sizes(program, symbols)
    try:
        result = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in traced.inputs],
            output_names=list(traced.names),
            optimize=True,
            verbose=False,
        )
    except Exception as error:
        raise NetworkError(f"the dynamo exporter cannot translate the network: {_first_line(error)}") from error
    assert result is not None
    model: ModelProto = result.model_proto
    rename_dims(model, symbols)
    return model, lowest


def _symbols(program: torch.export.ExportedProgram, traced: Traced) -> dict[str, str]:
    """Torch's symbol of each dynamic dimension, and our name for it.

    Raises:
        NetworkError: a dimension became a constant, or two names one size.
    """
    held = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    values = [held[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    names: dict[str, str] = {}
    for spec, value in zip(traced.inputs, values, strict=True):
        for axis, dim in enumerate(spec.shape):
            if not isinstance(dim, str):
                continue
            # A SymInt's text is its expression; that of a specialised one is a number.
            size = str(value.shape[axis])
            if size.isdigit():
                raise NetworkError(
                    f"dimension {dim!r} (axis {axis} of input {spec.name!r}) cannot be dynamic: the network fixes it at {size}",
                    fix="make it static, or take sizes from x.shape instead of numbers in the network's code",
                )
            if names.setdefault(size, dim) != dim:
                raise NetworkError(
                    f"dimensions {names[size]!r} and {dim!r} (of input {spec.name!r}) are always equal in the network",
                    fix="give both the same name",
                )
    return names


def _lowest_sizes(program: torch.export.ExportedProgram, symbols: dict[str, str]) -> dict[str, int]:
    lowest = {}
    for symbol, bounds in program.range_constraints.items():
        dim = symbols.get(str(symbol))
        if dim is None:
            continue
        if bounds.upper.is_Integer and int(bounds.upper) < UNBOUNDED:
            raise NetworkError(
                f"dimension {dim!r} cannot be dynamic: the network's code does something else above {int(bounds.upper)}",
                fix="make it static, or remove the comparison with a size from the network's code",
            )
        if bounds.lower.is_Integer and int(bounds.lower) > 2:
            lowest[dim] = int(bounds.lower)
    return lowest


def _where(error: BaseException) -> str:
    """`` at net.py line 14 (...)``: the innermost line of code outside PyTorch and this package that the error came through."""
    installed = (Path(torch.__file__).parent, Path(__file__).parent.parent)
    places = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.lineno and not any(Path(frame.filename).is_relative_to(folder) for folder in installed)
    ]
    return f", at {describe_line(*places[-1])}" if places else ""


def _first_line(error: BaseException) -> str:
    """The innermost reason: torch wraps it in pages of advice and, for ONNX, in errors of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
