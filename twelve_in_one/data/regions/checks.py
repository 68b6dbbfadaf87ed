"""Reports faults in stored regions: sizes, values, invalid or misplaced boxes.

Regions from stores go in; the same regions, or messages that name store, image and value, come out.
"""

from collections.abc import Callable, Iterable

import numpy as np

from twelve_in_one.data.regions.store import RegionStore
from twelve_in_one.data.stored.records import AnnotatedImage, DataError, Regions
from twelve_in_one.tasks.metrics.boxes import corners_from_xywh, iou, iou_matrix

# Detectors clip boxes to the last pixel's centre or to its far edge, and round.
_SLACK = 1.0
_MIN_ANNOTATED_IOU = 0.9
_PROB_TOLERANCE = 0.02
# More than this share of boxes in x, y, width, height are invalid if read as corners.
_MIN_EMPTY_SHARE = 0.2
# Boxes of detectors that give shares of the picture leave it by at most this.
_UNIT_SLACK = 0.01
_TINY_PICTURE = 2  # pixels; boxes of one pixel are normal in pictures this small
# Damaged values may be so large that areas and sums overflow, which needs no separate warning.
_QUIETLY = np.errstate(over="ignore", invalid="ignore")
_CONVERT = "looks like x, y, width, height: store x1, y1, x + width, y + height instead"


@_QUIETLY
def normalised(boxes: np.ndarray, width: int, height: int) -> str:
    """Describes the fault of boxes given as shares of a picture's size, not in pixels.

    Args:
      boxes: real[N, 4], all known boxes of a picture.
      width: of the picture, pixels.
      height: of the picture, pixels.

    Returns:
      A clause with the factors to apply; "" if the boxes are not of this kind.
    """
    boxes = np.asarray(boxes, np.float64)
    if min(width, height) <= _TINY_PICTURE or not (boxes > 0).any():
        return ""
    if (boxes < -_UNIT_SLACK).any() or (boxes > 1 + _UNIT_SLACK).any():
        return ""
    return (
        f"all boxes lie within 0 and 1 of a picture of {width} x {height} pixels, so they are "
        f"normalised: multiply x by {width} and y by {height}"
    )


@_QUIETLY
def check_regions(
    regions: Regions, *, store: str, image_id: str, feature_dim: int | None = None
) -> Regions:
    """Returns `regions` if they have no fault.

    Args:
      regions: of one image.
      store: name of the store, for messages.
      image_id: of the image, for messages.
      feature_dim: size that features must have; any if None.

    Raises:
      DataError: rows that disagree in number, another feature size, NaN or infinity, no width or
        height, a box that is empty or more than a pixel outside the picture, boxes that are
        normalised or given as x, y, width, height, class probabilities that do not add up to 1.
    """
    where = f"{store}: image {image_id!r}"
    width, height = regions.width, regions.height
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: a picture of {width} x {height} pixels; its size is missing")
    _check_arrays(regions, where)
    got_dim = regions.features.shape[1]
    if feature_dim is not None and got_dim != feature_dim:
        raise DataError(
            f"{where}: features have size {got_dim}, must have {feature_dim}; use the model's "
            "detector or set the model's feature size"
        )
    _check_boxes(regions, where)
    if regions.class_probs is not None:
        _check_probs(regions.class_probs, where)
    return regions


def _check_arrays(regions: Regions, where: str) -> None:
    count = len(regions.features)
    arrays = {"boxes": regions.boxes, "features": regions.features}
    if regions.class_probs is not None:
        arrays["class probabilities"] = regions.class_probs
    for name, array in arrays.items():
        if len(array) != count:
            raise DataError(f"{where}: {len(array)} rows of {name}, {count} of features")
        if not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0]
            raise DataError(f"{where}: {name}[{row}, {column}] is {array[row, column]}")


