"""``aff-deploy deploy``: the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aff_deploy.artifact import claim_folder
from aff_deploy.cli.console import Steps, working
from aff_deploy.errors import RecipeError


def deploy(
    reference: Annotated[str, typer.Argument(help="A bundled recipe's name, or the path of a recipe.toml.", metavar="RECIPE")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write (replaces a former result).")
    ],
) -> None:
    """Run the whole pipeline and write a report."""
    from aff_deploy.recipe import bundled_recipes, find_recipe, nearest

    claim_folder(output)
    recipe = find_recipe(reference)
    if recipe is None:
        known = list(bundled_recipes())
        guess = nearest(reference, known)
        hint = f"did you mean {guess}? " if guess else f"bundled are {', '.join(known)}; "
        raise RecipeError(f"there is no recipe {reference!r}", fix=f"{hint}(or give the path of a recipe.toml)")
    with Steps() as step, working():
        step("load PyTorch")
        from aff_deploy.pipeline import deploy as run_pipeline

        result = run_pipeline(recipe, output, progress=step)
    print("\n".join(result.summary()))
