"""The detector's losses against brute force, and values worked by hand."""

import jax
import numpy as np
import pytest

from twelve_in_one.tasks import detection


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_by_hand():
    boxes = np.array([[[0, 0, 4, 4], [0, 0, 2, 2], [9, 9, 1, 1]]], np.float32)
    truth = np.array([[[0, 0, 4, 2], [5, 5, 6, 6], [1, 1, 9, 9]]], np.float32)
    # Half of the first box is right; the second touches nothing; the third has no area.
    np.testing.assert_allclose(detection.paired_iou(boxes, truth), [[0.5, 0, 0]])
    counted = np.array([[True, True, False]])
    assert float(detection.iou_loss(boxes, truth, counted)[0]) == pytest.approx(0.75)
    # |0.5 - 0.2| and |0.5 - 1|
    logits, targets = np.zeros((1, 3), np.float32), np.array([[0.2, 1.0, 7.0]], np.float32)
    assert float(detection.centerness_loss(logits, targets, counted)[0]) == pytest.approx(0.4)
    # Even odds among two: log 2, where background weighs 0.9.
    classes, labels = np.zeros((1, 3, 2), np.float32), np.array([[0, 1, 0]])
    assert float(detection.class_loss(classes, labels, counted, 0.9)[0]) == pytest.approx(
        (0.9 + 1) / 2 * np.log(2)
    )
    # Errors of 0.5 and 3 with delta 1: 0.125 and 2.5, over the two boxes that count.
    deltas = np.array([[[0.5, 3, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9]]], np.float32)
    positive = np.array([[True, False, False]])
    found = detection.delta_loss(deltas, np.zeros_like(deltas), positive, counted, 1.0)
    assert float(found[0]) == pytest.approx(2.625 / 2)


def test_brute_force():
    rng = np.random.default_rng(3)
    rows, count = 3, 7
    logits = rng.normal(size=(rows, count)).astype(np.float32)
    targets = rng.random((rows, count)).astype(np.float32)
    classes = rng.normal(size=(rows, count, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (rows, count))
    masks = rng.normal(size=(rows, count, 5, 5)).astype(np.float32)
    shapes = rng.random((rows, count, 5, 5)) < 0.5
    deltas = rng.normal(size=(rows, count, 4)).astype(np.float32)
    counted = rng.random((rows, count)) < 0.6
    counted[2] = False
    positive = counted & (rng.random((rows, count)) < 0.7)
    found = jax.jit(
        lambda: (
            detection.objectness_loss(logits, targets, counted),
            detection.class_loss(classes, labels, counted, 0.9),
            detection.delta_loss(deltas, deltas * 0.3, positive, counted, 1 / 9),
            detection.mask_loss(masks, shapes, counted),
        )
    )()
    wanted = np.zeros((4, rows))
    for row in range(rows):
        total = max(counted[row].sum(), 1)
        for i in np.flatnonzero(counted[row]):
            p, t = _sigmoid(logits[row, i]), targets[row, i]
            wanted[0, row] -= (t * np.log(p) + (1 - t) * np.log(1 - p)) / total
            shares = np.exp(classes[row, i]) / np.exp(classes[row, i]).sum()
            weight = 0.9 if labels[row, i] == 0 else 1.0
            wanted[1, row] -= weight * np.log(shares[labels[row, i]]) / total
            p, t = _sigmoid(masks[row, i]), shapes[row, i]
            wanted[3, row] -= np.mean(np.where(t, np.log(p), np.log(1 - p))) / total
            for error in np.abs(0.7 * deltas[row, i]) if positive[row, i] else ():
                small = 0.5 * error**2 if error < 1 / 9 else (error - 0.5 / 9) / 9
                wanted[2, row] += small / total
    np.testing.assert_allclose(np.stack(found), wanted, rtol=2e-5, atol=1e-7)
    assert not wanted[:, 2].any()  # nothing to learn from costs nothing
