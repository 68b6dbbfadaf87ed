"""Boxes of anything, by how central their anchors are (OLN; Kim et al. 2022), or by a probability.

The first kind has one square anchor a cell. Its score is the centerness of the anchor in the
object, which knows no classes and so also finds those that were never annotated; its box is given
by the distances of the four sides from the anchor's centre. The second is that of Faster R-CNN.

Letters: B photos, Y and X cells, A anchors of a cell, D channels, N anchors of all levels, R
proposals.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.detection import boxes as box_ops
from twelve_in_one.models.detection import nms
from twelve_in_one.models.detection.pyramid import conv, norm

Array = jax.Array
Kind = Literal["centerness", "plain"]

KINDS = ("centerness", "plain")
_RATIOS = {"centerness": (1.0,), "plain": (0.5, 1.0, 2.0)}
_NO_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class ProposalHead(nn.Module):
    """The head, shared by all levels.

    Attributes:
      kind: see above.
      dim: D.
      layers: convolutions.
      dtype: of the computation.
    """

    kind: Kind
    dim: int
    layers: int = 2
    dtype: str = "float32"

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[Array, Array]:
        """Logits float32[B, N] and box outputs float32[B, N, 4], by level, row, column, anchor."""
        anchors = len(_RATIOS[self.kind])
        convs = [conv(self.dim, 3, self.dtype, f"conv_{i}") for i in range(self.layers)]
        norms = [norm(self.dtype, f"norm_{i}") for i in range(self.layers)]
        small = nn.initializers.normal(0.01)
        score = nn.Conv(anchors, (1, 1), kernel_init=small, name="score")
        # At first the distances are those of the anchor's own sides.
        first = nn.initializers.constant(0.5 if self.kind == "centerness" else 0.0)
        box = nn.Conv(4 * anchors, (1, 1), kernel_init=small, bias_init=first, name="box")
        logits, outputs = [], []
        for x in maps:
            for layer, normalise in zip(convs, norms, strict=True):
                x = nn.relu(normalise(layer(x)))
            x = x.astype(jnp.float32)
            logits.append(score(x).reshape(len(x), -1))
            outputs.append(box(x).reshape(len(x), -1, 4))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(outputs, axis=1)


class Anchors(NamedTuple):
    """Anchors float32[N, 4] of all levels, their centres float32[N, 2], and how many each has."""

    boxes: np.ndarray
    centers: np.ndarray
    counts: tuple[int, ...]


def anchors(kind: Kind, canvas: tuple[int, int], strides: Sequence[int], scale: float) -> Anchors:
    """Anchors `scale` cells wide on a canvas of rows and columns."""
    found = []
    for stride in strides:
        base = box_ops.exact_anchors([scale * stride], _RATIOS[kind]) + stride / 2
        cells = [-(-side // stride) for side in canvas]
        found.append(box_ops.grid_anchors(base.astype(np.float32), stride, *cells))
    boxes = np.concatenate(found)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return Anchors(boxes, centers, tuple(map(len, found)))


def boxes_of(kind: Kind, found: Anchors, outputs: Array) -> Array:
    """Boxes [..., N, 4] of outputs: deltas, or left, right, top, bottom in anchor sizes."""
    if kind == "plain":
        return box_ops.decode(
            jnp.broadcast_to(jnp.asarray(found.boxes), outputs.shape),
            outputs,
            _NO_WEIGHTS,
            inclusive=False,
        )
    ones = (1,) * (outputs.ndim - 2)
    centers = found.centers.reshape(*ones, -1, 2)
    sizes = (found.boxes[:, 2:] - found.boxes[:, :2]).reshape(*ones, -1, 2)
    low, high = centers - outputs[..., 0::2] * sizes, centers + outputs[..., 1::2] * sizes
    return jnp.concatenate([low, high], axis=-1)


def deltas_of(found: Anchors, truth: Array) -> Array:
    """What the plain kind should give for true boxes [N, 4]; finite also for boxes of no size."""
    sized = jnp.maximum(truth[:, 2:], truth[:, :2] + 1e-3)
    truth = jnp.concatenate([truth[:, :2], sized], axis=1)
    return box_ops.encode(jnp.asarray(found.boxes), truth, _NO_WEIGHTS, inclusive=False)


class Proposals(NamedTuple):
    """Boxes float32[R, 4] of one photo, best first, scores float32[R] in 0 to 1, bool[R] real."""

    boxes: Array
    scores: Array
    valid: Array


def propose(
    found: Anchors,
    logits: Array,
    boxes: Array,
    size: Array,
    *,
    before: int,
    total: int,
    threshold: float,
) -> Proposals:
    """The best boxes of one photo.

    Args:
      found: the anchors; those whose centre is outside the photo are left out.
      logits: float32[N].
      boxes: float32[N, 4].
      size: float32[2], rows and columns of the canvas that the photo covers.
      before: most boxes of a level before suppression.
      total: R.
      threshold: of intersection over union; 1 suppresses nothing.
    """
    boxes = box_ops.clip(boxes, size, inclusive=False)
    inside = jnp.all(found.centers < size[None, ::-1], axis=1)
    there = inside & jnp.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    logits = jnp.where(there, logits, -jnp.inf)
    parts, start = [], 0
    for count in found.counts:
        part = slice(start, start + count)
        best, places = jax.lax.top_k(logits[part], min(before, count))
        kept = boxes[part][places]
        stay = best > -jnp.inf
        if threshold < 1:
            stay = nms.keep(kept, stay, threshold, inclusive=False)
        parts.append((kept, jnp.where(stay, best, -jnp.inf)))
        start += count
    kept, ranked = (jnp.concatenate(x) for x in zip(*parts, strict=True))
    missing = max(total - len(ranked), 0)
    ranked = jnp.pad(ranked, (0, missing), constant_values=-math.inf)
    best, places = jax.lax.top_k(ranked, total)
    valid = best > -jnp.inf
    kept = jnp.where(valid[:, None], jnp.pad(kept, ((0, missing), (0, 0)))[places], 0.0)
    return Proposals(kept, jnp.where(valid, jax.nn.sigmoid(best), 0.0), valid)
