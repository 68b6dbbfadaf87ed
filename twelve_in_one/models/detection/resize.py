"""Photos of any size on canvases of few sizes, resized exactly as the detectors' scripts do it.

The positions and weights of the resizing are made in NumPy, in float64, and applied in one
compiled program. Shape letters: H, W photo; Y, X canvas; T pixels that a resized one is made of.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.detection.detector import Canvases

Array = jax.Array
Filter = Literal["bilinear", "antialiased"]
# Photos are padded to sides of these steps, so that programs serve many sizes.
_STEP = 128
_PILLOW_BITS = 22  # after the point of Pillow's weights, which are whole numbers


@dataclasses.dataclass(frozen=True)
class Resizing:
    """How a detector wants its photos.

    Attributes:
      shorter: side in pixels.
      longest: side that may not be exceeded; the shorter one is then shorter.
      rounding: of the resized size. "even": to the nearest, and `longest` is compared after it
        (scripts around Caffe). "up": half a pixel upwards, twice if `longest` matters (detectron2).
        "down": towards zero (maskrcnn-benchmark's data loader).
      filter: "bilinear" between the four nearest pixels, as OpenCV; "antialiased" as Pillow, which
        rounds after each axis, bit for bit.
      steps_by_scale: of both axes alike: pixels are 1 / scale apart; else by each axis's own sizes.
    """

    shorter: int
    longest: int
    rounding: Literal["even", "up", "down"] = "even"
    filter: Filter = "bilinear"
    steps_by_scale: bool = True

    def size(self, height: int, width: int) -> tuple[int, int, float]:
        """Height and width after resizing, and the scale."""
        low, high = min(height, width), max(height, width)
        if self.rounding == "even":
            scale = self.shorter / low
            if round(scale * high) > self.longest:
                scale = self.longest / high
            return round(height * scale), round(width * scale), scale
        if self.rounding == "up":
            scale = self.shorter / low
            sides = (height * scale, width * scale)
            if max(sides) > self.longest:
                shrink = self.longest / max(sides)
                sides, scale = (sides[0] * shrink, sides[1] * shrink), scale * shrink
            return int(sides[0] + 0.5), int(sides[1] + 0.5), scale
        shorter = self.shorter
        if high / low * shorter > self.longest:
            shorter = round(self.longest * low / high)
        scale = shorter / low
        longer = int(shorter * high / low)
        return (shorter, longer, scale) if height <= width else (longer, shorter, scale)


def taps(
    length: int, step: float, outputs: int, antialias: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels along one axis that each resized pixel is made of.

    Args:
      length: pixels there are; those beyond are the last one.
      step: from one resized pixel to the next.
      outputs: resized pixels.
      antialias: widen the filter to `step`, as Pillow does.

    Returns:
      int32[outputs, T] places, and weights [outputs, T]: float32 that add up to 1, or with
      `antialias` Pillow's int32.
    """
    reach = max(step, 1.0) if antialias else 1.0
    centers = (np.arange(outputs) + 0.5) * step - 0.5
    number = 2 * math.ceil(reach)
    places = np.floor(centers - reach)[:, None] + 1 + np.arange(number)
    weights = np.maximum(1 - np.abs(places - centers[:, None]) / reach, 0)
    if antialias:  # what lies outside does not count, elsewhere it is the pixel at the border
        weights *= (places >= 0) & (places < length)
    weights /= weights.sum(1, keepdims=True)
    if antialias:
        weights = np.floor(weights * (1 << _PILLOW_BITS) + 0.5).astype(np.int32)
    else:
        weights = weights.astype(np.float32)
    return np.clip(places, 0, length - 1).astype(np.int32), weights


def resample(image: Array, rows: tuple[Array, Array], columns: tuple[Array, Array]) -> Array:
    """float32[Y, X, 3] of [H, W, 3], by the taps of both axes."""
    return _along(_along(image, columns, 1), rows, 0).astype(jnp.float32)


def _along(image: Array, axis_taps: tuple[Array, Array], axis: int) -> Array:
    """One axis: float32, or whole values as int32 where weights are whole."""
    places, weights = axis_taps
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)

    def add(i: Array | int, total: Array) -> Array:
        taken = jnp.take(image, places[:, i], axis=axis).astype(weights.dtype)
        return total + taken * weights[:, i].reshape(shape)

    total = add(0, jnp.zeros((), weights.dtype))
    total = jax.lax.fori_loop(1, places.shape[1], add, total)
    if weights.dtype != jnp.int32:
        return total
    return jnp.clip((total + (1 << _PILLOW_BITS - 1)) >> _PILLOW_BITS, 0, 255)


