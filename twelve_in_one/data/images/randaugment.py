"""RandAugment (Cubuk et al. 2019) with seeds: operations drawn at random, all equally strong.

The fourteen operations are the paper's, their ranges those of its largest magnitude; pixels equal
those of Pillow's functions of the same names. Where the paper's code grows weaker with the
magnitude (posterize, solarize), these grow stronger.
"""

from collections.abc import Callable

import tensorflow as tf

MAX_MAGNITUDE = 10.0
_FILL = 128  # fills the borders that come into view
_DEGREES, _SHEAR, _SHIFT, _ENHANCE = 30.0, 0.3, 0.45, 0.9  # at the largest magnitude
_LUMA = (19595, 38470, 7471)  # of 65,536: Pillow's whole-number form of ITU-R 601

Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def randaugment(image: tf.Tensor, seed: tf.Tensor, layers: int, magnitude: float) -> tf.Tensor:
    """Applies `layers` operations in turn, each drawn from all.

    Args:
      image: uint8[Y, X, 3].
      seed: int32[2].
      layers: how many.
      magnitude: 0 to 10.

    Returns:
      uint8[Y, X, 3].
    """
    strength = magnitude / MAX_MAGNITUDE
    seeds = tf.random.experimental.stateless_split(seed, layers)
    for layer in range(layers):
        which, sign = tf.unstack(tf.random.experimental.stateless_split(seeds[layer], 2))
        index = tf.random.stateless_uniform([], which, 0, len(OPERATIONS), tf.int32)
        positive = tf.random.stateless_uniform([], sign) < 0.5
        signed = tf.where(positive, strength, -strength)
        image = apply(image, index, signed)
    return image


def apply(image: tf.Tensor, index: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """One operation, by its index in `OPERATIONS`.

    Args:
      image: uint8[Y, X, 3].
      index: int32[].
      strength: float32[], -1 to 1; operations without a direction use its absolute value.
    """
    shape = image.shape
    branches = [lambda op=op: op(image, strength) for op in OPERATIONS.values()]
    return tf.ensure_shape(tf.switch_case(index, branches), shape)


def _identity(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return image


def _to_bytes(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def autocontrast(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to reach from 0 to 255."""
    values = tf.cast(image, tf.float32)
    low = tf.reduce_min(values, axis=(0, 1))
    width = tf.reduce_max(values, axis=(0, 1)) - low
    scale = 255.0 / tf.maximum(width, 1.0)
    return tf.where(width > 0, _to_bytes(values * scale - low * scale + 1e-4), image)


def equalize(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Makes all values of a channel about equally frequent."""

    def channel(values: tf.Tensor) -> tf.Tensor:
        counts = tf.math.bincount(values, minlength=256, maxlength=256)
        last = counts[tf.reduce_max(values)]
        step = (tf.reduce_sum(counts) - last) // 255
        table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
        return tf.where(step > 0, tf.gather(tf.clip_by_value(table, 0, 255), values), values)

    channels = tf.unstack(tf.cast(image, tf.int32), axis=-1)
    return tf.cast(tf.stack([channel(values) for values in channels], axis=-1), tf.uint8)


def posterize(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Keeps the upper 8 to 4 bits."""
    dropped = tf.cast(tf.round(tf.abs(strength) * 4), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, dropped), dropped)


def solarize(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Inverts values brighter than a threshold that falls from 255 to 0."""
    threshold = tf.cast(255.0 * (1 - tf.abs(strength)), tf.int32)
    return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


def _grey(image: tf.Tensor) -> tf.Tensor:
    """int32[Y, X], brightness."""
    weighed = tf.reduce_sum(tf.cast(image, tf.int32) * tf.constant(_LUMA), axis=-1)
    return (weighed + 0x8000) // 0x10000


def _blend(plain: tf.Tensor, image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Interpolates between a plain form of the picture and the picture, and beyond it."""
    factor = 1 + _ENHANCE * strength
    plain, values = tf.cast(plain, tf.float32), tf.cast(image, tf.float32)
    return _to_bytes(plain + factor * (values - plain))


def color(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Makes it less or more colourful."""
    return _blend(_grey(image)[..., None], image, strength)


def contrast(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Moves values nearer to the mean brightness, or further from it."""
    mean = tf.reduce_mean(tf.cast(_grey(image), tf.float32))
    return _blend(tf.floor(mean + 0.5), image, strength)


def brightness(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Makes it darker or brighter."""
    return _blend(0, image, strength)


def sharpness(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Makes it smoother or sharper; pixels at the border stay."""
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13
    kernel = tf.tile(kernel[:, :, None, None], [1, 1, 3, 1])
    values = tf.cast(image, tf.float32)[None]
    smooth = tf.nn.depthwise_conv2d(values, kernel, [1, 1, 1, 1], "VALID")[0]
    smooth = tf.floor(tf.clip_by_value(smooth, 0.0, 255.0) + 0.5)
    inside = tf.pad(tf.ones_like(smooth, tf.bool), [[1, 1], [1, 1], [0, 0]])
    padded = tf.pad(smooth, [[1, 1], [1, 1], [0, 0]])
    return _blend(tf.where(inside, padded, values[0]), image, strength)


def _affine(image: tf.Tensor, matrix: list[tf.Tensor | float]) -> tf.Tensor:
    """Takes each pixel from the place given by six numbers (rows of x and y), nearest pixel."""
    x0, x1, x2, y0, y1, y2 = (tf.cast(number, tf.float32) for number in matrix)
    # Pillow puts pixel centres at halves, TensorFlow at whole numbers.
    x2 += (x0 + x1 - 1) / 2
    y2 += (y0 + y1 - 1) / 2
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([x0, x1, x2, y0, y1, y2, 0.0, 0.0])[None],
        output_shape=tf.shape(image)[:2],
        fill_value=float(_FILL),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def rotate(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Rotates by up to 30 degrees about the middle."""
    angle = strength * (_DEGREES * 3.141592653589793 / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = (tf.cast(side, tf.float32) / 2 for side in tf.unstack(tf.shape(image)[:2]))
    return _affine(image, [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y])


def shear_x(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Slides rows by up to 0.3 columns per row."""
    return _affine(image, [1.0, _SHEAR * strength, 0.0, 0.0, 1.0, 0.0])


def shear_y(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Slides columns by up to 0.3 rows per column."""
    return _affine(image, [1.0, 0.0, 0.0, _SHEAR * strength, 1.0, 0.0])


def _pixels(side: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return tf.round(strength * _SHIFT * tf.cast(side, tf.float32))


def translate_x(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Moves to the side by up to 0.45 of the width."""
    return _affine(image, [1.0, 0.0, _pixels(tf.shape(image)[1], strength), 0.0, 1.0, 0.0])


def translate_y(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Moves up or down by up to 0.45 of the height."""
    return _affine(image, [1.0, 0.0, 0.0, 0.0, 1.0, _pixels(tf.shape(image)[0], strength)])


OPERATIONS: dict[str, Operation] = {
    "identity": _identity,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "rotate": rotate,
    "solarize": solarize,
    "color": color,
    "posterize": posterize,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
