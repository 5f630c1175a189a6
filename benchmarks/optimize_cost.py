"""What does optimising cost: seconds and memory, each in a process of its own.

    python benchmarks/optimize_cost.py [NETWORK...]

Prints the seconds of the passes, of the whole optimisation and with reading and writing the file, and
the peak of resident memory over what the process held after its imports, in multiples of the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from aff_deploy.onnx_file import load_onnx, save_onnx
from aff_deploy.passes import optimize

def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

source, target = Path(sys.argv[1]), Path(sys.argv[2])
before = peak()
start = time.perf_counter()
model = load_onnx(source)
read = time.perf_counter()
result = optimize(model)
done = time.perf_counter()
del model
save_onnx(result.model, target, {})
print(json.dumps({
    "passes": sum(p.seconds for p in result.passes),
    "optimise": done - read,
    "with_files": time.perf_counter() - start,
    "memory": (peak() - before) / source.stat().st_size,
    "fusions": len(result.fusions),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["iaff_resnet50"])
    parser.add_argument("--exporter", default="dynamo", choices=["dynamo", "torchscript"])
    options = parser.parse_args()
    print(f"{'network':24s} {'MB':>7s} {'passes s':>9s} {'optimise s':>11s} {'with files s':>13s} {'memory x':>9s} fusions")
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "model.onnx"
            export = [sys.executable, "-m", "aff_deploy", "export", name, "-o", str(source), "--exporter", options.exporter]
            subprocess.run(export, check=True, capture_output=True)
            command = [sys.executable, "-c", MEASURE, str(source), str(Path(folder) / "optimised.onnx")]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            size = source.stat().st_size / 1e6
        print(
            f"{name:24s} {size:7.1f} {row['passes']:9.2f} {row['optimise']:11.2f} {row['with_files']:13.2f} "
            f"{row['memory']:9.2f} {row['fusions']}"
        )


if __name__ == "__main__":
    main()
