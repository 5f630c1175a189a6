"""Recipe from TOML. The format is described key by key in ``docs/recipe.md``."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aff_deploy.errors import RecipeError, UsageError
from aff_deploy.recipe.tables import Table, read_toml
from aff_deploy.recipe.values import (
    CalibrationData,
    EngineSettings,
    Evaluation,
    ExportSettings,
    Preprocessing,
    Recipe,
)
from aff_deploy.spec import DTYPES, MAX_ELEMENTS, TOLERANCES, Dim, Distribution, Precision, ShapeProfile, TensorSpec, Tolerance

RECIPE_FILE = "recipe.toml"
LAYOUTS = ("as-is", "channels-last")
EXPORTERS = ("dynamo", "torchscript")
BACKENDS = ("tensorrt", "tensorrt-rtx")
IO_TYPES = ("fp32", "fp16")
MAX_SIDE = 65536
MAX_DRAWN = 1e30
BOUNDS = ("min", "opt", "max")
_NETWORK = re.compile(r"[^:\0]+:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DYNAMIC = re.compile(r"[A-Za-z_]\w*")


def load_recipe(path: Path) -> Recipe:
    """Read the recipe at `path`, a ``recipe.toml`` or the folder that holds one.

    Raises:
        RecipeError: anything in it that is unknown, of a wrong type, out of range or not there.
    """
    path = path / RECIPE_FILE if os.path.isdir(path) else path
    known = ("name", "description", "network", "arguments", "weights", "inputs", "preprocessing", "tolerance")
    more = ("evaluation", "calibration", "export", "engine", "profiles", "serving")
    top = Table(path, "", read_toml(path), (*known, *more))
    top.require("name", "network", "inputs")
    name = top.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise top.wrong("name", "1 to 64 letters, digits, '.', '_' or '-'")
    weights = top.table("weights", ("file", "sha256", "key"))
    if weights.values:
        weights.require("file")
    inputs, profile = _read_inputs(top)
    export = top.table("export", ("opset", "exporter"))
    serving = top.table("serving", ("max_batch_size",))
    return Recipe(
        name=name,
        network=_read_network(top),
        folder=path.parent.resolve(),
        inputs=inputs,
        description=top.text("description"),
        arguments=dict(_read_arguments(top)),
        weights=weights.file("file") if weights.values else None,
        weights_sha256=weights.sha256("sha256"),
        weights_key=weights.text("key"),
        preprocessing=_read_preprocessing(top),
        profile=profile,
        tolerance=_read_tolerance(top),
        evaluation=_read_evaluation(top, inputs),
        calibration=_read_calibration(top, inputs),
        export=ExportSettings(
            export.integer("opset", ExportSettings.opset, low=13, high=20),
            export.choice("exporter", ExportSettings.exporter, EXPORTERS),
        ),
        engine=_read_engine(top),
        profiles=_read_profiles(top, inputs),
        serving={"max_batch_size": serving.integer("max_batch_size", 1, low=0, high=65536)} if serving.values else {},
    )


def _read_network(top: Table) -> str:
    network = top.text("network")
    if not _NETWORK.fullmatch(network):
        raise top.wrong("network", "'package.module:callable' or 'file.py:callable'")
    source = network.rpartition(":")[0]
    if source.endswith(".py"):
        Table(top.path, "", {"network": source}, ("network",)).file("network")
    return network


def _read_arguments(top: Table) -> Mapping[str, Any]:
    value = top.values.get("arguments", {})
    if not isinstance(value, dict) or not all(key.isidentifier() for key in value):
        raise top.wrong("arguments", "a table of keyword arguments")
    return value


def _read_inputs(top: Table) -> tuple[tuple[TensorSpec, ...], ShapeProfile | None]:
    specs: list[TensorSpec] = []
    shapeless: list[Table] = []
    ranges: dict[str, dict[str, tuple[int, ...]]] = {bound: {} for bound in BOUNDS}
    for table in top.tables("inputs", ("name", "shape", "dtype", "min", "opt", "max", "distribution")):
        table.require("name", "shape")
        name = table.text("name")
        if not name or ":" in name or name in (spec.name for spec in specs):
            raise table.wrong("name", "a name of its own, without ':'")
        shape = _read_shape(table)
        for bound, sizes in ranges.items():
            if bound in table:
                sizes[name] = _read_range(table, bound, shape)
        _check_order(table, shape, {bound: sizes[name] for bound, sizes in ranges.items() if name in sizes})
        # opt alone has a meaning: what tracing and generated data start from.
        if "min" in table or "max" in table:
            table.require(*BOUNDS)
        elif any(isinstance(dim, str) for dim in shape):
            shapeless.append(table)
        # Without one, whoever needs sizes chooses them.
        example = ranges["opt"].get(name)
        dtype = table.choice("dtype", "float32", DTYPES)
        drawn = _read_distribution(table) if "distribution" in table else None
        try:
            specs.append(TensorSpec(name, shape, dtype, example, drawn))
        except UsageError as error:
            raise RecipeError(f"{top.path}: {error.message}", fix=error.fix) from None
    if not specs:
        raise RecipeError(f"{top.path}: 'inputs' is empty", fix="describe each input in a table [[inputs]]")
    complete = all(name in sizes for sizes in ranges.values() for name in (s.name for s in specs if s.is_dynamic))
    if shapeless and any(spec.is_dynamic and spec.name in ranges["min"] for spec in specs):
        shapeless[0].require(*BOUNDS)
    if not any(spec.is_dynamic for spec in specs) or not complete:
        return tuple(specs), None
    full = {bound: {s.name: sizes.get(s.name) or s.concrete() for s in specs} for bound, sizes in ranges.items()}
    return tuple(specs), ShapeProfile(full["min"], full["opt"], full["max"])


def _read_shape(table: Table) -> tuple[Dim, ...]:
    shape = table.values["shape"]
    wanted = "an array of at most eight positive integers and names of dynamic dimensions"
    if not isinstance(shape, list) or len(shape) > 8:
        raise table.wrong("shape", wanted)
    for dim in shape:
        named = isinstance(dim, str) and _DYNAMIC.fullmatch(dim)
        if not named and not (type(dim) is int and 1 <= dim < MAX_ELEMENTS):
            raise table.wrong("shape", wanted)
    return tuple(shape)


def _read_range(table: Table, bound: str, shape: tuple[Dim, ...]) -> tuple[int, ...]:
    sizes = table.sizes(bound)
    total = 1
    for size in sizes:
        total *= size
    fits = len(sizes) == len(shape) and all(isinstance(d, str) or d == s for d, s in zip(shape, sizes, strict=True))
    if not fits or total > MAX_ELEMENTS:
        raise table.wrong(bound, f"a shape that fits {list(shape)}, of at most {MAX_ELEMENTS} elements")
    return sizes


def _check_order(table: Table, shape: tuple[Dim, ...], bounds: Mapping[str, tuple[int, ...]]) -> None:
    fixed = 1
    for dim in shape:
        fixed *= dim if isinstance(dim, int) else 1
    if fixed > MAX_ELEMENTS:
        raise table.wrong("shape", f"at most {MAX_ELEMENTS} elements")
    given = list(bounds)
    for lower, upper in itertools.pairwise(given):
        if any(a > b for a, b in zip(bounds[lower], bounds[upper], strict=True)):
            raise table.wrong(lower, f"no larger than {table.name(upper)} {list(bounds[upper])}")


def _read_distribution(table: Table) -> Distribution:
    # What is near the end of a float's range is no data; what lies beyond an integer's, `TensorSpec` refuses.
    low, high = -MAX_DRAWN, MAX_DRAWN
    entry = table.table("distribution", ("kind", "mean", "std", "low", "high"))
    if entry.choice("kind", "normal", ("normal", "uniform")) == "uniform":
        entry = table.table("distribution", ("kind", "low", "high"))
        entry.require("low", "high")
        least = entry.number("low", 0.0, low=low, high=high)
        return Distribution("uniform", least, entry.number("high", 1.0, low=least, high=high))
    entry = table.table("distribution", ("kind", "mean", "std"))
    return Distribution("normal", entry.number("mean", 0.0, low=low, high=high), entry.number("std", 1.0, low=0.0, high=high))


def _read_preprocessing(top: Table) -> Preprocessing:
    table = top.table("preprocessing", ("layout", "scale", "mean", "std", "resize", "crop"))
    std = table.numbers("std", (1.0,))
    if not all(value > 0 for value in std):
        raise table.wrong("std", "positive")
    resize = table.integer("resize", 0, low=1, high=MAX_SIDE) if "resize" in table else 0
    crop = _read_crop(table)
    if resize and any(side > resize for side in crop):
        raise table.wrong("crop", f"no larger than {table.name('resize')} {resize}")
    return Preprocessing(
        layout=table.choice("layout", "as-is", LAYOUTS),
        scale=table.number("scale", 1.0),
        mean=table.numbers("mean", (0.0,)),
        std=std,
        resize=resize,
        crop=crop,
    )


def _read_crop(table: Table) -> tuple[int, ...]:
    if "crop" not in table:
        return ()
    value = table.values["crop"]
    sides = [value, value] if type(value) is int else value
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise table.wrong("crop", f"a side, or height and width, in pixels from 1 to {MAX_SIDE}")
    return tuple(sides)


def _read_tolerance(top: Table) -> Mapping[Precision, Tolerance]:
    rows = dict(TOLERANCES)
    table = top.table("tolerance", [str(precision) for precision in Precision])
    for key in table.values:
        precision = Precision(key)
        entry, base = table.table(key, ("atol", "rtol", "min_cosine")), TOLERANCES[precision]
        rows[precision] = Tolerance(
            entry.number("atol", base.atol, low=0.0),
            entry.number("rtol", base.rtol, low=0.0),
            entry.number("min_cosine", base.min_cosine, low=-1.0, high=1.0),
        )
    return rows


def _read_evaluation(top: Table, inputs: tuple[TensorSpec, ...]) -> Evaluation | None:
    table = top.table("evaluation", ("data", "sha256", "input", "inputs", "labels", "samples", "accuracy"))
    if not table.values:
        return None
    table.require("data")
    return Evaluation(
        data=table.file("data"),
        sha256=table.sha256("sha256"),
        inputs=_read_keys(table, inputs),
        labels=table.text("labels"),
        samples=_read_samples(table),
        accuracy=table.number("accuracy", 0.0, low=0.0, high=1.0) if "accuracy" in table else None,
    )


def _read_calibration(top: Table, inputs: tuple[TensorSpec, ...]) -> CalibrationData | None:
    table = top.table("calibration", ("data", "sha256", "input", "inputs", "samples"))
    if not table.values:
        return None
    table.require("data")
    data = table.file("data", or_folder=True)
    described = [key for key in ("sha256", "input", "inputs", "samples") if key in table]
    if data.is_dir() and described:
        raise table.wrong(described[0], f"left out, since {table.name('data')} is a folder of images")
    keys = {} if data.is_dir() else _read_keys(table, inputs)
    return CalibrationData(data, table.sha256("sha256"), keys, _read_samples(table))


def _read_keys(table: Table, inputs: tuple[TensorSpec, ...]) -> Mapping[str, str]:
    keys = {spec.name: spec.name for spec in inputs}
    if "input" in table:
        if len(inputs) != 1:
            raise table.wrong("input", "replaced by a table 'inputs', since the network has several")
        keys[inputs[0].name] = table.text("input")
    named = table.table("inputs", list(keys))
    return keys | {name: named.text(name) for name in named.values}


def _read_samples(table: Table) -> int | None:
    return table.integer("samples", 1, low=1, high=10_000_000) if "samples" in table else None


def _read_engine(top: Table) -> EngineSettings:
    if "engine" not in top:
        return EngineSettings()
    table = top.table("engine", ("enabled", "precision", "io", "backend", "keep_fp32"))
    default = EngineSettings()
    return EngineSettings(
        enabled=table.boolean("enabled", True),
        precision=Precision(table.choice("precision", str(default.precision), [str(each) for each in Precision])),
        io="fp16" if table.choice("io", default.io, IO_TYPES) == "fp16" else "fp32",
        backend=table.choice("backend", default.backend, BACKENDS) if "backend" in table else default.backend,
        keep_fp32=table.texts("keep_fp32"),
    )


def _read_profiles(top: Table, inputs: tuple[TensorSpec, ...]) -> tuple[ShapeProfile, ...]:
    profiles = []
    for table in top.tables("profiles", BOUNDS):
        table.require(*BOUNDS)
        bounds = {bound: table.table(bound, [spec.name for spec in inputs]) for bound in BOUNDS}
        shapes: dict[str, dict[str, tuple[int, ...]]] = {bound: {} for bound in BOUNDS}
        for spec in inputs:
            for bound, entry in bounds.items():
                if spec.is_dynamic:
                    entry.require(spec.name)
                shapes[bound][spec.name] = _read_range(entry, spec.name, spec.shape) if spec.name in entry else spec.concrete()
            for lower, upper in itertools.pairwise(BOUNDS):
                if any(a > b for a, b in zip(shapes[lower][spec.name], shapes[upper][spec.name], strict=True)):
                    name = bounds[upper].name(spec.name)
                    raise bounds[lower].wrong(spec.name, f"no larger than {name} {list(shapes[upper][spec.name])}")
        profiles.append(ShapeProfile(shapes["min"], shapes["opt"], shapes["max"]))
    return tuple(profiles)
