"""IoU with inclusive pixels, box-location features and referring-expression accuracy.

Inputs are boxes (x1, y1, x2, y2) in pixels and region scores; outputs are overlaps, training
targets, features and decisions. Letters: B rows, R regions.
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from twelve_in_one.tasks.metrics.choices import checked_mask, masked_argmax


class ReferringResult(NamedTuple):
    """The choice for each expression.

    Attributes:
      selected: int64[B], region of the highest score.
      iou: float[B], its IoU with the reference box; NaN where both are empty.
      correct: bool[B], whether that IoU is above one half.
    """

    selected: np.ndarray
    iou: np.ndarray
    correct: np.ndarray


def corners_from_xywh(boxes: Any, xp: ModuleType = np) -> Any:
    """Turns (x, y, width, height) into corners (x, y, x + width, y + height).

    Nothing is subtracted for inclusive pixels, as in the official code: a 10 pixel wide annotated
    box is 11 wide for `iou`.

    Args:
      boxes: float[..., 4].
      xp: numpy or jax.numpy.

    Returns:
      float[..., 4].
    """
    boxes = xp.asarray(boxes)
    return xp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def iou(boxes: Any, others: Any, xp: ModuleType = np) -> Any:
    """Intersection over union of boxes that include their borders (official code).

    A side is x2 - x1 + 1 long, so boxes that share an edge overlap by one pixel and a gap below one
    pixel still counts as overlap. Coordinates are original-image pixels, not shares of the image.

    Args:
      boxes: real[..., 4], corners.
      others: real[..., 4], corners; leading axes broadcast against those of `boxes`.
      xp: numpy or jax.numpy; with jax.numpy this may be traced.

    Returns:
      float32[...] (float64 if an input is), the IoU; NaN where both boxes are empty.
    """
    boxes, others = _as_float("boxes", boxes, xp), _as_float("others", others, xp)
    low = xp.maximum(boxes[..., :2], others[..., :2])
    high = xp.minimum(boxes[..., 2:], others[..., 2:])
    sides = xp.maximum(high - low + 1, 0)
    shared = sides[..., 0] * sides[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared / (_area(boxes) + _area(others) - shared)


def iou_matrix(boxes: Any, others: Any, xp: ModuleType = np) -> Any:
    """`iou` of every box with every other box.

    Args:
      boxes: real[..., P, 4], corners.
      others: real[..., Q, 4], corners.
      xp: numpy or jax.numpy.

    Returns:
      float[..., P, Q].
    """
    boxes, others = xp.asarray(boxes), xp.asarray(others)
    return iou(boxes[..., :, None, :], others[..., None, :, :], xp)


def region_target(overlap: Any, threshold: float = 0.5, xp: ModuleType = np) -> Any:
    """Training target of regions: their IoU with the reference box, 0 below the threshold.

    Exactly the threshold is kept, unlike in `referring_accuracy`, and so is NaN (official code).

    Args:
      overlap: float[...], from `iou`.
      threshold: the smallest IoU to keep.
      xp: numpy or jax.numpy.

    Returns:
      float[...], of the dtype of `overlap`.
    """
    overlap = xp.asarray(overlap)
    return xp.where(overlap < threshold, xp.zeros_like(overlap), overlap)


def is_right(overlap: Any) -> Any:
    """Whether a region is the target: IoU strictly above one half (REFER).

    Args:
      overlap: real[...], from `iou`; NaN, from empty boxes, is not right.

    Returns:
      bool[...].
    """
    return overlap > 0.5


def box_location(boxes: Any, width: Any, height: Any) -> np.ndarray:
    """Location features that accompany region features (ViLBERT).

    Args:
      boxes: real[..., R, 4], corners in pixels.
      width: real[...], image width in pixels.
      height: real[...], image height in pixels.

    Returns:
      float32[..., R, 5]: x1 / width, y1 / height, x2 / width, y2 / height and the share of the
      image's area, here (x2 - x1)(y2 - y1) without the extra pixel of `iou`.

    Raises:
      ValueError: the boxes do not end in 4 coordinates, or a size is not positive.
    """
    boxes = _checked_boxes("boxes", boxes)
    width, height = (np.asarray(size, np.float64)[..., None] for size in (width, height))
    for name, size in (("width", width), ("height", height)):
        if not (size > 0).all():
            raise ValueError(f"image {name} must be positive pixels, got {size[~(size > 0)][0]}")
    x1, y1, x2, y2 = np.moveaxis(boxes.astype(np.float64), -1, 0)
    area_share = (x2 - x1) * (y2 - y1) / (width * height)
    features = [x1 / width, y1 / height, x2 / width, y2 / height, area_share]
    return np.stack(features, axis=-1).astype(np.float32)


def referring_result(
    scores: Any, boxes: Any, reference: Any, region_mask: Any, row_mask: Any = None
) -> ReferringResult:
    """Selects a region for every expression and compares it with the reference box.

    Args:
      scores: real[B, R], region scores without any additive mask.
      boxes: real[B, R, 4], corners of the regions.
      reference: real[B, 4], corners of the annotated box.
      region_mask: bool[B, R], True for regions that may be selected.
      row_mask: bool[B], False for padding rows, which count as not correct; all True if None.

    Returns:
      ReferringResult. Among equal scores the first region is selected. Correct means an IoU
      strictly above one half, so neither exactly one half nor NaN is.

    Raises:
      ValueError: a shape does not fit, a score that counts is NaN, or a row has no region.
    """
    selected = masked_argmax("scores", scores, region_mask, row_mask)
    shape = np.shape(scores)
    boxes, reference = _checked_boxes("boxes", boxes), _checked_boxes("reference", reference)
    for name, got, expected in (
        ("boxes", boxes.shape, (*shape, 4)),
        ("reference", reference.shape, (shape[0], 4)),
    ):
        if got != expected:
            raise ValueError(f"{name} must have shape {expected} to fit scores {shape}, got {got}")
    selected_boxes = np.take_along_axis(boxes, selected[:, None, None], axis=1)[:, 0]
    overlap = iou(selected_boxes, reference)
    return ReferringResult(
        selected, overlap, is_right(overlap) & checked_mask("row_mask", row_mask, shape[:1])
    )


def referring_accuracy(
    scores: Any, boxes: Any, reference: Any, region_mask: Any, row_mask: Any = None
) -> tuple[int, int]:
    """Counts the expressions whose selected region is right; see `referring_result`.

    Returns:
      Number of correct rows and number of rows, padding rows left out.
    """
    result = referring_result(scores, boxes, reference, region_mask, row_mask)
    counted = checked_mask("row_mask", row_mask, result.correct.shape)
    return int(result.correct.sum()), int(counted.sum())


def _as_float(name: str, boxes: Any, xp: ModuleType) -> Any:
    """Boxes as float32 or float64: small integers would wrap and half floats overflow in areas."""
    boxes = _checked_boxes(name, boxes, xp)
    return boxes if boxes.dtype == np.float64 else boxes.astype(np.float32)


def _area(boxes: Any) -> Any:
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def _checked_boxes(name: str, boxes: Any, xp: ModuleType = np) -> Any:
    boxes = xp.asarray(boxes)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{name} must end in 4 corner coordinates, got shape {boxes.shape}")
    return boxes
