"""Operations of RandAugment against Pillow's of the same names, and how they are drawn."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from twelve_in_one.data.images import randaugment


@pytest.fixture(scope="module")
def image():
    """Smooth and dark, so that contrast has something to do."""
    y, x = np.mgrid[:40, :56]
    noise = np.random.default_rng(0).integers(0, 20, (40, 56, 3))
    waves = np.stack([90 + 60 * np.sin(x / 9), 80 + 50 * np.cos(y / 7), 20 + x + y], axis=-1)
    return (waves + noise).astype(np.uint8)


def _affine(x0, x1, x2, y0, y1, y2):
    return lambda picture: picture.transform(
        picture.size, Image.AFFINE, (x0, x1, x2, y0, y1, y2), fillcolor=(128,) * 3
    )


def _enhanced(kind):
    return lambda strength: lambda picture: kind(picture).enhance(1 + 0.9 * strength)


# By Pillow, of a strength from -1 to 1.
_PILLOW = {
    "identity": lambda s: lambda picture: picture,
    "autocontrast": lambda s: ImageOps.autocontrast,
    "equalize": lambda s: ImageOps.equalize,
    "rotate": lambda s: lambda picture: picture.rotate(30 * s, fillcolor=(128,) * 3),
    "solarize": lambda s: lambda picture: ImageOps.solarize(picture, int(255 * (1 - abs(s)))),
    "color": _enhanced(ImageEnhance.Color),
    "posterize": lambda s: lambda picture: ImageOps.posterize(picture, 8 - round(4 * abs(s))),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda s: _affine(1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda s: _affine(1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda s: _affine(1, 0, round(0.45 * s * 56), 0, 1, 0),
    "translate_y": lambda s: _affine(1, 0, 0, 0, 1, round(0.45 * s * 40)),
}
_MOVES = ("rotate", "shear_x", "shear_y")  # a pixel may lie halfway between two


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.7])
def test_operations_are_pillows(image, strength):
    assert set(_PILLOW) == set(randaugment.OPERATIONS)
    for name, operation in randaugment.OPERATIONS.items():
        ours = np.asarray(operation(tf.constant(image), tf.constant(strength)), int)
        theirs = np.asarray(_PILLOW[name](strength)(Image.fromarray(image)), int)
        off = np.abs(ours - theirs)
        if name in _MOVES:
            assert (off > 0).any(axis=-1).mean() < 0.01, name
        else:
            assert off.max() <= 1 and (off > 0).mean() < 0.02, name
        if name != "identity" and strength == -1.0:
            assert (ours != image).any(), name


def test_flat_channels_stay():
    flat = np.full((8, 9, 3), 7, np.uint8)
    for op in (randaugment.autocontrast, randaugment.equalize):
        np.testing.assert_array_equal(op(tf.constant(flat), tf.constant(1.0)), flat)


def test_draws_are_functions_of_the_seed(image):
    @tf.function
    def augment(seed):
        return randaugment.randaugment(tf.constant(image), seed, 1, 10.0)

    made = [augment(tf.constant([3, i])).numpy() for i in range(60)]
    np.testing.assert_array_equal(made[5], augment(tf.constant([3, 5])))
    distinct = {array.tobytes() for array in made}
    # Fourteen operations, nine of them in two directions.
    assert 15 <= len(distinct) <= 23
