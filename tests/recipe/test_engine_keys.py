"""The keys that engines read: [calibration], [engine], [[profiles]], and those of [preprocessing] for image files."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aff_deploy.artifact import sha256
from aff_deploy.errors import DataError, RecipeError
from aff_deploy.recipe import CalibrationData, EngineSettings, Preprocessing, bundled_recipes, dump_recipe, load_recipe
from aff_deploy.spec import Precision, ShapeProfile

SMALL = """
name = "small"
network = "pkg.nets:build"
[[inputs]]
name = "image"
shape = ["batch", 3, 8, "w"]
min = [1, 3, 8, 8]
opt = [2, 3, 8, 8]
max = [4, 3, 8, 8]
[[inputs]]
name = "fixed"
shape = [2]
"""

MORE = """
[preprocessing]
resize = 256
crop = [200, 224]
[calibration]
data = "calibration.npz"
sha256 = "{hash}"
inputs = {{ image = "pictures" }}
samples = 12
[engine]
enabled = false
precision = "int8"
io = "fp16"
backend = "tensorrt-rtx"
[[profiles]]
min = {{ image = [1, 3, 8, 8] }}
opt = {{ image = [1, 3, 8, 16] }}
max = {{ image = [1, 3, 8, 32], fixed = [2] }}
[[profiles]]
min = {{ image = [2, 3, 8, 8] }}
opt = {{ image = [4, 3, 8, 8] }}
max = {{ image = [8, 3, 8, 8] }}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    (tmp_path / "calibration.npz").write_bytes(b"data")
    return write(tmp_path, SMALL + MORE.format(hash=sha256(tmp_path / "calibration.npz")))


def test_every_key_is_read(full: Path) -> None:
    recipe = load_recipe(full)
    assert (recipe.preprocessing.resize, recipe.preprocessing.crop) == (256, (200, 224))
    data = full.parent / "calibration.npz"
    wanted = CalibrationData(data, sha256(data), {"image": "pictures", "fixed": "fixed"}, 12)
    assert recipe.calibration == wanted == recipe.checked_calibration()
    assert recipe.engine == EngineSettings(False, Precision.INT8, "fp16", "tensorrt-rtx")
    first, second = recipe.profiles
    assert first == ShapeProfile(
        {"image": (1, 3, 8, 8), "fixed": (2,)},
        {"image": (1, 3, 8, 16), "fixed": (2,)},
        {"image": (1, 3, 8, 32), "fixed": (2,)},
    )
    assert second.max == {"image": (8, 3, 8, 8), "fixed": (2,)}
    assert recipe.engine_profiles == recipe.profiles


def test_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALL))
    assert recipe.calibration is recipe.checked_calibration() is None
    assert recipe.engine == EngineSettings(enabled=None, precision=Precision.FP16, io="fp32", backend="", keep_fp32=())
    assert (recipe.preprocessing.resize, recipe.preprocessing.crop, recipe.profiles) == (0, (), ())
    assert recipe.profile is not None
    assert recipe.engine_profiles == (recipe.profile,)
    assert (
        load_recipe(write(tmp_path, 'name = "x"\nnetwork = "a:b"\n[[inputs]]\nname = "i"\nshape = [1]')).engine_profiles == ()
    )


@pytest.mark.parametrize(
    "more",
    [
        MORE,
        "",
        "[engine]",
        "[engine]\nkeep_fp32 = ['a', 'b']",
        "[calibration]\ndata = 'pictures'",
        "[engine]\nprecision = 'fp8'",
        "[preprocessing]\ncrop = 7",
        "[preprocessing]\nscale = 0",
    ],
)
def test_dump_reads_back_equal(more: str, full: Path) -> None:
    (full.parent / "pictures").mkdir()
    recipe = load_recipe(write(full.parent, SMALL + more.format(hash=sha256(full.parent / "calibration.npz"))))
    assert load_recipe(write(full.parent, dump_recipe(recipe))) == recipe


def test_bundled_recipes_read_back_equal(tmp_path: Path) -> None:
    for path in bundled_recipes().values():
        recipe = load_recipe(path)
        for file in path.parent.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        again = load_recipe(write(tmp_path, dump_recipe(recipe)))
        assert dump_recipe(again) == dump_recipe(recipe)
        assert (again.engine, again.preprocessing, again.profiles) == (recipe.engine, recipe.preprocessing, recipe.profiles)


def test_a_side_stands_for_a_square(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, SMALL + "[preprocessing]\ncrop = 7")).preprocessing.crop == (7, 7)


def test_image_keys_leave_raw_data_alone() -> None:
    raw = np.arange(4, dtype=np.int64).reshape(2, 2)
    assert Preprocessing(resize=4, crop=(2, 2)).apply(raw, "int64").tolist() == raw.tolist()


def test_changed_calibration_data_are_refused_on_use(full: Path) -> None:
    recipe = load_recipe(full)
    (full.parent / "calibration.npz").write_bytes(b"other")
    with pytest.raises(DataError, match="sha256"):
        recipe.checked_calibration()


