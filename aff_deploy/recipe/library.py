"""Finding recipes: the bundled ones by name, anyone's by path."""

from __future__ import annotations

import os
from pathlib import Path

from aff_deploy.artifact import is_input
from aff_deploy.recipe.reading import RECIPE_FILE, load_recipe
from aff_deploy.recipe.values import Recipe


def models_folder() -> Path:
    """Where the bundled recipes lie: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def bundled_recipes() -> dict[str, Path]:
    """The path of every bundled recipe by its name, in order of name."""
    folder = models_folder()
    found = sorted(folder.glob(f"*/{RECIPE_FILE}")) if folder.is_dir() else []
    return {path.parent.name: path for path in found}


def find_recipe(reference: str) -> Recipe | None:
    """The recipe that `reference` means: a bundled name, a ``.toml`` file, or a folder with a ``recipe.toml``.

    None where it means none of these (a ``module:callable``, or an unknown name).

    Raises:
        RecipeError: it names a recipe that is missing or faulty.
    """
    bundled = bundled_recipes()
    if reference in bundled:
        return load_recipe(bundled[reference])
    path = Path(reference)
    if path.suffix == ".toml" or (os.path.isdir(path) and is_input(path / RECIPE_FILE)):
        return load_recipe(path)
    return None
