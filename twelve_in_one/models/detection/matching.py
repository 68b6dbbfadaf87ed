"""Which anchors and boxes learn what: matches with the true boxes of a photo, and random samples.

All of it has fixed shapes: true boxes are padded, and a mask says which are real. Boxes are corners
x1, y1, x2, y2 that are points. Letters: N boxes or anchors, G true boxes, K samples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from twelve_in_one.models.detection.boxes import iou

Array = jax.Array


class Match(NamedTuple):
    """What each box has to do with the true ones.

    Attributes:
      truth: int32[N], the true box with the largest overlap; 0 if there is none.
      overlap: float32[N], their intersection over union; 0 if there is none.
      positive: bool[N], learns to be that box.
      negative: bool[N], learns to be background.
    """

    truth: Array
    overlap: Array
    positive: Array
    negative: Array


def match(
    boxes: Array, truth: Array, real: Array, *, above: float, below: float, best: bool
) -> Match:
    """Matches boxes float32[N, 4] with true ones float32[G, 4], of which bool[G] are real.

    Args:
      boxes: see above.
      truth: see above.
      real: see above.
      above: positive from this overlap on.
      below: negative below this one; what lies between learns nothing.
      best: also positive are the boxes that no other overlaps a true box more than (Ren et al.).
    """
    overlaps = jnp.where(real[None], iou(boxes, truth, inclusive=False), 0.0)
    found, overlap = jnp.argmax(overlaps, axis=1).astype(jnp.int32), jnp.max(overlaps, axis=1)
    positive = overlap >= above
    if best:
        # Of several with the same overlap all count, as long as it is one.
        most = jnp.max(overlaps, axis=0)
        own = (overlaps == most[None]) & ((most > 0) & real)[None]
        positive |= jnp.any(own, axis=1)
        found = jnp.where(jnp.any(own, axis=1), jnp.argmax(own, axis=1), found).astype(jnp.int32)
    return Match(found, overlap, positive, (overlap < below) & ~positive)


def sample(key: Array, found: Match, count: int, share: float) -> tuple[Array, Array]:
    """A random choice of positive and negative boxes.

    Args:
      key: of the draw.
      found: of `match`.
      count: K in all.
      share: positive ones at most, as a share of K; negative ones fill the rest.

    Returns:
      bool[N] each, the positive and the negative ones that are drawn.
    """
    order = jax.random.uniform(key, found.positive.shape)

    def first(which: Array, number: Array | int) -> Array:
        places = jnp.argsort(jnp.argsort(jnp.where(which, order, jnp.inf)))
        return which & (places < number)

    positive = first(found.positive, int(count * share))
    return positive, first(found.negative, count - jnp.sum(positive))


def centerness(points: Array, boxes: Array) -> Array:
    """How central points float32[..., 2] are in boxes float32[..., 4], 0 outside (FCOS).

    sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)).
    """
    low, high = points - boxes[..., :2], boxes[..., 2:] - points
    nearer, farther = jnp.minimum(low, high), jnp.maximum(low, high)
    inside = jnp.all(nearer > 0, axis=-1)
    # Kept away from 0 / 0 and the root's slope at 0.
    ratio = jnp.prod(jnp.where(inside[..., None], nearer / jnp.maximum(farther, 1e-6), 1.0), -1)
    return jnp.where(inside, jnp.sqrt(ratio), 0.0)
