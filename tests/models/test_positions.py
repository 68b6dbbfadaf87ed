"""Positions for another grid, and as crops of a larger picture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.models import positions, vit
from twelve_in_one.models.vit import ViT, ViTConfig

CONFIG = ViTConfig(8, 1, 2, 16, image_size=(16, 16), patch_size=4)


def test_crops_of_a_ramp():
    """A table that holds its own place shows where a crop lies."""
    side, canvas = 4, 32
    y, x = np.mgrid[:side, :side].astype(np.float32)
    table = jnp.asarray(np.stack([x, y], axis=-1).reshape(-1, 2))
    boxes = jnp.float32([[8, 8, 24, 16], [12, 10, 16, 20]])
    found = np.asarray(positions.cropped(table, (side, side), canvas, boxes)).reshape(2, 4, 4, 2)
    # Cell i of the table is centred on 8 * i + 4 of the canvas; the middle of bin j of a box with
    # corner a and length l is a + (j + 0.5) * l / 4.
    for box, crop in zip(np.asarray(boxes), found, strict=True):
        for axis, values in ((0, crop[0, :, 0]), (1, crop[:, 0, 1])):
            low, length = box[axis], box[axis + 2] - box[axis]
            wanted = (low + (np.arange(4) + 0.5) * length / 4 - 4) / 8
            np.testing.assert_allclose(values, wanted, atol=1e-4)


def test_boxes_are_random_crops():
    boxes = np.asarray(positions.random_boxes(jax.random.key(0), 500, 64))
    sides = (boxes[:, 2:] - boxes[:, :2]) / 64
    assert boxes.min() >= 0 and boxes.max() <= 64 + 1e-4 and sides.max() <= 1 + 1e-6
    area, aspect = sides.prod(axis=1), sides[:, 0] / sides[:, 1]
    assert area.max() > 0.8 and 0.08 < area.min() < 0.15  # sides that are cut lose area
    assert 0.5 - 1e-3 <= aspect.min() < 0.6 and 1.8 < aspect.max() <= 2 + 1e-3


def test_only_training_crops():
    cropping = dataclasses.replace(CONFIG, cropped_positions=8)
    params = jax.jit(lambda key: vit.init_params(CONFIG, key))(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))

    def tokens(config, key):
        return jax.jit(lambda p, k: ViT(config).apply({"params": p}, images, k)[0])(params, key)

    plain, key = tokens(CONFIG, None), jax.random.key(2)
    np.testing.assert_array_equal(tokens(cropping, None), plain)
    np.testing.assert_array_equal(tokens(CONFIG, key), plain)
    assert np.abs(np.asarray(tokens(cropping, key)) - plain).max() > 1e-3


def test_a_table_serves_a_larger_grid():
    larger = dataclasses.replace(CONFIG, image_size=(32, 32), position_grid=(4, 4))
    shapes = [vit.abstract_params(config)["position"].value.shape for config in (CONFIG, larger)]
    assert shapes == [(16, 8), (16, 8)]
    table = jnp.arange(16.0)[:, None] * jnp.ones((1, 8))
    found = positions.resized(table, (4, 4), (8, 8))
    wanted = vit.resize_positions(np.asarray(table), (4, 4), (8, 8), "resize")
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="position_grid for what follows"):
        dataclasses.replace(larger, cropped_positions=16)
    with pytest.raises(ValueError, match="should be a larger side than that of the grid"):
        dataclasses.replace(CONFIG, cropped_positions=2)
