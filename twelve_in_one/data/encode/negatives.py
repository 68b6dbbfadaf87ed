"""Wrong captions and wrong images for retrieval, drawn per example, hard ones included.

The released code trains on four pairs: the right one, the image with a caption of a random other
image, a random other image with the caption, and the image with the caption of a similar image,
drawn from the 99 nearest training images by mean region feature (12-in-1 section 3.1; the released
pool generator). Letters: n images, F feature size, P pool size.
"""

import dataclasses

import numpy as np

from twelve_in_one.data.stored.records import DataError

POOL_SIZE = 100  # of the released pools; the nearest is the image itself
_BLOCK_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Negatives:
    """Replacements for the right image and caption.

    Attributes:
      caption: example number of a caption of another image.
      image: record position of another image.
      hard_caption: example number of a caption of a similar image (training), or of
        another random image (evaluation).
    """

    caption: int
    image: int
    hard_caption: int


def nearest_pool(mean_features: np.ndarray, size: int = POOL_SIZE) -> np.ndarray:
    """The nearest images of every image by Euclidean distance, nearest first, itself first.

    Exact, in blocks of a bounded size.

    Args:
      mean_features: float[n, F].
      size: P; all n if there are fewer.

    Returns:
      int32[n, min(P, n)].

    Raises:
      DataError: a feature is not finite.
    """
    features = np.asarray(mean_features, np.float32)
    if not np.isfinite(features).all():
        row = int(np.argmax(~np.isfinite(features).all(axis=1)))
        raise DataError(f"mean region feature of image {row} is not finite")
    n = len(features)
    size = min(size, n)
    # |a - b|^2 = |a|^2 - 2ab + |b|^2; centring keeps the rounding of the difference small.
    features = features - features.sum(axis=0, keepdims=True) / max(n, 1)
    squares = np.einsum("nf,nf->n", features, features)
    pool = np.empty((n, size), np.int32)
    for start in range(0, n, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, n))
        distance = squares[None, :] - 2.0 * features[rows] @ features.T
        distance[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argpartition(distance, size - 1, axis=1)[:, :size]
        nearest.sort(axis=1)
        order = np.argsort(np.take_along_axis(distance, nearest, axis=1), axis=1, kind="stable")
        pool[rows] = np.take_along_axis(nearest, order, axis=1)
    return pool


def draw_negatives(
    rng: np.random.Generator, own: int, first_caption: np.ndarray, pool: np.ndarray | None
) -> Negatives:
    """Draws the negatives of one caption of image `own`.

    Args:
      rng: seeded per example, so any worker or host makes the same draw.
      own: position of the image among the n.
      first_caption: int[n + 1], example number of each image's first caption, and the end.
      pool: int32[n, P] from `nearest_pool`, or None for a random image instead.

    Raises:
      DataError: there is no other image.
    """
    num_images = len(first_caption) - 1
    if num_images < 2:
        raise DataError("retrieval needs at least two images")

    def other() -> int:
        drawn = int(rng.integers(num_images - 1))
        return drawn + (drawn >= own)

    def caption_of(image: int) -> int:
        return int(rng.integers(first_caption[image], first_caption[image + 1]))

    caption = caption_of(other())
    image = other()
    alike = other() if pool is None else int(pool[own, 1 + rng.integers(pool.shape[1] - 1)])
    return Negatives(caption, image, caption_of(alike))
