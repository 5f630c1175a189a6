"""``aff-deploy build-engine``: an ONNX file or a network to an engine."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aff_deploy.cli.console import MODEL_SIDECARS, Steps, claim_output, print_json, working
from aff_deploy.cli.options import (
    NETWORK,
    UNTRAINED,
    Arguments,
    Atol,
    BackendName,
    DataPath,
    Given,
    GivenData,
    HardwareMode,
    Io,
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
from aff_deploy.spec import Precision, TensorSpec, apply_dynamic

if TYPE_CHECKING:
    import onnx

    from aff_deploy.recipe import EngineSettings, Recipe
    from aff_deploy.runtimes import Runner


SHAPE = "NAME:1x3x224x224"
MOST_EXPORTED = 32
"""Samples of given data that the export is compared on; the engine is on all."""


def build_engine(
    source: Annotated[str, typer.Argument(help=f"An ONNX file, or {NETWORK}.", metavar="IN.onnx|NETWORK|RECIPE")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The engine to write.")],
    backend: Annotated[
        BackendName | None, typer.Option("--backend", help="Who builds (default: what is installed, tensorrt first).")
    ] = None,
    fp32: Annotated[bool, typer.Option("--fp32", help="Single precision (default: what a recipe asks for, or this).")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers, calibrated on --calib.")] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="8-bit floats, calibrated on --calib.")] = False,
    io: Annotated[Io | None, typer.Option("--io", help="Types of the float inputs and outputs (default: fp32).")] = None,
    calib: Annotated[
        str | None,
        typer.Option(
            "--calib", metavar="DATA", help="Calibration data: an .npz, a folder of images, or 'seeded' for random data."
        ),
    ] = None,
    keep_fp32: Annotated[
        list[str] | None, typer.Option("--keep-fp32", metavar="NODE", help="A node to leave in fp32; repeat for several.")
    ] = None,
    min_shapes: Annotated[
        list[str] | None, typer.Option("--min-shapes", metavar=SHAPE, help="Smallest shape; once more for a further profile.")
    ] = None,
    opt_shapes: Annotated[
        list[str] | None, typer.Option("--opt-shapes", metavar=SHAPE, help="The shape to be fastest at.")
    ] = None,
    max_shapes: Annotated[list[str] | None, typer.Option("--max-shapes", metavar=SHAPE, help="Largest shape.")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="NETWORK", help="For an ONNX file: the network to compare with (else the file itself)."
        ),
    ] = None,
    weights: Weights = None,
    arguments: Arguments = None,
    key: Key = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar=f"{SHAPE}[:float32]", help="For a network: an input; repeat for several."),
    ] = None,
    dynamic: Annotated[
        list[str] | None, typer.Option("--dynamic", metavar="NAME:0=batch", help="For a network: dimensions to keep free.")
    ] = None,
    data: DataPath = None,
    ranges: Ranges = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    atol: Atol = None,
    rtol: Rtol = None,
    min_cosine: MinCosine = None,
    workspace: Annotated[int | None, typer.Option("--workspace", metavar="MIB", help="Scratch memory of a layer.")] = None,
    optimization_level: Annotated[
        int | None, typer.Option("--builder-optimization-level", metavar="N", help="0 (fast build) to 5 (fast engine).")
    ] = None,
    hardware_compatibility: Annotated[
        HardwareMode, typer.Option("--hardware-compatibility", help="Which other GPUs should run it (TensorRT only).")
    ] = HardwareMode.none,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Later versions should run it (TensorRT only).")
    ] = False,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", metavar="FILE", help="Measured kernel times, kept (TensorRT only).")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option("--compute-capability", metavar="8.9", help="A GPU architecture to build for (TensorRT-RTX only)."),
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option("--plugin", metavar="LIB", help="libaff_deploy.so, the fused operator's plugin (TensorRT only)."),
    ] = None,
    strip_weights: Annotated[bool, typer.Option("--strip-weights", help="Leave the weights out (TensorRT only).")] = False,
    no_tf32: Annotated[bool, typer.Option("--no-tf32", help="No TF32 in fp32 convolutions.")] = False,
    keep_typed: Annotated[
        bool, typer.Option("--keep-typed", help="Also write the ONNX that the engine was built from, as FILE.onnx.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a TensorRT or TensorRT-RTX engine, its precision proven."""
    flags = (fp32, fp16, bf16, int8, fp8)
    asked = _precision([precision for precision, wanted in zip(Precision, flags, strict=True) if wanted])
    is_file = source.endswith(".onnx")
    given = Given(weights, read_arguments(arguments), key)
    given_data = read_data_options(data, ranges, scale, mean, std, calib=calib)
    _check_usage(is_file, against, given, inputs, dynamic)
    typed = [".onnx", *(f".onnx{suffix}" for suffix in MODEL_SIDECARS)] if keep_typed else []
    claim_output(output, *([Path(source)] if is_file else []), sidecars=(".json", *typed))
    settings = _settings(None if is_file else source)
    precision = asked or settings.precision
    with Steps() as step, working(), contextlib.ExitStack() as stack:
        step("load the model")
        from aff_deploy.engine import (
            BuildOptions,
            EngineRequest,
            check_options,
            check_profiles,
            default_profiles,
            find_backend,
            parse_shapes,
            profiles_from_options,
            tensor_specs,
        )
        from aff_deploy.engine import build_engine as build
        from aff_deploy.engine.data import engine_data
        from aff_deploy.engine.summary import summarise

        chosen = find_backend(backend.value if backend is not None else settings.backend or None)
        options = BuildOptions(
            workspace=workspace,
            optimization_level=optimization_level,
            hardware_compatibility=hardware_compatibility.value,
            version_compatible=version_compatible,
            timing_cache=timing_cache,
            compute_capabilities=tuple(compute_capability or ()),
            strip_weights=strip_weights,
            plugin=plugin,
            tf32=not no_tf32,
        )
        check_options(options, chosen, precision)
        words = (("--min-shapes", min_shapes), ("--opt-shapes", opt_shapes), ("--max-shapes", max_shapes))
        bounds = [parse_shapes(option, sizes or ()) for option, sizes in words]
        if is_file:
            model, origin, reference, recipe = _of_file(Path(source), against, given)
        else:
            model, origin, reference, recipe = _of_network(source, given, inputs or (), dynamic or (), given_data, step)
        stack.enter_context(reference)
        specs = tensor_specs(model.graph.input)
        profiles = profiles_from_options(specs, *bounds) or (recipe.engine_profiles if recipe is not None else ())
        # A recipe may say with `opt` alone where the engine should be fastest.
        usual = recipe.inputs if recipe is not None and not inputs and not dynamic else specs
        by_default = () if profiles else default_profiles(usual)
        request = EngineRequest(
            precision=precision,
            backend=chosen,
            tolerance=tolerance_of(recipe, precision, atol, rtol, min_cosine),
            io=io.value if io is not None else settings.io,
            profiles=check_profiles(specs, profiles or by_default),
            default_profiles=bool(by_default),
            options=options,
            keep_fp32=tuple(keep_fp32 or settings.keep_fp32),
            keep_typed=keep_typed,
        )
        fastest = request.profiles[0].opt if request.profiles else {}
        fed = [replace(spec, example=fastest.get(spec.name, spec.example)) for spec in given_data.ranged(reference.inputs)]
        found = engine_data(precision, fed, recipe=recipe, calib=calib, data=data, overrides=given_data.overrides)
        built = build(
            model,
            output,
            request,
            source=origin,
            reference=reference,
            observed_on=found.observed_on,
            observed=found.observed,
            compared_on=found.compared_on,
            compared=found.compared,
            progress=step,
            phase=step.detail,
        )
    if as_json:
        print_json({"file": str(output), **built.artifact.manifest})
    else:
        print("\n".join(summarise(built)))


