"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aff_deploy.spec import TOLERANCES, Precision, Tolerance

if TYPE_CHECKING:
    from aff_deploy.recipe import Recipe

Weights = Annotated[
    "Path | None",
    typer.Option("--weights", metavar="FILE", help="Weights to use instead of the recipe's (.safetensors, .pt, .params)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
NETWORK = "a bundled name, a recipe path, module:callable or file.py:callable"
Atol = Annotated["float | None", typer.Option("--atol", min=0, help="Absolute tolerance.")]
Rtol = Annotated["float | None", typer.Option("--rtol", min=0, help="Tolerance relative to the output's scale.")]
MinCosine = Annotated["float | None", typer.Option("--min-cosine", min=-1, max=1, help="Smallest cosine similarity.")]


def tolerance_of(
    recipe: Recipe | None, precision: Precision, atol: float | None, rtol: float | None, min_cosine: float | None
) -> Tolerance:
    """What was said on the command line, else in the recipe, else in the table of defaults."""
    row = (recipe.tolerance if recipe is not None else TOLERANCES)[precision]
    return Tolerance(
        row.atol if atol is None else atol,
        row.rtol if rtol is None else rtol,
        row.min_cosine if min_cosine is None else min_cosine,
    )
