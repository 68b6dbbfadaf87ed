"""Box overlap against counted pixels and stored results of the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.tasks.metrics import boxes


def _random_boxes(rng, *shape, size=12):
    low = rng.integers(0, size, (*shape, 2))
    high = rng.integers(0, size, (*shape, 2))
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], -1).astype(np.float32)


def _pixels(box):
    x1, y1, x2, y2 = box.astype(int)
    return {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}


def test_iou_counts_pixels():
    rng = np.random.default_rng(0)
    first, second = _random_boxes(rng, 20), _random_boxes(rng, 15)
    got = boxes.iou_matrix(first, second)
    for i, j in np.ndindex(20, 15):
        one, other = _pixels(first[i]), _pixels(second[j])
        assert got[i, j] == pytest.approx(len(one & other) / len(one | other), abs=1e-6)


def test_iou_matches_reference(recorded_dir):
    with np.load(recorded_dir / "metrics/iou_pairs.npz") as pairs:
        got = boxes.iou_matrix(pairs["a"], pairs["b"])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, pairs["iou"], rtol=0, atol=1e-6)
        on_device = jax.jit(lambda a, b: boxes.iou_matrix(a, b, xp=jnp))(pairs["a"], pairs["b"])
        np.testing.assert_allclose(on_device, pairs["iou"], rtol=0, atol=1e-6)


def test_referring_matches_reference(recorded_dir):
    with np.load(recorded_dir / "metrics/refer.npz") as refer:
        case = dict(refer)
    region_mask = np.arange(12) < case["num_boxes"][:, None]
    reference = boxes.corners_from_xywh(case["reference_xywh"])
    overlap = np.where(region_mask, boxes.iou(case["boxes"], reference[:, None]), 0)
    np.testing.assert_allclose(overlap, case["iou"], rtol=0, atol=1e-6)
    target = boxes.region_target(overlap)
    np.testing.assert_allclose(target, case["train_target"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.isnan(target), np.isnan(case["train_target"]))

    # Padding must be excluded by the mask, not by its score of -10000.
    scores = np.where(region_mask, case["scores"], 1e4)
    result = boxes.referring_result(scores, case["boxes"], reference, region_mask)
    np.testing.assert_array_equal(result.selected, case["selected"])
    np.testing.assert_allclose(result.iou, case["selected_iou"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(result.correct, case["correct"].astype(bool))
    correct, count = boxes.referring_accuracy(scores, case["boxes"], reference, region_mask)
    assert 100 * correct / count == pytest.approx(float(case["accuracy"]), abs=1e-9)


def test_jax_gives_the_same_without_promotion():
    rng = np.random.default_rng(1)
    first, second = _random_boxes(rng, 9), _random_boxes(rng, 9)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        overlap = boxes.iou(jnp.asarray(first), jnp.asarray(second), xp=jnp)
        target = boxes.region_target(overlap, xp=jnp)
        corners = boxes.corners_from_xywh(jnp.asarray(first), xp=jnp)
    assert isinstance(overlap, jax.Array)
    np.testing.assert_allclose(overlap, boxes.iou(first, second), rtol=0, atol=1e-6)
    np.testing.assert_allclose(target, boxes.region_target(np.asarray(overlap)))
    np.testing.assert_array_equal(corners, boxes.corners_from_xywh(first))


def test_iou_conventions():
    box = [10, 10, 19, 19]
    assert boxes.iou(box, box) == 1
    assert boxes.iou(box, [19, 10, 28, 19]) == pytest.approx(10 / 190)  # Shares an edge.
    assert boxes.iou(box, [19.5, 10, 28, 19]) > 0  # A gap below one pixel.
    assert boxes.iou(box, [20, 10, 28, 19]) == 0
    assert np.isnan(boxes.iou([5, 5, 4, 4], [5, 5, 4, 4]))
    assert boxes.corners_from_xywh([10, 10, 9, 9]).tolist() == box


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float64])
def test_iou_is_safe_in_any_dtype(dtype):
    first = np.array([[0, 0, 250, 250], [200, 0, 250, 100]], dtype)
    second = np.array([[100, 100, 200, 200], [0, 0, 100, 250]], dtype)
    got = boxes.iou_matrix(first, second)
    assert got.dtype == (np.float64 if dtype == np.float64 else np.float32)
    expected = boxes.iou_matrix(first.astype(np.float64), second.astype(np.float64))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_target_keeps_one_half_but_accuracy_does_not():
    reference = np.array([[0, 0, 9, 9]], np.float32)
    half = np.array([[[0, 0, 9, 4]]], np.float32)
    assert boxes.region_target(boxes.iou(half, reference)) == 0.5
    assert boxes.region_target(np.float32(0.4999)) == 0
    mask = np.array([[True]])
    assert boxes.referring_accuracy([[1.0]], half, reference, mask) == (0, 1)
    above = np.array([[[0, 0, 9, 5]]], np.float32)
    assert boxes.referring_accuracy([[1.0]], above, reference, mask) == (1, 1)


def test_referring_equals_plain_loops():
    rng = np.random.default_rng(3)
    num_rows, num_regions = 80, 7
    scores = rng.integers(0, 4, (num_rows, num_regions)).astype(np.float32)
    region_mask = rng.random((num_rows, num_regions)) < 0.6
    region_mask[:, 3] = True
    row_mask = rng.random(num_rows) < 0.8
    region_mask[~row_mask] = False
    regions = _random_boxes(rng, num_rows, num_regions, size=5)
    reference = _random_boxes(rng, num_rows, size=5)
    regions[~row_mask] = reference[~row_mask, None]  # Padding rows must not count even if right.
    result = boxes.referring_result(scores, regions, reference, region_mask, row_mask)
    num_correct = 0
    for row in np.flatnonzero(row_mask):
        allowed = np.flatnonzero(region_mask[row])
        selected = max(allowed, key=lambda region: scores[row, region])
        one, other = _pixels(regions[row, selected]), _pixels(reference[row])
        correct = len(one & other) * 2 > len(one | other)
        assert (result.selected[row], result.correct[row]) == (selected, correct)
        num_correct += correct
    assert not result.correct[~row_mask].any()
    accuracy = boxes.referring_accuracy(scores, regions, reference, region_mask, row_mask)
    assert accuracy == (num_correct, row_mask.sum())


def test_box_location():
    got = boxes.box_location([[[10, 20, 60, 40]], [[0, 0, 100, 50]]], [100, 200], [40, 50])
    expected = [[[0.1, 0.5, 0.6, 1.0, 0.25]], [[0, 0, 0.5, 1.0, 0.5]]]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    whole = boxes.box_location([[0, 0, 640, 480]], 640, 480)
    np.testing.assert_array_equal(whole, [[0, 0, 1, 1, 1]])


def test_errors():
    regions, mask = np.zeros((2, 3, 4)), np.ones((2, 3), bool)
    reference, scores = np.zeros((2, 4)), np.zeros((2, 3))
    with pytest.raises(ValueError, match="others must end in 4 corner coordinates"):
        boxes.iou(reference, np.zeros((2, 5)))
    with pytest.raises(ValueError, match="height must be positive pixels, got 0"):
        boxes.box_location(regions, [10, 10], [5, 0])
    with pytest.raises(ValueError, match=r"boxes must have shape \(2, 3, 4\)"):
        boxes.referring_result(scores, regions[:, :2], reference, mask)
    with pytest.raises(ValueError, match=r"reference must have shape \(2, 4\)"):
        boxes.referring_result(scores, regions, reference[:1], mask)
    with pytest.raises(ValueError, match="must be boolean"):
        boxes.referring_result(scores, regions, reference, np.full((2, 3), -10000.0))
    with pytest.raises(ValueError, match="row 1 of scores has no candidate"):
        boxes.referring_result(scores, regions, reference, mask & np.array([[True], [False]]))
