"""Turns an image into regions: the interface of a detector, and an extractor without learning.

`PixelExtractor` serves when there is no trained detector: candidates from `proposals`,
features from `descriptor`. Any implementation of `RegionExtractor` can replace it.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from twelve_in_one.data.images.load import MIN_SIDE
from twelve_in_one.data.regions.checks import normalised
from twelve_in_one.data.regions.descriptor import FEATURE_DIM, describe_boxes
from twelve_in_one.data.regions.proposals import propose
from twelve_in_one.data.stored.records import Regions


class RegionExtractor(Protocol):
    """Finds regions in images and describes any box. Letters: H, W image; N boxes; F features."""

    @property
    def name(self) -> str:
        """The origin of the features, with its version: stored with every model trained on them.

        Two extractors with one name give the same regions for the same image.
        """

    @property
    def feature_dim(self) -> int:
        """F."""

    @property
    def num_regions(self) -> int:
        """Most regions per image."""

    def extract(self, image: np.ndarray) -> Regions:
        """The regions of an image, uint8[H, W, 3], best first; their features are `describe`'s."""

    def describe(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Features float32[N, F] of boxes float32[N, 4], corners x1, y1, x2, y2 in pixels."""


class Found(NamedTuple):
    """What is in an image. Letter: N regions.

    Attributes:
      regions: boxes and features.
      scores: float32[N], how sure a detector is of the class; 0 if there are no classes.
      names: N names of classes; "" if there are none.
    """

    regions: Regions
    scores: np.ndarray
    names: tuple[str, ...]


@runtime_checkable
class BatchExtractor(RegionExtractor, Protocol):
    """Takes many images at once, in one process."""

    def find(self, images: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, Found | str]]:
        """What is in each of many images, in an order that fills batches.

        Args:
          images: names and uint8[H, W, 3].

        Returns:
          Each name, and what was found, or why nothing can be.
        """

    def describe_each(
        self, images: Iterable[tuple[str, np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[str, np.ndarray | str]]:
        """`describe` for many images, in an order that fills batches.

        Args:
          images: names, uint8[H, W, 3] and boxes float32[N, 4].

        Returns:
          Each name, and float32[N, F], or why there are none.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class PixelExtractor:
    """Regions by rules about pixels; see `proposals.propose` and `descriptor.describe_boxes`.

    Attributes:
      num_regions: how many at most. Pictures of few things on a ground have fewer.
      cluttered: look everywhere, as photos need, not only for things on a ground.
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
        check_image(image)
        boxes = propose(image, self.num_regions, cluttered=self.cluttered)
        height, width = image.shape[:2]
        return Regions(boxes, describe_boxes(image, boxes), width, height)

    def describe(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """See `RegionExtractor`. Boxes are cut at the border of the image.

        Raises:
          ValueError: not uint8[H, W, 3], a side below MIN_SIDE, boxes that are normalised, or one
            that is not finite, has its corners in the wrong order or is outside the image.
        """
        check_image(image)
        return describe_boxes(image, within(boxes, image))


def check_image(image: np.ndarray) -> None:
    """Refuses what is no picture with regions.

    Raises:
      ValueError: not uint8[H, W, 3], or a side below MIN_SIDE.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8[H, W, 3], is {image.dtype}{list(image.shape)}")
    if min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(f"image must have {MIN_SIDE} pixels a side, is {list(image.shape[:2])}")


def within(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """float32[N, 4], boxes cut at the last pixels of the image.

    Raises:
      ValueError: boxes that are normalised, or one that is not finite, has its corners in the wrong
        order or is outside the image.
    """
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
