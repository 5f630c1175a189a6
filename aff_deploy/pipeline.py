"""The whole order: a recipe to a folder with an optimised, proven model and a report about it."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aff_deploy.artifact import MANIFEST_FORMAT, Artifact, sha256, staged_folder, versions
from aff_deploy.engine import EngineRequest, build_engine, check_profiles, find_backend
from aff_deploy.engine.data import engine_data
from aff_deploy.errors import CheckFailed, MissingDependency
from aff_deploy.evaluate import Evaluated, RecordingRunner, evaluate, load_labels
from aff_deploy.export import export_onnx
from aff_deploy.nets.resolve import Network, network_of_recipe
from aff_deploy.onnx_file import save_onnx
from aff_deploy.passes import inspect_model, optimize
from aff_deploy.recipe import Evaluation, Recipe, dump_recipe
from aff_deploy.report import render_report
from aff_deploy.runtimes.feeds import load_npz_feeds, seeded_feeds
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import Precision
from aff_deploy.validate import ValidationReport, explain_difference, validate
from aff_deploy.verify import free_sizes

if TYPE_CHECKING:
    from onnx import ModelProto

MODEL_FILE, ENGINE_FILE = "model.onnx", "model.engine"
MANIFEST_FILE, REPORT_FILE, RECIPE_FILE = "manifest.json", "report.html", "recipe.toml"
SEEDED_SAMPLES = 16
BATCHES_FOR_RANGES = 2
"""So many of the evaluation data's batches show whether a blend loses x."""


@dataclass(frozen=True)
class DeployResult:
    """What a deployment wrote to `folder`, and what it found; `manifest` is the content of ``manifest.json``."""

    folder: Path
    manifest: Mapping[str, Any]
    validation: ValidationReport
    evaluation: Evaluated | None

    @property
    def model(self) -> Path:
        return self.folder / MODEL_FILE

    @property
    def report(self) -> Path:
        return self.folder / REPORT_FILE

    def summary(self) -> list[str]:
        """What happened, in lines for a person."""
        facts = self.manifest
        kinds = Counter(site["kind"] for site in facts["fusions"])
        fused = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing"
        lines = [f"{facts['name']} is deployed in {self.folder}", f"  fused     {fused}; {len(facts['rejected'])} refused"]
        if facts["convex"]:
            lines.append(f"  blends    {len(facts['convex'])} keep an x that is small beside y, as the evaluation data needs")
        nodes = facts["nodes"]
        lines.append(f"  operators {nodes['before']} before, {nodes['after']} after")
        for output in self.validation.outputs:
            lines.append(
                f"  parity    output {output.name!r}: largest difference from PyTorch {output.max_abs:.2g} "
                f"at scale {output.scale:.3g}, over {self.validation.samples} samples"
            )
        lines += [f"  answers   {line}" for line in self.evaluation.lines()] if self.evaluation is not None else []
        lines += [f"  weights   {note}" for note in facts["network"]["notes"]]
        if facts["network"]["weights"] is None:
            lines.append("  weights   as the network's code made them; the recipe names none")
        lines.append(f"  engine    {_engine_line(facts['engine'])}")
        return [*lines, f"  report    {self.report}"]


