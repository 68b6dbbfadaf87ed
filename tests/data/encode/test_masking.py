"""Masking against loops over the same random numbers, its rates, and what must not change."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference import masking as reference

from twelve_in_one.data.encode import masking
from twelve_in_one.tasks import losses

VOCAB_SIZE, PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = 300, 0, 1, 2, 3, 4
SPECIAL_IDS = (CLS_ID, SEP_ID, PAD_ID)


def make_tokens(rng, num_tokens, num_padding=0):
    """[CLS] words [SEP] padding, some of the words [UNK]."""
    ids = rng.integers(5, VOCAB_SIZE, num_tokens).astype(np.int32)
    ids[rng.random(num_tokens) < 0.1] = UNK_ID
    if num_tokens:
        ids[0] = CLS_ID
        ids[num_tokens - num_padding - 1] = SEP_ID
        ids[num_tokens - num_padding :] = PAD_ID
    return ids, np.arange(num_tokens) < num_tokens - num_padding


def mask_tokens(ids, token_mask, rng, **options):
    return masking.mask_tokens(
        ids,
        token_mask,
        rng,
        **dict(vocab_size=VOCAB_SIZE, mask_id=MASK_ID, special_ids=SPECIAL_IDS) | options,
    )


def make_regions(rng, num_regions, feature_dim=5, side=20):
    """Boxes at whole pixels, so that overlaps are exact, and features that are never zero."""
    corner = rng.integers(0, side, (num_regions, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, side, corner.shape)], axis=1)
    features = rng.uniform(1, 2, (num_regions, feature_dim))
    return features.astype(np.float32), boxes.astype(np.float32)


def assert_within_4_sigma(count, total, rate):
    assert abs(count - total * rate) <= 4 * np.sqrt(total * rate * (1 - rate)) + 1e-9


# --------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.6, 1.0])
@pytest.mark.parametrize(("num_tokens", "num_padding"), [(0, 0), (2, 0), (36, 0), (36, 20)])
def test_tokens_as_in_loops(rate, num_tokens, num_padding):
    for seed in range(20):
        ids, token_mask = make_tokens(np.random.default_rng(seed), num_tokens, num_padding)
        before = ids.copy()
        got = mask_tokens(ids, token_mask, np.random.default_rng((7, seed)), rate=rate)
        draws = np.random.default_rng((7, seed)).random((num_tokens, 3))
        expected = reference.mask_tokens(
            ids.tolist(), token_mask, draws, VOCAB_SIZE, MASK_ID, SPECIAL_IDS, rate
        )
        for array, values in zip(got, expected, strict=True):
            assert array.dtype == np.int32 and array.tolist() == values
        np.testing.assert_array_equal(ids, before)  # inputs stay as they are


def test_token_rates():
    ids, token_mask = make_tokens(np.random.default_rng(0), 200_000)
    masked, labels = mask_tokens(ids, token_mask, np.random.default_rng(1))
    selected = labels >= 0
    total = len(ids) - 2
    count = np.count_nonzero(selected)
    assert_within_4_sigma(count, total, 0.15)
    np.testing.assert_array_equal(labels[selected], ids[selected])
    np.testing.assert_array_equal(masked[~selected], ids[~selected])
    to_mask = selected & (masked == MASK_ID)
    # A random token may be [MASK] or the token itself, one time in VOCAB_SIZE each.
    assert_within_4_sigma(np.count_nonzero(to_mask), count, 0.8 + 0.1 / VOCAB_SIZE)
    kept = selected & (masked == ids)
    assert_within_4_sigma(np.count_nonzero(kept), count, 0.1 + 0.1 / VOCAB_SIZE)
    drawn = masked[selected & ~kept & ~to_mask]
    assert drawn.min() == 0 and drawn.max() == VOCAB_SIZE - 1
    counts = np.bincount(drawn, minlength=VOCAB_SIZE)
    assert counts[MASK_ID] == 0
    assert abs(counts[5:] - len(drawn) / VOCAB_SIZE).max() < 5 * np.sqrt(len(drawn) / VOCAB_SIZE)
    assert UNK_ID in labels  # as the released code has it


def test_specials_and_padding_are_never_selected():
    ids = np.array([CLS_ID, 9, SEP_ID, 8, SEP_ID, 7, 7], np.int32)
    token_mask = np.array([True] * 5 + [False] * 2)
    _, labels = mask_tokens(ids, token_mask, np.random.default_rng(0), rate=1.0)
    assert labels.tolist() == [-1, 9, -1, 8, -1, -1, -1]


def test_padding_changes_nothing():
    ids, token_mask = make_tokens(np.random.default_rng(0), 50, num_padding=20)
    short = mask_tokens(ids[:30], token_mask[:30], np.random.default_rng(3), rate=0.5)
    long = mask_tokens(ids, token_mask, np.random.default_rng(3), rate=0.5)
    for one, other in zip(short, long, strict=True):
        np.testing.assert_array_equal(one, other[:30])
    assert (short[1] >= 0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rate=1.5), "rate must be between 0 and 1, got 1.5"),
        (dict(rate=float("nan")), "rate must be between 0 and 1, got nan"),
        (dict(mask_id=VOCAB_SIZE), "mask_id 300 is outside a vocabulary of 300"),
        (dict(token_mask=np.ones(4, bool)), r"got \(5,\) and bool\(4,\)"),
        (dict(token_mask=np.ones(5, np.int32)), r"got \(5,\) and int32\(5,\)"),
    ],
)
def test_bad_tokens(change, message):
    options = dict(ids=np.arange(5), token_mask=np.ones(5, bool), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        mask_tokens(**options | change)


# -------------------------------------------------------------------------------------- regions


@pytest.mark.parametrize("official_overlap", [False, True])
@pytest.mark.parametrize("num_regions", [0, 1, 2, 10, 37, 100])
@pytest.mark.parametrize("rate", [0.0, 0.15, 0.5, 1.0])
def test_regions_as_in_loops(official_overlap, num_regions, rate):
    for seed in range(4):
        features, boxes = make_regions(np.random.default_rng(seed), num_regions)
        before = features.copy(), boxes.copy()
        got = masking.mask_regions(
            features,
            boxes,
            np.random.default_rng((7, seed)),
            rate=rate,
            zero_rate=0.7,
            official_overlap=official_overlap,
            max_regions=100,
        )
        draws = np.random.default_rng((7, seed)).random((num_regions, 2))
        expected = reference.mask_regions(
            features, boxes, draws, rate, 0.7, 0.4, official_overlap, 100
        )
        dtypes = np.float32, np.int32, np.float32
        for array, values, dtype in zip(got[:2], expected[:2], dtypes, strict=False):
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, values)
        assert got.global_feature.dtype == np.float32
        np.testing.assert_allclose(got.global_feature, expected[2], rtol=1e-5)
        np.testing.assert_array_equal(features, before[0])
        np.testing.assert_array_equal(boxes, before[1])


def apart(num_regions):
    """Boxes that do not touch."""
    low = 10.0 * np.arange(num_regions)[:, None] * np.array([[1.0, 0.0]])
    return np.concatenate([low, low + 5], axis=1).astype(np.float32)


def test_region_rates():
    """Of regions that do not overlap: selected 15 %, of these hidden 90 %."""
    hidden = selected = 0
    features, boxes = np.ones((100, 1), np.float32), apart(100)
    for seed in range(300):
        got = masking.mask_regions(features, boxes, np.random.default_rng((1, seed)))
        selected += np.count_nonzero(got.labels == 1)
        hidden += np.count_nonzero(got.features == 0)
        assert (got.labels[got.features[:, 0] == 0] == 1).all()
    assert_within_4_sigma(selected, 30_000, 0.15)
    assert_within_4_sigma(hidden, selected, 0.9)


class Draws:
    """A generator of the given numbers."""

    def __init__(self, *rows):
        self.rows = np.array(rows)

    def random(self, shape):
        assert self.rows.shape == shape
        return self.rows


HIDE, KEEP, PASS = (0.0, 0.0), (0.0, 0.95), (0.5, 0.0)
# IoU: first and second 0.8, all others 0.
THREE_BOXES = np.array([[0, 0, 9, 9], [0, 0, 9, 7], [50, 50, 59, 59]], np.float32)
THREE_FEATURES = np.array([[1, 10], [2, 20], [4, 40]], np.float32)


@pytest.mark.parametrize(
    ("draws", "visible", "labels", "official_visible", "official_divisor"),
    [
        ((PASS, PASS, PASS), (1, 1, 1), (-1, -1, -1), (1, 1, 1), 36),
        ((HIDE, PASS, PASS), (0, 0, 1), (1, -1, -1), (0, 1, 1), 34),
        ((PASS, HIDE, PASS), (0, 0, 1), (-1, 1, -1), (1, 0, 1), 34),
        # What overlaps a selected region that stays is hidden all the same.
        ((KEEP, PASS, PASS), (1, 0, 1), (1, -1, -1), (1, 1, 1), 34),
        # Selected regions that overlap hide each other, whatever each would do alone.
        ((KEEP, HIDE, PASS), (0, 0, 1), (1, 1, -1), (1, 0, 1), 34),
        ((KEEP, KEEP, PASS), (0, 0, 1), (1, 1, -1), (1, 1, 1), 34),
        ((PASS, PASS, KEEP), (1, 1, 1), (-1, -1, 1), (1, 1, 1), 35),
        ((HIDE, HIDE, HIDE), (0, 0, 0), (1, 1, 1), (0, 0, 0), 33),
    ],
)
def test_overlapping_regions(draws, visible, labels, official_visible, official_divisor):
    rng = Draws(*draws)
    got = masking.mask_regions(THREE_FEATURES, THREE_BOXES, rng)
    np.testing.assert_array_equal(got.features, THREE_FEATURES * np.array(visible)[:, None])
    assert got.labels.tolist() == list(labels)
    left = THREE_FEATURES[np.array(visible, bool)]
    mean = left.mean(axis=0) if len(left) else np.zeros(2)
    np.testing.assert_allclose(got.global_feature, mean, rtol=1e-6)

    got = masking.mask_regions(THREE_FEATURES, THREE_BOXES, rng, official_overlap=True)
    expected = THREE_FEATURES * np.array(official_visible)[:, None]
    np.testing.assert_array_equal(got.features, expected)
    assert got.labels.tolist() == list(labels)
    np.testing.assert_allclose(
        got.global_feature, expected.sum(axis=0) / official_divisor, rtol=1e-6
    )


@pytest.mark.parametrize(("rows", "is_hidden"), [(4, False), (5, True)])
def test_exactly_the_threshold_is_not_overlap(rows, is_hidden):
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, rows - 1]], np.float32)  # IoU rows / 10
    got = masking.mask_regions(np.ones((2, 1), np.float32), boxes, Draws(HIDE, PASS))
    assert (got.features[1, 0] == 0) == is_hidden
    got = masking.mask_regions(np.ones((2, 1)), boxes, Draws(HIDE, PASS), overlap_iou=rows / 10)
    assert got.features.tolist() == [[0], [1]]


def test_full_slots_divide_alike():
    """With 36 regions apart, one hidden, released code and paper agree."""
    features, boxes = make_regions(np.random.default_rng(0), 36)[0], apart(36)
    draws = [PASS] * 35 + [HIDE]
    one = masking.mask_regions(features, boxes, Draws(*draws))
    other = masking.mask_regions(features, boxes, Draws(*draws), official_overlap=True)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(one.global_feature, features[:35].mean(axis=0), rtol=1e-6)


def test_hidden_features_reach_nothing():
    features, boxes = make_regions(np.random.default_rng(0), 30)
    first = masking.mask_regions(features, boxes, np.random.default_rng(5))
    hidden = (first.features == 0).all(axis=1)
    assert 0 < np.count_nonzero(hidden) < 30
    features[hidden] = np.nan
    second = masking.mask_regions(features, boxes, np.random.default_rng(5))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_half_precision_and_empty_boxes():
    features = np.full((2, 3), 60_000, np.float16)  # their sum is beyond float16
    boxes = np.array([[5, 5, 4, 4], [5, 5, 4, 4]], np.float32)  # overlap 0 / 0
    got = masking.mask_regions(features, boxes, Draws(HIDE, PASS))
    assert got.features.dtype == got.global_feature.dtype == np.float32
    np.testing.assert_array_equal(got.global_feature, features[1].astype(np.float32))
    assert got.labels.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rate=-0.1), "rate must be between 0 and 1, got -0.1"),
        (dict(zero_rate=2), "zero_rate must be between 0 and 1, got 2"),
        (dict(overlap_iou=1.1), "overlap_iou must be between 0 and 1, got 1.1"),
        (dict(boxes=np.zeros((3, 5))), r"got \(3, 2\) and \(3, 5\)"),
        (dict(boxes=np.zeros((2, 4))), r"got \(3, 2\) and \(2, 4\)"),
        (dict(official_overlap=True, max_regions=2), "3 regions do not fit 2 slots"),
    ],
)
def test_bad_regions(change, message):
    options = dict(features=THREE_FEATURES, boxes=THREE_BOXES, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        masking.mask_regions(**options | change)


# ---------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("objective", [0, 1, 2])
def test_pairs(objective):
    drawn = [
        masking.pair_label(np.random.default_rng((3, i)), 50, i % 50, objective=objective)
        for i in range(20_000)
    ]
    captions, swapped = np.array(drawn).T
    own = np.arange(20_000) % 50
    assert all(type(value) is int for value in drawn[0])
    if objective == 2:
        np.testing.assert_array_equal(captions, own)
        assert not swapped.any()
        return
    np.testing.assert_array_equal(captions[swapped == 0], own[swapped == 0])
    count = np.count_nonzero(swapped)
    assert_within_4_sigma(count, 20_000, 0.5)
    # All captions are equally likely, the own one among them.
    counts = np.bincount(captions[swapped == 1], minlength=50)
    assert counts.shape == (50,)
    assert abs(counts - count / 50).max() < 4 * np.sqrt(count / 50)
    assert_within_4_sigma(
        np.count_nonzero(captions[swapped == 1] == own[swapped == 1]), count, 0.02
    )


def test_objectives_share_their_random_numbers():
    rngs = [np.random.default_rng(4) for _ in range(3)]
    for objective, rng in enumerate(rngs):
        masking.pair_label(rng, 9, 3, objective=objective)
    assert len({rng.random() for rng in rngs}) == 1


@pytest.mark.parametrize("objective", [0, 1, 2])
@pytest.mark.parametrize("is_misaligned", [0, 1])
def test_labels_of_swapped_pairs(objective, is_misaligned):
    labels = np.array([-1, 7, -1, 9], np.int32)
    got = masking.drop_labels(labels, is_misaligned, objective=objective)
    dropped = objective == 1 and is_misaligned
    assert got.dtype == np.int32 and got.tolist() == ([-1] * 4 if dropped else [-1, 7, -1, 9])
    assert labels.tolist() == [-1, 7, -1, 9]


def test_bad_pairs():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="objective must be 0, 1 or 2, got 3"):
        masking.pair_label(rng, 5, 0, objective=3)
    with pytest.raises(ValueError, match="objective must be 0, 1 or 2, got 3"):
        masking.drop_labels(np.zeros(3), 1, objective=3)
    for own in (-1, 5):
        with pytest.raises(ValueError, match=f"caption {own} is not one of 5"):
            masking.pair_label(rng, 5, own, objective=0)


# ------------------------------------------------------------------------------------- together


def mask_example(index):
    """One example as a pipeline masks it, its generator seeded by its number."""
    content = np.random.default_rng((0, index))
    tokens = make_tokens(content, 12, num_padding=index % 5)
    regions = make_regions(content, 1 + index % 9)
    rng = np.random.default_rng((1, index))
    _, swapped = masking.pair_label(rng, 100, index, objective=1)
    ids, labels = mask_tokens(*tokens, rng, rate=0.5)
    region_mask = masking.mask_regions(*regions, rng, rate=0.5)
    return ids, labels, *region_mask, swapped


def test_order_of_the_batch_does_not_matter():
    forth = [mask_example(index) for index in range(40)]
    back = [mask_example(index) for index in reversed(range(40))][::-1]
    for one, other in zip(forth, back, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_labels_are_those_that_the_losses_count():
    """Predicting the original token and the true classes costs next to nothing."""
    ids, token_mask = make_tokens(np.random.default_rng(0), 40)
    _, labels = mask_tokens(ids, token_mask, np.random.default_rng(1))
    logits = 50 * jnp.eye(VOCAB_SIZE)[ids]
    sums = losses.masked_language_loss(logits[None], jnp.asarray(labels)[None], jnp.ones(1, bool))
    assert sums.count == sums.score == np.count_nonzero(labels >= 0) > 0
    assert sums.loss < 1e-3
    got = masking.mask_regions(
        *make_regions(np.random.default_rng(0), 20), np.random.default_rng(1)
    )
    targets = np.eye(7, dtype=np.float32)[np.arange(20) % 7][None]
    chosen = jnp.asarray(got.labels == 1)[None]
    sums = losses.masked_region_class_loss(50 * jnp.asarray(targets), jnp.asarray(targets), chosen)
    assert sums.count == sums.score == np.count_nonzero(got.labels == 1) > 0
    none = masking.drop_labels(labels, 1, objective=1)
    sums = losses.masked_language_loss(logits[None], jnp.asarray(none)[None], jnp.ones(1, bool))
    assert sums == (0, 0, 0)


def test_label_conventions_of_the_reference(recorded_dir):
    with np.load(recorded_dir / "vilbert_pretrain_tiny.npz") as arrays:
        token_labels, region_labels = arrays["in/masked_lm_labels"], arrays["in/image_label"]
        assert set(np.unique(region_labels)) == {-1, 1}
        assert token_labels.min() == -1 and (token_labels >= -1).all()
        # No column for the global region, as here.
        assert region_labels.shape[1] == arrays["in/features"].shape[1] - 1
        assert set(np.unique(arrays["in/next_sentence_label"])) <= {0, 1}
