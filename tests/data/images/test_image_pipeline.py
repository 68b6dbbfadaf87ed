"""From bytes to what a model takes: recorded arrays, partial decoding, seeds."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from twelve_in_one.data.images import ops, pipeline
from twelve_in_one.data.images.load import load_image
from twelve_in_one.data.images.pipeline import Preprocess

SEED = tf.constant([5, 6])


def test_recipes_equal_big_visions(shared_dir, encode):
    with np.load(shared_dir / "fixtures" / "preprocess.npz", allow_pickle=False) as recorded:
        for number in range(4):
            data = encode(recorded[f"in/image{number}"], "PNG")
            for name, options in (
                ("eval", Preprocess(21, short_side=24)),
                ("pretrain", Preprocess(21)),
            ):
                ours = ops.value_range(pipeline.read(data, SEED, options)).numpy()
                off = np.abs(ours - recorded[f"out/image{number}/{name}"]) * 127.5
                assert off.max() < 1.001 and (off > 0.01).mean() <= 0.05


@pytest.mark.parametrize("options", [{"subsampling": n} for n in range(3)] + [{"progressive": 1}])
def test_jpeg_pixels_are_pillows(photo, encode, tmp_path, options):
    path = tmp_path / "x.jpg"
    path.write_bytes(encode(photo, "JPEG", **options))
    np.testing.assert_array_equal(pipeline.decode(path.read_bytes()), load_image(path))


def test_partial_decoding_changes_nothing(photo, encode):
    options = Preprocess(24, random_crop=True, flip=True, randaugment_layers=1)
    read = tf.function(lambda data, seed: pipeline.read(data, seed, options))
    whole = tf.function(lambda data, seed: pipeline.augment(pipeline.decode(data), seed, options))
    files = [encode(photo, "JPEG", **options) for options in ({}, {"progressive": True})]
    files += [encode(photo[..., 0], "JPEG"), encode(photo, "PNG")]
    results = set()
    for data in map(tf.constant, files):
        for i in range(8):
            seed = tf.constant([1, i])
            ours = read(data, seed).numpy()
            np.testing.assert_array_equal(ours, whole(data, seed))
            results.add(ours.tobytes())
    assert len(results) == 24  # a progressive file has the pixels of the plain one


def test_shrinking_while_decoding_is_near_and_not_equal(photo, encode):
    data = tf.constant(encode(photo, "JPEG"))
    exact = Preprocess(20, short_side=22)
    near = dataclasses.replace(exact, shrink_while_decoding=True)
    ours, theirs = (pipeline.read(data, SEED, x).numpy().astype(int) for x in (exact, near))
    assert 0 < np.abs(ours - theirs).mean() < 6
    # A picture that would have to grow again is decoded whole.
    for options in (Preprocess(60), Preprocess(48, random_crop=True, crop_area=(0.9, 1.0))):
        small = dataclasses.replace(options, shrink_while_decoding=True)
        whole = pipeline.augment(pipeline.decode(data), SEED, options)
        np.testing.assert_array_equal(pipeline.read(data, SEED, small), whole)


def test_damaged_bytes_are_told(photo, encode):
    whole = encode(photo, "JPEG")
    for data in (b"", b"<!DOCTYPE html>", whole[:900], b"\xff\xd8\xff", encode(photo, "PNG")[:500]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            pipeline.decode(tf.constant(data))


def test_seeds_depend_on_each_part():
    base = pipeline.base_seed((3, 4))
    assert base.dtype == np.int32 and not np.array_equal(base, pipeline.base_seed((3, 5)))

    def seed(epoch, number):
        return tuple(
            pipeline.example_seed(
                base, tf.constant(epoch, tf.int64), tf.constant(number, tf.int64)
            ).numpy()
        )

    # Also of numbers that differ beyond the 32nd bit.
    places = [(e, n) for e in range(3) for n in (0, 1, 2, 1 << 32, (1 << 32) + 1)]
    assert len({seed(*place) for place in places}) == len(places)
    assert seed(1, 2) == seed(1, 2)


def test_each_random_step_has_its_own_draws(photo):
    """With another step before it, a step draws as it does without."""
    flip = tf.function(lambda s: pipeline.preprocess(photo, s, Preprocess(16, flip=True)))
    both = tf.function(
        lambda s: pipeline.preprocess(photo, s, Preprocess(16, flip=True, random_crop=True))
    )
    plain = tf.function(lambda s: pipeline.preprocess(photo, s, Preprocess(16)))(SEED).numpy()
    for i in range(6):
        seed = tf.constant([9, i])
        crop_seed = tf.random.experimental.stateless_split(seed, 2)[0]
        cut = ops.crop(photo, ops.inception_box(tf.constant(photo.shape), crop_seed))
        expected = ops.value_range(ops.resize(cut, 16)).numpy()
        flipped = not np.array_equal(flip(seed), plain)
        expected = expected[:, ::-1] if flipped else expected
        np.testing.assert_allclose(both(seed), expected, atol=1e-6)


def test_enlarged_pictures_lose_a_random_border(photo):
    """Each is a part of the whole picture at the larger size, and parts differ."""
    options = Preprocess(16, enlarged=18)
    whole = ops.resize(photo, 18).numpy()
    parts = {whole[y : y + 16, x : x + 16].tobytes() for y in range(3) for x in range(3)}
    augment = tf.function(lambda s: pipeline.augment(photo, s, options))
    found = {augment(tf.constant([9, i])).numpy().tobytes() for i in range(12)}
    assert len(found) > 3 and found <= parts and options.is_random


def test_settings_that_make_no_sense():
    for options in (
        {"size": 0},
        {"size": 30, "short_side": 20},
        {"short_side": 256, "random_crop": True},
        {"crop_area": (0.5, 0.2)},
        {"randaugment_layers": -1},
        {"randaugment_magnitude": 11},
        {"low": 1.0},
        {"enlarged": 20, "size": 30},
        {"enlarged": 300, "random_crop": True},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            Preprocess(**options)
    assert Preprocess(flip=True).is_random and not Preprocess(short_side=256).is_random
