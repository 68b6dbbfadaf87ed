"""Operations on pictures against arrays recorded from big_vision, and what must hold of any."""

import numpy as np
import pytest
import tensorflow as tf

from twelve_in_one.data.images import ops


@pytest.fixture(scope="module")
def recorded(shared_dir):
    with np.load(shared_dir / "fixtures" / "preprocess.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _pictures(recorded):
    for name in recorded:
        if name.startswith("in/image"):
            yield name.removeprefix("in/image"), recorded[name]


def _same_bytes(ours, theirs, scale=1.0):
    """At most one level off, for the float error of resizing; and seldom."""
    ours, theirs = (np.asarray(x, np.float64) / scale for x in (ours, theirs))
    assert ours.shape == theirs.shape
    off = np.abs(ours - theirs)
    assert off.max() < 1.001
    assert (off > 1e-3).mean() <= 0.05


def test_evaluation_and_pretraining_equal_big_visions(recorded):
    for number, image in _pictures(recorded):

        def expected(name, number=number):
            return recorded[f"out/image{number}/{name}"]

        small = min(expected("resize_small").shape[:2])
        side = expected("eval").shape[0]
        resized = ops.resize_small(image, small)
        _same_bytes(resized, expected("resize_small"))
        _same_bytes(
            ops.value_range(ops.central_crop(resized, side)), expected("eval"), scale=2 / 255
        )
        _same_bytes(ops.resize(image, side), expected("resize"))
        _same_bytes(ops.resize(image, side, antialias=True), expected("resize_aa"))
        _same_bytes(ops.value_range(ops.resize(image, side)), expected("pretrain"), scale=2 / 255)
        np.testing.assert_array_equal(ops.central_crop(image), expected("central_crop_largest"))
        cut = ops.crop(image, recorded[f"in/box{number}"])
        _same_bytes(ops.resize(cut, side), expected("inception_crop"))
        _same_bytes(ops.resize(cut, side, antialias=True), expected("inception_crop_aa"))
        exact = ops.resize(tf.cast(cut, tf.float32), side)
        np.testing.assert_allclose(exact, expected("inception_crop_float"), atol=3e-3)
        exact = ops.resize_small(tf.cast(image, tf.float32), small)
        np.testing.assert_allclose(exact, expected("resize_small_float"), atol=3e-3)


def test_bytes_are_cut_off_and_not_rounded():
    values = ops.cast_back(tf.constant([-3.2, 0.9, 254.99, 300.0]), tf.uint8)
    np.testing.assert_array_equal(values, [0, 0, 254, 255])


@pytest.mark.parametrize(("shape", "expected"), [((48, 65), (24, 32)), ((90, 41), (53, 24))])
def test_the_shorter_side_is_as_asked(shape, expected):
    image = np.zeros((*shape, 3), np.uint8)
    assert ops.resize_small(image, 24).shape[:2] == expected


def test_a_crop_larger_than_the_picture_takes_what_there_is():
    image = np.arange(5 * 9 * 3, dtype=np.uint8).reshape(5, 9, 3)
    np.testing.assert_array_equal(ops.central_crop(image, (7, 3)), image[:, 3:6])


def test_crops_and_flips_are_functions_of_their_seed():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    seeds = [tf.constant([7, i]) for i in range(40)]
    boxes = np.array([ops.inception_box(tf.constant([40, 60, 3]), seed) for seed in seeds])
    again = np.array([ops.inception_box(tf.constant([40, 60, 3]), seed) for seed in seeds])
    np.testing.assert_array_equal(boxes, again)
    assert len({tuple(box) for box in boxes}) > 35
    y, x, rows, columns = boxes.T
    assert np.all((y >= 0) & (x >= 0) & (y + rows <= 40) & (x + columns <= 60))
    share = rows * columns / (40 * 60)
    assert share.min() > 0.04 and share.max() > 0.6
    # Sides are whole pixels, which moves the aspect of a small box a little.
    assert np.all((columns / rows > 0.6) & (columns / rows < 1.6))
    crop = ops.random_resized_crop(image, 16, seeds[0])
    assert crop.shape == (16, 16, 3) and crop.dtype == tf.uint8
    flips = [bool(np.all(ops.random_flip(image, seed) == image[:, ::-1])) for seed in seeds]
    assert 10 < sum(flips) < 30


def test_value_range_meets_its_ends():
    np.testing.assert_allclose(ops.value_range(np.uint8([0, 255])), [-1.0, 1.0])
    np.testing.assert_allclose(ops.value_range(np.uint8([0, 51]), 0.0, 1.0), [0.0, 0.2], rtol=1e-6)
