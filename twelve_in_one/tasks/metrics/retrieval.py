"""Ranks and recall of image retrieval by caption and of caption retrieval by image.

Inputs are a full score matrix and the image of every caption; outputs are ranks (from 0) and their
summary (recall in percent, median and mean rank from 1). Letters: N captions, M images.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

# Scores compared at a time. 25,000 x 5,000 comparisons at once would take several times 125 MB.
_BLOCK_SCORES = 1 << 22


class TextToImageRanks(NamedTuple):
    """Place of each caption's image among all images, counted from 0.

    Attributes:
      ahead: int64[N], images scored strictly above the right one: the best case of all tie orders.
      tied: int64[N], other images with exactly its score; `ahead + tied` is the worst case.
      stable: int64[N], place when ties keep the order of the images.
    """

    ahead: np.ndarray
    tied: np.ndarray
    stable: np.ndarray


class ImageToTextRanks(NamedTuple):
    """Place of the best of each image's captions among all captions, counted from 0.

    Attributes:
      ahead: int64[M], captions scored strictly above the best right one: the best case of all tie
        orders.
      worst: int64[M], place when every wrong caption that ties with it goes first.
      stable: int64[M], place when ties keep the order of the captions.
    """

    ahead: np.ndarray
    worst: np.ndarray
    stable: np.ndarray


def text_to_image_ranks(scores: Any, image_of_caption: Any) -> TextToImageRanks:
    """Ranks every caption's image among all images, highest score first.

    The official evaluation sorts with an unstable algorithm, so with tied scores its ranks are
    anywhere from `ahead` to `ahead + tied`; without ties all orders agree. A constant model gets
    rank 0 everywhere under `ahead`: report `stable`.

    Args:
      scores: real[N, M], score of every caption with every image. A memory-mapped array is read
        block by block.
      image_of_caption: int[N], column of the image that the caption describes.

    Returns:
      TextToImageRanks.

    Raises:
      ValueError: a shape does not fit, a score is NaN, or an image index is out of range.
    """
    scores, image_of_caption = _checked(scores, image_of_caption)
    columns = np.arange(scores.shape[1])
    ranks = TextToImageRanks(*(np.empty(len(scores), np.int64) for _ in range(3)))
    for rows, block in _blocks(scores):
        image = image_of_caption[rows, None]
        right = np.take_along_axis(block, image, axis=1)
        equal = block == right
        ranks.ahead[rows] = (block > right).sum(axis=1)
        ranks.tied[rows] = equal.sum(axis=1) - 1
        equal &= columns < image
        ranks.stable[rows] = ranks.ahead[rows] + equal.sum(axis=1)
    return ranks


def image_to_text_ranks(scores: Any, image_of_caption: Any) -> ImageToTextRanks:
    """Ranks the best of every image's captions among all captions, highest score first.

    The paper and the official code retrieve images only; this is the usual counterpart.

    Args:
      scores: real[N, M], score of every caption with every image.
      image_of_caption: int[N], column of the image that the caption describes.

    Returns:
      ImageToTextRanks.

    Raises:
      ValueError: a shape does not fit, a score is NaN, an image index is out of range, or an image
        has no caption.
    """
    scores, image_of_caption = _checked(scores, image_of_caption)
    num_captions, num_images = scores.shape
    bare = np.flatnonzero(np.bincount(image_of_caption, minlength=num_images) == 0)
    if bare.size:
        raise ValueError(
            f"image (column) {bare[0]} has no caption in image_of_caption ({bare.size} such "
            "images): leave such columns out to rank captions by image"
        )

    own = scores[np.arange(num_captions), image_of_caption]
    _refuse_nan(own[:, None], 0, image_of_caption)
    best = np.full(num_images, -np.inf)
    np.maximum.at(best, image_of_caption, own.astype(np.float64))
    best = best.astype(scores.dtype)  # Exact, and keeps the blocks' comparisons in their dtype.
    best_rows = np.flatnonzero(own == best[image_of_caption])
    first_row = np.full(num_images, num_captions)
    np.minimum.at(first_row, image_of_caption[best_rows], best_rows)

    ahead = np.zeros(num_images, np.int64)
    equal_before = np.zeros(num_images, np.int64)
    # An image's own captions that reach its best score do not delay it: start below zero.
    wrong_equal = -np.bincount(image_of_caption[best_rows], minlength=num_images)
    for rows, block in _blocks(scores):
        equal = block == best
        ahead += (block > best).sum(axis=0)
        wrong_equal += equal.sum(axis=0)
        equal &= np.arange(rows.start, rows.stop)[:, None] < first_row
        equal_before += equal.sum(axis=0)
    return ImageToTextRanks(ahead, ahead + wrong_equal, ahead + equal_before)


def recall_at_k(ranks: Any, k: int) -> float:
    """Share of ranks below k, in percent.

    Args:
      ranks: int[Q], ranks counted from 0.
      k: how many places count as found.

    Returns:
      The recall in percent.

    Raises:
      ValueError: there is no rank, a rank is negative, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return 100.0 * float(np.mean(_checked_ranks(ranks) < k))