def on_canvas(
    image: np.ndarray,
    canvases: Sequence[tuple[int, int]],
    resizing: Resizing,
    normalise: Callable[[Array], Array],
) -> Canvases:
    """A photo on the canvas of the least area that it fits on.

    Args:
      image: uint8[H, W, 3] in RGB.
      canvases: Y and X of each.
      resizing: how.
      normalise: float32[..., 3] in RGB, 0 to 255, to what the network takes; one object for one
        function, since each is compiled.

    Raises:
      ValueError: not uint8[H, W, 3], or resized it fits on none.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image must be uint8[H, W, 3], is {image.dtype}{list(image.shape)}")
    height, width = image.shape[:2]
    rows, columns, scale = resizing.size(height, width)
    canvas = _smallest(canvases, rows, columns)
    if rows > canvas[0] or columns > canvas[1] or min(rows, columns) < 1:
        raise ValueError(
            f"a photo {width} wide and {height} high becomes {columns} x {rows}, which does not "
            f"fit on a canvas of {canvas[1]} x {canvas[0]} pixels: crop it"
        )
    padded = np.zeros((*(-(-side // _STEP) * _STEP for side in (height, width)), 3), np.uint8)
    padded[:height, :width] = image
    antialias = resizing.filter == "antialiased"
    scales, both = [], []
    for length, resized, extent in zip((height, width), (rows, columns), canvas, strict=True):
        scales.append(scale if resizing.steps_by_scale else resized / length)
        step = 1 / scale if resizing.steps_by_scale else length / resized
        places, weights = taps(length, step, resized, antialias)
        number = places.shape[1]  # a program for each power of two
        grown = ((0, extent - resized), (0, (1 << (number - 1).bit_length()) - number))
        both.append((np.pad(places, grown), np.pad(weights, grown)))
    sizes = np.array([[rows, columns]], np.int32)
    pixels = _draw(padded, tuple(both), sizes[0], normalise)
    return Canvases(
        pixels=pixels[None],
        sizes=jnp.asarray(sizes),
        scales=jnp.asarray(scales, jnp.float32)[None],
        photo_sizes=jnp.array([[height, width]], jnp.int32),
    )


@functools.partial(jax.jit, static_argnames="normalise")
def _draw(
    image: Array,
    both: Sequence[tuple[Array, Array]],
    size: Array,
    normalise: Callable[[Array], Array],
) -> Array:
    """float32[Y, X, 3]."""
    x = resample(image, *both)
    return normalise(x) * covered(x.shape[:2], size)[..., None]


def covered(shape: tuple[int, int], size: Array) -> Array:
    """bool[Y, X], the first rows and columns of a canvas, or of a map of it."""
    return (jnp.arange(shape[0]) < size[0])[:, None] & (jnp.arange(shape[1]) < size[1])[None]


def _smallest(canvases: Sequence[tuple[int, int]], rows: int, columns: int) -> tuple[int, int]:
    """The canvas of the least area that a resized photo fits on; the largest if there is none."""
    fitting = [c for c in canvases if c[0] >= rows and c[1] >= columns]
    return min(fitting or [max(canvases, key=math.prod)], key=math.prod)
