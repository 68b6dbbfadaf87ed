"""Learned positions of a grid of patches: for another grid, and as a crop of a larger picture.

Cropped positions (CPE; Kim et al. 2023, RO-ViT) teach an encoder that a picture may be a region of
a larger one, as a detector's regions are: each row of a batch sees the table as if its picture were
a random box of a picture with a finer grid. Pixels are not cropped by it.

Letters: B rows, P patches (rows x columns of a grid), D width.
"""

import jax
import jax.numpy as jnp

from twelve_in_one.models.detection.roi import align_by_products, join

Array = jax.Array

AREA = (0.1, 1.0)  # of a crop, as a share of the picture
ASPECT = (0.5, 2.0)  # its width divided by its height


def resized(table: Array, old: tuple[int, int], new: tuple[int, int]) -> Array:
    """A table [P, D] of the grid `old` for the grid `new`, bilinear between the cells' centres."""
    if old == new:
        return table
    grid = table.reshape(*old, -1)
    return jax.image.resize(grid, (*new, grid.shape[-1]), "bilinear").reshape(-1, grid.shape[-1])


def random_boxes(key: Array, count: int, side: int) -> Array:
    """Corners x1, y1, x2, y2 of random boxes within a square of `side`: float32[count, 4].

    Area and logarithm of the aspect are uniform; sides are cut at those of the square.
    """
    keys = jax.random.split(key, 4)
    area = jax.random.uniform(keys[0], (count,), minval=AREA[0], maxval=AREA[1])
    low, high = jnp.log(jnp.array(ASPECT))
    aspect = jnp.exp(jax.random.uniform(keys[1], (count,), minval=low, maxval=high))
    width, height = (
        jnp.minimum(jnp.sqrt(area * ratio), 1.0) * side for ratio in (aspect, 1 / aspect)
    )
    x, y = (
        jax.random.uniform(k, (count,)) * (side - length)
        for k, length in ((keys[2], width), (keys[3], height))
    )
    return jnp.stack([x, y, x + width, y + height], axis=1)


def cropped(table: Array, grid: tuple[int, int], canvas: int, boxes: Array) -> Array:
    """The table as crops of a larger picture see it.

    Args:
      table: [P, D] of a square grid.
      grid: its rows and columns.
      canvas: rows and columns of the larger picture's grid, which the table is enlarged to.
      boxes: float32[B, 4], corners in cells of that grid.

    Returns:
      [B, P, D]: RoIAlign of each box with one bin for each patch.
    """
    cells = resized(table, grid, (canvas, canvas)).reshape(canvas, canvas, -1)
    maps = join([cells], [jnp.array([canvas, canvas])], [1.0])
    found = align_by_products(maps, boxes, bins=grid[0], samples=2, aligned=True)
    return found.reshape(len(boxes), -1, table.shape[-1])
