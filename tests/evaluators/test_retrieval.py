"""Retrieval over all candidates: blocks, devices, and the ranks that come of the scores."""

import functools

import jax
import numpy as np
import pytest
from reference.two_stream import Reference

from twelve_in_one.data.encode.retrieval import RetrievalSet
from twelve_in_one.evaluators import retrieval
from twelve_in_one.evaluators.retrieval import Ranking
from twelve_in_one.parallel import sharding
from twelve_in_one.systems.vilbert import CAPTION_KEYS, IMAGE_KEYS, Vilbert
from twelve_in_one.tasks.task import Task

M, N, T, R = 13, 5, 6, 4
TASK = Task("coco", "COCO", "G2", 3, "image_text_match", "match", 4, T, R, 8, 2e-5)


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(heads=("image_text_match",))


@pytest.fixture(scope="module")
def params(config, random_params):
    return random_params(config)


@pytest.fixture(scope="module")
def candidates(config, random_batch):
    batch = random_batch(config, rows=M, images=N, tokens=T, regions=R)
    return RetrievalSet(
        captions={key: batch[key] for key in CAPTION_KEYS},
        images={key: batch[key] for key in IMAGE_KEYS},
        image_of_caption=np.arange(M) % N,
        task_id=np.int32(TASK.task_id),
        caption_ids=tuple(f"c{i}" for i in range(M)),
        image_ids=tuple(f"i{i}" for i in range(N)),
    )


@pytest.fixture(scope="module")
def rank(config, params, candidates):
    """rank(devices, captions, images, layout): the scores, every program compiled once."""

    @functools.cache
    def step(devices, layout):
        return jax.jit(Vilbert(config).pair_scores(TASK))

    @functools.cache
    def run(devices=1, captions=M, images=N, layout="dp", model=1):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices], model=model)
        with sharding.use(mesh, layout):
            placed = jax.device_put(params, sharding.replicated(mesh))
            return retrieval.rank(
                step(devices, layout), placed, candidates, mesh, captions=captions, images=images
            ).scores

    return run


