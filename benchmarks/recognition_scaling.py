"""Does recognition cost grow linearly? Chains of fusions, optimised; seconds per fusion, pass by pass.

    python benchmarks/recognition_scaling.py [LENGTH...]

Prints milliseconds per fusion for the whole optimisation and for each pass; the fastest of a few runs counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent.parent))

from aff_deploy.passes import optimize
from tests.passes.attention import AFF


def chain(length: int) -> onnx.ModelProto:
    """Fusion after fusion, each with weights of its own, of what the last one gave and the input y."""
    model = AFF.build()
    (link,) = [onnx.GraphProto.FromString(model.graph.SerializeToString())]
    del model.graph.node[:], model.graph.initializer[:]
    for i in range(length):
        own = {name for node in link.node for name in node.output} | {tensor.name for tensor in link.initializer}
        names = {name: f"{name}_{i}" for name in own} | {"x": f"out_{i - 1}" if i else "x", "y": "y"}
        for node in link.node:
            copy = model.graph.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [names[name] for name in node.input]
            copy.output[:] = [names[name] for name in node.output]
        for tensor in link.initializer:
            model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), names[tensor.name]))
    model.graph.node.append(helper.make_node("Identity", [f"out_{length - 1}"], ["out"]))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lengths", nargs="*", type=int, default=[10, 100, 1000])
    options = parser.parse_args()
    for length in options.lengths:
        model = chain(length)
        runs = []
        for _ in range(5 if length < 500 else 2):
            start = time.perf_counter()
            result = optimize(model)
            runs.append((time.perf_counter() - start, result))
        seconds, result = min(runs, key=lambda run: run[0])
        passes: dict[str, float] = defaultdict(float)
        for done in result.passes:
            passes[done.name] += done.seconds
        passes["everything else"] = seconds - sum(passes.values())
        print(f"{length:6d} in a chain: {len(result.fusions)} fused, {1e3 * seconds / length:.2f} ms each")
        print("       " + ", ".join(f"{name} {1e3 * spent / length:.2f}" for name, spent in passes.items()))


if __name__ == "__main__":
    main()
