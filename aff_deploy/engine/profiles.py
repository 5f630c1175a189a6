"""Which shapes an engine is built for."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from aff_deploy.errors import UsageError
from aff_deploy.runtimes import shape_text
from aff_deploy.runtimes.feeds import FREE_SIZE
from aff_deploy.spec import MAX_ELEMENTS, ShapeProfile, TensorSpec

Shapes = Mapping[str, tuple[int, ...]]
SMALLEST_BATCH, USUAL_BATCH, LARGEST_BATCH = 1, 8, 32
"""Of an engine whose batch alone is dynamic, where nobody says for which sizes."""


def parse_shapes(option: str, words: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """``NAME:1x3x224x224`` as often as given: the n-th time that a name is given belongs to the n-th profile.

    A word may hold several, separated by commas, as trtexec takes them.

    Raises:
        UsageError: a word that is not of that form.
    """
    profiles: list[dict[str, tuple[int, ...]]] = []
    for word in (part for words_ in words for part in re.split(r"(?<=[0-9]),", words_)):
        match = re.fullmatch(r"(?P<name>.+):(?P<shape>[0-9]+(x[0-9]+)*)", word.strip())
        if match is None:
            raise UsageError(f"cannot read {option} {word!r}", fix="write NAME:1x3x224x224")
        name = match["name"]
        place = next((profile for profile in profiles if name not in profile), None)
        if place is None:
            profiles.append(place := {})
        place[name] = tuple(int(d) for d in match["shape"].split("x"))
    return tuple(profiles)


def profiles_from_options(
    inputs: Sequence[TensorSpec], low: Sequence[Shapes], usual: Sequence[Shapes], high: Sequence[Shapes]
) -> tuple[ShapeProfile, ...]:
    """Profiles from ``--min-shapes``, ``--opt-shapes`` and ``--max-shapes``; a bound left out is the opt shape, as in trtexec.

    Raises:
        UsageError: a bound is given without an opt shape to go with it, or names no input.
    """
    count = max(len(low), len(usual), len(high))
    names = [spec.name for spec in inputs]
    for option, given in (("--min-shapes", low), ("--opt-shapes", usual), ("--max-shapes", high)):
        for name in (name for shapes in given for name in shapes):
            if name not in names:
                raise UsageError(f"{option} names no input {name!r}", fix=f"the inputs are {', '.join(names)}")
    profiles = []
    for i in range(count):
        lows, usuals, highs = ((given[i] if i < len(given) else {}) for given in (low, usual, high))
        chosen: tuple[dict[str, tuple[int, ...]], ...] = ({}, {}, {})
        for spec in inputs:
            bounds = [shapes.get(spec.name) for shapes in (lows, usuals, highs)]
            if not any(bounds):
                continue
            middle = bounds[1]
            if middle is None:
                raise UsageError(f"input {spec.name!r} has no opt shape", fix=f"add --opt-shapes {spec.name}:1x...")
            for shapes, bound in zip(chosen, bounds, strict=True):
                shapes[spec.name] = bound or middle
        profiles.append(ShapeProfile(*chosen))
    return tuple(profiles)


def default_profiles(inputs: Sequence[TensorSpec]) -> tuple[ShapeProfile, ...]:
    """The profile of an engine for which nobody gave shapes: a batch of 1 to 32, fastest at 8 or where `example` is.

    None where anything but one dimension, the first of its inputs, is dynamic: how large a picture may be is not ours to say.
    """
    free = {(axis, dim) for spec in inputs for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
    if len(free) != 1 or next(iter(free))[0] != 0:
        return ()
    usual = next((spec.example[0] for spec in inputs if spec.is_dynamic and spec.example), USUAL_BATCH)
    batches = (min(SMALLEST_BATCH, usual), usual, max(LARGEST_BATCH, usual))
    ((_, batch),) = free
    return (ShapeProfile(*({spec.name: spec.concrete(**{batch: size}) for spec in inputs} for size in batches)),)


def check_profiles(
    inputs: Sequence[TensorSpec],
    profiles: Sequence[ShapeProfile],
    *,
    suggest: Callable[[Sequence[TensorSpec]], str] | None = None,
) -> tuple[ShapeProfile, ...]:
    """The profiles that an engine of these inputs needs, each naming every input; none where every shape is static.

    Args:
        inputs: of the model.
        profiles: what was asked for.
        suggest: what to add for inputs without shapes, in the words of whoever asks; those of the command line by default.

    Raises:
        UsageError: a dynamic input without shapes, or shapes that do not fit an input or each other.
    """
    dynamic = [spec for spec in inputs if spec.is_dynamic]
    names = [spec.name for spec in inputs]
    for name in (name for p in profiles for shapes in (p.min, p.opt, p.max) for name in shapes):
        if name not in names:
            raise UsageError(f"shapes are given for {name!r}, which is no input", fix=f"the inputs are {', '.join(names)}")
    if not dynamic:
        for spec in inputs:
            for profile in profiles:
                _check(spec, profile)
        return ()
    if not profiles:
        raise UsageError(
            f"input {', '.join(repr(spec.name) for spec in dynamic)} is dynamic and nothing says for which shapes to build",
            fix=(suggest or suggest_options)(dynamic),
        )
    complete = []
    for profile in profiles:
        bounds: tuple[dict[str, tuple[int, ...]], ...] = ({}, {}, {})
        for spec in inputs:
            if spec.is_dynamic and spec.name not in profile.opt:
                raise UsageError(f"no shapes for the dynamic input {spec.name!r}", fix=(suggest or suggest_options)([spec]))
            _check(spec, profile)
            usual = profile.opt.get(spec.name) or spec.concrete()
            for shapes, given in zip(bounds, (profile.min, profile.opt, profile.max), strict=True):
                shapes[spec.name] = given.get(spec.name) or usual
        complete.append(ShapeProfile(*bounds))
    return tuple(complete)


def _check(spec: TensorSpec, profile: ShapeProfile) -> None:
    given = [shapes[spec.name] for shapes in (profile.min, profile.opt, profile.max) if spec.name in shapes]
    for shape in given:
        fits = len(shape) == len(spec.shape) and all(
            isinstance(d, str) or d == s for d, s in zip(spec.shape, shape, strict=True)
        )
        sizes_fit = all(type(d) is int and d >= 1 for d in shape) and math.prod(shape) <= MAX_ELEMENTS
        if not sizes_fit:
            raise UsageError(
                f"{shape_text(shape)} is no shape for input {spec.name!r}",
                fix=f"sizes are 1 or more, {MAX_ELEMENTS} elements at most",
            )
        if not fits:
            raise UsageError(
                f"shape {shape_text(shape)} does not fit input {spec.name!r}", fix=f"its shape is {shape_text(spec.shape)}"
            )
    for smaller, larger in itertools.pairwise(given):
        if any(a > b for a, b in zip(smaller, larger, strict=True)):
            raise UsageError(
                f"input {spec.name!r}: {shape_text(smaller)} is larger than {shape_text(larger)}",
                fix="min, opt and max shapes must not decrease",
            )


def suggest_options(inputs: Sequence[TensorSpec]) -> str:
    """The options to add for inputs without shapes."""
    words = (f"--{bound}-shapes {spec.name}:{shape_text(shape)}" for spec in inputs for bound, shape in _suggested(spec))
    return f"add {' '.join(words)}"


def suggest_keys(inputs: Sequence[TensorSpec]) -> str:
    """The same as lines of a recipe."""
    lines = (
        f"to [[inputs]] {spec.name!r} the lines " + " / ".join(f"{b} = {list(s)}" for b, s in _suggested(spec))
        for spec in inputs
    )
    return f"add {', and '.join(lines)}"


def _suggested(spec: TensorSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    example = spec.example or (FREE_SIZE,) * len(spec.shape)
    free = tuple(dim if isinstance(dim, int) else size for dim, size in zip(spec.shape, example, strict=True))
    for bound, batch in (("min", SMALLEST_BATCH), ("opt", USUAL_BATCH), ("max", LARGEST_BATCH)):
        dynamic = bool(spec.shape) and isinstance(spec.shape[0], str)
        yield bound, ((batch, *free[1:]) if dynamic else free)
