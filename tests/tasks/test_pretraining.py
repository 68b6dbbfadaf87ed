"""The loss of pretraining: its three parts and their weights, its counts, and the negatives."""

import functools

import jax
import numpy as np
import pytest

from twelve_in_one.tasks import losses, pretraining
from twelve_in_one.tasks.task import task_count, task_loss
from twelve_in_one.tasks.twelve import CONCEPTUAL_CAPTIONS

B, T, R, F, C, WORDS = 5, 6, 4, 3, 7, 11
loss_of = jax.jit(pretraining.loss)
contrast_negatives = jax.jit(pretraining.contrast_negatives)


def draw(target, seed=0):
    """Outputs and a batch; the last row only fills it up, the second has no region."""
    rng = np.random.default_rng(seed)
    width = C if target == 0 else F
    outputs = {
        "masked_language": rng.normal(size=(B, T, WORDS)),
        "masked_region": rng.normal(size=(B, R, width)),
        "alignment": rng.normal(size=(B, 2)),
    }
    region_mask = np.arange(R) < np.array([[4], [1], [3], [2], [4]])
    batch = {
        "_mask": np.arange(B) < B - 1,
        "token_labels": np.where(rng.random((B, T)) < 0.4, rng.integers(0, WORDS, (B, T)), -1),
        "region_mask": region_mask,
        "region_labels": np.where((rng.random((B, R)) < 0.6) & region_mask, 1, -1),
        "is_misaligned": rng.integers(0, 2, B),
        "region_weight": np.float32(0.5),
        "alignment_weight": np.float32(2.0),
    }
    batch["region_labels"][:, 0] = -1
    if target == 0:
        batch["region_classes"] = rng.dirichlet(np.ones(C), (B, R)).astype(np.float32)
    else:
        batch["region_features"] = rng.normal(size=(B, R, F)).astype(np.float32)
    if target == 2:
        batch["across_draws"] = rng.random((B, R, 9), np.float32)
        batch["within_draws"] = rng.random((B, R, 4), np.float32)
    return {name: x.astype(np.float32) for name, x in outputs.items()}, batch


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def negatives_of(batch, row, region):
    """(row, region) of the usable negatives, from the draws one by one."""
    rows, found = range(B), []
    slots = [(b, r) for b in rows if b != row for r in range(1, R)]
    real = [r for r in range(1, R) if batch["region_mask"][row, r]]
    for u in batch["across_draws"][row, region]:
        b, r = slots[int(np.float32(u) * np.float32(len(slots)))]
        if batch["region_mask"][b, r] and batch["_mask"][b]:
            found.append((b, r))
    others = [r for r in real if r != region]
    for u in batch["within_draws"][row, region]:
        if others:
            found.append((row, others[int(np.float32(u) * np.float32(len(others)))]))
    return found


def literal_sums(target, outputs, batch):
    """Loss and count of every part, a token, a region and a row at a time."""
    loss, count = np.zeros(3), np.zeros(3)
    for b in np.flatnonzero(batch["_mask"]):
        for t in np.flatnonzero(batch["token_labels"][b] >= 0):
            label = batch["token_labels"][b, t]
            loss[0] -= log_softmax(outputs["masked_language"][b, t])[label]
            count[0] += 1
        for r in np.flatnonzero(batch["region_labels"][b] == 1):
            guess = np.asarray(outputs["masked_region"][b, r], np.float64)
            if target == 0:
                p = np.asarray(batch["region_classes"][b, r], np.float64)
                loss[1] += (p * (np.log(p) - log_softmax(guess))).sum()
            elif target == 1:
                loss[1] += ((guess - batch["region_features"][b, r]) ** 2).mean()
            else:
                places = [(b, r), *negatives_of(batch, b, r)]
                scores = [guess @ batch["region_features"][place] for place in places]
                loss[1] -= log_softmax(scores)[0]
            count[1] += 1
        loss[2] -= log_softmax(outputs["alignment"][b])[batch["is_misaligned"][b]]
        count[2] += 1
    return loss * [1, 0.5, 2.0], count


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target", [0, 1, 2])
def test_parts_are_those_of_a_loop(target, seed):
    outputs, batch = draw(target, seed)
    sums = loss_of(outputs, batch)
    loss, count = literal_sums(target, outputs, batch)
    np.testing.assert_allclose(sums.loss, loss, rtol=1e-5)
    np.testing.assert_array_equal(sums.count, count)
    np.testing.assert_array_equal(pretraining.counts(batch), count)
    np.testing.assert_allclose(sums.mean_loss(), (loss / count).sum(), rtol=1e-5)
    right = np.argmax(outputs["masked_language"], -1) == batch["token_labels"]
    words = (right & batch["_mask"][:, None]).sum() / count[0]
    np.testing.assert_allclose(sums.mean_score(), words, rtol=1e-6)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_task_loss_is_of_all_heads(target):
    outputs, batch = draw(target)
    assert CONCEPTUAL_CAPTIONS.heads == ("masked_language", "masked_region", "alignment")
    for got, wanted in zip(
        jax.jit(functools.partial(task_loss, CONCEPTUAL_CAPTIONS))(outputs, batch),
        loss_of(outputs, batch),
        strict=True,
    ):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(task_count(CONCEPTUAL_CAPTIONS, batch), pretraining.counts(batch))