def test_every_pair_is_scored_as_by_itself(config, params, candidates, rank):
    caption, image = (x.reshape(-1) for x in np.indices((M, N)))
    tokens = candidates.captions["tokens"][caption]
    out, _ = Reference(config, params)(
        tokens=tokens,
        token_mask=candidates.captions["token_mask"][caption],
        regions=candidates.images["regions"][image],
        boxes=candidates.images["boxes"][image],
        region_mask=candidates.images["region_mask"][image],
        token_types=np.zeros_like(tokens),
        task_id=np.full(len(tokens), candidates.task_id),
    )
    expected = out["image_text_match"].reshape(M, N)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(rank(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("devices", "captions", "images", "layout", "model"),
    [
        (1, 4, 2, "dp", 1),  # the last blocks are not full
        (1, 5, 100, "dp", 1),
        (8, 1, 1, "dp", 1),  # rounded up to the devices
        (8, M, N, "dp", 1),  # more rows than there are
        (4, 4, 3, "fsdp_tp", 2),
    ],
)
def test_blocks_and_devices_make_no_difference(
    devices, captions, images, layout, model, candidates, rank
):
    whole, cut = rank(), rank(devices, captions, images, layout, model)
    np.testing.assert_allclose(cut, whole, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(np.argsort(-cut), np.argsort(-whole))
    for found, expected in zip(
        retrieval.metrics.text_to_image_ranks(cut, candidates.image_of_caption),
        retrieval.metrics.text_to_image_ranks(whole, candidates.image_of_caption),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("size", "total", "multiple", "expected"),
    [(64, 68, 1, 34), (500, 1000, 8, 504), (8, 5000, 8, 8), (500, 30, 8, 32), (1, 3, 2, 2)],
)
def test_blocks_are_full(size, total, multiple, expected):
    assert retrieval._block_size(size, total, multiple) == expected


def counted(params, captions, images, task_id):
    """A model that numbers its pairs, so that a score in the wrong place shows."""
    x, y = captions["tokens"][:, 0], images["regions"][:, 0, 0]
    return x[:, None] * jax.numpy.float32(1000) + y[None]


@pytest.mark.parametrize(("m", "n"), [(1, 1), (17, 3), (16, 8), (3, 17)])
@pytest.mark.parametrize("devices", [1, 8])
def test_uneven_sizes(m, n, devices):
    numbered = RetrievalSet(
        {"tokens": np.arange(m, dtype=np.int32)[:, None]},
        {"regions": np.arange(n, dtype=np.float16)[:, None, None]},
        np.arange(m) % n,
        np.int32(7),
        tuple(map(str, range(m))),
        tuple(map(str, range(n))),
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    calls = []
    found = retrieval.rank(
        jax.jit(counted),
        None,
        numbered,
        mesh,
        captions=4,
        images=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    np.testing.assert_array_equal(found.scores, 1000 * np.arange(m)[:, None] + np.arange(n))
    assert calls == sorted(set(calls)) and calls[-1] == (m * n, m * n)


# ------------------------------------------------------------------------------ summaries


def ranking_of(scores, image_of_caption):
    m, n = scores.shape
    names = tuple(map(str, range(max(m, n))))
    return Ranking(names[:m], names[:n], np.asarray(image_of_caption), scores.astype(np.float32))


def literal_ranks(scores, right):
    """Rank from 1 by sorting, ties in the order of the candidates."""
    return [
        1 + sorted(range(len(row)), key=lambda i: (-row[i], i)).index(want)
        for row, want in zip(scores, right, strict=True)
    ]


def test_recall_and_ranks():
    rng = np.random.default_rng(0)
    image = rng.permuted(np.repeat(np.arange(20), 5))
    scores = np.round(rng.normal(size=(100, 20)), 1)  # with ties
    scores[np.arange(100), image] += 1
    found = retrieval.summarise(ranking_of(scores, image))
    ranks = np.array(literal_ranks(scores.astype(np.float32), image))
    for k in (1, 5, 10):
        assert found["metrics"][f"R@{k}"] == pytest.approx(np.mean(ranks <= k))
    assert found["metrics"]["mean_rank"] == pytest.approx(ranks.mean())
    assert found["metrics"]["median_rank"] == np.floor(np.median(ranks))
    assert found["score"] == found["metrics"]["R@1"] and found["metric"] == "R@1"
    own = [
        min(
            literal_ranks([scores[:, i].astype(np.float32)], [c])[0]
            for c in range(100)
            if image[c] == i
        )
        for i in range(20)
    ]
    for k in (1, 5, 10):
        assert found["metrics"][f"text_R@{k}"] == pytest.approx(np.mean(np.array(own) <= k))
    assert found["chance"] == found["words"] == found["majority"] == 1 / 20
    assert found["examples"] == 100 and found["metrics"]["images"] == 20
    assert not any(name.startswith("1k_") for name in found["metrics"])


def test_folds_of_a_thousand():
    """2,500 images: two folds, within each of which only its own images compete."""
    n = 2500
    scores = np.full((n, n), -1.0, np.float32)
    image = np.arange(n)
    scores[image, image] = 1
    scores[: n // 2, n - 1] = 2  # an image beyond the folds, ahead of the right one of half of them
    scores[1500, 1000] = 2  # one caption of the second fold fails within it
    found = retrieval.summarise(ranking_of(scores, image))
    assert found["metrics"]["R@1"] == pytest.approx((n / 2 - 1) / n)
    assert found["metrics"]["1k_R@1"] == pytest.approx((1 + 0.999) / 2)
    assert found["metrics"]["1k_R@5"] == 1


def test_scores_that_are_not_numbers():
    scores = np.zeros((2, 2))
    scores[1, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        retrieval.summarise(ranking_of(scores, [0, 1]))
