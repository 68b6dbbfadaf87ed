"""Visual rows from a picture's map against NumPy, cell by cell, and what a model makes of them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.models.two_stream import grid
from twelve_in_one.models.two_stream.grid import GridConfig, GridTwoStreamConfig, grid_rows
from twelve_in_one.models.two_stream.trunk import TwoStreamModel, TwoStreamTrunk, abstract_params
from twelve_in_one.models.vit import ViTConfig

ENCODER = ViTConfig(12, 1, 2, 16, image_size=(12, 12), patch_size=2, class_token=True)
SIDE, CELLS = 12, 6  # pixels and cells of the map of a side
# One fills the square, one is wide, one is so low that two rows of patches show it, one is thin.
SIZES = np.array([[12, 12], [7, 12], [3, 12], [12, 1]], np.int32)


@pytest.fixture(scope="module")
def config(tiny_config):
    fields = {f.name: getattr(tiny_config(), f.name) for f in dataclasses.fields(tiny_config())}
    fields["region_feature_dim"] = 0
    return GridTwoStreamConfig(**fields, grid=GridConfig(ENCODER, rows=4, columns=5))


def _expected(settings, features, size, boxes):
    """Region rows, cells, places and mask of one picture, one value at a time."""
    real = [[y * SIDE < size[0] * CELLS, x * SIDE < size[1] * CELLS]
            for y, x in zip(range(CELLS), range(CELLS), strict=True)]  # fmt: skip
    rows = [y for y in range(CELLS) if real[y][0]]
    columns = [x for x in range(CELLS) if real[x][1]]
    cells, places, mask = [], [], []
    for r in range(settings.rows):
        for c in range(settings.columns):
            ys = range(r * CELLS // settings.rows, math.ceil((r + 1) * CELLS / settings.rows))
            xs = range(c * CELLS // settings.columns, math.ceil((c + 1) * CELLS / settings.columns))
            seen = [features[y, x] for y in ys for x in xs if y in rows and x in columns]
            # Of the picture, not of the square that it lies in.
            y1, y2 = (min(k * SIDE / settings.rows / size[0], 1) for k in (r, r + 1))
            x1, x2 = (min(k * SIDE / settings.columns / size[1], 1) for k in (c, c + 1))
            places.append([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)])
            mask.append(y1 < 1 and x1 < 1)
            cells.append(np.mean(seen, axis=0) if seen else np.zeros(features.shape[-1]))
            assert bool(seen) or not mask[-1]
    regions = [np.mean([features[y, x] for y in rows for x in columns], axis=0)]
    for x1, y1, x2, y2, _ in boxes[1:]:
        scale = np.array([size[1], size[0]]) * CELLS / SIDE
        low, high = np.array([x1, y1]) * scale - 0.5, np.array([x2, y2]) * scale - 0.5
        total = np.zeros(features.shape[-1])
        for i in range(14):  # 7 bins of 2 samples
            for j in range(14):
                x, y = low + (np.array([j, i]) + 0.5) * (high - low) / 14
                if not (-1 <= x <= len(columns) and -1 <= y <= len(rows)):
                    continue
                x, y = np.clip([x, y], 0, [len(columns) - 1, len(rows) - 1])
                for a, near_y in ((int(y), 1 - y % 1), (min(int(y) + 1, len(rows) - 1), y % 1)):
                    right = min(int(x) + 1, len(columns) - 1)
                    total += near_y * (1 - x % 1) * features[a, int(x)]
                    total += near_y * (x % 1) * features[a, right]
        regions.append(total / 14**2)
    return regions, cells, places, mask


def _boxes(rng, rows, count):
    low = rng.uniform(0, 0.6, (rows, count, 2))
    high = low + rng.uniform(0.1, 0.4, (rows, count, 2))
    area = (high - low).prod(-1, keepdims=True)
    boxes = np.concatenate([low, high, area], axis=-1).astype(np.float32)
    boxes[:, 0] = [0, 0, 1, 1, 1]
    return boxes


@pytest.mark.parametrize(("rows", "columns"), [(4, 5), (6, 6), (8, 2)])
def test_rows_are_means_and_boxes_of_the_map(rows, columns):
    rng = np.random.default_rng(0)
    settings = GridConfig(ENCODER, rows, columns)
    features = rng.normal(size=(len(SIZES), CELLS, CELLS, 3)).astype(np.float32)
    boxes = _boxes(rng, len(SIZES), 4)
    found = jax.jit(functools.partial(grid_rows, settings))(features, SIZES, boxes)
    for i, size in enumerate(SIZES):
        expected = _expected(settings, features[i], size, boxes[i])
        regions, cells, places, mask = (x[i] for x in found)
        np.testing.assert_array_equal(mask, expected[3])
        np.testing.assert_allclose(regions, expected[0], atol=1e-5)
        np.testing.assert_allclose(cells, expected[1], atol=1e-6)
        np.testing.assert_allclose(places[mask], np.array(expected[2])[mask], atol=1e-6)


def test_the_map_leaves_out_tokens_without_a_place():
    tokens = np.arange(37 * 2, dtype=np.float32).reshape(1, 37, 2)
    found = grid.feature_map(ENCODER, jnp.asarray(tokens))
    np.testing.assert_array_equal(found[0].reshape(36, 2), tokens[0, 1:])


def _inputs(config, random_batch, rows=8):
    batch = random_batch(config, rows=rows, regions=3)
    batch["boxes"] = _boxes(np.random.default_rng(1), rows, 3)
    batch["region_mask"][:, 0] = True
    pixels = np.random.default_rng(2).normal(size=(rows, SIDE, SIDE, 3)).astype(np.float32)
    return batch | {"images": pixels, "picture_size": np.tile(SIZES, (rows // len(SIZES), 1))}


@pytest.fixture(scope="module")
def scores(config):
    """The compiled model: (params, batch) -> scores of regions and of answers."""

    def run(params, batch):
        heads = ("region_score", "vqa")
        out, _ = TwoStreamModel(config).apply({"params": params}, **batch, heads=heads)
        return out

    return jax.jit(run)


def test_scores_are_of_regions_and_depend_on_pixels(config, random_params, random_batch, scores):
    params, batch = random_params(config), _inputs(config, random_batch)
    plain = scores(params, batch)
    assert plain["region_score"].shape == (8, 3)
    other = scores(params, batch | {"images": batch["images"][::-1]})
    assert np.abs(plain["vqa"] - other["vqa"]).max(axis=1).min() > 1e-4


def test_cells_beside_the_picture_and_padded_boxes_do_not_count(
    config, random_params, random_batch
):
    params, batch = random_params(config)["trunk"], _inputs(config, random_batch)
    images, sizes = batch.pop("images"), batch.pop("picture_size")
    maps = images.reshape(8, 6, 2, 6, 6)[:, :, 0].repeat(2, axis=-1)  # any numbers, [8, 6, 6, 12]

    @jax.jit
    def run(noise):
        rows = grid_rows(config.grid, maps, sizes, batch["boxes"])
        hidden = ~batch["region_mask"][..., None]
        rows = rows._replace(
            cells=jnp.where(rows.mask[..., None], rows.cells, noise),
            regions=jnp.where(hidden, noise, rows.regions),
        )
        out, _ = TwoStreamTrunk(config).apply({"params": params}, **batch, grid=rows)
        return out.fused, jnp.where(hidden, 0, out.visual)

    for a, b in zip(run(0.0), run(7.0), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stored_features_are_a_choice(config, tiny_config):
    without = abstract_params(config)["trunk"]["visual_embedding"]
    reads = dataclasses.replace(
        config,
        region_feature_dim=7,
        grid=dataclasses.replace(config.grid, region_features=True),
    )
    both = abstract_params(reads)["trunk"]["visual_embedding"]
    plain = abstract_params(tiny_config())
    assert set(both) - set(without) == {"feature"}
    assert set(without) - set(plain["trunk"]["visual_embedding"]) == {"pixels", "pixel_norm"}
    assert "encoder" not in plain


def test_pictures_are_given_to_models_of_pictures_alone(config, tiny_config, random_batch):
    batch = _inputs(config, random_batch)
    with pytest.raises(ValueError, match="pass images and picture_size"):
        TwoStreamModel(config).apply({}, **batch | {"images": None}, heads=("vqa",))
    with pytest.raises(ValueError, match="reads regions only"):
        TwoStreamModel(tiny_config()).apply({}, **batch, heads=("vqa",))


def test_impossible_grids_are_refused():
    with pytest.raises(ValueError, match="0 x 3 cells"):
        GridConfig(ENCODER, rows=0, columns=3)
    with pytest.raises(ValueError, match="pictures are square"):
        GridConfig(dataclasses.replace(ENCODER, image_size=(12, 14)))
