"""What do the compiled kernels do for one fusion? Counted by executing their PTX on a CPU; nothing here is a time.

    python benchmarks/kernel_counts.py [--dtypes float16 ...] [--r 16 ...] [--capability 80] [--write]

For each shape and layout the kernels that the table chooses are compiled, assembled, and run by the stand-in for CUDA's
driver (tests/plugins/stand_in.py), on inputs of that very size. Needs Triton and a C++ compiler; some minutes.
``COLUMNS`` says what the table holds.
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

COLUMNS = f"""\
- **moved**: bytes that blocks fetch and write at least, in T, the bytes of x. Each block fetches a sector of 32 bytes once,
  however often its threads read it. x and y twice and the output once are 5 T, as **x, y, out** shows; more where rows of an
  odd map do not fill sectors, or where several programs each take some of the inner channels. The rest are weights, inner
  values and their parts, which stay in the L2 cache of a large GPU.
- **instructions** of threads for an element of x: of `aff_context`, `aff_reduce` and `aff_fuse`.
- **issue**: how long these instructions take if every scheduler always has one, over how long 5 T take from memory. Both come
  from the data sheet of an H100 SXM ({H100["bytes_per_second"] / 1e12:.2f} TB/s; 132 multiprocessors of 4 schedulers at
  1.755 GHz). Well below 1, memory is the bound, if latency is hidden; near or above it, instructions are. At batch 1 neither
  is: there the three launches decide.
- **conflicts**: passes through the banks of shared memory, over the fewest possible.
- **registers** of a thread, the most of the three kernels."""


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
        f"The kernels' PTX for sm_{document['capability']} was executed on a CPU, and every access to memory counted.",
        "None of this is a time.",
        "",
        COLUMNS,
        "",
        "| N C H W | type | layout | r | moved | x, y, out | instructions | issue | conflicts | registers |",
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
    parser.add_argument("--capability", type=int, default=80, choices=(80, 86, 89, 90, 120))
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device = StandIn(build_stand_in(folder / "stand_in"))
        rows = []
        wanted = list(product(given.r, given.dtypes, SHAPES, LAYOUTS))
        for r, dtype, shape, layout in wanted:
            rows.append(row(device, shape, dtype, layout, r, given.capability, folder))
            print(f"{len(rows)} of {len(wanted)} rows", file=sys.stderr, flush=True)
    document = {
        "capability": given.capability,
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
