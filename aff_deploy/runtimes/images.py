"""A folder of image files as raw data: found, scaled and cut the way ImageNet networks are evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aff_deploy.artifact import is_input, open_input
from aff_deploy.errors import DataError, MissingDependency
from aff_deploy.runtimes import Array

MAX_IMAGE_BYTES = 2**28
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Others may start a program: Pillow hands PostScript to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
# Pixels of other modes (16 bits, floats) have no agreed way down to 8 bits.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def find_images(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted by path; hidden ones are left out.

    Raises:
        DataError: there is none.
    """
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and is_input(path)
    ]
    if not found:
        raise DataError(f"{folder} holds no image", fix=f"images end in {', '.join(SUFFIXES)}; they may lie in subfolders")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_images(files: Sequence[Path], *, height: int, width: int, channels: int, resize: int = 0) -> Array:
    """Images as raw data.

    Each is scaled (bilinear, with antialiasing) so that its short side has `resize` pixels, or without it just covers
    the cut, and `height` x `width` pixels are cut from its centre.

    Args:
        files: image files.
        height, width: of the result, in pixels.
        channels: 3 for RGB, 1 for grey.
        resize: short side in pixels, no smaller than height and width; 0 for what just covers them.

    Returns:
        uint8, len(files) x height x width x channels.

    Raises:
        DataError: naming each file that cannot be read (the first three).
        MissingDependency: Pillow is not installed.
    """
    pillow = _import_pillow()
    pixels = np.empty((len(files), height, width, channels), np.uint8)
    failed = []
    for position, path in enumerate(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # It only warns of an image that is a thousand times what its file holds.
                warnings.simplefilter("error", pillow.DecompressionBombWarning)
                pixels[position] = _read(pillow, path, height, width, channels, resize)
        except (Exception, pillow.DecompressionBombWarning) as error:  # decoders raise whatever they meet
            reason = " ".join(str(error).replace(str(path), "it").split()) or type(error).__name__
            failed.append(f"{path} ({reason})")
    if failed:
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise DataError(f"cannot read {', '.join(failed[:3])}{more}", fix="remove them from the folder, or convert them")
    return pixels


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependency("reading images needs Pillow, which is not installed", extra="images") from None
    return Image


def _read(pillow: Any, path: Path, height: int, width: int, channels: int, resize: int) -> Array:
    with open_input(path, error=DataError, most=MAX_IMAGE_BYTES) as file, pillow.open(file, formats=FORMATS) as image:
        if image.mode not in MODES:
            raise ValueError(f"its pixels are of mode {image.mode}, not 8 bits a channel")
        image = image.convert("L" if channels == 1 else "RGB")
    across, down = image.size
    factor = resize / min(across, down) if resize else max(height / down, width / across)
    # Truncated, as torchvision's Resize does; never below the cut, whose side may be the long one by a rounding.
    size = max(int(across * factor), width), max(int(down * factor), height)
    image = image.resize(size, pillow.Resampling.BILINEAR)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    cut = np.asarray(image.crop((left, top, left + width, top + height)))
    return cut.reshape(height, width, channels)
