"""Does recognition ever change a function? Many random graphs, each optimised and compared with itself on ONNX Runtime.

    python benchmarks/random_graphs.py [--count 2000] [--seed 0]

Prints how many members of the family fused and how many near misses were refused, and each graph that
went wrong, by its seed; the exit status is 1 if any computes something else or fused what it must not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.passes.random_graphs import judge, random_graph


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    misses: Counter[str] = Counter()
    worst, start = 0.0, time.perf_counter()
    for seed in range(options.seed, options.seed + options.count):
        graph = random_graph(Random(seed))
        verdict = judge(graph)
        worst = max(worst, verdict.error)
        counts["members"] += graph.fusions
        counts["fused"] += min(verdict.fused, graph.fusions)
        misses.update(graph.misses)
        for problem, happened in (
            ("mismatch", verdict.error > 1.0),
            ("near miss fused", verdict.fused > graph.fusions),
            ("member left alone", verdict.fused < graph.fusions),
        ):
            if happened:
                counts[problem] += 1
                print(
                    f"seed {seed}: {problem}: {verdict}, {graph.fusions} to fuse, {', '.join(graph.misses) or 'no near miss'}"
                )
    print(f"graphs                {options.count} in {time.perf_counter() - start:.0f} s")
    print(f"members fused         {counts['fused']} of {counts['members']}")
    print(f"near misses refused   {misses.total() - counts['near miss fused']} of {misses.total()}, of {len(misses)} kinds")
    print(f"mismatches            {counts['mismatch']}; largest error {worst:.2g} of what is exact")
    return int(bool(counts["mismatch"] or counts["near miss fused"]))


if __name__ == "__main__":
    sys.exit(main())
