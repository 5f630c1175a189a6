"""Does any pass ever change a function? Random ONNX graphs, each compared with a double-precision evaluation.

    python benchmarks/fuzz_onnx.py [--count 10000] [--seed 0] [--minimise]

The second fuzzer, beside random_graphs.py and written apart from it: that one knows what must fuse, this
one knows nothing but what a graph computes. Opsets 11 to 22, features of one to three dimensions, static
and dynamic sizes, three float types, shared and overridable initializers, computed shapes, nested graphs,
constants. A second optimisation must change nothing.

Prints how many graphs were valid, how many places fused, and each fault by its seed (`--seed N --count 1`
shows it again, `--minimise` the smallest part of it); the exit status is 1 if there is any.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.passes.fuzz.graphs import Case, random_case
from tests.passes.fuzz.judge import Verdict, judge
from tests.passes.fuzz.minimise import minimise


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minimise", action="store_true", help="print the smallest part of each faulty graph")
    options = parser.parse_args()
    # Every optimisation collects garbage: what is imported need not be looked through each time.
    gc.freeze()
    kinds: Counter[str] = Counter()
    features: Counter[str] = Counter()
    fused: Counter[str] = Counter()
    sites, worst, start = Counter[str](), 0.0, time.perf_counter()
    for seed in range(options.seed, options.seed + options.count):
        case = random_case(seed)
        verdict = judge(case.model, case.feeds, case.values)
        kinds[verdict.kind] += 1
        sites.update(fused=verdict.fused, refused=verdict.refused, graphs=verdict.fused > 0)
        worst = max(worst, verdict.share)
        if verdict.kind != "invalid":
            features.update(case.features.keys())
            fused.update(case.features.keys() if verdict.fused else ())
        if verdict.kind == "amplified":
            print(f"seed {seed}: {verdict.kind}: {verdict.detail}", flush=True)
        if verdict.is_fault:
            print(f"seed {seed}: {verdict.kind}: {verdict.detail}", flush=True)
            if options.minimise:
                _show(minimise(case, verdict.kind), verdict)
    faults = sum(count for kind, count in kinds.items() if Verdict(kind).is_fault)
    valid = options.count - kinds["invalid"]
    print(f"graphs      {valid} valid of {options.count}, in {time.perf_counter() - start:.0f} s")
    share = sites["graphs"] / max(valid, 1)
    print(f"fused       {sites['fused']} places in {sites['graphs']} graphs ({share:.0%})")
    print(f"refused     {sites['refused']} places")
    print(f"unjudged    {kinds['ill']}: the original itself is far from the double-precision evaluation")
    print(f"amplified   {kinds['amplified']}: exact where it is made, grown beyond the bound behind; --convex does not")
    print(f"wrong       {faults - kinds['crash']}; the largest error is {worst:.2g} of what is allowed")
    print(f"crashes     {kinds['crash']}")
    print("\ngraphs with each feature, and how many of them have a fused place:")
    for feature in sorted(features):
        print(f"  {feature:36} {features[feature]:6} {fused[feature]:6}")
    return int(faults > 0)


def _show(case: Case, verdict: Verdict) -> None:
    print(f"  {judge(case.model, case.feeds, case.values).detail or verdict.detail}")
    print(onnx.printer.to_text(case.model))


if __name__ == "__main__":
    sys.exit(main())
