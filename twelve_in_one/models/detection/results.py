"""Chosen boxes of one photo as rows of `Detections`, and boxes of users on its canvas."""

import jax
import jax.numpy as jnp

from twelve_in_one.models.detection.boxes import clip
from twelve_in_one.models.detection.detector import Canvases, Detections

Array = jax.Array


def fill(
    count: int,
    chosen: tuple[Array, Array],
    boxes: Array,
    features: Array,
    probs: Array,
) -> Detections:
    """`Detections` without the axis of photos.

    Args:
      count: R.
      chosen: int32[K] rows of the arrays, K <= R, and bool[K], which are chosen.
      boxes: float32[N, 4] in pixels of the photo.
      features: float32[N, F].
      probs: float32[N, P], the background first.
    """
    rows, filled = chosen
    missing = count - len(rows)
    rows, filled = (jnp.pad(x, (0, missing)) for x in (rows, filled))
    # Rows that are filled come first.
    order = jnp.argsort(~filled, stable=True)
    rows, filled = rows[order], filled[order]
    foreground = probs[rows, 1:]
    found = Detections(
        boxes=boxes[rows],
        features=features[rows],
        scores=jnp.max(foreground, axis=-1),
        classes=jnp.argmax(foreground, axis=-1).astype(jnp.int32),
        valid=filled,
        class_probs=probs[rows],
    )
    return jax.tree.map(
        lambda x: jnp.where(filled.reshape(-1, *(1 for _ in x.shape[1:])), x, 0), found
    )._replace(valid=filled)


def with_area(boxes: Array, scores: Array) -> Array:
    """`scores`, -1 for boxes float32[N, 4] without an area, which no store of regions takes."""
    return jnp.where(jnp.all(boxes[:, 2:] > boxes[:, :2], axis=1), scores, -1.0)


def to_canvas(boxes: Array, canvas: Canvases) -> Array:
    """Boxes float32[N, 4] in pixels of one photo as pixels of its canvas, cut at its border."""
    return clip(boxes * axis_scales(canvas), canvas.sizes, inclusive=False)


def axis_scales(canvas: Canvases) -> Array:
    """float32[1, 4], by which boxes of one photo are multiplied to be on its canvas."""
    return jnp.tile(canvas.scales[::-1], 2)[None]
