"""Writes docs/spellings.md: what becomes of each spelling in the tests, by exporter.

    python scripts/spelling_table.py [-o docs/spellings.md]

Takes some minutes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from aff_deploy.artifact import staged_file
from aff_deploy.errors import NetworkError
from tests.passes.family import ALL_MEMBERS, NEAR_MISSES, optimised

EXPORTERS = ("torchscript", "dynamo")
HEAD = """# Spellings

What `optimize` makes of attention as people write it, by exporter. Each network has two inputs, a dynamic batch and
randomised BatchNorm statistics; the number is the largest difference of the optimised file on ONNX Runtime from eager
PyTorch, relative to the scale of the output. The networks are in `tests/passes/spellings.py` and `tests/passes/forks.py`.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/spellings.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = ", ".join(f"{package} {metadata.version(package).split('+')[0]}" for package in ("torch", "onnxruntime"))
    text = HEAD + f"Written by `scripts/spelling_table.py` with {versions}.\n\n"
    text += "## Members of the family\n\n" + _table({name: factory for name, (factory, _) in ALL_MEMBERS.items()})
    text += "\n## Relatives\n\nThey compute something else, or show an inner tensor, and are left alone.\n\n"
    text += _table({name: factory for name, (factory, _) in NEAR_MISSES.items()})
    with staged_file(options.output) as path:
        path.write_text(text, encoding="utf-8")


def _table(spellings: dict[str, Callable[[], nn.Module]]) -> str:
    lines = ["| spelling | " + " | ".join(EXPORTERS) + " |", "|---|" + "---|" * len(EXPORTERS)]
    for name, factory in spellings.items():
        cells = [_cell(name, factory, exporter) for exporter in EXPORTERS]
        lines.append(f"| {name.replace('|', ' or ')} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def _cell(name: str, factory: Callable[[], nn.Module], exporter: str) -> str:
    try:
        result, error = optimised(name, factory, exporter)
    except NetworkError:
        return "the exporter refuses the network"
    if result.fusions:
        said = "fused: " + ", ".join(fusion.kind for fusion in result.fusions)
    elif result.rejected:
        said = f"refused: {re.sub(r'[|]', ' or ', result.rejected[0].reason)}"
    else:
        said = "left alone: nothing in it looks like attentional fusion"
    return f"{said}; {error:.0e}"


if __name__ == "__main__":
    main()
