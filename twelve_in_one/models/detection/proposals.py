"""From a region proposal network's outputs to the best boxes (Ren et al. 2015) of a photo.

Shape letters: Y and X cells, A anchors of a cell, R proposals, L levels.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.detection import boxes as box_ops
from twelve_in_one.models.detection import nms
from twelve_in_one.models.detection.resize import covered

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ProposalConfig:
    """How proposals are chosen.

    Attributes:
      before: most boxes of a level before suppression.
      after: most boxes of a level after it.
      total: R, most boxes of all levels.
      threshold: of intersection over union.
      inclusive: the convention of boxes.
      min_side: smallest side, in pixels of the photo. Where corners are inclusive, smaller boxes
        are left out at the beginning and boxes of this side stay (Caffe); else they are left out
        before suppression, together with those of exactly this side (detectron2).
    """

    before: int = 6000
    after: int = 1000
    total: int = 2000
    threshold: float = 0.7
    inclusive: bool = True
    min_side: float = 0.0


class Level(NamedTuple):
    """A network's output on a map: logits [Y, X, A], deltas [Y, X, A, 4], and the cells that count.

    Attributes:
      logits: of a box being about anything.
      deltas: from the anchors.
      size: int32[2], rows and columns that are of the photo.
      base: float32[A, 4], anchors of the first cell.
      stride: pixels of the canvas per cell.
    """

    logits: Array
    deltas: Array
    size: Array
    base: np.ndarray
    stride: int


class Proposals(NamedTuple):
    """Boxes, best first.

    Attributes:
      boxes: float32[R, 4] in pixels of the canvas.
      logits: float32[R].
      valid: bool[R], which there are.
    """

    boxes: Array
    logits: Array
    valid: Array


def propose(
    config: ProposalConfig, levels: Sequence[Level], size: Array, scale: Array
) -> Proposals:
    """The best boxes of a photo.

    Boxes are ranked by logits: their sigmoid, by which others rank, is 1 for all that are large.

    Args:
      config: how.
      levels: of the photo.
      size: rows and columns of the canvas at which boxes are cut.
      scale: pixels of the canvas per pixel of the photo.
    """
    found = [_of_level(config, level, size, scale) for level in levels]
    if len(found) == 1:
        return found[0]
    boxes, logits, valid = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
    order = jnp.argsort(jnp.where(valid, -logits, jnp.inf), stable=True)[: config.total]
    return Proposals(boxes[order], logits[order], valid[order])


def _of_level(config: ProposalConfig, level: Level, size: Array, scale: Array) -> Proposals:
    rows, columns, number = level.logits.shape
    anchors = jnp.asarray(box_ops.grid_anchors(level.base, level.stride, rows, columns))
    inside = jnp.repeat(covered((rows, columns), level.size).reshape(-1), number)
    logits = jnp.where(inside, level.logits.astype(jnp.float32).reshape(-1), -jnp.inf)
    deltas = level.deltas.astype(jnp.float32).reshape(-1, 4)
    inclusive = config.inclusive

    def boxes_of(anchors: Array, deltas: Array) -> Array:
        moved = box_ops.decode(anchors, deltas, (1, 1, 1, 1), inclusive=inclusive)
        return box_ops.clip(moved, size, inclusive=inclusive)

    if inclusive and config.min_side:
        sides = _sides(boxes_of(anchors, deltas), inclusive)
        logits = jnp.where(sides >= config.min_side * scale, logits, -jnp.inf)
    logits, best = jax.lax.top_k(logits, min(config.before, len(logits)))
    boxes = boxes_of(anchors[best], deltas[best])
    valid = logits > -jnp.inf
    if not inclusive:
        valid &= _sides(boxes, inclusive) > config.min_side * scale
    stay = nms.keep(boxes, valid, config.threshold, inclusive=inclusive)
    places, filled = nms.first_true(stay, min(config.after, config.total))
    return Proposals(boxes[places], logits[places], filled)


def _sides(boxes: Array, inclusive: bool) -> Array:
    """The shorter side of each."""
    return jnp.min(boxes[:, 2:] - boxes[:, :2], axis=-1) + float(inclusive)
