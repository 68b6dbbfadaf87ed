"""Retrieval ranks against stored reference ranks and against sorting."""

import json

import numpy as np
import pytest

from twelve_in_one.tasks.metrics import retrieval

NAMES = ("plain", "weak", "ties")


def _case(recorded_dir, name):
    with np.load(recorded_dir / "metrics/retrieval.npz") as arrays:
        case = {key.split("/")[1]: arrays[key] for key in arrays if key.startswith(f"{name}/")}
    summary = json.loads((recorded_dir / "metrics/retrieval.json").read_text())[name]
    return case, summary


def _random_case(seed, levels):
    rng = np.random.default_rng(seed)
    num_captions, num_images = 61, 17
    scores = rng.integers(0, levels, (num_captions, num_images)).astype(np.float32)
    image_of_caption = rng.permutation(np.arange(num_captions) % num_images)
    return scores, image_of_caption


@pytest.mark.parametrize("name", NAMES)
def test_ranks_match_reference(recorded_dir, name):
    case, _ = _case(recorded_dir, name)
    images = retrieval.text_to_image_ranks(case["scores"], case["image_of_caption"])
    np.testing.assert_array_equal(images.ahead, case["t2i_ahead"])
    np.testing.assert_array_equal(images.tied, case["t2i_tied"])
    np.testing.assert_array_equal(images.stable, case["t2i_rank_stable"])
    # The reference's own, unstable order must lie within the bounds.
    assert (case["t2i_rank_default_sort"] >= images.ahead).all()
    assert (case["t2i_rank_default_sort"] <= images.ahead + images.tied).all()
    texts = retrieval.image_to_text_ranks(case["scores"], case["image_of_caption"])
    np.testing.assert_array_equal(texts.ahead, case["i2t_ahead"])
    np.testing.assert_array_equal(texts.worst, case["i2t_worst"])
    np.testing.assert_array_equal(texts.stable, case["i2t_rank_stable"])


@pytest.mark.parametrize("name", NAMES)
def test_summaries_match_reference(recorded_dir, name):
    case, expected = _case(recorded_dir, name)
    images = retrieval.text_to_image_ranks(case["scores"], case["image_of_caption"])
    texts = retrieval.image_to_text_ranks(case["scores"], case["image_of_caption"])
    image_ranks = {
        "best_case": images.ahead,
        "stable": images.stable,
        "worst_case": images.ahead + images.tied,
    }
    text_ranks = {"best_case": texts.ahead, "stable": texts.stable, "worst_case": texts.worst}
    for key, ranks_by_order in (("text_to_image", image_ranks), ("image_to_text", text_ranks)):
        for order, ranks in ranks_by_order.items():
            wanted = expected[key].get(order, expected[key])  # One summary where nothing ties.
            assert retrieval.summarise(ranks) == pytest.approx(wanted, abs=1e-9)
    unfilled = retrieval.summarise(np.concatenate([images.stable, np.full(50, 40)]))
    wanted = expected["text_to_image_if_50_rows_are_never_filled"]
    assert unfilled == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("levels", [3, 40, 10**6])
@pytest.mark.parametrize("block_scores", [1, 100, 1 << 22])
def test_ranks_equal_sorting(monkeypatch, levels, block_scores):
    monkeypatch.setattr(retrieval, "_BLOCK_SCORES", block_scores)
    scores, image_of_caption = _random_case(levels, levels)
    images = retrieval.text_to_image_ranks(scores, image_of_caption)
    for caption, image in enumerate(image_of_caption):
        row = scores[caption]
        order = sorted(range(len(row)), key=lambda i: -row[i])
        wrong_first = sorted(range(len(row)), key=lambda i: (-row[i], i == image))
        right_first = sorted(range(len(row)), key=lambda i: (-row[i], i != image))
        assert images.stable[caption] == order.index(image)
        assert images.ahead[caption] == right_first.index(image)
        assert images.ahead[caption] + images.tied[caption] == wrong_first.index(image)
    texts = retrieval.image_to_text_ranks(scores, image_of_caption)
    for image in range(scores.shape[1]):
        column, own = scores[:, image], image_of_caption == image
        order = sorted(range(len(column)), key=lambda i: -column[i])
        wrong_first = sorted(range(len(column)), key=lambda i: (-column[i], own[i]))
        right_first = sorted(range(len(column)), key=lambda i: (-column[i], not own[i]))
        for got, ranking in (
            (texts.stable, order),
            (texts.worst, wrong_first),
            (texts.ahead, right_first),
        ):
            assert got[image] == min(ranking.index(i) for i in np.flatnonzero(own))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "bfloat16"])
