"""Anchors, and arithmetic of boxes in the two conventions of detectors.

Boxes are corners x1, y1, x2, y2. In the older convention corners are pixels that belong to the box
(`inclusive`), so it is x2 - x1 + 1 wide; in the newer one they are points. Everything is float32.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
# Larger changes of a side are cut, so that exp stays finite.
_MAX_LOG_RATIO = math.log(1000 / 16)


def rounded_anchors(stride: int, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Anchors of the older detectors at the first cell: float32[ratios * sizes, 4], sizes inner.

    Sides are rounded to whole numbers before they are scaled, which makes them irregular.

    Args:
      stride: pixels per cell.
      sizes: square roots of areas, before rounding.
      ratios: height divided by width.
    """
    center, anchors = (stride - 1) / 2, []
    for ratio in ratios:
        width = round(math.sqrt(stride**2 / ratio))
        height = round(width * ratio)
        for size in sizes:
            x, y = ((side * size / stride - 1) / 2 for side in (width, height))
            anchors.append((center - x, center - y, center + x, center + y))
    return np.array(anchors, np.float32)


def exact_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Anchors of the newer detectors, centred on 0: float32[sizes * ratios, 4], ratios inner."""
    anchors = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            x, y = width / 2, width * ratio / 2
            anchors.append((-x, -y, x, y))
    return np.array(anchors, np.float32)


def grid_anchors(base: np.ndarray, stride: int, rows: int, columns: int) -> np.ndarray:
    """`base` at each cell: float32[rows * columns * A, 4], ordered by row, column, anchor."""
    x, y = np.meshgrid(np.arange(columns) * stride, np.arange(rows) * stride)
    shifts = np.stack([x, y, x, y], axis=-1).astype(np.float32)
    return (shifts[:, :, None] + base).reshape(-1, 4)


def decode(boxes: Array, deltas: Array, weights: Sequence[float], *, inclusive: bool) -> Array:
    """Boxes moved and scaled by deltas (Girshick et al. 2014): float32[..., 4] of two such.

    Args:
      boxes: to start from.
      deltas: shifts in widths and heights, and logarithms of the factors of both.
      weights: by which the four deltas are divided.
      inclusive: the convention.
    """
    one = float(inclusive)
    low, high = boxes[..., :2], boxes[..., 2:]
    sides = high - low + one
    deltas = deltas / _row(weights, deltas)
    centers = deltas[..., :2] * sides + (low + 0.5 * sides)
    half = 0.5 * jnp.exp(jnp.minimum(deltas[..., 2:], _MAX_LOG_RATIO)) * sides
    return jnp.concatenate([centers - half, centers + half - one], axis=-1)


def encode(boxes: Array, targets: Array, weights: Sequence[float], *, inclusive: bool) -> Array:
    """The deltas with which `decode` makes `targets` of `boxes`."""
    one = float(inclusive)
    sides, wanted = (b[..., 2:] - b[..., :2] + one for b in (boxes, targets))
    shift = (targets[..., :2] - boxes[..., :2] + 0.5 * (wanted - sides)) / sides
    deltas = jnp.concatenate([shift, jnp.log(wanted / sides)], axis=-1)
    return deltas * _row(weights, deltas)


def clip(boxes: Array, size: Array, *, inclusive: bool) -> Array:
    """Boxes [..., 4] cut at the border of a picture of `size`, rows and columns."""
    limits = jnp.tile(jnp.asarray(size, jnp.float32)[::-1] - float(inclusive), 2)
    return jnp.clip(boxes, 0.0, _row(limits, boxes))


def _row(values: Array | Sequence[float], like: Array) -> Array:
    """Values [4] with the number of axes of another array."""
    return jnp.asarray(values, jnp.float32).reshape(*(1 for _ in like.shape[1:]), -1)


def areas(boxes: Array, *, inclusive: bool) -> Array:
    """[...] of boxes [..., 4]."""
    return jnp.prod(boxes[..., 2:] - boxes[..., :2] + float(inclusive), axis=-1)


def iou(a: Array, b: Array, *, inclusive: bool) -> Array:
    """Intersection over union of every pair: float32[..., M, N] of [..., M, 4] and [..., N, 4]."""
    one, shared = float(inclusive), 1.0
    for axis in (0, 1):
        low = jnp.maximum(a[..., :, None, axis], b[..., None, :, axis])
        high = jnp.minimum(a[..., :, None, axis + 2], b[..., None, :, axis + 2])
        shared *= jnp.maximum(high - low + one, 0.0)
    size_a, size_b = areas(a, inclusive=inclusive), areas(b, inclusive=inclusive)
    total = size_a[..., :, None] + size_b[..., None, :] - shared
    return shared / jnp.where(total > 0, total, 1.0)


def pyramid_level(boxes: Array, lowest: int, highest: int, *, inclusive: bool) -> Array:
    """int32[...], the level of a feature pyramid that describes a box of float32[..., 4].

    A box of 224 x 224 pixels belongs to level 4 (Lin et al. 2017).
    """
    side = jnp.sqrt(areas(boxes, inclusive=inclusive))
    level = jnp.floor(4 + jnp.log2(side / 224 + 1e-6))
    return jnp.clip(level, lowest, highest).astype(jnp.int32)
