"""What turns an image into regions: the interface of a detector, and one that learns nothing.

`PixelExtractor` stands in where no trained detector is at hand: candidates from `proposals`,
features from `descriptor`. Whatever implements `RegionExtractor` can take its place.
"""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from twelve_in_one.data.regions.checks import normalised
from twelve_in_one.data.regions.descriptor import FEATURE_DIM, describe_boxes
from twelve_in_one.data.regions.proposals import propose
from twelve_in_one.data.stored.records import DataError, Regions

MIN_SIDE = 16  # pixels; of anything smaller no regions can be told apart
MAX_PIXELS = 64_000_000  # decoded, that is 192 MB
_ORIENTATION, _FIRST_QUARTER_TURN = 0x0112, 5  # EXIF tag, and its least value that turns by 90°


class RegionExtractor(Protocol):
    """Finds regions in images and describes any box. Letters: H, W image; N boxes; F features."""

    @property
    def name(self) -> str:
        """What made the features, its version included: stored beside whatever is trained on them.

        Two extractors of one name give the same regions for the same image.
        """

    @property
    def feature_dim(self) -> int:
        """F."""

    @property
    def num_regions(self) -> int:
        """How many regions an image has at most."""

    def extract(self, image: np.ndarray) -> Regions:
        """The regions of an image, uint8[H, W, 3], best first; their features are `describe`'s."""

    def describe(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Features float32[N, F] of boxes float32[N, 4], corners x1, y1, x2, y2 in pixels."""


@dataclasses.dataclass(frozen=True, slots=True)
class PixelExtractor:
    """Regions by rules about pixels; see `proposals.propose` and `descriptor.describe_boxes`.

    Attributes:
      num_regions: how many at most. Pictures of few things on a ground have fewer.
      cluttered: look everywhere, as photos need, not only for things that lie on a ground.
    """

    num_regions: int = 16
    cluttered: bool = False

    def __post_init__(self):
        if self.num_regions < 1:
            raise ValueError(f"num_regions must be positive, is {self.num_regions}")

    @property
    def name(self) -> str:
        return f"pixels-1-{'cluttered' if self.cluttered else 'ground'}-{self.num_regions}"

    @property
    def feature_dim(self) -> int:
        return FEATURE_DIM

    def extract(self, image: np.ndarray) -> Regions:
        """See `RegionExtractor`; without class probabilities.

        Raises:
          ValueError: not uint8[H, W, 3], or a side below MIN_SIDE.
        """
        _check_image(image)
        boxes = propose(image, self.num_regions, cluttered=self.cluttered)
        height, width = image.shape[:2]
        return Regions(boxes, describe_boxes(image, boxes), width, height)

    def describe(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """See `RegionExtractor`. What reaches beyond the image is cut off.

        Raises:
          ValueError: not uint8[H, W, 3], a side below MIN_SIDE, boxes that are normalised, or one
            that is not finite, has its corners in the wrong order or lies outside the image.
        """
        _check_image(image)
        return describe_boxes(image, _within(boxes, image))


def load_image(path: Path, *, upright: bool = True) -> np.ndarray:
    """An image file as uint8[H, W, 3], sRGB.

    Of animations the first picture is taken; colours are those of `rgb_array`.

    Args:
      path: of the file.
      upright: turned as its EXIF data say, or as it is stored.

    Raises:
      DataError: missing, no image, truncated, smaller or larger than can be used, or of values in
        no known range.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {width} x {height} pixels; sides must have {MIN_SIDE} pixels at "
                    f"least, all together {MAX_PIXELS:,} at most: leave it out or resize it"
                )
            return rgb_array(picture, upright=upright)
    except DataError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: no such file") from error
    except Exception as error:  # decoders fail on strangers' bytes with whatever they trip over
        raise DataError(f"{path}: cannot be read as an image: {error}; replace it") from error


def orientation(path: Path) -> int:
    """How EXIF data say that a file is to be turned, 1 (as it is) to 8; 1 where they do not.

    From 5 on, width and height are exchanged.
    """
    try:
        with Image.open(path) as picture:
            value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # see `load_image`, which says what is wrong
        return 1
    return value if value in range(1, 9) else 1


def means_stored(path: Path, size: tuple[int, int], has_boxes: bool) -> bool:
    """Whether what others state of a picture is about the file as it is stored, not as it is seen.

    The frame whose size they state is meant. Where both frames have the same size, as after half a
    turn or in a mirror, or none is stated, boxes are of the stored one: annotation tools ignore
    EXIF data.

    Args:
      path: of the file.
      size: stated width and height, 0 where unknown.
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
    255 are taken as they are, up to 65,535 they lose the lower eight bits; fractions are from 0 to
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
    """uint8[H, W] of numbers whose range tells what white is."""
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu"
    if low >= 0 and high <= 255:
        scale = 1 if whole or high > 1 else 255
        return np.rint(values * scale).astype(np.uint8)
    if whole and low >= 0 and high <= 65_535:
        return (values.astype(np.int64) >> 8).astype(np.uint8)
    known = "0 to 255 or 65535" if whole else "0 to 1 or 255"
    raise ValueError(f"values from {low:g} to {high:g} are not {known}: convert it to 8 bits")


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8[H, W, 3], is {image.dtype}{list(image.shape)}")
    if min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(f"image must have {MIN_SIDE} pixels a side, is {list(image.shape[:2])}")


def _within(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """float32[N, 4], boxes cut at the last pixels of the image."""
    boxes = np.asarray(boxes, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), have {boxes.shape}")
    height, width = image.shape[:2]
    if problem := normalised(boxes, width, height):
        raise ValueError(problem)
    last = np.array((width - 1, height - 1), np.float32)
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(boxes).all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1)
        usable &= (boxes[:, :2] < last + 1).all(1) & (boxes[:, 2:] >= 0).all(1)
    if not usable.all():
        row = int(np.argmin(usable))
        raise ValueError(
            f"box {row} {boxes[row].tolist()} must be x1 <= x2, y1 <= y2 in pixels of an image "
            f"{width} wide and {height} high"
        )
    return np.clip(boxes, 0, np.tile(last, 2))