def test_dtypes_and_infinities(dtype):
    jnp = pytest.importorskip("jax.numpy")
    scores, image_of_caption = _random_case(5, 30)
    expected = retrieval.image_to_text_ranks(scores, image_of_caption)
    cast = scores.astype(jnp.dtype(dtype))
    np.testing.assert_equal(retrieval.image_to_text_ranks(cast, image_of_caption), expected)
    low = np.where(scores < 3, -np.inf, scores)
    images = retrieval.text_to_image_ranks(low, image_of_caption)
    clipped = retrieval.text_to_image_ranks(np.maximum(scores, 2), image_of_caption)
    np.testing.assert_equal(images, clipped)


def test_constant_scores_show_in_the_worst_case_only():
    ranks = retrieval.text_to_image_ranks(np.zeros((6, 3)), np.arange(6) % 3)
    assert ranks.ahead.max() == 0
    assert (ranks.ahead + ranks.tied).min() == 2
    np.testing.assert_array_equal(ranks.stable, np.arange(6) % 3)


def test_summarise_by_hand():
    got = retrieval.summarise([0, 1, 4, 9], ks=(1, 2, 10))
    assert got == {"r1": 25, "r2": 50, "r10": 100, "median_rank": 3, "mean_rank": 4.5}
    assert retrieval.recall_at_k([0, 5, 5], 5) == pytest.approx(100 / 3)


def test_bad_inputs_are_named():
    scores, image_of_caption = _random_case(2, 9)
    both = (retrieval.text_to_image_ranks, retrieval.image_to_text_ranks)
    broken = scores.copy()
    broken[7, image_of_caption[7]] = np.nan
    elsewhere = scores.copy()
    elsewhere[60, (image_of_caption[60] + 1) % 17] = np.nan
    outside = image_of_caption.copy()
    outside[[4, 9]] = 17, -1
    for ranks in both:
        with pytest.raises(ValueError, match=rf"scores\[7, {image_of_caption[7]}\] .* is NaN"):
            ranks(broken, image_of_caption)
        with pytest.raises(ValueError, match=rf"scores\[60, {(image_of_caption[60] + 1) % 17}\]"):
            ranks(elsewhere, image_of_caption)
        with pytest.raises(ValueError, match=r"image_of_caption\[4\] is 17, .* 0 to 16 \(2 such"):
            ranks(scores, outside)
        with pytest.raises(ValueError, match="each of the 61 score rows"):
            ranks(scores, image_of_caption[:-1])
        with pytest.raises(ValueError, match="integers"):
            ranks(scores, image_of_caption.astype(np.float32))
        with pytest.raises(ValueError, match="matrix"):
            ranks(scores[0], image_of_caption)
    with pytest.raises(ValueError, match=r"image \(column\) 16 has no caption .*\(1 such"):
        retrieval.image_to_text_ranks(scores, np.arange(61) % 16)
    with pytest.raises(ValueError, match="non-empty"):
        retrieval.summarise([])
    with pytest.raises(ValueError, match="got -1 at 1"):
        retrieval.summarise([0, -1])
    with pytest.raises(ValueError, match="at least 1"):
        retrieval.recall_at_k([0], 0)
