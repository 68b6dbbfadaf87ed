"""Scores of two models combined, against values worked by hand; and the best boxes by class."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.detection import nms, scores


def test_combination_by_hand():
    # p = 0.2, 0.5, 0.3 of background, a base and a novel class; z = 0.8, 0.2; objectness 0.5.
    p, z = np.array([0.2, 0.5, 0.3]), np.array([0.8, 0.2])
    found = scores.combine(
        np.log(p)[None],
        np.log(z)[None],
        np.array([False, True]),
        np.array([0.5]),
        base_exponent=0.65,
        novel_exponent=0.3,
        objectness_exponent=3.0,
    )
    base = 0.5**0.65 * 0.8**0.35  # 0.58940
    novel = 0.3**0.3 * 0.2**0.7  # 0.22587
    total = 0.2 + base + novel  # the background keeps its 0.2
    np.testing.assert_allclose(found, [[base / total / 8, novel / total / 8]], rtol=1e-6)
    np.testing.assert_allclose(found, [[0.072567, 0.027809]], atol=1e-6)


def test_suppression_is_within_a_class():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 0, 0]], np.float32)
    marks = np.array([[0.9, 0.1], [0.8, 0.7], [0.2, 0.3], [1.0, 1.0]], np.float32)
    valid = np.array([True, True, True, False])
    options = dict(before=8, count=7, threshold=0.5)
    found = jax.jit(lambda *x: scores.best(*x, **options))(boxes, marks, valid)
    kept = [(round(float(s), 3), int(c)) for s, c in zip(found.scores, found.classes, strict=True)][
        :4
    ]
    # Of the first two boxes class 0 keeps the first, and class 1 the second.
    assert kept == [(0.9, 0), (0.7, 1), (0.3, 1), (0.2, 0)]
    assert found.valid.tolist() == [True] * 4 + [False] * 3
    assert not found.boxes[4:].any() and found.boxes.shape == (7, 4)


def test_groups_in_both_algorithms():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 12, (300, 2))], 1).astype(np.float32)
    groups = rng.integers(0, 3, 300).astype(np.int32)
    valid = rng.random(300) < 0.9
    wanted = np.zeros(300, bool)
    for group in range(3):
        own = np.flatnonzero(groups == group)
        one = nms.keep_one_by_one(*map(jnp.asarray, (boxes[own], valid[own])), 0.5, inclusive=False)
        wanted[own] = one
    for function in (nms.keep_one_by_one, nms.keep_by_tiles):
        found = jax.jit(functools.partial(function, inclusive=False))(boxes, valid, 0.5, groups)
        np.testing.assert_array_equal(found, wanted)
