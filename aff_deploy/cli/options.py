"""Options that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aff_deploy.cli.console import say_notes
from aff_deploy.errors import UsageError
from aff_deploy.spec import TOLERANCES, Precision, TensorSpec, Tolerance, apply_ranges

if TYPE_CHECKING:
    from aff_deploy.nets.resolve import Network
    from aff_deploy.recipe import Recipe
    from aff_deploy.runtimes.data import Data

Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Weights to use instead of the recipe's (.safetensors, .pt, .params)."),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arguments", metavar="KEY=VALUE", help="An argument of the network (JSON); repeat for several."),
]
Key = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="In a PyTorch file, where the weights lie, such as model_ema.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]


def complete_recipe(beginning: str) -> list[str]:
    """Names of bundled recipes, for the shell."""
    from aff_deploy.recipe import bundled_recipes

    return [name for name in bundled_recipes() if name.startswith(beginning)]


DataPath = Annotated[
    Path | None,
    typer.Option("--data", metavar="DATA", help="Data to compare on: an .npz or a folder of images (with a recipe, raw data)."),
]
Ranges = Annotated[
    list[str] | None,
    typer.Option("--range", metavar="NAME:LOW:HIGH", help="The values of an input in generated data; repeat for several."),
]
Scale = Annotated[
    float | None, typer.Option("--scale", metavar="FACTOR", help="What raw data is multiplied by (pixels: default 1/255).")
]
Mean = Annotated[
    str | None, typer.Option("--mean", metavar="M[,M,M]", help="What is then subtracted, of all channels or of each.")
]
Std = Annotated[str | None, typer.Option("--std", metavar="S[,S,S]", help="What is then divided by.")]
NETWORK = "a bundled name, a recipe path, module:callable or file.py:callable"
UNTRAINED = "the reference has the weights that its code made, no --weights being given: they must be those of the file"
# Types, not their names: Typer checks no range of what it cannot resolve.
Atol = Annotated[float | None, typer.Option("--atol", min=0, help="Absolute tolerance.")]
Rtol = Annotated[float | None, typer.Option("--rtol", min=0, help="Tolerance relative to the output's scale.")]
MinCosine = Annotated[float | None, typer.Option("--min-cosine", min=-1, max=1, help="Smallest cosine similarity.")]


class BackendName(str, Enum):
    """Who builds."""

    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class Io(str, Enum):
    """Types of float inputs and outputs."""

    fp32 = "fp32"
    fp16 = "fp16"


class HardwareMode(str, Enum):
    """Which GPUs an engine of TensorRT runs on."""

    none = "none"
    ampere_plus = "ampere+"
    same_compute_capability = "same-compute-capability"


@dataclass(frozen=True)
class Given:
    """What a command line says of a network beside its name: of `resolve_network`, by its names there."""

    weights: Path | None
    arguments: Mapping[str, Any]
    weights_key: str | None

    @property
    def anything(self) -> bool:
        return self.weights is not None or bool(self.arguments) or self.weights_key is not None

    def resolve(self, reference: str, inputs: Sequence[TensorSpec] = ()) -> Network:
        """The network that `reference` means, what was chosen while its weights were loaded told on stderr."""
        from aff_deploy.nets.resolve import resolve_network

        network = resolve_network(
            reference, weights=self.weights, inputs=inputs, arguments=self.arguments, weights_key=self.weights_key
        )
        say_notes(network.loaded)
        return network


@dataclass(frozen=True)
class GivenData:
    """What a command line says of the data to compare on: a path, ranges of generated data, what is done to raw data."""

    path: Path | None
    ranges: tuple[str, ...]
    overrides: Mapping[str, Any]

    @property
    def anything(self) -> bool:
        return self.path is not None or bool(self.ranges) or bool(self.overrides)

    def ranged(self, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """`inputs` with the ranges that were given."""
        return apply_ranges(inputs, self.ranges)

    def load(self, inputs: Sequence[TensorSpec], recipe: Recipe | None = None, *, limit: int | None = None) -> Data | None:
        """The data at `path`, against a recipe raw; None where no path was given."""
        from aff_deploy.runtimes.data import load_data

        if self.path is None:
            return None
        evaluation = recipe.evaluation if recipe is not None else None
        return load_data(
            self.path,
            inputs,
            preprocessing=recipe.preprocessing if recipe is not None else None,
            overrides=self.overrides,
            keys=evaluation.inputs if evaluation is not None else None,
            limit=limit,
        )


def read_data_options(
    path: Path | None,
    ranges: Sequence[str] | None,
    scale: float | None,
    mean: str | None,
    std: str | None,
    *,
    calib: str | None = None,
) -> GivenData:
    """The options of data as one value.

    Raises:
        UsageError: one cannot be read, or says what to do with data where none is given.
    """
    overrides: dict[str, Any] = {}
    if scale is not None:
        overrides["scale"] = scale
    for option, text in (("mean", mean), ("std", std)):
        if text is not None:
            overrides[option] = _read_numbers(option, text, positive=option == "std")
    if overrides and path is None and calib is None:
        raise UsageError(f"--{next(iter(overrides))} says what to do with raw data, and none is given", fix="give --data too")
    return GivenData(path, tuple(ranges or ()), overrides)


def _read_numbers(option: str, text: str, *, positive: bool) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) and (number > 0 or not positive) for number in numbers):
        what = "a positive number, or one a channel" if positive else "a number, or one a channel"
        raise UsageError(f"cannot read --{option} {text!r}", fix=f"write {what}, such as 0.485,0.456,0.406")
    return numbers


def read_arguments(words: Sequence[str] | None) -> dict[str, Any]:
    """``layers=[1,1,1,1]`` and the like; what is not JSON is text.

    Raises:
        UsageError: a word is no KEY=VALUE, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for word in words or ():
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise UsageError(f"cannot read --arguments {word!r}", fix="write KEY=VALUE, each key once, such as num_classes=10")
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            found[name] = {"True": True, "False": False}.get(text, text)
    return found


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