def _precision(chosen: list[Precision]) -> Precision | None:
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} are two precisions", fix="give one of them")
    return chosen[0] if chosen else None


def _settings(reference: str | None) -> EngineSettings:
    """What the recipe that `reference` means asks of an engine; an fp32 engine where it asks for none, or is none."""
    from aff_deploy.recipe import EngineSettings, find_recipe

    recipe = find_recipe(reference) if reference is not None else None
    if recipe is None or recipe.engine.enabled is None:
        return EngineSettings(precision=Precision.FP32)
    return recipe.engine


def _check_usage(is_file: bool, against: str | None, given: Given, inputs: list[str] | None, dynamic: list[str] | None) -> None:
    if is_file and (inputs or dynamic):
        raise UsageError("--input and --dynamic go with a network, and an ONNX file has its own inputs", fix="leave them out")
    if is_file and given.anything and against is None:
        word = "--weights" if given.weights is not None else "--arguments" if given.arguments else "--key"
        raise UsageError(f"{word} goes with a network", fix=f"name it with --against, or leave {word} out")
    if not is_file and against is not None:
        raise UsageError("--against goes with an ONNX file; a network is compared with itself in PyTorch", fix="leave it out")


def _of_file(path: Path, against: str | None, given: Given) -> tuple[onnx.ModelProto, dict[str, Any], Runner, Recipe | None]:
    from aff_deploy.artifact import sha256
    from aff_deploy.onnx_file import load_onnx
    from aff_deploy.passes import optimize
    from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

    loaded = load_onnx(path)
    # Where exporters and `save_onnx` put the weights of a large model.
    beside = path.with_name(f"{path.name}.data")
    companions = {beside.name: sha256(beside)} if beside.is_file() else {}
    origin = {"file": path.name, "sha256": sha256(path), "companions": companions}
    model = optimize(loaded).model
    if against is None:
        return model, origin, OnnxRuntimeRunner(path, frugal=True), None
    from aff_deploy.engine import tensor_specs

    network = given.resolve(against)
    from aff_deploy.runtimes.pytorch import PyTorchRunner

    if network.weights is None:
        print(f"  note: {UNTRAINED}", file=sys.stderr, flush=True)
    return model, origin, PyTorchRunner(network.module, network.inputs or tensor_specs(model.graph.input)), network.recipe