def summarise(ranks: Any, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Summarises ranks like the official retrieval evaluation.

    Args:
      ranks: int[Q], ranks counted from 0.
      ks: the k of every recall wanted.

    Returns:
      {"r1", "r5", "r10"} (for the given ks) in percent, and "median_rank" and "mean_rank" counted
      from 1; a median between two ranks is rounded down.

    Raises:
      ValueError: there is no rank, a rank is negative, or a k is below 1.
    """
    ranks = _checked_ranks(ranks)
    recalls = {f"r{k}": recall_at_k(ranks, k) for k in ks}
    return recalls | {
        "median_rank": float(np.floor(np.median(ranks) + 1)),
        "mean_rank": float(np.mean(ranks) + 1),
    }


def _checked_ranks(ranks: Any) -> np.ndarray:
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not ranks.size:
        raise ValueError(f"ranks must be a non-empty vector, got shape {ranks.shape}")
    if ranks.min() < 0:
        raise ValueError(f"ranks count from 0, got {ranks.min()} at {ranks.argmin()}")
    return ranks


def _checked(scores: Any, image_of_caption: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, image_of_caption = np.asarray(scores), np.asarray(image_of_caption)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(
            f"scores must be a non-empty [captions, images] matrix, got shape {scores.shape}"
        )
    if image_of_caption.shape != scores.shape[:1]:
        raise ValueError(
            f"image_of_caption must hold one index for each of the {len(scores)} score rows, got "
            f"shape {image_of_caption.shape}"
        )
    if not np.issubdtype(image_of_caption.dtype, np.integer):
        raise ValueError(f"image_of_caption must hold integers, got {image_of_caption.dtype}")
    bad = np.flatnonzero((image_of_caption < 0) | (image_of_caption >= scores.shape[1]))
    if bad.size:
        raise ValueError(
            f"image_of_caption[{bad[0]}] is {image_of_caption[bad[0]]}, but the score columns are "
            f"0 to {scores.shape[1] - 1} ({bad.size} such rows)"
        )
    return scores, image_of_caption.astype(np.int64)


def _blocks(scores: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Cuts the matrix into blocks of rows, refusing NaN on the way."""
    num_rows = max(1, _BLOCK_SCORES // scores.shape[1])
    for start in range(0, len(scores), num_rows):
        rows = slice(start, min(start + num_rows, len(scores)))
        block = scores[rows]
        _refuse_nan(block, start)
        yield rows, block


def _refuse_nan(block: np.ndarray, start: int, columns: np.ndarray | None = None) -> None:
    """Raises for a NaN in rows from `start` on; `columns` names the only column given per row."""
    is_nan = np.isnan(block)
    if is_nan.any():
        row, column = np.argwhere(is_nan)[0]
        column = column if columns is None else columns[row]
        raise ValueError(
            f"scores[{start + row}, {column}] (caption row, image column) is NaN: ranks are "
            "undefined; check the model's outputs"
        )
