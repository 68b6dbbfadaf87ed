"""Nearest images against plain loops in float64, and the draws against their claimed law."""

import numpy as np
import pytest

from twelve_in_one.data.encode.negatives import POOL_SIZE, draw_negatives, nearest_pool
from twelve_in_one.data.stored.records import DataError


def _distances(features):
    features = np.asarray(features, np.float64)
    return np.array([[np.linalg.norm(a - b) for b in features] for a in features])


@pytest.mark.parametrize(("num", "size"), [(60, 10), (60, 60), (7, 100), (1, 5), (2, 1)])
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_pool_holds_the_nearest(num, size, offset):
    rng = np.random.default_rng(num)
    features = (rng.normal(size=(num, 12)) + offset).astype(np.float16)
    pool = nearest_pool(features, size)
    assert pool.dtype == np.int32
    assert pool.shape == (num, min(size, num))
    distances = _distances(features)
    for image, neighbours in enumerate(pool):
        assert neighbours[0] == image
        assert len(set(neighbours)) == len(neighbours)
        # By distance, so that neighbours in a near tie may change places.
        expected = np.sort(distances[image])[: len(neighbours)]
        np.testing.assert_allclose(distances[image, neighbours], expected, rtol=0, atol=1e-3)


def test_pool_across_blocks(monkeypatch):
    features = np.random.default_rng(3).normal(size=(50, 5)).astype(np.float32)
    whole = nearest_pool(features, 8)
    monkeypatch.setattr("twelve_in_one.data.encode.negatives._BLOCK_ROWS", 7)
    np.testing.assert_array_equal(nearest_pool(features, 8), whole)


def test_itself_is_first_among_twins():
    features = np.repeat(np.array([[1.0, 2.0], [5.0, 5.0]]), 3, axis=0)
    pool = nearest_pool(features, 3)
    assert pool[:, 0].tolist() == list(range(6))
    assert (pool // 3 == np.arange(6)[:, None] // 3).all()


def test_pool_of_no_image():
    assert nearest_pool(np.zeros((0, 4), np.float16)).shape == (0, 0)


def test_pool_size_is_the_released_one():
    assert nearest_pool(np.random.default_rng(0).normal(size=(130, 3))).shape == (130, POOL_SIZE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pool_refuses_what_is_not_finite(value):
    features = np.zeros((9, 3), np.float16)
    features[4, 1] = value
    with pytest.raises(DataError, match="mean region feature of image 4 is not finite"):
        nearest_pool(features)


FIRST_CAPTION = np.array([0, 3, 4, 6, 11, 12])  # five images with 3, 1, 2, 5 and 1 captions


def _image_of(caption):
    return next(i for i in range(5) if FIRST_CAPTION[i] <= caption < FIRST_CAPTION[i + 1])


def _expected_captions(images):
    """Probability of each caption where the image is drawn first, then one of its captions."""
    share = np.zeros(12)
    for image in images:
        first, end = FIRST_CAPTION[image], FIRST_CAPTION[image + 1]
        share[first:end] += 1 / len(images) / (end - first)
    return share


def _chi_square(values, expected):
    """Statistic over the outcomes that can happen; those that cannot must not."""
    seen = np.bincount(values, minlength=len(expected))
    assert not seen[expected == 0].any()
    wanted = len(values) * expected[expected > 0]
    return ((seen[expected > 0] - wanted) ** 2 / wanted).sum()


@pytest.mark.parametrize("own", [0, 3, 4])
@pytest.mark.parametrize("alike", [None, (2, 1)])
def test_draws_are_uniform(own, alike):
    alike = None if alike is None else [image for image in alike if image != own]
    pool = None
    if alike is not None:
        pool = np.zeros((5, 1 + len(alike)), np.int32)
        pool[own] = [own, *alike]
    drawn = [
        draw_negatives(np.random.default_rng((7, seed)), own, FIRST_CAPTION, pool)
        for seed in range(3000)
    ]
    others = [image for image in range(5) if image != own]
    images = np.array([float(image in others) / len(others) for image in range(5)])
    for values, expected in (
        ([d.caption for d in drawn], _expected_captions(others)),
        ([d.image for d in drawn], images),
        ([d.hard_caption for d in drawn], _expected_captions(alike or others)),
    ):
        assert _chi_square(values, expected) < 31.3  # 0.1 % at 11 degrees of freedom, the most
    # The three are drawn apart from each other: nothing forces the images to agree or to differ.
    same = np.mean([_image_of(d.caption) == d.image for d in drawn])
    assert abs(same - 1 / len(others)) < 0.04


def test_draws_depend_on_the_seed_alone():
    pool = nearest_pool(np.random.default_rng(1).normal(size=(5, 2)), 4)

    def draws():
        return [
            draw_negatives(np.random.default_rng(seed), seed % 5, FIRST_CAPTION, pool)
            for seed in range(40)
        ]

    assert draws() == draws()
    assert len(set(draws())) > 20


def test_hard_captions_come_from_the_pool():
    pool = nearest_pool(np.random.default_rng(1).normal(size=(5, 2)), 3)
    for seed in range(200):
        own = seed % 5
        drawn = draw_negatives(np.random.default_rng(seed), own, FIRST_CAPTION, pool)
        assert _image_of(drawn.hard_caption) in pool[own, 1:]


@pytest.mark.parametrize("first_caption", [[0], [0, 4]])
def test_draws_need_another_image(first_caption):
    with pytest.raises(DataError, match="at least two images"):
        draw_negatives(np.random.default_rng(0), 0, np.array(first_caption), None)
