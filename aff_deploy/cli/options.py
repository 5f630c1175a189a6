"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Weights = Annotated[
    "Path | None",
    typer.Option("--weights", metavar="FILE", help="Weights to use instead of the recipe's (.safetensors, .pt, .params)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
NETWORK = "a bundled name, a recipe path, module:callable or file.py:callable"
