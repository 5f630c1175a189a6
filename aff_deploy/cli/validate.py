"""``aff-deploy validate``: does a file compute what the network computes?"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aff_deploy.cli.console import Steps, print_json, table, working
from aff_deploy.cli.options import (
    NETWORK,
    UNTRAINED,
    Arguments,
    Atol,
    Given,
    Json,
    Key,
    MinCosine,
    Rtol,
    Weights,
    read_arguments,
    tolerance_of,
)
from aff_deploy.errors import UsageError

if TYPE_CHECKING:
    from onnx import ModelProto

    from aff_deploy.nets.resolve import Network
    from aff_deploy.recipe import Recipe
    from aff_deploy.runtimes import Feeds, Runner
    from aff_deploy.validate import Check, Exact, Truth, ValidationReport


def validate(
    file: Annotated[Path, typer.Argument(help="The ONNX file to check.", metavar="FILE")],
    against: Annotated[
        str, typer.Option("--against", metavar="NETWORK|REF.onnx", help=f"What is right: {NETWORK}; or an .onnx.")
    ],
    weights: Weights = None,
    arguments: Arguments = None,
    key: Key = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DATA.npz", help="Data to compare on; against a recipe, raw data as its evaluation's."),
    ] = None,
    atol: Atol = None,
    rtol: Rtol = None,
    min_cosine: MinCosine = None,
    as_json: Json = False,
) -> None:
    """Compare a file with PyTorch or another file."""
    given = Given(weights, read_arguments(arguments), key)
    with Steps() as step, working(), contextlib.ExitStack() as stack:
        step("load both sides")
        from aff_deploy.onnx_file import load_onnx
        from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
        from aff_deploy.validate import load_npz_feeds, seeded_feeds
        from aff_deploy.validate import validate as compare
        from aff_deploy.verify import free_sizes, precision_of

        model = load_onnx(file)
        precision = precision_of(model)
        candidate = stack.enter_context(OnnxRuntimeRunner(file))
        reference, recipe, network = _reference(against, given, candidate)
        stack.enter_context(reference)
        if data is None:
            batches = seeded_feeds(reference.inputs, recipe=recipe, sizes=free_sizes(reference.inputs))
        elif recipe is None:
            batches = load_npz_feeds(data, reference.inputs)
        else:
            keys = recipe.evaluation.inputs if recipe.evaluation is not None else None
            batches = load_npz_feeds(data, reference.inputs, keys=keys, preprocessing=recipe.preprocessing)
        step(f"compare on {'seeded data' if data is None else data.name}")
        tolerance = tolerance_of(recipe, precision, atol, rtol, min_cosine)
        report = compare(reference, candidate, batches, tolerance, truth=_truth(reference, against, model, batches))
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(report, f"{file} against {against}")
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


def _truth(reference: Runner, against: str, model: ModelProto, batches: Sequence[Feeds]) -> Truth:
    """The reference in double precision, and what is known of the file's sites."""
    from aff_deploy.errors import InputError
    from aff_deploy.onnx_file import load_onnx
    from aff_deploy.runtimes.double import DoubleRunner
    from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
    from aff_deploy.validate import Truth, truth_of
    from aff_deploy.verify import eps_of, largest_at_sites

    eps = eps_of(model)
    try:
        magnitude = largest_at_sites(model, batches[:1])
        if not isinstance(reference, OnnxRuntimeRunner):
            from aff_deploy.runtimes.pytorch import PyTorchRunner

            assert isinstance(reference, PyTorchRunner)
            return truth_of(reference, eps, magnitude)
        original = load_onnx(Path(against))
        return Truth(DoubleRunner(original), max(eps, eps_of(original)), magnitude)
    except InputError as error:
        return Truth(None, eps, why_not=error.message)


def _print_report(report: ValidationReport, what: str) -> None:
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
    if report.exact is not None:
        _print_exact(report.exact)
    tolerance = report.tolerance
    print(
        f"{'passed' if report.passed else 'FAILED'}: {what}, {report.samples} samples, "
        f"atol {tolerance.atol:g}, rtol {tolerance.rtol:g}, min cosine {tolerance.min_cosine:g}"
    )


def _print_exact(exact: Exact) -> None:
    if exact.conditioning:
        print(f"  {exact.conditioning}")
    if not exact.outputs:
        print(f"exact: not known: {exact.why_not}")
        return
    worst = max(exact.outputs, key=lambda output: output.error / output.allowed if output.allowed else output.error)
    figures = f"output {worst.name!r} is {worst.error:.3g} from float64, the reference {worst.original_error:.3g}"
    word = "yes" if exact.holds else "no"
    print(f"exact: {word}: {worst.broken or figures}, where {worst.allowed:.3g} is allowed, over {exact.samples} samples")


def _word(check: Check) -> str:
    if check.skipped:
        return "skipped"
    return "ok" if check.passed else "FAILED"
