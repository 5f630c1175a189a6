"""ONNX to engine: types written into the graph, compared with PyTorch, built, and the result read back.

`build_engine` is the whole of it. Nothing is written unless the typed model computes what the reference
does, within the precision's tolerance, and the engine holds the types of the typed model.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aff_deploy.artifact import (
    Artifact,
    check_writable,
    claim_file,
    manifest_path,
    scratch_folder,
    sha256,
    staged_file,
)
from aff_deploy.engine.build import Plan, build_plan
from aff_deploy.engine.interface import tensor_specs
from aff_deploy.engine.listing import Listing, read_inspector, read_log
from aff_deploy.engine.options import BuildOptions, check_options
from aff_deploy.engine.profiles import check_profiles, default_profiles, parse_shapes, profiles_from_options, suggest_keys
from aff_deploy.engine.proof import Dissent, Proof, prove
from aff_deploy.engine_file import check_capability, read_engine_manifest, write_engine
from aff_deploy.errors import CheckFailed, EngineError, MissingDependency
from aff_deploy.precision import Typed, evaluator, to_precision
from aff_deploy.runtimes import Array, Runner
from aff_deploy.runtimes.backends import FIRST_FP8_CAPABILITY, Backend, find_backend, load, parse_capability, version
from aff_deploy.runtimes.cuda import Cuda
from aff_deploy.runtimes.memory import release_memory
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.tensorrt import TensorRTRunner
from aff_deploy.spec import Ends, Precision, ShapeProfile, Tolerance
from aff_deploy.validate import ValidationReport, validate

if TYPE_CHECKING:
    import onnx

    from aff_deploy.passes.kernels import Attached

__all__ = [
    "BuildOptions",
    "BuiltEngine",
    "Dissent",
    "EngineRequest",
    "Listing",
    "Plan",
    "Proof",
    "build_engine",
    "build_plan",
    "check_options",
    "check_profiles",
    "default_profiles",
    "find_backend",
    "parse_shapes",
    "profiles_from_options",
    "prove",
    "read_inspector",
    "read_log",
    "suggest_keys",
    "tensor_specs",
]

Batches = Sequence[Mapping[str, Array]]


@dataclass(frozen=True)
class EngineRequest:
    """What to build.

    Attributes:
        precision: of weights and arithmetic.
        backend: who builds.
        tolerance: how far the typed model's outputs may be from the reference's.
        io: ``fp32`` leaves inputs and outputs as they are, ``fp16`` makes the float ones half precision.
        profiles: the shapes to build for; see `check_profiles`.
        default_profiles: whether `profiles` are those of `default_profiles`, because nobody gave any.
        options: the builder's settings.
        keep_fp32: names of nodes to leave in fp32.
        keep_typed: whether to write the typed model too, as ``<name>.onnx``.
    """

    precision: Precision
    backend: Backend
    tolerance: Tolerance
    io: Ends = "fp32"
    profiles: tuple[ShapeProfile, ...] = ()
    default_profiles: bool = False
    options: BuildOptions = field(default_factory=BuildOptions)
    keep_fp32: tuple[str, ...] = ()
    keep_typed: bool = False


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was written, and what was proven of it; `not_run` says why the engine itself was not run here."""

    artifact: Artifact
    proof: Proof
    validation: ValidationReport
    typed: Typed
    seconds: Mapping[str, float]
    not_run: str


