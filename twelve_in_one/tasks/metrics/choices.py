"""Accuracy of a choice among candidates or classes, as sums that add up over batches.

Inputs are logits and targets, outputs (sum, number of rows) pairs: add both over batches and hosts,
then divide once. Letters: B rows, C candidates or classes. Among equal values the first wins.
"""

from typing import Any

import numpy as np


def checked_mask(name: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a mask as a bool array; None means all True.

    Args:
      name: of the mask in an error.
      mask: bool array of `shape`, or None.
      shape: the shape it must have.

    Returns:
      bool[shape].

    Raises:
      ValueError: the shape differs or the mask is not boolean (an additive mask of 0 and -10000
        would otherwise be read with inverted meaning).
    """
    if mask is None:
        return np.ones(shape, bool)
    mask = np.asarray(mask)
    if mask.dtype != np.bool_:
        raise ValueError(f"{name} must be boolean (True: counts), got dtype {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {mask.shape}")
    return mask


def masked_argmax(name: str, values: Any, mask: Any = None, row_mask: Any = None) -> np.ndarray:
    """Index of the first highest value of every row among those that count.

    Args:
      name: of the values in an error.
      values: real[B, C].
      mask: bool[B, C], False for entries that cannot be chosen, whatever their value.
      row_mask: bool[B], False for padding rows; their index is 0.

    Returns:
      int64[B].

    Raises:
      ValueError: a shape does not fit, an entry that counts is NaN, or a row that counts has
        nothing to choose from.
    """
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"{name} must be a [rows, candidates] matrix, got shape {values.shape}")
    rows = checked_mask("row_mask", row_mask, values.shape[:1])
    mask = checked_mask(f"the candidate mask of {name}", mask, values.shape) & rows[:, None]
    empty = np.flatnonzero(rows & ~mask.any(axis=1))
    if empty.size:
        raise ValueError(
            f"row {empty[0]} of {name} has no candidate that counts ({empty.size} such rows): "
            "mask padding rows with row_mask"
        )
    is_nan = np.isnan(values) & mask
    if is_nan.any():
        row, column = np.argwhere(is_nan)[0]
        raise ValueError(f"{name}[{row}, {column}] is NaN ({is_nan.sum()} such entries)")
    # Looking among the True entries, rather than filling the others with a low number, stays right
    # when a value that counts is itself -inf.
    best = np.where(mask, values, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    return np.argmax(mask & (values == best), axis=1)


def choice_accuracy(
    logits: Any, target: Any, choice_mask: Any = None, row_mask: Any = None
) -> tuple[int, int]:
    """Multiple-choice accuracy: the highest logit is where the highest target is.

    Used where candidates are boxes and the target is their IoU with the right one (Visual7W,
    GuessWhat). If all targets of a row are equal its first candidate is the right one, as in the
    official code.

    Args:
      logits: real[B, C].
      target: real[B, C].
      choice_mask: bool[B, C], False where a row has fewer candidates.
      row_mask: bool[B], False for padding rows.

    Returns:
      Number of correct rows and number of rows, padding rows left out.

    Raises:
      ValueError: a shape does not fit, an entry that counts is NaN, or a row has no candidate.
    """
    if np.shape(logits) != np.shape(target):
        raise ValueError(f"logits {np.shape(logits)} and target {np.shape(target)} differ in shape")
    chosen = masked_argmax("logits", logits, choice_mask, row_mask)
    right = masked_argmax("target", target, choice_mask, row_mask)
    counted = checked_mask("row_mask", row_mask, chosen.shape)
    return int(((chosen == right) & counted).sum()), int(counted.sum())


def target_score(logits: Any, target: Any, row_mask: Any = None) -> tuple[float, int]:
    """Sum of the targets at the highest logits: soft accuracy over a list of answers.

    Used for the answer tasks with soft or one-hot targets; a row whose answer is not in the list
    has only zeros and scores 0. See `vqa.soft_score` on how it relates to the official accuracy.

    Args:
      logits: real[B, C].
      target: real[B, C], scores in [0, 1].
      row_mask: bool[B], False for padding rows.

    Returns:
      Sum of the scores and number of rows, padding rows left out.

    Raises:
      ValueError: a shape does not fit, a logit is NaN, or a score that counts is NaN.
    """
    if np.shape(logits) != np.shape(target):
        raise ValueError(f"logits {np.shape(logits)} and target {np.shape(target)} differ in shape")
    chosen = masked_argmax("logits", logits, row_mask=row_mask)
    counted = checked_mask("row_mask", row_mask, chosen.shape)
    scores = np.take_along_axis(np.asarray(target), chosen[:, None], axis=1)[counted, 0]
    if np.isnan(scores).any():
        row = np.flatnonzero(counted)[np.isnan(scores)][0]
        raise ValueError(f"target[{row}, {chosen[row]}] is NaN")
    return float(scores.sum(dtype=np.float64)), int(counted.sum())


def label_accuracy(logits: Any, labels: Any, row_mask: Any = None) -> tuple[int, int]:
    """Accuracy of the highest logit against class labels.

    Args:
      logits: real[B, C].
      labels: int[B], the right class; -1 where annotators found none, which no logit can match
        (the official code gives such rows an all-zero target and counts them).
      row_mask: bool[B], False for padding rows, whose labels are ignored.

    Returns:
      Number of correct rows and number of rows, padding rows left out.

    Raises:
      ValueError: a shape does not fit, a logit is NaN, or a label is out of range.
    """
    chosen = masked_argmax("logits", logits, row_mask=row_mask)
    counted = checked_mask("row_mask", row_mask, chosen.shape)
    labels = np.asarray(labels)
    if labels.shape != chosen.shape or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be {len(chosen)} integers, got {labels.dtype} of shape {labels.shape}"
        )
    num_classes = np.shape(logits)[1]
    bad = np.flatnonzero(counted & ((labels < -1) | (labels >= num_classes)))
    if bad.size:
        raise ValueError(
            f"labels[{bad[0]}] is {labels[bad[0]]}, but classes are 0 to {num_classes - 1} and -1 "
            f"stands for none ({bad.size} such rows)"
        )
    return int(((chosen == labels) & counted).sum()), int(counted.sum())


def pair_accuracy(logits: Any, labels: Any, row_mask: Any = None) -> tuple[int, int]:
    """`label_accuracy` of a statement about two images: false 0, true 1 (NLVR2); [B, 2] logits."""
    _require_classes(logits, 2, "image pairs")
    return label_accuracy(logits, labels, row_mask)


def three_way_accuracy(logits: Any, labels: Any, row_mask: Any = None) -> tuple[int, int]:
    """`label_accuracy` of contradiction 0, neutral 1, entailment 2 (SNLI-VE); [B, 3] logits."""
    _require_classes(logits, 3, "visual entailment")
    return label_accuracy(logits, labels, row_mask)


def _require_classes(logits: Any, num_classes: int, task: str) -> None:
    if np.ndim(logits) != 2 or np.shape(logits)[1] != num_classes:
        raise ValueError(
            f"{task} needs logits of shape (rows, {num_classes}), got {np.shape(logits)}; one row "
            "is one example"
        )
