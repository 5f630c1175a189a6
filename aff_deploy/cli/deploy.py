"""``aff-deploy deploy``: the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aff_deploy.artifact import claim_folder
from aff_deploy.cli.console import Steps, print_json, working
from aff_deploy.cli.options import Json, complete_recipe
from aff_deploy.errors import RecipeError, UsageError


def deploy(
    reference: Annotated[
        str,
        typer.Argument(
            help="A bundled recipe's name, or the path of a recipe.toml. It names code, which is run.",
            metavar="RECIPE",
            autocompletion=complete_recipe,
            show_default=False,
        ),
    ] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="The folder to write (replaces a former result).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline and write a report."""
    from aff_deploy.recipe import bundled_recipes, find_recipe, nearest

    known = list(bundled_recipes())
    if not reference:
        raise UsageError("no recipe is named", fix=f"give the path of a recipe.toml, or one of {', '.join(known)}")
    if output is None:
        raise UsageError("Missing option '-o' / '--output'", fix="name the folder to write, as in -o out")
    claim_folder(output)
    recipe = find_recipe(reference)
    if recipe is None:
        guess = nearest(reference, known)
        hint = f"did you mean {guess}? " if guess else f"bundled are {', '.join(known)}; "
        raise RecipeError(f"there is no recipe {reference!r}", fix=f"{hint}(or give the path of a recipe.toml)")
    with Steps() as step, working():
        step("load PyTorch")
        from aff_deploy.pipeline import deploy as run_pipeline

        result = run_pipeline(recipe, output, progress=step)
    if as_json:
        print_json({"folder": str(result.folder), **result.manifest})
    else:
        print("\n".join(result.summary()))
