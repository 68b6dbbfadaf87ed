"""Choice and class accuracy against plain loops."""

import numpy as np
import pytest

from twelve_in_one.tasks.metrics import choices


def _masks(rng, num_rows, num_choices):
    choice_mask = rng.random((num_rows, num_choices)) < 0.7
    choice_mask[:, 0] = True
    row_mask = rng.random(num_rows) < 0.8
    choice_mask[~row_mask] = False
    return choice_mask, row_mask


def test_choice_accuracy_equals_plain_loops():
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (200, 6)).astype(np.float32)
    target = rng.integers(0, 3, (200, 6)) / 2
    choice_mask, row_mask = _masks(rng, 200, 6)
    logits[~choice_mask] = np.nan  # Whatever padding holds must not matter.
    correct = 0
    for row in np.flatnonzero(row_mask):
        allowed = np.flatnonzero(choice_mask[row])
        chosen = max(allowed, key=lambda choice: logits[row, choice])
        correct += chosen == max(allowed, key=lambda choice: target[row, choice])
    got = choices.choice_accuracy(logits, target, choice_mask, row_mask)
    assert got == (correct, row_mask.sum())


def test_choice_accuracy_adds_up_over_batches():
    rng = np.random.default_rng(1)
    logits, target = rng.normal(size=(50, 4)), rng.random((50, 4))
    choice_mask, row_mask = _masks(rng, 50, 4)
    whole = choices.choice_accuracy(logits, target, choice_mask, row_mask)
    parts = [
        choices.choice_accuracy(*(array[rows] for array in (logits, target, choice_mask, row_mask)))
        for rows in (slice(0, 17), slice(17, 34), slice(34, 50))
    ]
    assert tuple(np.sum(parts, axis=0)) == whole


def test_candidates_may_score_minus_infinity():
    logits = np.array([[9.0, -np.inf, -np.inf]])
    mask = np.array([[False, True, True]])
    assert choices.masked_argmax("logits", logits, mask).tolist() == [1]


@pytest.mark.parametrize("dtype", ["int32", "float16", "bfloat16"])
def test_masked_argmax_in_any_dtype(dtype):
    jnp = pytest.importorskip("jax.numpy")
    values = np.array([[3, 7, 7], [5, 2, 1]]).astype(jnp.dtype(dtype))
    mask = np.array([[True, True, True], [False, True, True]])
    assert choices.masked_argmax("values", values, mask).tolist() == [1, 1]


def test_target_score_equals_plain_loops():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(60, 9)).astype(np.float32)
    target = rng.choice([0, 0.3, 0.6, 0.9, 1], (60, 9)).astype(np.float32)
    row_mask = rng.random(60) < 0.5
    expected = sum(float(target[row, logits[row].argmax()]) for row in np.flatnonzero(row_mask))
    score, count = choices.target_score(logits, target, row_mask)
    assert (score, count) == (pytest.approx(expected, abs=1e-9), row_mask.sum())
    assert choices.target_score(logits, np.zeros_like(target)) == (0, 60)


@pytest.mark.parametrize(
    "accuracy, num_classes", [(choices.pair_accuracy, 2), (choices.three_way_accuracy, 3)]
)
def test_class_accuracy_equals_plain_loops(accuracy, num_classes):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(90, num_classes))
    labels = rng.integers(-1, num_classes, 90)
    row_mask = rng.random(90) < 0.7
    labels[~row_mask] = 99  # Padding rows are not looked at.
    correct = sum(logits[row].argmax() == labels[row] for row in np.flatnonzero(row_mask))
    assert accuracy(logits, labels, row_mask) == (correct, row_mask.sum())
    one_hot = np.eye(num_classes)[labels.clip(0, num_classes - 1)] * (labels >= 0)[:, None]
    assert choices.target_score(logits, one_hot, row_mask) == (correct, row_mask.sum())
    with pytest.raises(ValueError, match=rf"\(rows, {num_classes}\), got \(90, 4\)"):
        accuracy(np.zeros((90, 4)), labels)


def test_no_rows_count_nothing():
    none = np.zeros(3, bool)
    assert choices.pair_accuracy(np.zeros((3, 2)), np.zeros(3, int), none) == (0, 0)
    assert choices.target_score(np.zeros((0, 4)), np.zeros((0, 4))) == (0, 0)


def test_errors():
    logits, target = np.zeros((3, 4)), np.zeros((3, 4))
    broken = logits.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"logits\[2, 1\] is NaN \(1 such"):
        choices.choice_accuracy(broken, target)
    with pytest.raises(ValueError, match=r"target\[2, 1\] is NaN"):
        choices.choice_accuracy(logits, broken)
    with pytest.raises(ValueError, match=r"target\[2, 0\] is NaN"):
        choices.target_score(logits, np.full((3, 4), np.nan), np.array([False, False, True]))
    for score in (choices.choice_accuracy, choices.target_score):
        with pytest.raises(ValueError, match="differ in shape"):
            score(logits, target[:2])
    with pytest.raises(ValueError, match=r"candidate mask of logits must have shape \(3, 4\)"):
        choices.choice_accuracy(logits, target, np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="row_mask must be boolean"):
        choices.choice_accuracy(logits, target, row_mask=np.ones(3))
    with pytest.raises(ValueError, match="row 0 of logits has no candidate that counts"):
        choices.choice_accuracy(logits, target, np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match=r"logits must be a \[rows, candidates\] matrix"):
        choices.masked_argmax("logits", logits[0])
    with pytest.raises(ValueError, match=r"labels\[1\] is 4, but classes are 0 to 3"):
        choices.label_accuracy(logits, np.array([0, 4, -1]))
    with pytest.raises(ValueError, match="labels must be 3 integers"):
        choices.label_accuracy(logits, np.zeros(3))
