"""Data that a person names: an .npz or a folder of images, and what is assumed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aff_deploy.errors import DataError
from aff_deploy.recipe import Preprocessing
from aff_deploy.runtimes.data import Data, load_data
from aff_deploy.spec import TensorSpec

IMAGE = TensorSpec("image", ("n", 3, 4, 4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, each of one colour."""
    place = tmp_path / "photos"
    place.mkdir()
    for i in range(5):
        Image.fromarray(np.full((9, 7, 3), (51 * i, 102, 255), np.uint8)).save(place / f"{i}.png")
    return place


def pixels(data: Data) -> Any:
    return np.concatenate([batch["image"] for batch in data.batches])


def test_images_without_a_recipe_are_scaled_to_one_and_that_is_said(folder: Path) -> None:
    data = load_data(folder, [IMAGE])
    np.testing.assert_allclose(pixels(data)[2, :, 0, 0], [0.4, 0.4, 1.0])
    assert data.described == (
        "5 of the 5 images in photos, taken as RGB 4x4, divided by 255, no mean or std"
        " (--scale, --mean and --std say otherwise)"
    )
    assert (data.samples, data.available) == (5, 5)


def test_images_for_integers_stay_as_they_are(folder: Path) -> None:
    data = load_data(folder, [TensorSpec("image", ("n", 3, 4, 4), "uint8")])
    assert pixels(data).dtype == np.uint8
    assert pixels(data)[2, :, 0, 0].tolist() == [102, 102, 255]
    assert "RGB 4x4, values 0 to 255" in data.described
    with pytest.raises(DataError, match="images fit a network of one input"):
        load_data(folder, [TensorSpec("image", ("n", 3, 4, 4), "int8")])


def test_what_is_said_replaces_what_is_assumed_and_the_recipes(folder: Path) -> None:
    said = {"mean": (0.5, 0.5, 0.5), "std": (0.5,)}
    data = load_data(folder, [IMAGE], overrides=said)
    np.testing.assert_allclose(pixels(data)[2, :, 0, 0], [-0.2, -0.2, 1.0], rtol=1e-6)
    assert data.described.endswith("taken as RGB 4x4, divided by 255")
    steps = Preprocessing(scale=1.0, mean=(51.0,))
    data = load_data(folder, [IMAGE], preprocessing=steps, overrides={"scale": 2.0})
    assert pixels(data)[2, :, 0, 0].tolist() == [153, 153, 459]
    assert data.described == "5 of the 5 images in photos"


def test_the_size_is_the_inputs_or_its_examples(folder: Path) -> None:
    free = TensorSpec("image", ("n", 1, "h", "w"), example=(1, 1, 5, 6))
    data = load_data(folder, [free])
    assert pixels(data).shape == (5, 1, 5, 6)
    assert "grey 5x6" in data.described
    with pytest.raises(DataError, match=r"images need a size: input 'image:nx1xhxw:float32' has none; give an \.npz"):
        load_data(folder, [TensorSpec("image", ("n", 1, "h", "w"))])


def test_an_npz_is_taken_as_it_is_unless_something_is_said(tmp_path: Path) -> None:
    raw = np.full((7, 3, 4, 4), 51, np.uint8)
    np.savez(tmp_path / "d.npz", image=raw)
    with pytest.raises(DataError, match="is uint8; expected float32"):
        load_data(tmp_path / "d.npz", [IMAGE])
    data = load_data(tmp_path / "d.npz", [IMAGE], overrides={"scale": 1 / 255}, limit=4)
    np.testing.assert_allclose(pixels(data), 0.2)
    assert (data.samples, data.available, data.described) == (4, 7, "4 of the 7 samples of d.npz")
    assert load_data(tmp_path / "d.npz", [TensorSpec("image", ("n", 3, 4, 4), "uint8")]).described == "7 samples of d.npz"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data at .*absent; give the path of an \.npz file or of a folder of images"):
        load_data(tmp_path / "absent", [IMAGE])
