"""Recipes: what they say is what is read, and every mistake is named."""

from __future__ import annotations

import contextlib
import os
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aff_deploy.artifact import sha256
from aff_deploy.errors import DataError, RecipeError, WeightsError
from aff_deploy.recipe import Preprocessing, bundled_recipes, dump_recipe, find_recipe, load_recipe
from aff_deploy.recipe.tables import MAX_FILE_BYTES
from aff_deploy.runtimes.feeds import seeded_feeds
from aff_deploy.spec import TOLERANCES, Distribution, Precision

SMALL = """
name = "small"
network = "pkg.nets:build"
[[inputs]]
name = "image"
shape = ["batch", 1, 8, 8]
"""

FULL = """
name = "full"
description = "All keys."
network = "net.py:build"
[arguments]
num_classes = 10
layers = [1, 2]
[weights]
file = "sub/weights.safetensors"
sha256 = "{weights}"
key = "model_ema"
[[inputs]]
name = "image"
shape = ["batch", 3, 8, "w"]
dtype = "float16"
min = [1, 3, 8, 8]
opt = [4, 3, 8, 16]
max = [64, 3, 8, 32]
distribution = {{ kind = "uniform", low = -1, high = 1.5 }}
[[inputs]]
name = "tokens"
shape = ["batch", 7]
dtype = "int64"
min = [1, 7]
opt = [4, 7]
max = [64, 7]
[preprocessing]
layout = "channels-last"
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[tolerance.fp32]
atol = 1e-5
[tolerance.fp16]
min_cosine = 0.99
[evaluation]
data = "data.npz"
sha256 = "{data}"
inputs = {{ image = "images" }}
labels = "labels"
samples = 3
accuracy = 0.9875
[export]
opset = 17
exporter = "torchscript"
[serving]
max_batch_size = 64
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/weights.safetensors").write_bytes(b"weights")
    (tmp_path / "data.npz").write_bytes(b"data")
    (tmp_path / "net.py").write_text("")
    hashes = {"weights": sha256(tmp_path / "sub/weights.safetensors"), "data": sha256(tmp_path / "data.npz")}
    return write(tmp_path, FULL.format(**hashes))


def test_every_key_is_read(full: Path) -> None:
    recipe = load_recipe(full)
    image, tokens = recipe.inputs
    assert (image.text, tokens.text) == ("image:batchx3x8xw:float16", "tokens:batchx7:int64")
    assert (image.example, tokens.example) == ((4, 3, 8, 16), (4, 7))
    assert recipe.arguments == {"num_classes": 10, "layers": [1, 2]}
    assert recipe.weights == full.parent / "sub/weights.safetensors" == recipe.checked_weights()
    assert recipe.weights_key == "model_ema"
    assert recipe.profile is not None
    assert recipe.profile.max == {"image": (64, 3, 8, 32), "tokens": (64, 7)}
    assert image.distribution == Distribution("uniform", -1.0, 1.5)
    assert tokens.distribution is None
    assert recipe.tolerance[Precision.FP32].atol == 1e-5
    assert recipe.tolerance[Precision.FP32].rtol == TOLERANCES[Precision.FP32].rtol
    assert recipe.tolerance[Precision.FP16].min_cosine == 0.99
    assert recipe.tolerance[Precision.INT8] == TOLERANCES[Precision.INT8]
    evaluation = recipe.checked_evaluation()
    assert evaluation is not None
    assert evaluation.inputs == {"image": "images", "tokens": "tokens"}
    assert (evaluation.labels, evaluation.samples, evaluation.accuracy) == ("labels", 3, 0.9875)
    assert (recipe.export.opset, recipe.export.exporter, recipe.serving) == (17, "torchscript", {"max_batch_size": 64})


def test_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALL))
    assert (
        recipe.weights is recipe.evaluation is recipe.profile is recipe.checked_weights() is recipe.checked_evaluation() is None
    )
    assert recipe.preprocessing == Preprocessing()
    assert recipe.inputs[0].example is None
    assert (recipe.export.opset, recipe.export.exporter) == (18, "dynamo")


@pytest.mark.parametrize("which", ["full", "small"])
def test_dump_reads_back_equal(which: str, full: Path, tmp_path: Path) -> None:
    recipe = load_recipe(full if which == "full" else write(tmp_path, SMALL))
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_evaluation_input_is_short_for_the_only_input(tmp_path: Path) -> None:
    (tmp_path / "d.npz").touch()
    recipe = load_recipe(write(tmp_path, SMALL + '[evaluation]\ndata = "d.npz"\ninput = "x"'))
    assert recipe.evaluation is not None
    assert recipe.evaluation.inputs == {"image": "x"}


MISTAKES = {
    "unknown key": (SMALL + '[wieghts]\nfile = "w"', ["'wieghts'", "did you mean 'weights'?"]),
    "unknown nested key": (SMALL + "[export]\nopsett = 18", ["'export.opsett'", "did you mean 'opset'?"]),
    "unknown key like nothing": (SMALL + "[export]\nqqq = 18", ["'export.qqq'", "known here: opset, exporter"]),
    "unknown input key": (SMALL + "shap = 1", ["'inputs[0].shap'", "'shape'"]),
    "missing key": (SMALL.replace('name = "small"', ""), ["'name' is missing"]),
    "no inputs": ('name = "x"\nnetwork = "a:b"\ninputs = []', ["'inputs' is empty"]),
    "name with a slash": (SMALL.replace('"small"', '"../x"'), ["'name' is '../x'"]),
    "wrong type": (SMALL.replace('"small"', "3"), ["'name' is 3", "a string"]),
    "network without callable": (SMALL.replace("pkg.nets:build", "pkg.nets"), ["'network'", "package.module:callable"]),
    "network file outside": (SMALL.replace("pkg.nets:build", "../net.py:build"), ["'network'", "inside it"]),
    "network file missing": (SMALL.replace("pkg.nets:build", "net.py:build"), ["'network'", "not there"]),
    "inputs not tables": (SMALL.split("[[")[0] + "inputs = 3", ["'inputs'", "[[inputs]]"]),
    "shape not a list": (SMALL.replace('["batch", 1, 8, 8]', '"1x8"'), ["'inputs[0].shape'"]),
    "shape zero": (SMALL.replace('["batch", 1, 8, 8]', "[0]"), ["'inputs[0].shape'", "positive"]),
    "shape bool": (SMALL.replace('["batch", 1, 8, 8]', "[true]"), ["'inputs[0].shape'"]),
    "shape huge": (SMALL.replace('["batch", 1, 8, 8]', "[65536, 65536]"), ["'inputs[0].shape'", "elements"]),
    "dtype": (SMALL + 'dtype = "float31"', ["'inputs[0].dtype'", "float32"]),
    "same input twice": (SMALL + '[[inputs]]\nname = "image"\nshape = [1]', ["'inputs[1].name'"]),
    "range of another rank": (SMALL + "opt = [1, 8]", ["'inputs[0].opt'", "fits"]),
    "range of another size": (SMALL + "opt = [1, 1, 8, 9]", ["'inputs[0].opt'", "fits"]),
    "range out of order": (SMALL + "min = [4, 1, 8, 8]\nmax = [2, 1, 8, 8]", ["'inputs[0].min'", "no larger"]),
    "distribution kind": (SMALL + 'distribution = {kind = "poisson"}', ["'inputs[0].distribution.kind'", "normal, uniform"]),
    "distribution mix": (SMALL + 'distribution = {kind = "uniform", mean = 1}', ["'inputs[0].distribution.mean'"]),
    "distribution reversed": (SMALL + 'distribution = {kind = "uniform", low = 1, high = 0}', ["distribution.high"]),
    "infinite number": (SMALL + "[preprocessing]\nscale = inf", ["'preprocessing.scale'", "finite"]),
    "std zero": (SMALL + "[preprocessing]\nstd = [1.0, 0.0]", ["'preprocessing.std'", "positive"]),
    "layout": (SMALL + '[preprocessing]\nlayout = "NHWC"', ["'preprocessing.layout'", "channels-last"]),
    "precision": (SMALL + "[tolerance.fp31]\natol = 1", ["'tolerance.fp31'", "did you mean 'fp32'?"]),
    "negative tolerance": (SMALL + "[tolerance.fp32]\natol = -1", ["'tolerance.fp32.atol'"]),
    "opset": (SMALL + "[export]\nopset = 9", ["'export.opset' is 9", "13 to 20"]),
    "opset as text": (SMALL + '[export]\nopset = "18"', ["'export.opset'", "integer"]),
    "exporter": (SMALL + '[export]\nexporter = "dynam"', ["'export.exporter'", "dynamo, torchscript"]),
    "accuracy": (SMALL + '[evaluation]\ndata = "recipe.toml"\naccuracy = 98', ["'evaluation.accuracy' is 98", "0 to 1"]),
    "sha256": (SMALL + '[weights]\nfile = "recipe.toml"\nsha256 = "abc"', ["'weights.sha256'", "64 hexadecimal"]),
    "weights without file": (SMALL + f'[weights]\nsha256 = "{"a" * 64}"', ["'weights.file' is missing"]),
    "missing weights": (
        SMALL + '[weights]\nfile = "w.safetensors"',
        ["'weights.file' names w.safetensors, which is not there"],
    ),
    "absolute path": (SMALL + '[weights]\nfile = "/etc/passwd"', ["'weights.file'", "relative to its folder"]),
    "parent path": (SMALL + '[weights]\nfile = "a/../../w"', ["'weights.file'", "stay inside it"]),
    "null byte": (SMALL + '[weights]\nfile = "a\\u0000b"', ["'weights.file'"]),
    "batch size": (SMALL + "[serving]\nmax_batch_size = -1", ["'serving.max_batch_size'"]),
    "arguments": (SMALL + '[arguments]\n"a-b" = 1', ["'arguments'", "keyword arguments"]),
    "not TOML": ("name = \n", ["not valid TOML", "line 1"]),
    "deep": ("a = " + "[" * 100_000, ["not valid TOML", "too deeply"]),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_the_way_out(text: str, expected: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert str(path) in message
    assert caught.value.fix
    assert len(message) < 600
    assert [part for part in expected if part not in message] == []


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "absent.toml")
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(path)
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(RecipeError, match="more than the 1000000"):
        load_recipe(path)


def test_a_link_may_not_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    os.symlink(tmp_path / "secret", folder / "weights.bin")
    with pytest.raises(RecipeError, match="leads outside"):
        load_recipe(write(folder, SMALL + '[weights]\nfile = "weights.bin"'))


def test_changed_files_are_refused_on_use(full: Path) -> None:
    recipe = load_recipe(full)
    (full.parent / "sub/weights.safetensors").write_bytes(b"other")
    (full.parent / "data.npz").write_bytes(b"other")
    with pytest.raises(WeightsError, match="sha256"):
        recipe.checked_weights()
    with pytest.raises(DataError, match="sha256"):
        recipe.checked_evaluation()


def test_find_recipe(full: Path) -> None:
    assert find_recipe(str(full)) == find_recipe(str(full.parent)) == load_recipe(full)
    assert find_recipe("torch.nn:Identity") is None
    assert find_recipe("no_such_recipe") is None
    with pytest.raises(RecipeError):
        find_recipe("absent/recipe.toml")


def test_bundled_recipes_are_named_after_their_folders_and_complete() -> None:
    found = bundled_recipes()
    assert {"aff_resnet_digits", "iaff_resnet_digits"} <= set(found)
    for name, path in found.items():
        recipe = load_recipe(path)
        assert recipe.name == name
        assert recipe.description
        assert find_recipe(name) == recipe
        assert (recipe.checked_weights() is None) == (recipe.weights_sha256 == "")
        if recipe.weights is not None:
            evaluation = recipe.checked_evaluation()
            assert evaluation is not None
            assert evaluation.sha256
            assert evaluation.accuracy is not None


def test_preprocessing_by_channel_and_layout() -> None:
    raw = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    steps = Preprocessing("channels-last", 0.5, (1.0, 2.0, 3.0), (2.0, 4.0, 8.0))
    ready = steps.apply(raw)
    assert (ready.shape, ready.dtype) == ((2, 3, 2, 2), np.float32)
    assert ready[1, 2, 0, 1] == (raw[1, 0, 1, 2] * 0.5 - 3.0) / 8.0
    assert steps.apply(raw, "float16").dtype == np.float16
    assert Preprocessing().apply(raw, "float32").shape == raw.shape
    with pytest.raises(DataError, match="3 means"):
        steps.apply(np.zeros((2, 4, 4, 5)))


def read_or_refused(path: Path) -> None:
    """Any other exception is a bug."""
    with contextlib.suppress(RecipeError):
        load_recipe(path)


@given(st.text(alphabet=string.printable, max_size=200))
def test_any_text_is_a_recipe_or_a_recipe_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_text(SMALL + text, encoding="utf-8")
    read_or_refused(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["file", "atol", "name", "x"]), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    st.sampled_from(
        [
            "name",
            "description",
            "network",
            "arguments",
            "weights",
            "inputs",
            "preprocessing",
            "tolerance",
            "evaluation",
            "export",
            "serving",
        ]
    ),
)
def test_any_value_anywhere_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: object, key: str) -> None:
    import tomli_w

    path = tmp_path_factory.getbasetemp() / "values.toml"
    document = {"name": "x", "network": "a:b", "inputs": [{"name": "i", "shape": [1]}], key: value}
    try:
        path.write_text(tomli_w.dumps(document), encoding="utf-8")
    except (TypeError, UnicodeEncodeError):
        return
    read_or_refused(path)


HOSTILE = {
    "400 digits": ("[preprocessing]\nscale = " + "9" * 400, "an integer beyond 64 bits"),
    "5000 digits": ("[arguments]\nq = " + "9" * 5000, "is not valid TOML"),
    "hexadecimal digits": ("[arguments]\nq = [0x" + "f" * 50_000 + "]", "an integer beyond 64 bits"),
    "not a number": ("[arguments]\nq = {a = nan}", "'arguments.q.a' is nan"),
    "an infinity": ("[arguments]\nq = -inf", "is -inf, not a finite number"),
    "a date": ("[arguments]\nq = 1979-05-27", "is a date"),
    "a time": ("[arguments]\nq = [07:32:00]", "is a time"),
    "dotted keys": (".".join(["a"] * 100_000) + " = 1", "a key of more than 64 parts"),
    "dotted keys in a table": ("[arguments]\nq = {" + ".".join(["a"] * 100_000) + " = 1}", "a key of more than 64 parts"),
    "a dotted header": ("[" + " . ".join(["a"] * 100_000) + "]", "a key of more than 64 parts"),
    "deep tables": ("[arguments]\nq" + ".q" * 30 + " = 1", "nested too deeply"),
    "deep arrays": ("x = " + "[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_values_that_nothing_can_hold(tmp_path: Path, case: str) -> None:
    text, message = HOSTILE[case]
    path = tmp_path / "recipe.toml"
    path.write_text(SMALL + text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_what_only_looks_like_many_parts_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    numbers = ", ".join(["0.5"] * 500)
    path.write_text(
        SMALL + f"[preprocessing]\nmean = [{numbers}]\n[arguments]\nq = {2**63 - 1}\nr = [[1.5, true], {{a = 'x'}}]"
    )
    recipe = load_recipe(path)
    assert len(recipe.preprocessing.mean) == 500
    assert recipe.arguments == {"q": 2**63 - 1, "r": [[1.5, True], {"a": "x"}]}


DISTRIBUTION = """
name = "x"
network = "a:b"
[[inputs]]
name = "i"
shape = [1, 4]
dtype = "{}"
distribution = {{kind = "uniform", low = {}, high = {}}}
"""


@pytest.mark.parametrize(
    ("dtype", "low", "high", "fits"),
    [
        ("uint8", 0, 255, True),
        ("uint8", 0, 256, False),
        ("uint8", -1, 255, False),
        ("int8", -128, 127, True),
        ("int8", -129, 0, False),
        ("int32", -(2**31), 2**31 - 1, True),
        ("int32", 0, 2**31, False),
        ("int64", 0, 2**53, True),
        ("int64", 0, 2**63 - 1, False),
        ("float32", -1e30, 1e30, True),
        ("float32", -1e308, 1e308, False),
    ],
)
def test_a_distribution_stays_within_its_type(tmp_path: Path, dtype: str, low: float, high: float, fits: bool) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(DISTRIBUTION.format(dtype, low, high))
    if fits:
        recipe = load_recipe(path)
        (feed,) = seeded_feeds(recipe.inputs, samples=1, recipe=recipe)
        assert low <= feed["i"].min() <= feed["i"].max() <= high
    else:
        with pytest.raises(RecipeError, match=r"distribution\.(low|high)|cannot range from"):
            load_recipe(path)


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
@pytest.mark.parametrize("name", ["loop", "pipe", "n" * 300, "a\\u0001", "folder"])
def test_files_of_odd_kinds(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "recipe.toml"
    path.write_text(SMALL + f'[weights]\nfile = "{name}"')
    with pytest.raises(RecipeError, match=r"weights\.file"):
        load_recipe(path)
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(RecipeError, match="a device, pipe or socket"):
        load_recipe(tmp_path / "pipe.toml")
