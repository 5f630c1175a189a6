"""How much faster is the optimised file than the exporter's own, on ONNX Runtime's CPU provider?

    python benchmarks/onnxruntime_cpu.py [NETWORK...] [--pairs 40] [--threads 2] [--write docs/benchmarks]

Both files are run in turns, in one process, and what counts is the ratio within each pair: the
machine's moods hit both alike. Each side of a pair is the fastest of a few runs. The interval is the
bootstrap's 95 % of the median ratio. Waiting threads sleep instead of spinning, or each session
would take a core from the other.
With `--form convex` or `--form inline` the optimised file in that form is measured against the optimised file as it is.
With `--processor-time`, one thread's processor time counts, which other processes disturb less.
`aff_resnet50_r4_all` is the ResNet-50 with AFF of r = 4 in all four stages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from aff_deploy import nets
from aff_deploy.artifact import versions
from aff_deploy.export import export_onnx
from aff_deploy.nets.resolve import resolve_network
from aff_deploy.passes import Optimized, optimize
from aff_deploy.recipe import bundled_recipes
from aff_deploy.runtimes.feeds import seeded_feeds
from aff_deploy.spec import TensorSpec

LEAST_SECONDS, LEAST_RUNS = 0.05, 4
"""One measurement is the fastest of at least so many runs, and of as many as fit into this time."""


@dataclass(frozen=True)
class Row:
    """One network under one shape of input: milliseconds a run, and optimised over exported."""

    network: str
    dims: str
    exported_ms: float
    optimised_ms: float
    ratio: float
    low: float
    high: float
    fusions: int
    error: float


def resnet50_r4_all() -> tuple[torch.nn.Module, tuple[TensorSpec, ...]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nets.aff_resnet50(start_layer=1, r=4)
    return module.eval(), (TensorSpec("image", ("batch", 3, 224, 224)),)


SPECIAL: dict[str, Callable[[], tuple[torch.nn.Module, tuple[TensorSpec, ...]]]] = {"aff_resnet50_r4_all": resnet50_r4_all}


def load(name: str) -> tuple[torch.nn.Module, tuple[TensorSpec, ...]]:
    if name in SPECIAL:
        return SPECIAL[name]()
    network = resolve_network(name)
    return network.module, network.inputs


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def pair_of(exported: onnx.ModelProto, form: str) -> tuple[onnx.ModelProto, Optimized]:
    """What is measured against what: the exporter's file and the optimised one, or that one in two forms."""
    if not form:
        return exported, optimize(exported)
    return optimize(exported).model, optimize(exported, convex=form == "convex", inline=form == "inline")


def measure(
    name: str, pairs: int, threads: int, exporter: str, *, static: bool, form: str = "", processor_time: bool = False
) -> Row:
    clock = time.process_time if processor_time else time.perf_counter
    module, inputs = load(name)
    if static:
        inputs = tuple(TensorSpec(spec.name, (1, *spec.concrete()[1:]), spec.dtype) for spec in inputs)
    exported = export_onnx(module, inputs, exporter=exporter, verify=False)
    before, result = pair_of(exported, form)
    sessions = [session(before, threads), session(result.model, threads)]
    sizes = {str(spec.shape[0]): 1 for spec in inputs}
    feeds = seeded_feeds(inputs, samples=1, sizes=sizes)[0]
    outputs = [np.asarray(s.run(None, feeds)[0], dtype=np.float64) for s in sessions]
    start = time.perf_counter()
    sessions[0].run(None, feeds)
    repeats = max(LEAST_RUNS, round(LEAST_SECONDS / (time.perf_counter() - start)))

    def seconds(runner: onnxruntime.InferenceSession) -> float:
        fastest = float("inf")
        for _ in range(repeats):
            begin = clock()
            runner.run(None, feeds)
            fastest = min(fastest, clock() - begin)
        return fastest

    times = np.empty((pairs, 2))
    for i in range(-2, pairs):
        order = (0, 1) if i % 2 else (1, 0)
        measured = {k: seconds(sessions[k]) for k in order}
        if i >= 0:
            times[i] = measured[0], measured[1]
    ratios = times[:, 1] / times[:, 0]
    resampled = np.random.default_rng(0).choice(ratios, (2000, pairs))
    low, high = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
    return Row(
        network=name,
        dims=", ".join("x".join(map(str, spec.shape)) for spec in inputs),
        exported_ms=round(float(np.median(times[:, 0])) * 1e3, 3),
        optimised_ms=round(float(np.median(times[:, 1])) * 1e3, 3),
        ratio=round(float(np.median(ratios)), 3),
        low=round(float(low), 3),
        high=round(float(high), 3),
        fusions=len(result.fusions),
        error=float(np.abs(outputs[1] - outputs[0]).max() / np.abs(outputs[0]).max()),
    )


def processor() -> str:
    """The processor's name as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(rows: list[Row], threads: int, pairs: int, exporter: str) -> str:
    """The rows as a Markdown page."""
    lines = [
        "# ONNX Runtime, CPU provider: the optimised file against the exporter's own",
        "",
        f"{processor()}, {threads} threads of {os.cpu_count()} cores, batch 1, {exporter} exporter, float32,",
        f"medians of {pairs} pairs, each side the fastest of at least {LEAST_RUNS} runs.",
        "Ratio is optimised over exported, below 1 is faster; the interval is the bootstrap's 95 %. Error is the largest",
        "difference between the two files over the largest output. Read ratios; times move with the machine, and the median",
        "of the pairs' ratios is not the ratio of the two medians.",
        "",
        "| network | input | exported ms | optimised ms | ratio | interval | fusions | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.network} | {r.dims} | {r.exported_ms:.2f} | {r.optimised_ms:.2f} | {r.ratio:.3f} | {r.low:.3f} to {r.high:.3f} "
        f"| {r.fusions} | {r.error:.1e} |"
        for r in rows
    ]
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    made = "Made by `python benchmarks/onnxruntime_cpu.py --write docs/benchmarks`."
    return "\n".join([*lines, "", f"Versions: {packages}.", "", made, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="bundled names; all of them by default")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--exporter", default="dynamo", choices=["dynamo", "torchscript"])
    parser.add_argument("--static", action="store_true", help="also with a static batch of 1")
    parser.add_argument("--form", default="", choices=["convex", "inline"], help="this form against the usual one")
    parser.add_argument("--processor-time", action="store_true", help="of one thread, instead of the wall's")
    parser.add_argument("--write", type=Path, help="folder for the table and its JSON")
    options = parser.parse_args()
    if options.form and options.write is not None:
        parser.error("--write is for the comparison with the exporter's file")
    threads = 1 if options.processor_time else options.threads
    rows: list[Row] = []
    for name in options.networks or [*SPECIAL, *bundled_recipes()]:
        for static in (False, True) if options.static else (False,):
            row = measure(
                name,
                options.pairs,
                threads,
                options.exporter,
                static=static,
                form=options.form,
                processor_time=options.processor_time,
            )
            rows.append(row)
            times = f"{row.exported_ms:9.2f} {row.optimised_ms:9.2f}"
            print(f"{row.network:24s} {row.dims:20s} {times}  {row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})", flush=True)
    if options.write is not None:
        page = options.write / "onnxruntime_cpu.md"
        page.write_text(table(rows, threads, options.pairs, options.exporter), encoding="utf-8")
        facts = {"processor": processor(), "threads": threads, "pairs": options.pairs, "versions": versions()}
        document = {**facts, "exporter": options.exporter, "rows": [asdict(row) for row in rows]}
        page.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print(f"written: {page}")


if __name__ == "__main__":
    main()
