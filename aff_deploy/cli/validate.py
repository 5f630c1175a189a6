"""``aff-deploy validate``: does a file compute what the network computes?"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aff_deploy.cli.console import Steps, print_json, table, working
from aff_deploy.cli.options import (
    NETWORK,
    UNTRAINED,
    Arguments,
    Atol,
    DataPath,
    Given,
    Json,
    Key,
    Mean,
    MinCosine,
    Ranges,
    Rtol,
    Scale,
    Std,
    Weights,
    read_arguments,
    read_data_options,
    tolerance_of,
)
from aff_deploy.errors import UsageError

if TYPE_CHECKING:
    from aff_deploy.nets.resolve import Network
    from aff_deploy.recipe import Recipe
    from aff_deploy.runtimes import Runner
    from aff_deploy.validate import Check, ValidationReport


def validate(
    file: Annotated[Path, typer.Argument(help="The ONNX file to check.", metavar="FILE")],
    against: Annotated[
        str, typer.Option("--against", metavar="NETWORK|REF.onnx", help=f"What is right: {NETWORK}; or an .onnx.")
    ],
    weights: Weights = None,
    arguments: Arguments = None,
    key: Key = None,
    data: DataPath = None,
    ranges: Ranges = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    atol: Atol = None,
    rtol: Rtol = None,
    min_cosine: MinCosine = None,
    as_json: Json = False,
) -> None:
    """Compare a file with PyTorch or another file."""
    given = Given(weights, read_arguments(arguments), key)
    given_data = read_data_options(data, ranges, scale, mean, std)
    with Steps() as step, working(), contextlib.ExitStack() as stack:
        step("load both sides")
        from aff_deploy.onnx_file import load_onnx
        from aff_deploy.runtimes.feeds import describe_seeded, free_sizes, seeded_feeds
        from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
        from aff_deploy.validate import validate as compare
        from aff_deploy.verify import precision_of

        precision = precision_of(load_onnx(file))
        candidate = stack.enter_context(OnnxRuntimeRunner(file))
        reference, recipe, network = _reference(against, given, candidate)
        stack.enter_context(reference)
        inputs = given_data.ranged(reference.inputs)
        loaded = given_data.load(inputs, recipe)
        if loaded is None:
            batches: Sequence[Mapping[str, Any]] = seeded_feeds(inputs, recipe=recipe, sizes=free_sizes(inputs))
            words = describe_seeded(inputs)
        else:
            batches, words = loaded.batches, loaded.described
        step("compare")
        report = compare(reference, candidate, batches, tolerance_of(recipe, precision, atol, rtol, min_cosine))
    if as_json:
        print_json({**report.to_dict(), "data": words})
    else:
        _print_report(report, f"{file} against {against}", words)
    if not report.passed:
        if network is not None and network.weights is None:
            print(f"  note: {UNTRAINED}", file=sys.stderr)
        raise typer.Exit(1)


def _reference(against: str, given: Given, candidate: Runner) -> tuple[Runner, Recipe | None, Network | None]:
    if against.endswith(".onnx"):
        if given.anything:
            words = "--weights, --arguments and --key go with a network"
            raise UsageError(f"{words}, and --against names an ONNX file", fix="leave them out")
        from aff_deploy.onnx_file import load_onnx
        from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

        load_onnx(Path(against))
        return OnnxRuntimeRunner(Path(against)), None, None
    network = given.resolve(against)
    from aff_deploy.runtimes.pytorch import PyTorchRunner  # after the network, whose import says what PyTorch is needed for

    return PyTorchRunner(network.module, network.inputs or candidate.inputs), network.recipe, network


def _print_report(report: ValidationReport, what: str, data: str) -> None:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    rows = [
        (
            output.name,
            number(output.max_abs),
            number(output.max_rel),
            f"{output.cosine:.8f}",
            f"{output.snr_db:.1f} dB",
            "-" if output.argmax_agreement is None else f"{100 * output.argmax_agreement:.2f} %",
            "ok" if output.passed else "FAILED",
        )
        for output in report.outputs
    ]
    print(table(rows, ("output", "max abs", "max rel", "cosine", "snr", "argmax", "")))
    if report.checks:
        checks = [(check.name, _word(check), check.detail) for check in report.checks]
        print(table(checks, ("check", "", "")))
    for failure in report.failures:
        print(f"  {failure}")
    tolerance = report.tolerance
    print(
        f"{'passed' if report.passed else 'FAILED'}: {what}, {report.samples} samples ({data}), "
        f"atol {tolerance.atol:g}, rtol {tolerance.rtol:g}, min cosine {tolerance.min_cosine:g}"
    )


def _word(check: Check) -> str:
    if check.skipped:
        return "skipped"
    return "ok" if check.passed else "FAILED"
