"""What feature maps show in boxes: RoIAlign (He et al. 2017) and RoIPool (Girshick 2015).

Shape letters: Y and X cells of a map, C channels, R boxes, P bins of a side, S samples of a bin and
axis, L maps, K boxes handled at a time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
# Boxes handled at a time; more would need gigabytes.
CHUNK = 32
# Side of the largest map for which a TPU takes products with all cells.
_PRODUCT_SIDE = 64
_MOST_CELLS = 4096  # of a side of a pooled box


class Maps(NamedTuple):
    """The feature maps of one photo, as one table.

    Attributes:
      cells: [sum of Y * X, C].
      sizes: int32[L, 2], rows and columns that are of the photo.
      shapes: Y and X of each, not traced.
      strides: pixels of the canvas per cell of each, not traced.
    """

    cells: Array
    sizes: Array
    shapes: tuple[tuple[int, int], ...]
    strides: tuple[float, ...]


def join(maps: Sequence[Array], sizes: Sequence[Array], strides: Sequence[float]) -> Maps:
    """Maps [Y, X, C] of one photo, with the rows and columns of each that are of the photo."""
    cells = jnp.concatenate([m.reshape(-1, m.shape[-1]) for m in maps])
    return Maps(cells, jnp.stack(sizes), tuple(m.shape[:2] for m in maps), tuple(strides))


def roi_align(
    maps: Maps,
    boxes: Array,
    levels: Array | None = None,
    *,
    bins: int = 7,
    samples: int = 2,
    aligned: bool = False,
) -> Array:
    """Means of bilinear samples in each bin of each box.

    Args:
      maps: one, or those of a pyramid.
      boxes: float32[R, 4], corners in pixels of the canvas.
      levels: int32[R], the map of each box; None if there is one.
      bins: P.
      samples: S; 0 takes one for each cell that a bin has, rounded up, which is for single maps.
      aligned: shift by half a cell, as newer code does; older code also makes boxes one cell wide
        at least.

    Returns:
      [R, P, P, C] of the maps' type, summed in float32.
    """
    if levels is None:
        levels = jnp.zeros(len(boxes), jnp.int32)
    small = len(maps.shapes) == 1 and max(maps.shapes[0]) <= _PRODUCT_SIDE

    options = dict(bins=bins, samples=samples, aligned=aligned)

    def gathers(part: tuple[Array, Array]) -> Array:
        return _by_gathers(maps, _placed(maps, *part, **options), part[1])

    def products(part: tuple[Array, Array]) -> Array:
        return align_by_products(maps, part[0], **options)

    def chunk(part: tuple[Array, Array]) -> Array:
        if samples == 0:
            return products(part)
        if not small:
            return gathers(part)
        # Gathers are slow on a TPU, and products everywhere else.
        return jax.lax.platform_dependent(part, tpu=products, default=gathers)

    return in_chunks(chunk, (boxes, levels), CHUNK)


def align_by_products(maps: Maps, boxes: Array, *, bins: int, samples: int, aligned: bool) -> Array:
    """`roi_align` on the one map there is, as products with all its cells: for TPUs."""
    levels = jnp.zeros(len(boxes), jnp.int32)
    axes = _placed(maps, boxes, levels, bins=bins, samples=samples, aligned=aligned)
    return _by_products(maps, axes)


def in_chunks(function, operands: tuple[Array, ...], size: int):
    """`function` of rows of arrays [R, ...], some rows at a time; results are joined."""
    count = len(operands[0])
    if count <= size:
        return function(operands)
    number = -(-count // size)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, number * size - count), *((0, 0) for _ in x.shape[1:])))
        return x.reshape(number, size, *x.shape[1:])

    found = jax.lax.map(function, jax.tree.map(split, operands))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)


class _Axis(NamedTuple):
    """Where bins are sampled along an axis: float32[K, P, S] in cells, and how much each counts."""

    positions: Array
    weights: Array
    last: Array  # float32[K, 1, 1], the last cell


def _placed(
    maps: Maps, boxes: Array, levels: Array, *, bins: int, samples: int, aligned: bool
) -> tuple[_Axis, _Axis]:
    """Down and across."""
    scales = 1 / jnp.array(maps.strides, jnp.float32)[levels]
    sizes = maps.sizes.astype(jnp.float32)[levels]
    cells = boxes * scales[:, None] - (0.5 if aligned else 0.0)
    # Beyond this many samples a bin is larger than the map.
    most = samples or 2 * max(max(shape) for shape in maps.shapes)
    axes = []
    for axis in (1, 0):
        start, length = cells[:, axis], cells[:, axis + 2] - cells[:, axis]
        if not aligned:
            length = jnp.maximum(length, 1.0)
        number = None if samples == 0 else samples
        axes.append(_sampled(start, length, sizes[:, 1 - axis], bins, number, most))
    return axes[0], axes[1]


def _sampled(
    start: Array, length: Array, size: Array, bins: int, samples: int | None, most: int
) -> _Axis:
    start, length, size = (x[:, None, None] for x in (start, length, size))
    width = length / bins
    number = jnp.ceil(width) if samples is None else jnp.full_like(width, samples)
    index = jnp.arange(most, dtype=jnp.float32)[None, None]
    corner = start + jnp.arange(bins, dtype=jnp.float32)[None, :, None] * width
    at = corner + (index + 0.5) * width / jnp.maximum(number, 1)
    counts = (index < number) & (at >= -1) & (at <= size)
    last = size - 1
    return _Axis(jnp.clip(at, 0, last), counts / jnp.maximum(number, 1), last)


def _by_gathers(maps: Maps, axes: tuple[_Axis, _Axis], levels: Array) -> Array:
    """Reads the cells around each sample from the table."""
    starts = np.cumsum([0, *(rows * columns for rows, columns in maps.shapes)])[:-1]
    widths = [columns for _, columns in maps.shapes]
    offset, width = (jnp.array(x, jnp.int32)[levels][:, None, None] for x in (starts, widths))
    rows, columns = (_neighbours(axis) for axis in axes)
    total = jnp.float32(0)
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = offset + row[:, :, None] * width + column[:, None, :]
            weight = row_weight[:, :, None] * column_weight[:, None, :]
            total = total + maps.cells[index].astype(jnp.float32) * weight[..., None]
    return total.astype(maps.cells.dtype)


def _neighbours(axis: _Axis) -> list[tuple[Array, Array]]:
    """int32[K, P] cells and float32[K, P] weights, two for each sample of a bin."""
    low = jnp.floor(axis.positions)
    share = axis.positions - low
    pairs = []
    for s in range(low.shape[2]):
        for step, part in ((0, 1 - share), (1, share)):
            cell = jnp.minimum(low + step, axis.last)[..., s].astype(jnp.int32)
            pairs.append((cell, (part * axis.weights)[..., s]))
    return pairs


def _by_products(maps: Maps, axes: tuple[_Axis, _Axis]) -> Array:
    """Multiplies the one map there is with the weight of every cell in every bin."""
    rows, columns = (
        jnp.einsum("kps,kpsy->kpy", axis.weights, _shares(axis, length))
        for axis, length in zip(axes, maps.shapes[0], strict=True)
    )
    precise = dict(precision="highest", preferred_element_type=jnp.float32)
    cells = maps.cells.astype(jnp.float32).reshape(*maps.shapes[0], -1)
    found = jnp.einsum("kpy,yxc->kpxc", rows, cells, **precise)
    return jnp.einsum("kqx,kpxc->kpqc", columns, found, **precise).astype(maps.cells.dtype)


def _shares(axis: _Axis, length: int) -> Array:
    """float32[K, P, S, Y], the part of each of `length` cells in each sample."""
    distances = jnp.abs(axis.positions[..., None] - jnp.arange(length)[None, None, None])
    return jnp.maximum(1 - distances, 0)


def roi_mean(
    cells: Array, size: Array, stride: float, boxes: Array, *, bins: int = 7, samples: int = 2
) -> Array:
    """The mean of all bins of `roi_align`, aligned, at a small part of its cost: float32[R, C].

    Args:
      cells: [Y, X, C], a map of one photo.
      size: int32[2], rows and columns that are of the photo.
      stride: pixels of the canvas per cell.
      boxes: float32[R, 4], corners in pixels of the canvas.
      bins: P.
      samples: S, at least 1.
    """
    maps = join([cells], [size], [stride])
    levels = jnp.zeros(len(boxes), jnp.int32)
    axes = _placed(maps, boxes, levels, bins=bins, samples=samples, aligned=True)
    rows, columns = (
        jnp.einsum("kps,kpsy->ky", axis.weights / bins, _shares(axis, length))
        for axis, length in zip(axes, cells.shape[:2], strict=True)
    )
    precise = dict(precision="highest", preferred_element_type=jnp.float32)
    found = jnp.einsum("ky,yxc->kxc", rows, cells.astype(jnp.float32), **precise)
    return jnp.einsum("kx,kxc->kc", columns, found, **precise)


def roi_pool(cells: Array, size: Array, stride: float, boxes: Array, *, bins: int = 14) -> Array:
    """Largest values in whole cells of each bin of each box, as Caffe and PyTorch count them.

    Args:
      cells: [Y, X, C], a map of one photo.
      size: int32[2], rows and columns that are of the photo.
      stride: pixels of the canvas per cell.
      boxes: float32[R, 4], corners in pixels of the canvas; the cell of the second corner belongs
        to the box.
      bins: P.

    Returns:
      [R, P, P, C], 0 where a bin has no cell.
    """

    def chunk(part: tuple[Array]) -> Array:
        # Rounds halves away from zero, as C does.
        corners = part[0] * (1 / stride)
        corners = jnp.sign(corners) * jnp.floor(jnp.abs(corners) + 0.5)
        x, y = (
            _bounds(corners[:, axis], corners[:, axis + 2], size[1 - axis], bins) for axis in (0, 1)
        )
        found = _largest(lambda rows: cells[rows], *y)  # [K, P, X, C]
        take = jax.vmap(lambda row, columns: row[:, columns])
        found = _largest(lambda columns: take(found, columns), *x)  # [K, P, Q, C]
        empty = (y[0] >= y[1])[:, :, None] | (x[0] >= x[1])[:, None, :]
        return jnp.where(empty[..., None], 0, found)

    return in_chunks(chunk, (boxes,), CHUNK)


def _bounds(first: Array, last: Array, size: Array, bins: int) -> tuple[Array, Array]:
    """int32[K, P], first cell of each bin and the one after its last."""
    # A constant would be divided by as a multiplication, whose rounding moves whole cells.
    width = jnp.maximum(last - first + 1, 1.0) / jax.lax.optimization_barrier(jnp.float32(bins))
    # Compilers divide by a constant as a multiplication, whose rounding moves whole cells.
    quotients = np.arange(_MOST_CELLS, dtype=np.float32) / np.float32(bins)
    length = jnp.clip(last - first + 1, 1, _MOST_CELLS - 1)
    width = jnp.asarray(quotients)[length.astype(jnp.int32)]
    index = jnp.arange(bins, dtype=jnp.float32)[None]
    start = jnp.floor(index * width[:, None]) + first[:, None]
    end = jnp.ceil((index + 1) * width[:, None]) + first[:, None]
    return tuple(jnp.clip(x, 0, size).astype(jnp.int32) for x in (start, end))


def _largest(take, start: Array, end: Array) -> Array:
    """The largest of what `take` gives for cells from `start` to `end`; a cell may be repeated."""

    def at(i: Array | int) -> Array:
        return take(jnp.minimum(start + i, jnp.maximum(end - 1, 0)))

    return jax.lax.fori_loop(1, jnp.max(end - start), lambda i, x: jnp.maximum(x, at(i)), at(0))