def _check_boxes(regions: Regions, where: str) -> None:
    boxes, width, height = regions.boxes, regions.width, regions.height
    if problem := normalised(boxes, width, height):
        raise DataError(f"{where}: {problem}")
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    outside = _outside(boxes, width, height)
    if not (empty | outside).any():
        return
    row = int(np.argmax(empty | outside))
    problem = "has no area" if empty[row] else f"lies outside the picture of {width} x {height}"
    fit = (boxes[:, 2:] > 0).all() and not _outside(corners_from_xywh(boxes), width, height).any()
    if fit and empty.mean() >= _MIN_EMPTY_SHARE:
        problem += f"; the store {_CONVERT}"
    raise DataError(f"{where}: box {row} {_numbers(boxes[row])} {problem}")


def _outside(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    limit = np.array([width, height, width, height], np.float32)
    return ((boxes < -_SLACK) | (boxes > limit + _SLACK)).any(axis=1)


def _check_probs(class_probs: np.ndarray, where: str) -> None:
    sums = class_probs.sum(axis=1)
    wrong = (class_probs < 0).any(axis=1) | (np.abs(sums - 1) > _PROB_TOLERANCE)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{where}: class probabilities of region {row} add up to {sums[row]:.4g}, from "
            f"{class_probs[row].min():.4g} upwards; they must be a distribution"
        )


@_QUIETLY
def check_annotated(regions: Regions, image: AnnotatedImage, store: str) -> Regions:
    """Returns `regions` if they are those of the annotated boxes of `image`, in the same order.

    Nothing else ties the rows of a store of annotated boxes to the boxes' ids. A box counts as the
    annotated one, clipped to the picture as in extraction, from an IoU of 0.9 on.

    Raises:
      DataError: another number of boxes; NaN or infinity; normalised boxes; a different box, with
        its likely cause: given as x, y, width, height (as the released extraction script
        stores them if its documentation is followed), in another order, or of a picture of another
        size.
    """
    where = f"{store}: image {image.image_id!r}"
    count, expected = len(regions.boxes), len(image.box_ids)
    if count != expected:
        raise DataError(f"{where}: {count} boxes are stored, {expected} are annotated")
    _check_arrays(regions, where)
    if not count:
        return regions
    if problem := normalised(regions.boxes, regions.width, regions.height):
        raise DataError(f"{where}: {problem}")
    annotated = np.asarray(image.boxes, np.float32)
    limit = np.array([regions.width, regions.height] * 2, np.float32)
    clipped = np.clip(annotated, 0, limit)

    def agree(boxes: np.ndarray) -> np.ndarray:
        overlap = np.fmax(iou(boxes, annotated), iou(boxes, clipped))
        return overlap >= _MIN_ANNOTATED_IOU

    same = agree(regions.boxes)
    if same.all():
        return regions
    row = int(np.argmin(same))
    message = (
        f"{where}: stored box {row} {_numbers(regions.boxes[row])} is not annotated box "
        f"{image.box_ids[row]} {_numbers(annotated[row])}"
    )
    if agree(corners_from_xywh(regions.boxes)).all():
        message += f"; it {_CONVERT}, and extract the features anew: they are of other boxes"
    elif (iou_matrix(annotated, regions.boxes).max(axis=1) >= _MIN_ANNOTATED_IOU).all():
        message += "; the boxes are stored in another order than that of their ids"
    elif image.width and (image.width, image.height) != (regions.width, regions.height):
        message += (
            f"; the picture is {regions.width} x {regions.height} in the store and "
            f"{image.width} x {image.height} in the annotations"
        )
    raise DataError(message)


def check_store(
    store: RegionStore,
    ids: Iterable[str],
    feature_dim: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Checks the regions of many images.

    Args:
      store: the store.
      ids: of the needed images.
      feature_dim: see `check_regions`.
      progress: called with the number of images checked so far.

    Returns:
      Every problem, at most one per image, with store, id and value; empty if all is well.
    """
    problems = []
    for number, image_id in enumerate(ids, start=1):
        if image_id not in store:  # without the search for similar ids: many may be missing
            problems.append(f"{store.name}: no image {image_id!r}")
        else:
            try:
                check_regions(
                    store.get(image_id),
                    store=store.name,
                    image_id=image_id,
                    feature_dim=feature_dim,
                )
            except DataError as error:
                problems.append(str(error))
        if progress is not None:
            progress(number)
    return problems


def _numbers(box: np.ndarray) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"
