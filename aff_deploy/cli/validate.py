"""``aff-deploy validate``: does a file compute what the network computes?"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aff_deploy.cli.console import Steps, print_json, table, working
from aff_deploy.cli.failures import Failure
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
from aff_deploy.errors import InputError, MissingDependency, UsageError
from aff_deploy.spec import Precision

if TYPE_CHECKING:
    from aff_deploy.nets.resolve import Network
    from aff_deploy.recipe import Recipe
    from aff_deploy.runtimes import Feeds, Runner
    from aff_deploy.validate import Check, Exact, Truth, ValidationReport


def validate(
    file: Annotated[
        Path, typer.Argument(help="The ONNX file or engine to check, or a deployment's folder.", metavar="FILE|FOLDER")
    ],
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
    file = _file_in(file)
    given = Given(weights, read_arguments(arguments), key)
    given_data = read_data_options(data, ranges, scale, mean, std)
    with Steps() as step, working(), contextlib.ExitStack() as stack:
        step("load both sides")
        from aff_deploy.runtimes.feeds import describe_seeded, free_sizes, seeded_feeds
        from aff_deploy.validate import validate as compare

        candidate, precision, engine = _candidate(file)
        stack.enter_context(candidate)
        reference, recipe, network = _reference(against, given, candidate)
        stack.enter_context(reference)
        inputs = given_data.ranged(reference.inputs)
        loaded = given_data.load(inputs, recipe)
        if loaded is None:
            sizes = {**free_sizes(inputs), **(_usual_sizes(candidate) if engine else {})}
            batches: Sequence[Mapping[str, Any]] = seeded_feeds(inputs, recipe=recipe, sizes=sizes)
            words = describe_seeded(inputs)
        else:
            batches, words = loaded.batches, loaded.described
        step("compare")
        tolerance = tolerance_of(recipe, precision, atol, rtol, min_cosine)
        truth = None if engine else _truth(reference, against, file, batches)
        # An engine takes the batches that it was built for, and no others to check properties of rows with.
        report = compare(reference, candidate, batches, tolerance, metamorphic=not engine, truth=truth)
    if as_json:
        failure = Failure("CheckFailed", f"{file} differs from {against}: {'; '.join(report.failures)}", "", 1)
        document = {**report.to_dict(), "data": words}
        print_json(document if report.passed else {**document, "error": failure.to_dict()})
    else:
        _print_report(report, f"{file} against {against}", words)
    if not report.passed:
        if network is not None and network.weights is None:
            print(f"  note: {UNTRAINED}", file=sys.stderr)
        raise typer.Exit(1)


def _file_in(path: Path) -> Path:
    """The file itself, or the model in a deployment."""
    if not path.is_dir():
        return path
    inside = path / "model.onnx"
    if not inside.is_file():
        raise InputError(f"{path} is a folder, and holds no {inside.name}", fix="give an ONNX file, or an engine")
    return inside


def _candidate(file: Path) -> tuple[Runner, Precision, bool]:
    """What is to be checked, how exact it can be, and whether it is an engine."""
    from aff_deploy.engine_file import is_engine, read_engine_manifest

    if is_engine(file):
        from aff_deploy.runtimes.tensorrt import TensorRTRunner

        try:
            precision = read_engine_manifest(file).proven or Precision.FP32
            return TensorRTRunner(file), precision, True
        except MissingDependency as error:
            proven = f"see what was proven of it when it was built: aff-deploy inspect {shlex.quote(str(file))}"
            raise MissingDependency(error.message, fix=f"{error.fix}, or {proven}" if error.fix else proven) from error
    from aff_deploy.onnx_file import load_onnx
    from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
    from aff_deploy.verify import precision_of

    precision = precision_of(load_onnx(file))
    return OnnxRuntimeRunner(file), precision, False


def _usual_sizes(engine: Runner) -> dict[str, int]:
    """The size of each dynamic dimension that the engine was built to be fastest at."""
    return {
        dim: size
        for spec in engine.inputs
        for dim, size in zip(spec.shape, spec.concrete(), strict=True)
        if isinstance(dim, str)
    }


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


def _truth(reference: Runner, against: str, file: Path, batches: Sequence[Feeds]) -> Truth:
    """The reference in double precision, and what is known of the file's sites."""
    from aff_deploy.errors import InputError
    from aff_deploy.onnx_file import load_onnx
    from aff_deploy.runtimes.double import DoubleRunner
    from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
    from aff_deploy.validate import Truth, truth_of
    from aff_deploy.verify import eps_of, largest_at_sites

    model = load_onnx(file)
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
    if report.exact is not None:
        _print_exact(report.exact)
    tolerance = report.tolerance
    print(
        f"{'passed' if report.passed else 'FAILED'}: {what}, {report.samples} samples ({data}), "
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
