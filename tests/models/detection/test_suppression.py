"""Suppression of more boxes than a tile holds, in both forms, against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.models.detection import nms
from twelve_in_one.models.detection.boxes import iou


@pytest.fixture(scope="module")
def boxes():
    """Clusters that need several rounds; best first; some rows are no boxes."""
    rng = np.random.default_rng(3)
    centers = rng.uniform(0, 200, (30, 2)).repeat(20, axis=0) + rng.normal(size=(600, 2)) * 6
    sides = rng.uniform(20, 60, (600, 2))
    corners = np.concatenate([centers - sides / 2, centers + sides / 2], 1)
    return corners.astype(np.float32)[rng.permutation(600)], rng.random(600) > 0.1


@pytest.mark.parametrize("function", [nms.keep_one_by_one, nms.keep_by_tiles])
def test_every_tile(boxes, function):
    corners, valid = boxes
    overlaps = np.asarray(jax.jit(functools.partial(iou, inclusive=True))(corners, corners))
    stay = np.zeros(len(corners), bool)
    for i in range(len(corners)):
        stay[i] = valid[i] and not (overlaps[i, :i][stay[:i]] > 0.4).any()
    assert 60 < stay.sum() < 300 and stay[nms._TILE :].any()
    kept = jax.jit(functools.partial(function, inclusive=True))(
        jnp.asarray(corners), jnp.asarray(valid), jnp.float32(0.4)
    )
    np.testing.assert_array_equal(kept, stay)
