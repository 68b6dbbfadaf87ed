"""The pictures of a batch of regions, for a model that reads pixels itself.

They are decoded and resized by the operations of `data.images`, so every system sees a file alike;
they are neither cropped nor flipped, since boxes are of the whole picture. Letters: B rows, S side
of the result in pixels, Y rows and X columns of a picture.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from twelve_in_one.data.images.letterbox import covered
from twelve_in_one.data.stored.records import DataError, Picture


@dataclasses.dataclass(frozen=True)
class PictureInput:
    """How pictures become a model's pixels.

    Attributes:
      size: S.
      low: value of black.
      high: value of white.
      letterbox: keep the proportions and fill up the square; otherwise squeeze the picture.
    """

    size: int
    low: float = -1.0
    high: float = 1.0
    letterbox: bool = False


def empty_pictures(options: PictureInput, rows: int) -> dict[str, np.ndarray]:
    """`images` float32[B, S, S, 3] and `picture_size` int32[B, 2], for rows without a picture."""
    side = options.size
    return {
        "images": np.zeros((rows, side, side, 3), np.float32),
        "picture_size": np.full((rows, 2), side, np.int32),
    }


def pixels_of(
    options: PictureInput, pictures: Sequence[Picture], where: str
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Pixels float32[S, S, 3], and which rows and columns of them are of the picture.

    A picture that is given several times is decoded once.

    Raises:
      DataError: a picture cannot be decoded.
    """
    import tensorflow as tf

    from twelve_in_one.data.images import ops, pipeline

    made: dict[int, tuple[np.ndarray, tuple[int, int]]] = {}
    for picture in pictures:
        if id(picture) in made:
            continue
        try:
            image = pipeline.decode(tf.constant(picture.data))
        except tf.errors.InvalidArgumentError as error:
            raise DataError(
                f"{where}: its picture cannot be decoded ({error}); build the dataset again"
            ) from error
        if options.letterbox:
            rows, columns, _ = image.shape
            columns, rows = covered((columns, rows), options.size)
            image, size = ops.letterbox(image, options.size), (rows, columns)
        else:
            image, size = ops.resize(image, options.size), (options.size, options.size)
        made[id(picture)] = ops.value_range(image, options.low, options.high).numpy(), size
    return [made[id(picture)] for picture in pictures]
