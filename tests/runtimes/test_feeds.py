"""Seeded data, and data files that nobody vouches for."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aff_deploy.errors import DataError
from aff_deploy.recipe import Preprocessing, Recipe
from aff_deploy.runtimes import check_feeds
from aff_deploy.runtimes.feeds import describe_seeded, load_npz_feeds, seeded_feeds, unknown_ranges
from aff_deploy.spec import Distribution, ShapeProfile, TensorSpec, apply_ranges

IMAGE = TensorSpec("image", ("n", 1, 2, 2))


def recipe(**more: Any) -> Recipe:
    return Recipe(name="r", network="m:f", folder=Path(), inputs=(IMAGE,), **more)


def test_seeded_feeds_are_reproducible_and_fit() -> None:
    specs = (
        TensorSpec("a", ("n", 3, "h"), example=(1, 3, 5)),
        TensorSpec("b", ("n", 4), "int64"),
        TensorSpec("c", ("n", 4), "bool"),
        TensorSpec("d", ("n", "h"), "float16"),
    )
    once, again, other = (seeded_feeds(specs, seed=seed, samples=40) for seed in (0, 0, 1))
    assert [feed["a"].shape for feed in once] == [(1, 3, 5), (3, 3, 5), (32, 3, 5), (4, 3, 5)]
    for left, right in zip(once, again, strict=True):
        check_feeds(specs, left)
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])
    assert not np.array_equal(once[0]["a"], other[0]["a"])
    assert set(np.unique(once[2]["b"])) == {0, 1, 2}


def test_a_fixed_batch_is_repeated() -> None:
    assert [feed["x"].shape for feed in seeded_feeds([TensorSpec("x", (4, 2))], samples=6)] == [(4, 2), (4, 2)]


def test_seeded_feeds_follow_the_recipe() -> None:
    shapes = {"image": (2, 1, 2, 2)}, {"image": (4, 1, 2, 2)}, {"image": (5, 1, 2, 2)}
    drawn = replace(IMAGE, distribution=Distribution("uniform", 5.0, 6.0))
    feeds = seeded_feeds([drawn], samples=50, recipe=recipe(profile=ShapeProfile(*shapes)))
    assert {feed["image"].shape[0] for feed in feeds} == {2, 3, 5}
    assert min(feed["image"].min() for feed in feeds) >= 5
    assert max(feed["image"].max() for feed in feeds) <= 6
    shifted = seeded_feeds([replace(IMAGE, distribution=Distribution("normal", 100.0, 0.1))], samples=50)
    assert abs(shifted[2]["image"].mean() - 100) < 1


def test_uint8_takes_all_that_it_holds_and_other_integers_what_is_said() -> None:
    specs = (TensorSpec("pixels", (64, 64), "uint8"), TensorSpec("ids", (64, 64), "int64"), TensorSpec("q", (64, 64), "int8"))
    drawn = seeded_feeds(specs)[0]
    assert set(np.unique(drawn["pixels"])) == set(range(256))
    assert unknown_ranges(specs) == ("ids", "q")
    assert "'ids', 'q' from 0 to 2 alone: other values are not covered" in describe_seeded(specs)
    said = apply_ranges(specs, ["ids:5:1000", "q:-128:127", "pixels:7:8"])
    drawn = seeded_feeds(said)[0]
    assert (drawn["ids"].min(), drawn["ids"].max()) == (5, 1000)
    assert (drawn["q"].min(), drawn["q"].max()) == (-128, 127)
    assert set(np.unique(drawn["pixels"])) == {7, 8}
    few = seeded_feeds(apply_ranges([TensorSpec("ids", (1, 2), "int64")], ["ids:5:1000"]))[0]["ids"]
    assert few.tolist() == [[5, 1000]]
    assert unknown_ranges(said) == ()
    assert describe_seeded(said) == "seeded"


def test_integers_of_a_normal_distribution_are_rounded_and_fit() -> None:
    spread = TensorSpec("q", (64, 64), "int8", distribution=Distribution("normal", 100.0, 50.0))
    drawn = seeded_feeds([spread])[0]["q"]
    assert drawn.max() == 127
    assert 80 < drawn.mean() < 110
    wide = TensorSpec("q", (9, 9), "int64", distribution=Distribution("normal", 0.0, 1e30))
    assert seeded_feeds([wide])[0]["q"].dtype == np.int64


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_npz_by_name_and_in_batches(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((7, 1, 2, 2), np.float32)
    path = save(tmp_path / "d.npz", image=images, labels=np.arange(7), notes=np.zeros(3))
    feeds = load_npz_feeds(path, [IMAGE], batch=3)
    assert [len(feed["image"]) for feed in feeds] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([feed["image"] for feed in feeds]), images)
    fixed = load_npz_feeds(path, [TensorSpec("image", (2, 1, 2, 2))])
    assert [len(feed["image"]) for feed in fixed] == [2, 2, 2]


def test_npz_of_one_unnamed_array_suits_a_network_of_one_input(tmp_path: Path) -> None:
    images = np.zeros((2, 1, 2, 2), np.float64)
    path = save(tmp_path / "d.npz", arr_0=images, labels=np.arange(2))
    assert load_npz_feeds(path, [IMAGE])[0]["image"].dtype == np.float32
    two = [IMAGE, TensorSpec("other", ("n", 3))]
    with pytest.raises(
        DataError, match=r"no array 'image'; it has arr_0, labels; name the arrays after the inputs: image, other"
    ):
        load_npz_feeds(path, two)
    both = save(tmp_path / "e.npz", a=images, b=images)
    with pytest.raises(DataError, match="no array 'image'"):
        load_npz_feeds(both, [IMAGE])


def test_npz_keys_and_preprocessing(tmp_path: Path) -> None:
    raw = np.full((3, 2, 2, 1), 16, np.uint8)
    path = save(tmp_path / "d.npz", pictures=raw, y=np.arange(3))
    made = Preprocessing(layout="channels-last", scale=1 / 16, mean=(0.5,), std=(0.5,))
    feeds = load_npz_feeds(path, [IMAGE], keys={"image": "pictures"}, preprocessing=made)
    np.testing.assert_allclose(feeds[0]["image"], np.ones((3, 1, 2, 2), np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 1, 3, 2), np.float32), "have shape 1x3x2; expected 1x2x2"),
        (np.zeros((1, 2, 2), np.float32), "have shape 2x2"),
        (np.zeros((0, 1, 2, 2), np.float32), "at least 1"),
        (np.zeros((2, 1, 2, 2), np.uint8), "is uint8; expected float32"),
        (np.full((2, 1, 2, 2), np.nan, np.float32), "not finite"),
        (np.full((2, 1, 2, 2), 1e300), "not finite as float32"),
        (np.zeros((2, 1, 2, 2), np.complex64), "holds complex64, not numbers"),
        (np.array(["a"]), "not numbers"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, array: Any, message: str) -> None:
    path = save(tmp_path / "d.npz", image=array)
    with pytest.raises(DataError, match=message):
        load_npz_feeds(path, [IMAGE])


def test_npz_with_different_numbers_of_samples(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", image=np.zeros((2, 1, 2, 2), np.float32), other=np.zeros((3, 1), np.float32))
    with pytest.raises(DataError, match="image 2, other 3"):
        load_npz_feeds(path, [IMAGE, TensorSpec("other", ("n", 1))])
    with pytest.raises(DataError, match="has 2 samples, a batch of the network 4"):
        load_npz_feeds(path, [TensorSpec("image", (4, 1, 2, 2))])


def test_npz_integers_convert_only_where_they_fit(tmp_path: Path) -> None:
    spec = [TensorSpec("ids", ("n", 2), "uint8")]
    assert load_npz_feeds(save(tmp_path / "a.npz", ids=np.array([[0, 255]])), spec)[0]["ids"].dtype == np.uint8
    with pytest.raises(DataError, match="is int64; expected uint8"):
        load_npz_feeds(save(tmp_path / "b.npz", ids=np.array([[0, 256]])), spec)


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", image=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="not numbers"):
        load_npz_feeds(path, [IMAGE])


def test_npz_sizes_are_bounded_before_they_are_believed(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", image=np.zeros((64, 1, 2, 2), np.float32))
    with pytest.raises(DataError, match=r"unpacks to \d+ bytes; at most 100 are read"):
        load_npz_feeds(path, [IMAGE], max_bytes=100)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**50, 1, 2, 2)})
    hostile = tmp_path / "h.npz"
    with zipfile.ZipFile(hostile, "w") as archive:
        archive.writestr("image.npy", header.getvalue())
    with pytest.raises(DataError, match="more than the file holds"):
        load_npz_feeds(hostile, [IMAGE])


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 40])
def test_npz_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz cannot be read as \.npz"):
        load_npz_feeds(path, [IMAGE])
    with pytest.raises(DataError, match="no such file"):
        load_npz_feeds(tmp_path / "absent.npz", [IMAGE])


def test_npz_truncated_anywhere_is_a_data_error(tmp_path: Path) -> None:
    whole = save(tmp_path / "d.npz", image=np.random.default_rng(0).random((4, 1, 2, 2), np.float32)).read_bytes()
    for cut in range(0, len(whole), 17):
        (tmp_path / "t.npz").write_bytes(whole[:cut])
        with pytest.raises(DataError):
            load_npz_feeds(tmp_path / "t.npz", [IMAGE])


def test_npz_with_flipped_bytes_never_crashes(tmp_path: Path) -> None:
    whole = save(tmp_path / "d.npz", image=np.random.default_rng(0).random((4, 1, 2, 2), np.float32)).read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(150):
        data = bytearray(whole)
        for at in generator.integers(0, len(data), 3):
            data[at] ^= int(generator.integers(1, 256))
        (tmp_path / "f.npz").write_bytes(data)
        try:
            load_npz_feeds(tmp_path / "f.npz", [IMAGE])
        except DataError:
            continue


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1, 2, 2)}"


@pytest.mark.parametrize(
    "header",
    [
        "{'shape': (1,",
        "{[]: 1}",
        HEADER.replace("(4,", "(True,"),
        HEADER.replace("(4,", "(-4,"),
        HEADER.replace("(4,", "('a',"),
        HEADER.replace("(4,", "(4611686018427387904,"),
        HEADER.replace("'<f4'", "'|O'"),
        HEADER.replace("'<f4'", "[('a', '<f4')]"),
        HEADER.replace("'<f4'", "'<c8'"),
        HEADER.replace("'<f4'", "'S1000000000'"),
        "-" * 9000 + "1",
        "(" * 300 + ")" * 300,
        "9" * 5000,
        "import os",
        "\xff{",
    ],
)
def test_npz_headers_that_are_none(tmp_path: Path, header: str) -> None:
    content = f"{header}\n".encode("latin-1")
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(content)) + content + bytes(64))
    with pytest.raises(DataError, match=r"h\.npz cannot be read as \.npz") as caught:
        load_npz_feeds(tmp_path / "h.npz", [IMAGE])
    assert "\n" not in str(caught.value)


def test_an_npz_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "h.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 3 * 10**9) + b" " * 10**6)
    with pytest.raises(DataError, match="reading array header"):
        load_npz_feeds(tmp_path / "h.npz", [IMAGE])
