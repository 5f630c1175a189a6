"""The whole order: a recipe to a folder with an optimised, proven model and a report about it."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aff_deploy.artifact import (
    Artifact,
    claim_folder,
    kept_apart,
    note_read,
    sha256,
    staged_folder,
    versions,
    write_folder_manifest,
)
from aff_deploy.engine import build_engine
from aff_deploy.engine.from_recipe import EnginePlan, plan_engine
from aff_deploy.engine.summary import shape_lines
from aff_deploy.errors import AffDeployError, CheckFailed, EngineError, MissingDependency, ModelError
from aff_deploy.evaluate import Evaluated, RecordingRunner, evaluate, load_labels
from aff_deploy.export import export_onnx
from aff_deploy.nets.resolve import Network, network_of_recipe
from aff_deploy.onnx_file import save_onnx
from aff_deploy.passes import optimize
from aff_deploy.passes.report import count_ops, describe_values
from aff_deploy.recipe import Evaluation, Recipe, dump_recipe
from aff_deploy.recipe.remedies import in_keys_of
from aff_deploy.report import render_report
from aff_deploy.report.verdicts import headline, judge
from aff_deploy.runtimes.feeds import free_sizes, load_npz_feeds, seeded_feeds, unknown_ranges
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import Precision
from aff_deploy.validate import ValidationReport, explain_difference, validate

if TYPE_CHECKING:
    from onnx import ModelProto

MODEL_FILE, ENGINE_FILE = "model.onnx", "model.engine"
REPORT_FILE, RECIPE_FILE = "report.html", "recipe.toml"
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
        engine, verdicts = facts["engine"], judge(facts)
        for verdict in verdicts:
            lines.append(f"  {verdict.state:<9} {verdict.file}, {verdict.words}")
            lines += [f"            {verdict.why_not_run}"] if verdict.why_not_run else []
        for name in facts["validation"]["sources"][-1].get("range_unknown", ()):
            lines.append(f"  not shown input {name!r} was drawn from 0 to 2 alone; give it a distribution in the recipe")
        lines += [f"  answers   {line}" for line in self.evaluation.lines()] if self.evaluation is not None else []
        lines += [f"  weights   {note}" for note in facts["network"]["notes"]]
        if facts["network"]["weights"] is None:
            lines.append("  weights   as the network's code made them; the recipe names none")
        if engine["built"]:
            lines += [f"  shapes    {line}" for line in shape_lines(engine)]
        else:
            lines.append(f"  no engine: {engine['why']}")
        return [*lines, f"  report    {self.report}", f"  {headline(verdicts)[1]}"]


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

    `out` then holds ``model.onnx`` and ``model.engine``, each with its manifest, ``manifest.json``, ``report.html`` and
    ``recipe.toml``; a former deployment there is replaced. It appears whole, when everything has passed, or not at all.
    An engine that the recipe asks for is built, or nothing is; where it says nothing of one, there is one if a backend
    is installed that can build it.

    Args:
        recipe: what to deploy. Without weights the network is initialised from a seed; without
            evaluation data it is compared on seeded data only.
        out: a folder that is new, empty, or a former deployment.
        progress: called with a line of text as each stage begins.

    Raises:
        CheckFailed: the optimised file computes something else than PyTorch, or is less accurate than
            the recipe records.
        AffDeployError: whatever a stage raises; see there. What to do about it is told in the recipe's keys.
    """
    clock = _Clock(progress)
    with kept_apart(), _in_words_of(recipe), staged_folder(out) as stage:
        note_read(recipe.folder)
        claim_folder(out)
        with clock.stage("load", "load the network"):
            plan = plan_engine(recipe, recipe.inputs)
            network = network_of_recipe(recipe)
            evaluation = recipe.checked_evaluation()
            evaluated_on = _evaluation_batches(recipe, evaluation)
            labels = load_labels(evaluation) if evaluation is not None and evaluation.labels else None
        settings = recipe.export
        with clock.stage("export", f"export to ONNX ({settings.exporter}, opset {settings.opset})"):
            # The first batch of real data: a network may branch on values that seeded data never has.
            exported = export_onnx(
                network.module, network.inputs, opset=settings.opset, exporter=settings.exporter, data=evaluated_on[:1]
            )
            before = count_ops(exported)
        with clock.stage("optimise", "optimise: fold, clean up, fuse"):
            result = optimize(exported, data=evaluated_on[:BATCHES_FOR_RANGES] or None)
            after = count_ops(result.model)
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
        engine = _build_engine(plan, recipe, network, result.model, artifact, clock)
        manifest: dict[str, Any] = {
            "name": recipe.name,
            "description": recipe.description,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "network": _describe_network(recipe, network),
            "inputs": list(describe_values(list(result.model.graph.input))),
            "outputs": list(describe_values(list(result.model.graph.output))),
            "model": {key: artifact.manifest[key] for key in ("file", "sha256", "bytes")},
            "engine": engine,
            "nodes": {"before": sum(before.values()), "after": sum(after.values())},
            "ops": {"before": before, "after": after},
            **result.to_dict(),
            "validation": {**validation.to_dict(), "sources": _sources(recipe, len(evaluated_on), batches)},
            "evaluation": None if evaluated is None else evaluated.to_dict(),
            "seconds": dict(clock.seconds),
            "platform": f"{platform.system()} {platform.machine()}",
        }
        with clock.stage("report", "write the report"):
            (stage / RECIPE_FILE).write_text(dump_recipe(recipe), encoding="utf-8")
            page = render_report({**manifest, "versions": versions()})
            (stage / REPORT_FILE).write_text(page, encoding="utf-8")
            manifest = write_folder_manifest(stage, manifest)
    return DeployResult(out, manifest, validation, evaluated)


