"""Calibration data: where it comes from, what is done to it, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aff_deploy.artifact import sha256
from aff_deploy.errors import DataError
from aff_deploy.precision.calibration import load_calibration
from aff_deploy.recipe import CalibrationData, Evaluation, Preprocessing, Recipe, bundled_recipes, load_recipe
from aff_deploy.runtimes import data as module
from aff_deploy.runtimes.data import Data
from aff_deploy.spec import Distribution, TensorSpec

IMAGE = TensorSpec("image", ("n", 3, 4, 4))
STEPS = Preprocessing("channels-last", 0.5, (1.0, 2.0, 3.0), (2.0, 4.0, 8.0))


def recipe(folder: Path, **more: Any) -> Recipe:
    return Recipe(name="mine", network="m:f", folder=folder, inputs=(IMAGE,), **more)


def save(path: Path, count: int, **more: Any) -> Path:
    pictures = np.random.default_rng(count).integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    np.savez(path, pictures=pictures, **more)
    return path


def joined(found: Data) -> Any:
    return np.concatenate([batch["image"] for batch in found.batches])


def test_the_recipes_calibration_data_come_first_its_evaluation_data_second(tmp_path: Path) -> None:
    keys = {"image": "pictures"}
    first, second = save(tmp_path / "first.npz", 40), save(tmp_path / "second.npz", 50)
    evaluation = Evaluation(second, sha256(second), keys, samples=50)
    both = recipe(tmp_path, preprocessing=STEPS, evaluation=evaluation, calibration=CalibrationData(first, "", keys, 40))
    found = load_calibration(None, [IMAGE], both)
    assert found.described == "40 samples of the recipe's calibration data, first.npz"
    np.testing.assert_array_equal(joined(found), STEPS.apply(np.load(first)["pictures"]))
    found = load_calibration(None, [IMAGE], recipe(tmp_path, preprocessing=STEPS, evaluation=evaluation), limit=33)
    assert (found.samples, found.described) == (33, "33 samples of the recipe's evaluation data, second.npz")
    assert [len(batch["image"]) for batch in found.batches] == [32, 1]


def test_the_data_must_be_what_the_recipe_says(tmp_path: Path) -> None:
    path = save(tmp_path / "first.npz", 4)
    for data, message in (
        (CalibrationData(path, "0" * 64, {"image": "pictures"}), "sha256"),
        (CalibrationData(path, "", {"image": "pictures"}, 5), "has 4 samples, the recipe says 5"),
        (CalibrationData(path, "", {"image": "absent"}), "no array 'absent'"),
    ):
        with pytest.raises(DataError, match=message):
            load_calibration(None, [IMAGE], recipe(tmp_path, preprocessing=STEPS, calibration=data))


def test_without_data_the_ways_out_are_named(tmp_path: Path) -> None:
    for given, name in ((None, "a model without a recipe"), (recipe(tmp_path), "recipe 'mine'")):
        with pytest.raises(DataError, match=rf"{name} has no calibration data.*--calib data\.npz.*folder.*seeded"):
            load_calibration(None, [IMAGE], given)
    with pytest.raises(DataError, match=r"no calibration data at .*sedeed; give --calib"):
        load_calibration("sedeed", [IMAGE], None)


def test_an_npz_against_a_recipe_is_raw_data_and_against_a_model_is_not(tmp_path: Path) -> None:
    described = recipe(tmp_path, preprocessing=STEPS, evaluation=Evaluation(tmp_path, "", {"image": "pictures"}))
    path = save(tmp_path / "d.npz", 3, labels=np.arange(3))
    found = load_calibration(str(path), [IMAGE], described)
    np.testing.assert_array_equal(joined(found), STEPS.apply(np.load(path)["pictures"]))
    assert found.described == "3 samples of d.npz"
    ready = tmp_path / "ready.npz"
    np.savez(ready, image=np.ones((3, 3, 4, 4), np.float32))
    assert joined(load_calibration(ready, [IMAGE], None)).tolist() == np.ones((3, 3, 4, 4)).tolist()
    with pytest.raises(DataError, match="shape 4x4x3"):
        load_calibration(path, [IMAGE], None)


def test_seeded_data_follow_the_inputs_and_are_the_same_again(tmp_path: Path) -> None:
    drawn = replace(IMAGE, distribution=Distribution("uniform", 5.0, 6.0))
    found, again = (load_calibration("seeded", [drawn], recipe(tmp_path)) for _ in range(2))
    assert (found.samples, found.described) == (32, "32 seeded random samples")
    assert 5 <= joined(found).min() < joined(found).max() <= 6
    np.testing.assert_array_equal(joined(found), joined(again))
    assert load_calibration("seeded", [IMAGE], None, limit=4).samples == 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, each of one colour of its own."""
    for i in range(10):
        place = tmp_path / "photos" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 7, 3), (20 * i, 10, 250), np.uint8)).save(place / f"{i}.png")
    return tmp_path / "photos"


