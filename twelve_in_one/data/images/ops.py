"""Preprocessing of decoded pictures for a model, as TensorFlow graph operations.

The operations and defaults are big_vision's, including its rounding: bytes in, bytes out, each
truncated rather than rounded; shrinking does not average unless asked to. Random ones take a seed
int32[2], so an example's crop is a function of (seed, epoch, example).

Shape letters: Y rows and X columns of pixels.
"""

from typing import Literal

import tensorflow as tf

Method = Literal["bilinear", "area", "bicubic"]
_GREY = 128


def resize(
    image: tf.Tensor,
    size: int | tuple[int, int] | tf.Tensor,
    *,
    method: Method = "bilinear",
    antialias: bool = False,
) -> tf.Tensor:
    """Resizes to a size, ignoring the aspect ratio.

    Args:
      image: uint8 or float32 [Y, X, 3].
      size: rows and columns, or the side of a square.
      method: of interpolation, with pixel centres at halves.
      antialias: average while shrinking ("area" always does).

    Returns:
      [*size, 3] of the type of `image`; bytes are truncated, not rounded.
    """
    image = tf.convert_to_tensor(image)
    size = (size, size) if isinstance(size, int) else size
    resized = tf.image.resize(image, size, method=method, antialias=antialias)
    # A mean of bytes needs no clipping, which takes a third of the time; cubic weights overshoot.
    return cast_back(resized, image.dtype) if method == "bicubic" else tf.cast(resized, image.dtype)


def cast_back(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """float32 to `dtype`; bytes are clipped to 0 to 255 and lose their fractions."""
    if dtype.is_integer:
        values = tf.clip_by_value(values, float(dtype.min), float(dtype.max))
    return tf.cast(values, dtype)


def resize_small(
    image: tf.Tensor, side: int, *, method: Method = "area", antialias: bool = False
) -> tf.Tensor:
    """Resizes the shorter side to `side` pixels and keeps the aspect ratio.

    Args:
      image, method, antialias: see `resize`.
      side: pixels of the shorter side.

    Returns:
      As `resize`; the longer side is rounded to the nearest pixel, halves to the even one.
    """
    image = tf.convert_to_tensor(image)
    shape = tf.shape(image)[:2]
    # In float32, because the rounding of halves depends on it.
    factor = tf.cast(side, tf.float32) / tf.cast(tf.reduce_min(shape), tf.float32)
    size = tf.cast(tf.round(tf.cast(shape, tf.float32) * factor), tf.int32)
    resized = tf.image.resize(image, size, method=method, antialias=antialias)
    # A mean of bytes needs no clipping, which takes a third of the time; cubic weights overshoot.
    return cast_back(resized, image.dtype) if method == "bicubic" else tf.cast(resized, image.dtype)


def letterbox(image: tf.Tensor, side: int, *, antialias: bool = False) -> tf.Tensor:
    """Resizes the longer side to `side` pixels, with grey below or to the right up to a square.

    Args:
      image: [Y, X, 3].
      side: of the result.
      antialias: average while shrinking.

    Returns:
      [side, side, 3] of the type of `image`; the shorter side is rounded to the nearest pixel,
      halves to the even one.
    """
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    factor = tf.cast(side, tf.float32) / tf.reduce_max(shape)
    size = tf.maximum(tf.cast(tf.round(shape * factor), tf.int32), 1)
    image = resize(image, size, antialias=antialias)
    padding = [[0, side - size[0]], [0, side - size[1]], [0, 0]]
    return tf.pad(image, padding, constant_values=tf.constant(_GREY, image.dtype))


def central_crop(image: tf.Tensor, size: int | tuple[int, int] | None = None) -> tf.Tensor:
    """The middle of a picture.

    Args:
      image: [Y, X, 3].
      size: rows and columns, or the side of a square; None takes the largest square. If the picture
        is too short in a direction, it stays as it is there.
    """
    shape = tf.shape(image)
    if size is None:
        rows = columns = tf.reduce_min(shape[:2])
    else:
        rows, columns = (size, size) if isinstance(size, int) else size
        rows, columns = tf.minimum(rows, shape[0]), tf.minimum(columns, shape[1])
    y, x = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    return tf.image.crop_to_bounding_box(image, y, x, rows, columns)


def inception_box(
    shape: tf.Tensor,
    seed: tf.Tensor,
    *,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (0.75, 1.33),
) -> tf.Tensor:
    """A random box for `crop`: int32[4] of y, x, rows and columns (Szegedy et al. 2015).

    Args:
      shape: int32[3] of the picture.
      seed: int32[2].
      area: smallest and largest share of the picture's area.
      aspect: smallest and largest ratio of columns to rows.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([0, 0, 4], tf.float32),
        seed,
        aspect_ratio_range=aspect,
        area_range=area,
        min_object_covered=0.0,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def crop(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """The part of [Y, X, 3] inside a box int32[4] of y, x, rows and columns."""
    return tf.image.crop_to_bounding_box(image, box[0], box[1], box[2], box[3])


def random_resized_crop(
    image: tf.Tensor,
    size: int,
    seed: tf.Tensor,
    *,
    area: tuple[float, float] = (0.05, 1.0),
    method: Method = "bilinear",
    antialias: bool = False,
) -> tf.Tensor:
    """A random box (`inception_box`), resized to a square of `size` pixels."""
    cut = crop(image, inception_box(tf.shape(image), seed, area=area))
    return resize(cut, size, method=method, antialias=antialias)


def random_square(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """A square of `size` pixels from a random place of a picture that is at least as large."""
    return tf.image.stateless_random_crop(image, [size, size, 3], seed)


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Flips left and right for half of the seeds; not for tasks that tell them apart, or read."""
    return tf.image.stateless_random_flip_left_right(image, seed)


def value_range(image: tf.Tensor, low: float = -1.0, high: float = 1.0) -> tf.Tensor:
    """Bytes (uint8) as float32, 0 as `low` and 255 as `high`."""
    # One operation that multiplies and adds takes a third of the time of three, and leaves a graph
    # nothing to reorder, which would change the last bit.
    quantized = tf.bitcast(tf.convert_to_tensor(image, tf.uint8), tf.quint8)
    return tf.quantization.dequantize(quantized, low, high, mode="MIN_COMBINED")