def test_the_slot_of_a_task_token_predicts_nothing():
    outputs, batch = draw(1)
    slot = np.full((B, 1, WORDS), np.nan, np.float32)
    words = outputs["masked_language"]
    with_slot = outputs | {"masked_language": np.concatenate([words[:, :1], slot, words[:, 1:]], 1)}
    np.testing.assert_array_equal(loss_of(with_slot, batch).loss, loss_of(outputs, batch).loss)


def test_nothing_hidden_costs_nothing():
    outputs, batch = draw(2)
    batch |= {name: np.full_like(batch[name], -1) for name in ("token_labels", "region_labels")}

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradients(outputs, batch):
        return pretraining.loss(outputs, batch).mean_loss()

    value, grads = loss_and_gradients(outputs, batch)
    assert np.isfinite(value)
    for name in ("masked_language", "masked_region"):
        assert not np.any(grads[name]), name
    assert np.any(grads["alignment"])


@pytest.mark.parametrize("draws", [0.0, 0.999999, "random"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_negatives_are_real_regions_and_not_the_own(rows, draws):
    rng = np.random.default_rng(rows)
    regions, across, within = 6, 40, 30
    shapes = [(rows, regions, k) for k in (across, within)]
    u = [
        rng.random(s, np.float32) if draws == "random" else np.full(s, draws, np.float32)
        for s in shapes
    ]
    sizes = rng.integers(0, regions + 1, rows)
    sizes[0] = 1
    real = np.arange(regions) < sizes[:, None]
    negatives, usable = contrast_negatives(*u, real)
    negatives, usable = np.asarray(negatives), np.asarray(usable)
    assert negatives.min() >= 0 and negatives.max() < rows * regions
    row, region = np.divmod(negatives, regions)
    for b in range(rows):
        for r in np.flatnonzero(real[b]):
            good = usable[b, r]
            assert real[row[b, r][good], region[b, r][good]].all()
            assert (row[b, r, :across][good[:across]] != b).all()
            assert (row[b, r, across:][good[across:]] == b).all()
            assert (region[b, r, across:][good[across:]] != r).all()
            assert good[across:].all() == (sizes[b] > 1), "only padding is left out"
    if draws == "random" and rows > 1:
        assert len(np.unique(negatives[0, 0, :across])) > 5


def test_negatives_reach_every_other_region():
    rows, regions = 3, 4
    steps = np.linspace(0, 1, 400, endpoint=False, dtype=np.float32)
    u = np.broadcast_to(steps, (rows, regions, 400))
    negatives, usable = contrast_negatives(u, u, np.ones((rows, regions), bool))
    assert np.all(usable)
    for b in range(rows):
        for r in range(regions):
            own = {b * regions + other for other in range(regions)}
            across, within = np.split(np.asarray(negatives[b, r]), 2)
            assert set(across) == set(range(rows * regions)) - own
            assert set(within) == own - {b * regions + r}


def test_left_out_negatives_change_nothing():
    rng = np.random.default_rng(1)
    predictions, targets = rng.normal(size=(2, 2, 3, F)).astype(np.float32)
    negatives = rng.integers(0, 6, (2, 3, 5))
    chosen = np.ones((2, 3), bool)
    mask = np.arange(5) < 3
    loss = jax.jit(losses.masked_region_contrast_loss)
    few = loss(predictions, targets, negatives[..., :3], chosen)
    masked = loss(predictions, targets, negatives, chosen, np.broadcast_to(mask, negatives.shape))
    np.testing.assert_allclose(masked.loss, few.loss, rtol=1e-6)
