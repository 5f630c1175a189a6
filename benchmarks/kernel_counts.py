"""What do the compiled kernels do for one fusion? Counted by executing their PTX on a CPU; nothing here is a time.

    python benchmarks/kernel_counts.py [--dtypes float16 ...] [--r 16 ...] [--capability 80] [--write]

For each shape and layout the kernels that the table chooses are compiled, assembled, and run by the stand-in for CUDA's
driver (tests/plugins/stand_in.py), on inputs of that very size. T is the bytes of x. Needs Triton and a C++ compiler.

``L2`` is what blocks fetch and write at least, each of their sectors once, in T: x, y and the output are 5 T, and the
rest is weights, inner values and parts of them, which stay in the L2 cache of a large GPU. ``instructions`` are those of
threads for an element of x, by kernel. ``issue`` is how long the instructions take if every scheduler always has one, over
how long 5 T take from memory, both from the data sheet of an H100 SXM: below 1, memory is the bound, if latency is hidden.
``registers`` are a thread's, the most of the three kernels; ``conflicts`` the passes through the banks of shared memory over
the fewest possible.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

from aff_deploy.artifact import versions
from aff_deploy.ops.compile import compile_call
from aff_deploy.ops.launch import DTYPES, LAYOUTS, choose_blocks
from benchmarks.fusion_gpu import SHAPES
from tests.ops.assembling import assembled
from tests.ops.kernel_cases import Case, inputs_of
from tests.plugins.stand_in import StandIn, build_stand_in, run_call

DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
SECTOR, WARP = 32, 32
H100 = {"bytes_per_second": 3.35e12, "warp_instructions_per_second": 132 * 4 * 1.755e9}
"""HBM3 bandwidth; multiprocessors x schedulers x boost clock."""


def row(
    device: StandIn, shape: tuple[int, ...], dtype: str, layout: str, r: int, capability: int, folder: Path
) -> dict[str, Any]:
    """One line of the table."""
    images, channels, *spatial = shape
    case = Case(
        channels=channels, inter=max(channels // r, 1), spatial=tuple(spatial), images=images, last=layout == "channels_last"
    )
    call, inputs = case.call(dtype), inputs_of(case, dtype)
    blocks = choose_blocks(call)
    kernels = compile_call(call, capability, cache=folder)
    result = run_call(device, kernels, call, blocks, inputs, 1.0)
    elements = inputs["x"].numel()
    size = elements * inputs["x"].element_size()
    moved = {name: SECTOR * (found.fetched + found.written) / size for name, found in result.sectors.items()}
    issued = sum(found.instructions for found in result.counts.values())
    turns = sum(found.shared_turns for found in result.counts.values())
    taken = [assembled(kernel, folder) for kernel in kernels]
    return {
        "shape": list(shape),
        "dtype": dtype,
        "layout": layout,
        "r": r,
        "programs": result.plan.grids,
        "splits": result.plan.splits,
        "moved_T": moved,
        "instructions": {name: WARP * found.instructions / elements for name, found in result.counts.items()},
        "issue": (issued / H100["warp_instructions_per_second"]) / (5 * size / H100["bytes_per_second"]),
        "conflicts": turns / sum(found.shared_turns_least for found in result.counts.values()),
        "registers": max(registers for registers, _, _ in taken),
        "spilt": sum(spilt for _, spilt, _ in taken),
    }


def table(document: dict[str, Any]) -> str:
    """The page of a run."""
    lines = [
        "# What the compiled kernels do, counted",
        "",
        "No GPU was at hand: the kernels' PTX was executed on a CPU, and every access to memory checked and counted.",
        "`benchmarks/kernel_counts.py` says what the columns are. None is a time.",
        "",
        "| N C H W | type | layout | r | L2 | x, y, out | instructions of each kernel | issue | conflicts | registers |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in document["rows"]:
        moved, instructions = found["moved_T"], found["instructions"]
        lines.append(
            f"| {' '.join(map(str, found['shape']))} | {found['dtype']} | {found['layout']} | {found['r']} "
            f"| {sum(moved.values()):.2f} | {moved['x'] + moved['y'] + moved['out']:.2f} "
            f"| {' + '.join(f'{value:.1f}' for value in instructions.values())} | {found['issue']:.2f} "
            f"| {found['conflicts']:.2f} | {found['registers']} |"
        )
    lines += ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + "."]
    return "\n".join([*lines, "", f"Made by `{document['command']}`.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=("float16", "float32"), choices=DTYPES)
    parser.add_argument("--r", nargs="+", type=int, default=(16,))
    parser.add_argument("--capability", type=int, default=80)
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device = StandIn(build_stand_in(folder / "stand_in"))
        rows = []
        for r, dtype, shape, layout in product(given.r, given.dtypes, SHAPES, LAYOUTS):
            rows.append(row(device, shape, dtype, layout, r, given.capability, folder))
            print(f"{len(rows)} rows", file=sys.stderr, flush=True)
    document = {
        "rows": rows,
        "versions": {**versions(), "triton": metadata.version("triton")},
        "command": " ".join(["python", "benchmarks/kernel_counts.py", *sys.argv[1:]]),
    }
    print(table(document))
    if given.write:
        (DOCS / "kernel_counts.md").write_text(table(document), encoding="utf-8")
        (DOCS / "kernel_counts.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