@dataclass
class _Clock:
    """Tells `progress` each stage's name as it begins, and keeps how long each took."""

    progress: Callable[[str], None] | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, text: str = "") -> Iterator[None]:
        if self.progress is not None and text:
            self.progress(text)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def deploy(recipe: Recipe, out: Path, *, progress: Callable[[str], None] | None = None) -> DeployResult:
    """Export, optimise, validate and evaluate the network of `recipe`, and write the folder `out`.

    `out` then holds ``model.onnx`` and, where a backend is installed, ``model.engine``, each with its
    manifest, ``manifest.json``, ``report.html`` and ``recipe.toml``; a former deployment there is replaced.
    It appears whole, when everything has passed, or not at all.

    Args:
        recipe: what to deploy. Without weights the network is initialised from a seed; without
            evaluation data it is compared on seeded data only.
        out: a folder that is new, empty, or a former deployment.
        progress: called with a line of text as each stage begins.

    Raises:
        CheckFailed: the optimised file computes something else than PyTorch, or is less accurate than
            the recipe records.
        AffDeployError: whatever a stage raises; see there.
    """
    clock = _Clock(progress)
    with staged_folder(out, marker=MANIFEST_FILE) as stage:
        with clock.stage("load", "load the network"):
            network = network_of_recipe(recipe)
            evaluation = recipe.checked_evaluation()
            evaluated_on = _evaluation_batches(recipe, evaluation)
            labels = load_labels(evaluation) if evaluation is not None and evaluation.labels else None
        settings = recipe.export
        with clock.stage("export", f"export to ONNX ({settings.exporter}, opset {settings.opset})"):
            exported = export_onnx(network.module, network.inputs, opset=settings.opset, exporter=settings.exporter)
            before = inspect_model(exported)
        with clock.stage("optimise", "optimise: fold, clean up, fuse"):
            result = optimize(exported, data=evaluated_on[:BATCHES_FOR_RANGES] or None)
            after = inspect_model(result.model)
        facts = {"source": {"recipe": recipe.name, "exporter": settings.exporter}, **result.to_dict()}
        artifact = save_onnx(result.model, stage / MODEL_FILE, facts)
        with clock.stage("validate", "compare with eager PyTorch"):
            batches = [*evaluated_on, *_seeded(recipe, network)]
            with _eager(network) as eager, OnnxRuntimeRunner(artifact.path) as ours:
                reference, candidate = RecordingRunner(eager, len(evaluated_on)), RecordingRunner(ours, len(evaluated_on))
                validation = validate(reference, candidate, batches, recipe.tolerance[Precision.FP32])
                if not validation.passed:
                    raise _is_invalid(recipe, validation, explain_difference(eager, ours, batches, validation.tolerance))
            evaluated = None
            if evaluated_on:
                evaluated = evaluate(reference.answers, candidate.answers, labels, recipe.evaluation)
                evaluated.require_accuracy(recipe.name)
        engine = _build_engine(recipe, network, result.model, artifact, clock)
        manifest: dict[str, Any] = {
            "format": MANIFEST_FORMAT,
            "name": recipe.name,
            "description": recipe.description,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "network": _describe_network(recipe, network),
            "inputs": after["inputs"],
            "outputs": after["outputs"],
            "model": {key: artifact.manifest[key] for key in ("file", "sha256", "bytes")},
            "engine": engine,
            "nodes": {"before": sum(before["ops"].values()), "after": sum(after["ops"].values())},
            "ops": {"before": before["ops"], "after": after["ops"]},
            **result.to_dict(),
            "validation": {**validation.to_dict(), "sources": _sources(evaluation, len(evaluated_on), batches)},
            "evaluation": None if evaluated is None else evaluated.to_dict(),
            "seconds": dict(clock.seconds),
            "versions": versions(),
            "platform": f"{platform.system()} {platform.machine()}",
        }
        with clock.stage("report", "write the report"):
            (stage / RECIPE_FILE).write_text(dump_recipe(recipe), encoding="utf-8")
            (stage / REPORT_FILE).write_text(render_report(manifest), encoding="utf-8")
            text = json.dumps(manifest, indent=2, allow_nan=False)
            (stage / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    return DeployResult(out, manifest, validation, evaluated)


def _engine_line(engine: Mapping[str, Any]) -> str:
    if not engine["built"]:
        return f"not built: {engine['why']}"
    proof, check = engine["precision"], engine["checks"][-1]
    first = check["outputs"][0]
    agreed = first["argmax_agreement"]
    answers = "" if agreed is None else f", {100 * agreed:.2f} % the same answers"
    return (
        f"{engine['file']}, {proof['proven']} proven, by {engine['backend']} {engine['library_version']}; "
        f"{check['what']} differs by {first['max_abs']:.2g} at scale {first['scale']:.3g}{answers}"
    )


def _build_engine(recipe: Recipe, network: Network, model: ModelProto, artifact: Artifact, clock: _Clock) -> dict[str, Any]:
    """Build the recipe's engine beside the model, and say what came of it; where none can be built here, why."""
    settings = recipe.engine
    if not settings.enabled:
        return {"built": False, "why": "the recipe says enabled = false"}
    if any(spec.is_dynamic for spec in network.inputs) and not recipe.engine_profiles:
        return {"built": False, "why": "the recipe does not say for which shapes; add min, opt and max to [[inputs]]"}
    try:
        backend = find_backend(settings.backend or None)
    except MissingDependency as error:
        if settings.backend:
            raise
        return {"built": False, "why": str(error)}
    data = engine_data(settings.precision, network.inputs, recipe=recipe, calib=None)
    request = EngineRequest(
        precision=settings.precision,
        backend=backend,
        tolerance=recipe.tolerance[settings.precision],
        io=settings.io,
        profiles=check_profiles(network.inputs, recipe.engine_profiles),
    )
    try:
        with clock.stage("engine"), _eager(network) as eager:
            built = build_engine(
                model,
                artifact.path.with_name(ENGINE_FILE),
                request,
                source={"file": artifact.path.name, "sha256": artifact.manifest["sha256"]},
                reference=eager,
                observed_on=data.observed_on,
                observed=data.observed,
                compared_on=data.compared_on,
                compared=data.compared,
                progress=clock.progress,
            )
    except MissingDependency as error:
        if settings.backend:
            raise
        return {"built": False, "why": str(error)}
    return {"built": True, "not_run": built.not_run, **built.artifact.manifest}


def _eager(network: Network) -> PyTorchRunner:
    return PyTorchRunner(network.module, network.inputs)


def _seeded(recipe: Recipe, network: Network) -> list[dict[str, Any]]:
    return seeded_feeds(network.inputs, samples=SEEDED_SAMPLES, recipe=recipe, sizes=free_sizes(network.inputs))


def _evaluation_batches(recipe: Recipe, evaluation: Evaluation | None) -> list[dict[str, Any]]:
    if evaluation is None:
        return []
    return load_npz_feeds(evaluation.data, recipe.inputs, keys=evaluation.inputs, preprocessing=recipe.preprocessing)


def _is_invalid(recipe: Recipe, validation: ValidationReport, conditioning: str) -> CheckFailed:
    first, *others = validation.failures
    more = f" (and {len(others)} more)" if others else ""
    what = f"{recipe.name}: the optimised file differs from PyTorch: {first}{more}"
    if conditioning:
        return CheckFailed(f"{what}; {conditioning}", fix="nothing was written; give the recipe a wider [tolerance.fp32]")
    return CheckFailed(what, fix="nothing was written; find the pass with: aff-deploy optimize --verify")


def _describe_network(recipe: Recipe, network: Network) -> dict[str, Any]:
    weights = None if network.weights is None else {"file": network.weights.name, "sha256": sha256(network.weights)}
    return {
        "reference": recipe.network,
        "arguments": dict(recipe.arguments),
        "parameters": sum(tensor.numel() for tensor in network.module.parameters()),
        "weights": weights,
        "notes": list(network.loaded.notes) if network.loaded is not None else [],
        "export": asdict(recipe.export),
    }


def _sources(evaluation: Evaluation | None, count: int, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    def rows(part: Sequence[Mapping[str, Any]]) -> int:
        return sum(len(next(iter(batch.values()))) for batch in part)

    seeded = [{"kind": "seeded", "samples": rows(batches[count:])}]
    if evaluation is None:
        return seeded
    file = {"file": evaluation.data.name, "sha256": sha256(evaluation.data)}
    return [{"kind": "evaluation", **file, "samples": rows(batches[:count])}, *seeded]
