"""What pretraining hides: tokens, regions and the match of caption and image (12-in-1, section 4).

Everything is a pure function of its inputs and of a generator that the caller seeds for every
example, so an example is masked the same way in any batch, worker or host. Each function draws one
array of uniform numbers with a row per token or region (the columns are named where they are
drawn); a row does not depend on the number of rows after it, so padding changes nothing.

Labels are those of `tasks/losses.py`: -1 where there is nothing to predict.

Letters: T tokens, N detected regions (without the global one), F feature size.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np

from twelve_in_one.tasks.metrics.boxes import iou_matrix

# 0: all losses on all pairs. 1: masked losses on aligned pairs only (12-in-1). 2: no swapped pairs.
Objective = Literal[0, 1, 2]

# Shares of the selected tokens (BERT) that become [MASK] and a random token; the rest stay.
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1


class RegionMask(NamedTuple):
    """An image's regions with some of them hidden.

    Attributes:
      features: float32[N, F], zero where hidden.
      labels: int32[N], 1 where the region is to be predicted, else -1.
      global_feature: float32[F], feature of the global region, computed without hidden regions.
    """

    features: np.ndarray
    labels: np.ndarray
    global_feature: np.ndarray


def pair_label(
    rng: np.random.Generator, num_captions: int, own: int, *, objective: Objective
) -> tuple[int, int]:
    """Chooses the caption to show with an image.

    Makes the same number of draws for every objective, so the masks that follow are the same.

    Args:
      rng: of the example.
      num_captions: of the whole corpus.
      own: index of the image's own caption.
      objective: 0 and 1 swap the caption with probability one half, 2 never.

    Returns:
      Index of the caption, and the alignment label: 0 aligned, 1 swapped. A swapped caption is any
      in the corpus; even if it is the image's own by chance, the label is 1 (released code).

    Raises:
      ValueError: no such caption or objective.
    """
    _check_objective(objective)
    if not 0 <= own < num_captions:
        raise ValueError(f"caption {own} is not one of {num_captions}")
    swap, other = rng.random(2)
    if objective == 2 or swap >= 0.5:
        return own, 0
    return int(other * num_captions), 1


def mask_tokens(
    ids: np.ndarray,
    token_mask: np.ndarray,
    rng: np.random.Generator,
    *,
    vocab_size: int,
    mask_id: int,
    special_ids: Collection[int],
    rate: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """Hides tokens for masked language modelling (BERT).

    Every token that is neither padding nor special is selected with probability `rate`. Of the
    selected, 80 % become [MASK], 10 % a token drawn from the whole vocabulary, 10 % stay.

    Args:
      ids: int[T].
      token_mask: bool[T], False for padding.
      rng: of the example.
      vocab_size: number of token ids.
      mask_id: id of [MASK].
      special_ids: never selected: [CLS], [SEP] and [PAD]. The released code selects [UNK].
      rate: probability of selection.

    Returns:
      int32[T] ids and int32[T] labels: the original id where selected, else -1.

    Raises:
      ValueError: shapes differ, or `mask_id` or `rate` is out of range.
    """
    _check_share("rate", rate)
    if ids.ndim != 1 or token_mask.shape != ids.shape or token_mask.dtype != bool:
        raise ValueError(
            f"ids must be [T] and token_mask bool[T], got {ids.shape} and "
            f"{token_mask.dtype}{token_mask.shape}"
        )
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id {mask_id} is outside a vocabulary of {vocab_size}")
    select, action, replacement = rng.random((len(ids), 3)).T
    selected = token_mask & (select < rate) & ~np.isin(ids, list(special_ids))
    randomised = action < MASK_SHARE + RANDOM_SHARE
    masked = np.where(selected & randomised, (replacement * vocab_size).astype(np.int32), ids)
    masked = np.where(selected & (action < MASK_SHARE), mask_id, masked)
    return masked.astype(np.int32), np.where(selected, ids, -1).astype(np.int32)


def mask_regions(
    features: np.ndarray,
    boxes: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float = 0.15,
    zero_rate: float = 0.9,
    overlap_iou: float = 0.4,
    official_overlap: bool = False,
    max_regions: int = 36,
) -> RegionMask:
    """Hides regions for masked region modelling, and those that overlap them (paper, section 4).

    Every region is selected with probability `rate` and hidden with probability `zero_rate` if
    selected. A region whose IoU with *another* selected region, hidden or not, exceeds
    `overlap_iou` is hidden too, since it could be copied from; that holds for selected regions as
    well. Only selected regions have labels. The global feature is the mean of the visible regions.

    The released code differs (`official_overlap`): overlapping regions stay visible, and
    only the divisor of the global feature omits them, together with all selected regions,
    including the visible ones in its sum. The divisor does count padding slots.

    Args:
      features: float[N, F].
      boxes: float[N, 4], corners in pixels; unchanged, even for hidden regions.
      rng: of the example.
      rate: probability of selection.
      zero_rate: probability that a selected region is hidden.
      overlap_iou: regions above it are hidden; a region exactly at it is not.
      official_overlap: follow the released code.
      max_regions: only with `official_overlap`: region slots, including padding but not the global
        region.

    Returns:
      RegionMask. The global feature is zero if no region is visible.

    Raises:
      ValueError: shapes do not fit, a probability is out of range, or there are more regions than
        slots.
    """
    for name, share in (("rate", rate), ("zero_rate", zero_rate), ("overlap_iou", overlap_iou)):
        _check_share(name, share)
    if features.ndim != 2 or boxes.shape != (len(features), 4):
        raise ValueError(
            f"features must be [N, F] and boxes [N, 4], got {features.shape} and {boxes.shape}"
        )
    if official_overlap and len(boxes) > max_regions:
        raise ValueError(f"{len(boxes)} regions do not fit {max_regions} slots; cut them before")
    select, action = rng.random((len(boxes), 2)).T
    selected = select < rate
    close = iou_matrix(boxes, boxes) > overlap_iou
    np.fill_diagonal(close, False)
    overlapping = close[selected].any(axis=0)

    hidden = selected & (action < zero_rate)
    if not official_overlap:
        hidden |= overlapping
        divisor = np.count_nonzero(~hidden)
    else:
        divisor = max_regions - np.count_nonzero(selected | overlapping)
    masked = np.where(hidden[:, None], np.float32(0), features.astype(np.float32))
    return RegionMask(
        masked,
        np.where(selected, 1, -1).astype(np.int32),
        masked.sum(axis=0) / np.float32(max(divisor, 1)),
    )


def drop_labels(labels: np.ndarray, is_misaligned: int, *, objective: Objective) -> np.ndarray:
    """Removes the labels of tokens or regions from a swapped pair under objective 1.

    Their tokens or regions stay hidden. The released validation keeps all labels: it uses
    objective 0.

    Args:
      labels: int32[...] of one pair.
      is_misaligned: alignment label of the pair, see `pair_label`.
      objective: 0 and 2 change nothing.

    Returns:
      int32[...].

    Raises:
      ValueError: no such objective.
    """
    _check_objective(objective)
    return np.full_like(labels, -1) if objective == 1 and is_misaligned else labels


def _check_objective(objective: int) -> None:
    if objective not in (0, 1, 2):
        raise ValueError(f"objective must be 0, 1 or 2, got {objective!r}")


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {share}")