PROFILE = "[[profiles]]\nmin = {image = [1, 3, 8, 8]}\nopt = {image = [1, 3, 8, 8]}\nmax = {image = [1, 3, 8, 8]}\n"
MISTAKES = {
    "unknown table": ("[calibrate]\ndata = 'x'", ["'calibrate'", "did you mean 'calibration'?"]),
    "calibration key": ("[calibration]\ndata = 'calibration.npz'\nlabels = 'x'", ["'calibration.labels'"]),
    "calibration without data": ("[calibration]\nsamples = 3", ["'calibration.data' is missing"]),
    "calibration file missing": ("[calibration]\ndata = 'absent.npz'", ["'calibration.data'", "not there"]),
    "calibration file outside": ("[calibration]\ndata = '../x.npz'", ["'calibration.data'", "inside it"]),
    "calibration hash": ("[calibration]\ndata = 'calibration.npz'\nsha256 = 'x'", ["'calibration.sha256'", "64"]),
    "calibration samples": ("[calibration]\ndata = 'calibration.npz'\nsamples = 0", ["'calibration.samples'"]),
    "calibration input": ("[calibration]\ndata = 'calibration.npz'\ninput = 'x'", ["'calibration.input'", "several"]),
    "calibration inputs": (
        "[calibration]\ndata = 'calibration.npz'\ninputs = {imag = 'x'}",
        ["'calibration.inputs.imag'", "'image'"],
    ),
    "engine key": ("[engine]\nprecison = 'fp16'", ["'engine.precison'", "did you mean 'precision'?"]),
    "engine enabled": ("[engine]\nenabled = 1", ["'engine.enabled' is 1", "true or false"]),
    "engine precision": ("[engine]\nprecision = 'fp17'", ["'engine.precision'", "fp32, fp16, bf16, int8, fp8"]),
    "engine io": ("[engine]\nio = 'int8'", ["'engine.io'", "fp32, fp16"]),
    "engine backend": ("[engine]\nbackend = 'trt'", ["'engine.backend'", "tensorrt, tensorrt-rtx"]),
    "engine keep_fp32": ("[engine]\nkeep_fp32 = 'a'", ["'engine.keep_fp32'", "an array of strings"]),
    "engine keep_fp32 numbers": ("[engine]\nkeep_fp32 = ['a', 3]", ["'engine.keep_fp32'", "an array of strings"]),
    "engine keep_fp32 empty name": ("[engine]\nkeep_fp32 = ['']", ["'engine.keep_fp32'", "an array of strings"]),
    "calibration folder missing": ("[calibration]\ndata = 'pictures'", ["'calibration.data'", "not there"]),
    "calibration folder hash": (
        f"[calibration]\ndata = '.'\nsha256 = '{'0' * 64}'",
        ["'calibration.sha256'", "folder of images"],
    ),
    "calibration folder samples": ("[calibration]\ndata = '.'\nsamples = 4", ["'calibration.samples'", "folder of images"]),
    "min alone": ("[[inputs]]\nname = 'b'\nshape = ['n', 2]\nmin = [1, 2]", ["'inputs[2].opt' is missing"]),
    "shapes of one input alone": ("[[inputs]]\nname = 'b'\nshape = ['n', 2]", ["'inputs[2].min' is missing"]),
    "engine backend empty": ("[engine]\nbackend = ''", ["'engine.backend'"]),
    "resize zero": ("[preprocessing]\nresize = 0", ["'preprocessing.resize'"]),
    "resize text": ("[preprocessing]\nresize = '256'", ["'preprocessing.resize'", "integer"]),
    "crop of three": ("[preprocessing]\ncrop = [1, 2, 3]", ["'preprocessing.crop'", "height and width"]),
    "crop true": ("[preprocessing]\ncrop = true", ["'preprocessing.crop'"]),
    "crop too large": (
        "[preprocessing]\nresize = 8\ncrop = 9",
        ["'preprocessing.crop'", "no larger than preprocessing.resize 8"],
    ),
    "profiles not tables": ("[profiles]\nmin = {}", ["'profiles'", "[[profiles]]"]),
    "profile key": (PROFILE + "optimum = {}", ["'profiles[0].optimum'"]),
    "profile bound missing": ("[[profiles]]\nmin = {image = [1, 3, 8, 8]}", ["'profiles[0].opt' is missing"]),
    "profile input missing": (
        PROFILE.replace("max = {image = [1, 3, 8, 8]}", "max = {}"),
        ["'profiles[0].max.image' is missing"],
    ),
    "profile input unknown": (
        PROFILE.replace("max = {image", "max = {imago"),
        ["'profiles[0].max.imago'", "did you mean 'image'?"],
    ),
    "profile misfit": (PROFILE.replace("max = {image = [1, 3", "max = {image = [1, 4"), ["'profiles[0].max.image'", "fits"]),
    "profile order": (
        PROFILE.replace("min = {image = [1,", "min = {image = [2,"),
        ["'profiles[0].min.image'", "no larger than profiles[0].opt.image"],
    ),
    "profile bound no table": (PROFILE.replace("max = {image = [1, 3, 8, 8]}", "max = 3"), ["'profiles[0].max'", "a table"]),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_the_way_out(text: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "calibration.npz").touch()
    path = write(tmp_path, SMALL + text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert str(path) in message
    assert caught.value.fix
    assert [part for part in expected if part not in message] == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "min", "opt", "max", "image", "crop", "precision", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(VALUES, st.sampled_from(["calibration", "engine", "profiles", "preprocessing"]))
def test_any_value_anywhere_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: object, key: str) -> None:
    import tomli_w

    path = tmp_path_factory.getbasetemp() / "engine_values.toml"
    document = {"name": "x", "network": "a:b", "inputs": [{"name": "image", "shape": ["n", 1]}], key: value}
    try:
        path.write_text(tomli_w.dumps(document), encoding="utf-8")
    except (TypeError, UnicodeEncodeError):
        return
    with contextlib.suppress(RecipeError):
        load_recipe(path)
