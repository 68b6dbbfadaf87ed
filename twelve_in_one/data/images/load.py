"""Strangers' image files as pixels: the only way in, for training, evaluation and prediction.

Animations give their first picture, grey pictures get three equal channels, transparent ones a
white background; any other picture is converted to eight-bit sRGB, or an error says why it cannot
be.
"""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from twelve_in_one.data.stored.records import DataError

MIN_SIDE = 16  # pixels; regions cannot be told apart in anything smaller
MAX_PIXELS = 64_000_000  # decoded, that is 192 MB
_ORIENTATION, _FIRST_QUARTER_TURN = 0x0112, 5  # EXIF tag, and its smallest value that turns by 90°
_SHOWN_BYTES = 16


def load_image(path: Path, *, upright: bool = True, min_side: int = MIN_SIDE) -> np.ndarray:
    """An image file as uint8[H, W, 3], sRGB.

    Animations give their first picture; colours are those of `rgb_array`.

    Args:
      path: of the file.
      upright: turned as its EXIF data say, or as it is stored.
      min_side: smallest side, in pixels.

    Raises:
      DataError: missing, not an image, truncated, too small or too large, or with values in
        no known range.
    """
    return load_bytes(read_file(path), str(path), upright=upright, min_side=min_side)


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
      DataError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | IsADirectoryError)
        why = "no such file" if missing else f"cannot be read: {error}"
        raise DataError(f"{path}: {why}") from error


def load_bytes(
    data: bytes, where: str, *, upright: bool = True, min_side: int = MIN_SIDE
) -> np.ndarray:
    """Like `load_image`, for the bytes of a file; `where` begins the error's message."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            if not is_usable_size(width, height, min_side):
                raise DataError(
                    f"{where}: {width} x {height} pixels; sides must have {min_side} pixels at "
                    f"least, all together {MAX_PIXELS:,} at most: leave it out or resize it"
                )
            return rgb_array(picture, upright=upright)
    except DataError:
        raise
    except Exception as error:  # decoders raise any kind of error on strangers' bytes
        why = _no_image(data) if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{where}: cannot be read as an image: {why}; replace it") from error


def is_usable_size(width: int, height: int, min_side: int = MIN_SIDE) -> bool:
    """Returns whether `load_image` accepts pictures of this size."""
    return min(width, height) >= min_side and width * height <= MAX_PIXELS


def _no_image(data: bytes) -> str:
    """Describes a file that is not an image."""
    begin = data[:_SHOWN_BYTES]
    if not begin:
        return "it is empty"
    page = begin.lstrip().lower().startswith((b"<!doctype html", b"<html"))
    return f"it {'is a web page and ' if page else ''}begins with {begin!r}"


def orientation(file: Path | BinaryIO) -> int:
    """EXIF orientation of a picture, 1 (as it is) to 8; 1 if there is none.

    From 5 on, width and height are exchanged.
    """
    try:
        with Image.open(file) as picture:
            value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # `load_image` reports the fault
        return 1
    return value if value in range(1, 9) else 1


def means_stored(path: Path, size: tuple[int, int], has_boxes: bool) -> bool:
    """Returns whether stated sizes and boxes are about the file as stored, not as seen.

    The frame with the stated size is meant. If both frames have the same size, as after half a
    turn or a reflection, or no size is stated, boxes are in the stored frame: annotation tools
    ignore EXIF data.

    Args:
      path: of the file.
      size: stated width and height, 0 if unknown.
      has_boxes: whether there are boxes.
    """
    if (turned := orientation(path)) == 1:
        return False
    with Image.open(path) as picture:
        stored = picture.size
    upright = stored[::-1] if turned >= _FIRST_QUARTER_TURN else stored
    if stored != upright and size in (stored, upright):
        return size == stored
    return has_boxes


def rgb_array(picture: Image.Image, *, upright: bool = True) -> np.ndarray:
    """A picture as uint8[H, W, 3], sRGB.

    Grey pictures get three equal channels, transparent ones a white background. Whole numbers up to
    255 are kept, those up to 65,535 lose their lower eight bits; fractions range from 0 to
    1, or to 255.

    Args:
      picture: of any mode.
      upright: turned as its EXIF data say, or as it is stored.

    Raises:
      ValueError: numbers in no such range.
    """
    if upright:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        return np.repeat(_grey(np.asarray(picture))[..., None], 3, axis=-1)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def _grey(values: np.ndarray) -> np.ndarray:
    """uint8[H, W] from numbers whose range tells the value of white."""
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu"
    if low >= 0 and high <= 255:
        scale = 1 if whole or high > 1 else 255
        return np.rint(values * scale).astype(np.uint8)
    if whole and low >= 0 and high <= 65_535:
        return (values.astype(np.int64) >> 8).astype(np.uint8)
    known = "0 to 255 or 65535" if whole else "0 to 1 or 255"
    raise ValueError(f"values from {low:g} to {high:g} are not {known}: convert it to 8 bits")