def test_images_are_preprocessed_as_the_recipe_says(folder: Path) -> None:
    found = load_calibration(folder, [IMAGE], recipe(folder, preprocessing=STEPS))
    assert found.described == "10 of the 10 images in photos"
    pixels = joined(found)
    assert (pixels.shape, pixels.dtype) == ((10, 3, 4, 4), np.float32)
    # Sorted by path: class0 holds 0, 2, 4, 6, 8.
    np.testing.assert_allclose(pixels[1, :, 2, 2], [(40 * 0.5 - 1) / 2, (10 * 0.5 - 2) / 4, (250 * 0.5 - 3) / 8])
    as_is = Preprocessing("as-is", STEPS.scale, STEPS.mean, STEPS.std)
    np.testing.assert_array_equal(joined(load_calibration(folder, [IMAGE], recipe(folder, preprocessing=as_is))), pixels)


def test_a_limit_is_spread_evenly(folder: Path) -> None:
    found = load_calibration(folder, [IMAGE], recipe(folder), limit=4)
    assert joined(found)[:, 0, 0, 0].tolist() == [0, 80, 20, 100]
    assert found.described == "4 of the 10 images in photos"


def test_grey_inputs_dynamic_sizes_and_fixed_batches(folder: Path) -> None:
    grey = load_calibration(folder, [TensorSpec("image", ("n", 1, 4, 4))], recipe(folder))
    assert joined(grey).shape == (10, 1, 4, 4)
    free = TensorSpec("image", ("n", 3, "h", "w"))
    found = load_calibration(folder, [free], recipe(folder, preprocessing=Preprocessing(resize=6, crop=(5, 6))))
    assert joined(found).shape == (10, 3, 5, 6)
    with pytest.raises(DataError, match=r"images need a size.*crop"):
        load_calibration(folder, [free], recipe(folder))
    fixed = load_calibration(folder, [TensorSpec("image", (4, 3, 4, 4))], recipe(folder))
    assert [len(batch["image"]) for batch in fixed.batches] == [4, 4]
    with pytest.raises(DataError, match="gives 10 images, a batch of the network 16"):
        load_calibration(folder, [TensorSpec("image", (16, 3, 4, 4))], recipe(folder))


def test_what_images_do_not_fit_is_refused(folder: Path) -> None:
    for inputs in ([IMAGE, IMAGE], [TensorSpec("x", ("n", 7))], [TensorSpec("x", ("n", 4, 8, 8))]):
        with pytest.raises(DataError, match="images fit a network of one input"):
            load_calibration(folder, inputs, recipe(folder))
    with pytest.raises(DataError, match="resizes images to 3, less than the input's 4x4"):
        load_calibration(folder, [IMAGE], recipe(folder, preprocessing=Preprocessing(resize=3)))


def test_batches_and_the_whole_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(batch["image"]) for batch in load_calibration(folder, [IMAGE], recipe(folder)).batches] == [10]
    monkeypatch.setattr(module, "BATCH_BYTES", 3 * 3 * 4 * 4 * 4)
    batches = load_calibration(folder, [IMAGE], recipe(folder)).batches
    assert [len(batch["image"]) for batch in batches] == [3, 3, 3, 1]
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 5 * 3 * 4 * 4 * 4)
    assert load_calibration(folder, [IMAGE], recipe(folder)).samples == 5


@pytest.mark.parametrize("name", ["aff_resnet_digits", "iaff_resnet_digits"])
def test_the_bundled_calibration_data_are_not_the_evaluation_data(name: str) -> None:
    found = load_recipe(bundled_recipes()[name])
    calibration = load_calibration(None, found.inputs, found)
    assert calibration.described == "128 samples of the recipe's calibration data, calibration.npz"
    assert calibration.samples == 128
    assert found.evaluation is not None

    def images(batch: Mapping[str, Any]) -> set[bytes]:
        return {image.tobytes() for image in batch["input"]}

    held_out = load_calibration(found.evaluation.data, found.inputs, found)
    seen = set().union(*(images(batch) for batch in calibration.batches))
    assert seen & set().union(*(images(batch) for batch in held_out.batches)) == set()