def _build_engine(
    plan: EnginePlan | str, recipe: Recipe, network: Network, model: ModelProto, artifact: Artifact, clock: _Clock
) -> dict[str, Any]:
    """Build the planned engine beside the model, and say what came of it.

    Where the recipe does not ask for an engine, one that this machine or this network does not allow is left out, and the
    reason stands in its place. A check that fails is never passed over.
    """
    if isinstance(plan, str):
        return {"built": False, "why": plan}
    try:
        with clock.stage("engine"), _eager(network) as eager:
            built = build_engine(
                model,
                artifact.path.with_name(ENGINE_FILE),
                plan.request,
                source={"file": artifact.path.name, "sha256": artifact.manifest["sha256"]},
                reference=eager,
                observed_on=plan.data.observed_on,
                observed=plan.data.observed,
                compared_on=plan.data.compared_on,
                compared=plan.data.compared,
                progress=clock.progress,
            )
    except (MissingDependency, EngineError, ModelError) as error:
        if recipe.engine.enabled:
            raise
        return {"built": False, "why": in_keys_of(recipe, str(error))}
    except CheckFailed as error:
        if not recipe.engine.enabled:
            error.fix += ", or leave the engine out with [engine] enabled = false"
        raise
    return {"built": True, "not_run": built.not_run, **built.artifact.manifest}


@contextmanager
def _in_words_of(recipe: Recipe) -> Iterator[None]:
    """What to do about an error, in the recipe's keys: a deployment has no other settings."""
    try:
        yield
    except AffDeployError as error:
        error.fix = in_keys_of(recipe, error.fix)
        raise


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
    fix = "nothing was written; find the pass with: aff-deploy export, then aff-deploy optimize --verify"
    return CheckFailed(what, fix=fix)


def _describe_network(recipe: Recipe, network: Network) -> dict[str, Any]:
    weights = None if network.weights is None else {"file": network.weights.name, "sha256": sha256(network.weights)}
    return {
        "reference": recipe.network,
        "arguments": dict(recipe.arguments),
        "parameters": sum(tensor.numel() for tensor in network.module.parameters()),
        "weights": weights,
        "notes": [in_keys_of(recipe, note) for note in (network.loaded.notes if network.loaded is not None else ())],
        "export": asdict(recipe.export),
    }


def _sources(recipe: Recipe, count: int, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    def rows(part: Sequence[Mapping[str, Any]]) -> int:
        return sum(len(next(iter(batch.values()))) for batch in part)

    evaluation = recipe.evaluation
    seeded: list[dict[str, Any]] = [{"kind": "seeded", "samples": rows(batches[count:])}]
    if unknown := unknown_ranges(recipe.inputs):
        seeded[0]["range_unknown"] = list(unknown)
    if evaluation is None:
        return seeded
    file = {"file": evaluation.data.name, "sha256": sha256(evaluation.data)}
    return [{"kind": "evaluation", **file, "samples": rows(batches[:count])}, *seeded]
