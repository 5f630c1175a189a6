"""Folders of images: found in order, scaled and cut as said, and whatever is unreadable named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aff_deploy.errors import DataError, MissingDependency
from aff_deploy.runtimes.images import find_images, read_images


def save(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def test_images_are_found_at_any_depth_in_order_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a/z.jpg", "c.webp", "d.bmp", ".hidden/e.png", "b/._2.png"):
        save(tmp_path / name, np.zeros((2, 2, 3)), format="PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == [
        "a/z.jpg",
        "b/10.PNG",
        "b/2.png",
        "c.webp",
        "d.bmp",
    ]
    with pytest.raises(DataError, match=r"folder.png holds no image; images end in \.jpg"):
        find_images(tmp_path / "folder.png")


def test_every_format_is_read(tmp_path: Path) -> None:
    pixels = np.full((6, 6, 3), (200, 100, 40))
    for suffix in ("jpg", "png", "bmp", "webp"):
        found = read_images([save(tmp_path / f"i.{suffix}", pixels)], height=6, width=6, channels=3)
        assert (found.shape, found.dtype) == ((1, 6, 6, 3), np.uint8)
        assert np.abs(found.astype(int) - pixels).max() <= 6, suffix


def test_the_centre_is_cut_and_nothing_scaled_that_fits(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3))
    path = save(tmp_path / "i.png", pixels)
    np.testing.assert_array_equal(read_images([path], height=8, width=8, channels=3)[0], pixels[:, 2:10])
    np.testing.assert_array_equal(read_images([path], height=4, width=6, channels=3, resize=8)[0], pixels[2:6, 3:9])


def test_the_short_side_is_scaled(tmp_path: Path) -> None:
    ramp = np.repeat(np.tile(np.arange(0, 200, 2), (50, 1))[..., None], 3, axis=2)
    path = save(tmp_path / "wide.png", ramp)
    found = read_images([path], height=25, width=25, channels=3, resize=25)[0].astype(int)
    # Half the size, so that neighbours differ by 4, and the middle quarter of 0 to 198.
    assert np.abs(np.diff(found[12, 1:-1, 0]) - 4).max() <= 1
    assert abs(found[12, 12, 0] - 99) <= 3
    tall = read_images([save(tmp_path / "tall.png", ramp.transpose(1, 0, 2))], height=25, width=25, channels=3, resize=25)[0]
    np.testing.assert_array_equal(tall, found.transpose(1, 0, 2))
    # Odd sizes whose long side would round to less than the cut.
    assert read_images([path], height=333, width=666, channels=3).shape == (1, 333, 666, 3)


def test_grey_and_colour_convert(tmp_path: Path) -> None:
    grey, colour = save(tmp_path / "g.png", np.full((4, 4), 7)), save(tmp_path / "c.png", np.full((4, 4, 3), (255, 0, 0)))
    assert read_images([grey], height=4, width=4, channels=3).tolist() == np.full((1, 4, 4, 3), 7).tolist()
    found = read_images([grey, colour], height=4, width=4, channels=1)
    assert found.shape == (2, 4, 4, 1)
    assert found[1, 0, 0, 0] == 76  # ITU-R 601: 0.299 of red
    palette = Image.fromarray(np.full((4, 4, 3), 51, np.uint8)).convert("P")
    palette.save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert read_images([tmp_path / "p.png"], height=4, width=4, channels=3)[0, 0, 0].tolist() == [51, 51, 51]


def test_unreadable_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "good.png", np.zeros((4, 4, 3)))
    (tmp_path / "text.jpg").write_text("no image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3))).read_bytes()[:900])
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep)
    with pytest.raises(DataError) as caught:
        read_images([good, tmp_path / "text.jpg", cut, deep, tmp_path / "absent.png"], height=4, width=4, channels=3)
    message = str(caught.value)
    for part in ("text.jpg (cannot identify", "cut.png (", "deep.png (its pixels are of mode I;16", "and 1 more", "; remove"):
        assert part in message
    assert "good" not in message
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"good\.png \(.*decompression bomb"):
        read_images([good], height=4, width=4, channels=3)


def test_without_pillow_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependency, match=r"Pillow.*pip install 'aff-deploy\[images\]'"):
        read_images([], height=4, width=4, channels=3)


def test_no_format_that_starts_a_program_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript, whatever its file is called, to Ghostscript."""
    ghostscript = tmp_path / "bin/gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:/usr/bin:/bin")
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(DataError, match=r"a\.png \(cannot identify image file"):
        read_images([tmp_path / "a.png"], height=8, width=8, channels=3)
    assert not (tmp_path / "ran").exists()