class _Clock:
    def __init__(self, progress: Callable[[str], None] | None) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        if self._progress is not None:
            self._progress(text)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def build_engine(
    model: onnx.ModelProto,
    out: Path,
    request: EngineRequest,
    *,
    source: Mapping[str, Any],
    reference: Runner,
    observed_on: Batches,
    observed: str,
    compared_on: Batches,
    compared: str = "",
    progress: Callable[[str], None] | None = None,
    phase: Callable[[str], None] | None = None,
) -> BuiltEngine:
    """Build an engine from an optimised model and write it to `out` with its manifest, or nothing.

    Args:
        model: an optimised fp32 model.
        out: the engine's path.
        request: what to build.
        source: the manifest's ``onnx``: name and hash of the file that `model` came from.
        reference: what is right, usually eager PyTorch.
        observed_on, observed: data on which the ranges of tensors are observed (for int8: calibrated), and what to call it.
        compared_on, compared: data on which the typed model is compared with `reference`, and what to call it.
        progress: called with a line of text as each stage begins.
        phase: called with the builder's phases, at most twice a second.

    Raises:
        CheckFailed: the typed model is not within the tolerance, or the engine is not of the precision asked for.
        EngineError: the backend refuses the model.
        AffDeployError: whatever a stage raises; see there.
    """
    backend = request.backend
    check_options(request.options, backend, request.precision)
    if request.options.timing_cache is not None:
        claim_file(request.options.timing_cache, updating=True)
        check_writable(request.options.timing_cache)
    load(backend)
    clock = _Clock(progress)
    with staged_file(out) as staged, scratch_folder() as scratch:
        with clock.stage("convert", f"write {request.precision} into the graph"):
            typed = to_precision(
                model, request.precision, batches=observed_on, observed=observed, io=request.io, keep_fp32=request.keep_fp32
            )
        with clock.stage("validate", f"compare the {request.precision} model with {reference.name}"):
            with evaluator(typed) as candidate:
                checked_by = candidate.name
                validation = validate(reference, candidate, compared_on, request.tolerance)
            _require_valid(validation, request.precision, reference.name, observed)
        carried = _with_kernels(typed.model) if request.options.plugin is not None else None
        calls = carried.calls if carried is not None else frozenset[str]()
        typed_file = (staged.parent if request.keep_typed else scratch) / f"{out.name}.onnx"
        _save(typed.model if carried is None else carried.model, typed_file)
        if isinstance(reference, OnnxRuntimeRunner):
            reference.rest()
        gc.collect()
        release_memory()
        with clock.stage("build", f"build the engine with {backend.title} {version(backend)}"):
            plan = build_plan(typed_file, backend, request.profiles, request.options, progress=phase)
        with clock.stage("prove", "read back what was built"):
            proofs = [
                prove(typed.model, listing, request.precision, plan.weight_bytes, plugin_calls=calls)
                for listing in plan.listings
            ]
            for proof in proofs:
                proof.require()
            if not proofs:
                raise CheckFailed(
                    f"{request.precision} cannot be proven: the builder reported no layers", fix="nothing was written"
                )
        clock.seconds |= {f"build_{name}": value for name, value in plan.seconds.items()}
        check = {"what": "typed ONNX", "on": checked_by, "against": reference.name, "data": compared, **validation.to_dict()}
        facts = {
            "backend": backend.name,
            "library_version": version(backend),
            "compute_capabilities": _capabilities(request),
            "precision": {"asked": str(request.precision), "proven": str(request.precision), "proof": proofs[0].to_dict()},
            "onnx": dict(source),
            "typed": {"sha256": sha256(typed_file), **typed.to_dict()},
            **_interface(typed.model),
            "profiles": [{"min": dict(p.min), "opt": dict(p.opt), "max": dict(p.max)} for p in request.profiles],
            "default_profiles": request.default_profiles,
            "options": request.options.to_dict(),
            **({} if carried is None else {"plugin": _describe_plugin(request.options, carried)}),
            "checks": [check],
            "weights_bytes": plan.weight_bytes or 0,
            "warnings": list(plan.warnings)[:20],
            "seconds": clock.seconds,
        }
        manifest = write_engine(plan.plan, staged, facts)
        if not (not_run := _why_not_run(staged)):
            with (
                clock.stage("run", "run the engine and compare"),
                TensorRTRunner(staged, plugin=request.options.plugin) as runner,
            ):
                on_gpu = validate(reference, runner, compared_on, request.tolerance)
                _require_valid(on_gpu, request.precision, reference.name, observed)
            facts["checks"] = [check, {**check, "what": "engine", "on": runner.name, **on_gpu.to_dict()}]
            manifest = write_engine(plan.plan, staged, facts)
    return BuiltEngine(Artifact(out, manifest), proofs[0], validation, typed, clock.seconds, not_run)


def _why_not_run(engine: Path) -> str:
    """Why the engine cannot be run on this machine, or nothing."""
    try:
        check_capability(read_engine_manifest(engine), Cuda(0).capability)
    except (MissingDependency, EngineError) as error:
        return error.message.replace(str(engine), "it")
    return ""


def _with_kernels(model: onnx.ModelProto) -> Attached:
    """Kernels for the plugin in every call that gains by them; those compiled for 8.0 run on all later GPUs."""
    from aff_deploy.passes.kernels import attach_kernels

    return attach_kernels(model)


def _describe_plugin(options: BuildOptions, carried: Attached) -> dict[str, Any]:
    library = options.plugin
    assert library is not None, "kernels are attached for a plugin"
    native = [{"name": name, "reason": reason} for name, reason in carried.native]
    return {"file": library.name, "sha256": sha256(library), "sites": list(carried.plugin), "native": native}


def _require_valid(validation: ValidationReport, precision: Precision, against: str, observed: str) -> None:
    if not validation.passed:
        first, *others = validation.failures
        more = f" (and {len(others)} more)" if others else ""
        real = "give real data with --calib, " if "seeded" in observed else ""
        fix = f"keep nodes in fp32 with --keep-fp32, {real}or allow more with --rtol"
        if precision is Precision.FP32:
            fix = "check the model with: aff-deploy validate"
        raise CheckFailed(f"the {precision} model differs from {against}: {first}{more}", fix=f"nothing was written; {fix}")


def _save(model: onnx.ModelProto, path: Path) -> None:
    from aff_deploy.onnx_file import save_onnx

    save_onnx(model, path, {})
    manifest_path(path).unlink()


def _capabilities(request: EngineRequest) -> list[str]:
    """The GPU architectures that the engine runs on, as the manifest lists them."""
    chosen = request.options.compute_capabilities or request.backend.default_capabilities
    if chosen:
        least = FIRST_FP8_CAPABILITY if request.precision is Precision.FP8 else (0, 0)
        return [capability for capability in chosen if parse_capability(capability.rstrip("+")) >= least]
    here = Cuda(0).capability  # a backend without a list of its own has just built on it
    if request.options.hardware_compatibility == "ampere+":
        return ["8.0+"]
    return [f"{here[0]}.{here[1]}"]


def _interface(model: onnx.ModelProto) -> dict[str, Any]:
    def described(values: Iterable[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype} for spec in tensor_specs(values)]

    return {"inputs": described(model.graph.input), "outputs": described(model.graph.output)}
