"""What does building an engine cost, and what comes of it: seconds, bytes, memory and error for each precision.

    python benchmarks/engine_build.py [NETWORK...] [--precisions fp32 fp16 ...] [--write]

Every row is a process of its own, which reads the exported ONNX file and builds an engine from it as
``aff-deploy build-engine`` does, compared with eager PyTorch. Networks without trained weights get random
BatchNorm statistics. Memory is the peak of resident memory over what the process held after its imports
(and the PyTorch network that it compares with), in multiples of the ONNX file: of the whole run, and of
building alone. ``--write`` puts the table and JSON into docs/benchmarks.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "benchmarks"
NETWORKS = ("aff_resnet_digits", "iaff_resnet_digits", "aff_resnet50", "iaff_resnext50_32x4d")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
BATCHES = (1, 8, 32)

EXPORT = """
import sys
from pathlib import Path
import torch
from aff_deploy.export import export_onnx
from aff_deploy.nets.resolve import resolve_network
from aff_deploy.onnx_file import save_onnx
from aff_deploy.spec import TensorSpec
from tests.support import randomise_batchnorm

network = resolve_network(sys.argv[1])
if network.weights is None:
    randomise_batchnorm(network.module, seed=0)
inputs = network.inputs
if sys.argv[3] == "static":
    inputs = tuple(TensorSpec(s.name, s.concrete(**{s.shape[0]: 1}), s.dtype) for s in inputs)
save_onnx(export_onnx(network.module, inputs, verify=False), Path(sys.argv[2]), {})
"""

BUILD = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
import onnxruntime.transformers.float16, onnxruntime.quantization
from aff_deploy.artifact import sha256
from aff_deploy.engine import EngineRequest, build_engine, check_profiles, find_backend, tensor_specs
from aff_deploy.engine import build as building
from aff_deploy.engine.data import engine_data
from aff_deploy.evaluate import RecordingRunner
from aff_deploy.nets.resolve import resolve_network
from aff_deploy.onnx_file import load_onnx
from aff_deploy.passes import optimize
from aff_deploy.runtimes.backends import load, version
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import Precision
from tests.support import randomise_batchnorm

def memory(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024

def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")

name, source, out, precision = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Precision(sys.argv[4])
network = resolve_network(name)
if network.weights is None:
    randomise_batchnorm(network.module, seed=0)
backend = find_backend()
load(backend)
peaks = {}
real = building.build_plan
def measured(*args, **kwargs):
    peaks["before"] = memory("VmHWM")
    forget_peak()
    held = memory("VmRSS")
    plan = real(*args, **kwargs)
    peaks["build"] = memory("VmHWM") - held
    return plan
import aff_deploy.engine
aff_deploy.engine.build_plan = measured
forget_peak()
base = memory("VmRSS")
start = time.perf_counter()
model = optimize(load_onnx(source)).model
specs = tensor_specs(model.graph.input)
calib = None if network.recipe.calibration else "seeded"
given = engine_data(precision, specs, recipe=network.recipe, calib=calib)
request = EngineRequest(precision, backend, network.recipe.tolerance[precision],
    profiles=check_profiles(specs, network.recipe.engine_profiles if any(s.is_dynamic for s in specs) else ()))
with PyTorchRunner(network.module, specs) as eager:
    reference = RecordingRunner(eager, given.evaluation)
    built = build_engine(model, out, request, source={"file": source.name, "sha256": sha256(source)}, reference=reference,
        observed_on=given.observed_on, observed=given.observed, compared_on=given.compared_on)
whole = max(peaks["before"], memory("VmHWM"), base + peaks["build"]) - base
size = source.stat().st_size
facts = built.artifact.manifest
check = built.validation.outputs[0]
print(json.dumps({
    "seconds": {**built.seconds, "whole": round(time.perf_counter() - start, 2)},
    "onnx_bytes": size, "engine_bytes": facts["bytes"], "weight_bytes": facts["weights_bytes"],
    "memory_whole": whole / size, "memory_build": peaks["build"] / size,
    "error": check.max_abs / check.scale, "snr_db": check.snr_db, "argmax_agreement": check.argmax_agreement,
    "samples": built.validation.samples, "checked_on": facts["checks"][0]["on"],
    "proof": [built.proof.in_precision, built.proof.nodes], "proven": facts["precision"]["proven"],
    "kept_wide": len(built.typed.kept_wide), "backend": f"{backend.title} {version(backend)}", "versions": facts["versions"],
}))
"""

HEADS = ("network", "shapes", "precision", "convert s", "compare s", "build s", "engine MB", "weights MB", "of fp32")
HEADS += ("memory x, run", "memory x, build", "error / scale", "SNR dB", "same argmax", "in precision")


def run(script: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stderr[-2000:]}")
    return done.stdout


def cells(row: dict[str, Any], fp32: int | None) -> tuple[str, ...]:
    seconds = row["seconds"]
    agreement = "-" if row["argmax_agreement"] is None else f"{100 * row['argmax_agreement']:.2f} %"
    return (
        row["network"],
        row["shapes"],
        row["precision"],
        f"{seconds['convert']:.1f}",
        f"{seconds['validate']:.1f}",
        f"{seconds['build']:.1f}",
        f"{row['engine_bytes'] / 1e6:.1f}",
        f"{row['weight_bytes'] / 1e6:.2f}",
        "-" if not fp32 else f"{row['weight_bytes'] / fp32:.3f}",
        f"{row['memory_whole']:.2f}",
        f"{row['memory_build']:.2f}",
        f"{row['error']:.1e}",
        f"{row['snr_db']:.1f}",
        agreement,
        f"{row['proof'][0]} of {row['proof'][1]}",
    )


def line(columns: tuple[str, ...]) -> str:
    return "| " + " | ".join(columns) + " |"


def write(rows: list[dict[str, Any]], table: list[str]) -> None:
    known = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    cpu = known[0].split(":")[1].strip() if known else platform.machine()
    (DOCS / "engine_build.json").write_text(json.dumps({"machine": cpu, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    head = f"# Building engines\n\n`python benchmarks/engine_build.py --write`, {rows[0]['backend']}, on {cpu}, no GPU.\n\n"
    text = head + (__doc__ or "").split("\n\n")[2].strip().replace("\n", " ") + "\n\n" + "\n".join(table) + "\n"
    (DOCS / "engine_build.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--shapes", nargs="+", default=["static", "dynamic"], choices=["static", "dynamic"])
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/engine_build.md and .json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    table = [line(HEADS), line(("---",) * len(HEADS))]
    print("\n".join(table), flush=True)
    for name in options.networks:
        for shapes in options.shapes:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "model.onnx"
                run(EXPORT, name, str(source), shapes)
                fp32 = None
                for precision in options.precisions:
                    row = json.loads(run(BUILD, name, str(source), str(Path(folder) / "model.engine"), precision))
                    row = {"network": name, "shapes": shapes, "precision": precision, **row}
                    fp32 = row["weight_bytes"] if precision == "fp32" else fp32
                    rows.append(row)
                    table.append(line(cells(row, fp32)))
                    print(table[-1], flush=True)
                    if options.write:
                        write(rows, table)


if __name__ == "__main__":
    main()