def _of_network(
    reference: str, given: Given, inputs: list[str] | tuple[()], dynamic: list[str] | tuple[()], data: GivenData, step: Steps
) -> tuple[onnx.ModelProto, dict[str, Any], Runner, Recipe | None]:
    from aff_deploy.export import export_onnx
    from aff_deploy.onnx_file import model_sha256
    from aff_deploy.passes import optimize
    from aff_deploy.recipe import ExportSettings
    from aff_deploy.runtimes.pytorch import PyTorchRunner

    network = given.resolve(reference, tuple(TensorSpec.parse(text) for text in inputs))
    if not network.inputs:
        raise UsageError(f"nothing says what inputs {reference} takes", fix=f"give them with --input {SHAPE}")
    taken = data.ranged(apply_dynamic(network.inputs, dynamic))
    settings = network.recipe.export if network.recipe is not None else ExportSettings()
    step(f"export to ONNX ({settings.exporter}, opset {settings.opset}) and compare with PyTorch")
    loaded = data.load(taken, network.recipe, limit=MOST_EXPORTED)
    batches = () if loaded is None else loaded.batches
    exported = export_onnx(network.module, taken, opset=settings.opset, exporter=settings.exporter, data=batches)
    model = optimize(exported).model
    origin = {"file": None, "network": reference, "sha256": model_sha256(model)}
    return model, origin, PyTorchRunner(network.module, taken), network.recipe
