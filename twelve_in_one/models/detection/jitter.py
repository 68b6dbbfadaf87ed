"""Random scale, place and mirroring of pictures and their boxes, on the devices.

Large-scale jitter (Ghiasi et al. 2021): a picture is scaled by a random factor and cut, or padded,
to the canvas it came from. It is drawn from a key, so that a resumed run sees the same pictures.

Letters: B pictures, S side of the canvas, G boxes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
_LEAST_SIDE = 1.0  # pixels; what is left of a box that is smaller is not learnt


class Objects(NamedTuple):
    """What is on a canvas, from its upper left corner on.

    Attributes:
      images: float[B, S, S, 3], 0 where there is no picture.
      size: float32[B, 2], rows and columns that the picture covers.
      boxes: float32[B, G, 4], corners in pixels, cut at the picture's border.
      frames: float32[B, G, 4], the same without the cut: the squares that masks are given in.
      masks: [B, G, M, M], of the objects in their frames; M may be 0.
      real: bool[B, G], which there are.
    """

    images: Array
    size: Array
    boxes: Array
    frames: Array
    masks: Array
    real: Array


def jitter(objects: Objects, key: Array, scales: tuple[float, float], flip: bool) -> Objects:
    """Each picture at another scale and place, half of them mirrored if `flip`."""
    keys = jax.random.split(key, len(objects.images))
    draws = jax.vmap(lambda k: _draw(k, scales, flip))(keys)
    return jax.vmap(_moved)(objects, *draws)


def _draw(key: Array, scales: tuple[float, float], flip: bool) -> tuple[Array, Array, Array]:
    """Factor float32[], place of the cut float32[2] in 0 to 1, whether it is mirrored bool[]."""
    scale, place, side = jax.random.split(key, 3)
    factor = jax.random.uniform(scale, (), minval=scales[0], maxval=scales[1])
    mirrored = jax.random.bernoulli(side) if flip else jnp.array(False)
    return factor, jax.random.uniform(place, (2,)), mirrored


def _moved(objects: Objects, factor: Array, place: Array, mirrored: Array) -> Objects:
    """One picture moved; see `_draw`."""
    images, size, boxes, frames, masks, real = objects
    canvas = jnp.array(images.shape[:2], jnp.float32)
    larger = size * factor
    offset = place * jnp.maximum(larger - canvas, 0.0)
    # Mirroring the canvas moves the picture to its right border, from where it is shifted back.
    images = jnp.where(mirrored, images[:, ::-1], images)
    gap = jnp.where(mirrored, canvas - size, 0.0) * jnp.array([0.0, 1.0])
    images = jax.image.scale_and_translate(
        images,
        images.shape,
        (0, 1),
        jnp.stack([factor, factor]),
        -(offset + gap * factor),
        "linear",
        antialias=True,
    )
    new_size = jnp.minimum(larger - offset, canvas)
    rows, columns = (jnp.arange(side) for side in images.shape[:2])
    covered = (rows[:, None] < new_size[0]) & (columns[None] < new_size[1])
    images = jnp.where(covered[..., None], images, 0.0)
    shift = jnp.tile(offset[::-1], 2)[None]

    def placed(x: Array) -> Array:
        other = jnp.stack([size[1] - x[:, 2], x[:, 1], size[1] - x[:, 0], x[:, 3]], axis=1)
        return jnp.where(mirrored, other, x) * factor - shift

    limits = jnp.tile(new_size[::-1], 2)[None]
    boxes = jnp.clip(placed(boxes), 0.0, limits)
    real &= jnp.all(boxes[:, 2:] - boxes[:, :2] >= _LEAST_SIDE, axis=1)
    masks = jnp.where(mirrored, masks[..., ::-1], masks)
    return Objects(images, new_size, boxes, placed(frames), masks, real)


def mask_targets(masks: Array, frames: Array, boxes: Array, truth: Array, side: int) -> Array:
    """Masks as boxes see them: bool[R, side, side].

    Args:
      masks: [G, M, M], 0 or 1.
      frames: float32[G, 4], the boxes that the masks fill.
      boxes: float32[R, 4].
      truth: int32[R], the mask of each.
      side: of the result.
    """
    own, frame = masks[truth].astype(jnp.float32), frames[truth]
    steps = (jnp.arange(side) + 0.5) / side
    cells = masks.shape[-1]

    def along(axis: int) -> Array:
        """[R, side, M], the share of each of the mask's cells in each point."""
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        start, end = frame[:, axis, None], frame[:, axis + 2, None]
        share = (low + steps[None] * (high - low) - start) / jnp.maximum(end - start, 1e-6)
        at = share * cells - 0.5
        return jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(cells)[None, None]), 0.0)

    return jnp.einsum("rim,rmn,rjn->rij", along(1), own, along(0)) > 0.5
