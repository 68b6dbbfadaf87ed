"""Which anchors learn what, proposals, and jitter, against brute force."""

import jax
import numpy as np
import pytest

from twelve_in_one.models.detection import class_free_proposals, jitter, matching
from twelve_in_one.models.detection.jitter import Objects


def test_centerness_by_hand():
    box = np.array([0.0, 0, 8, 4], np.float32)
    points = np.array([[4.0, 2], [2, 2], [2, 1], [9, 2], [0, 2]], np.float32)
    found = matching.centerness(points, np.tile(box, (5, 1)))
    # sqrt(2 / 6 * 2 / 2), and sqrt(2 / 6 * 1 / 3)
    np.testing.assert_allclose(found, [1, np.sqrt(1 / 3), 1 / 3, 0, 0], rtol=1e-6)
    slope = jax.grad(lambda p: matching.centerness(p, np.tile(box, (5, 1))).sum())(points)
    assert np.isfinite(slope).all()


def test_matches():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60], [4, 0, 14, 10]], np.float32)
    truth = np.array([[0, 0, 10, 10], [52, 52, 90, 90], [0, 0, 9, 9]], np.float32)
    real = np.array([True, True, False])
    options = dict(above=0.7, below=0.3)
    found = matching.match(boxes, truth, real, best=False, **options)
    assert found.positive.tolist() == [True, False, False, False]
    assert found.negative.tolist() == [False, False, True, False]  # 0.5 and 0.43 are neither
    assert found.overlap.tolist()[:2] == [1.0, 0.5]
    forced = matching.match(boxes, truth, real, best=True, **options)
    assert forced.positive.tolist() == [True, False, True, False] and forced.truth[2] == 1
    nothing = matching.match(boxes, truth, np.zeros(3, bool), best=True, **options)
    assert not nothing.positive.any() and nothing.negative.all()


def test_samples_have_their_number():
    rng = np.random.default_rng(0)
    for positives, wanted in ((30, (4, 12)), (2, (2, 14))):
        order = rng.permutation(80)
        positive = order < positives
        found = matching.Match(*[np.zeros(80)] * 2, positive, ~positive)
        drawn = matching.sample(jax.random.key(positives), found, 16, 0.25)
        assert tuple(int(x.sum()) for x in drawn) == wanted
        assert not (drawn[0] & ~positive).any() and not (drawn[1] & positive).any()


def test_distances_are_in_sizes_of_anchors():
    anchors = class_free_proposals.anchors("centerness", (16, 16), (4, 8), 2.0)
    assert anchors.counts == (16, 4) and anchors.boxes[0].tolist() == [-2, -2, 6, 6]
    outputs = np.tile(np.float32([0.5, 1.0, 0.25, 0.5]), (20, 1))
    boxes = np.asarray(class_free_proposals.boxes_of("centerness", anchors, outputs))
    # Left and right half and one anchor of 8 pixels from the centre 2, 2; up and down 2 and 4.
    assert boxes[0].tolist() == [-2, 0, 10, 6]
    assert boxes[16].tolist() == [4 - 8, 4 - 4, 4 + 16, 4 + 8]
    plain = class_free_proposals.anchors("plain", (16, 16), (4, 8), 2.0)
    truth = np.tile(np.float32([1, 2, 9, 7]), (60, 1))
    deltas = class_free_proposals.deltas_of(plain, truth)
    again = class_free_proposals.boxes_of("plain", plain, deltas)
    np.testing.assert_allclose(again, truth, atol=1e-4)


def test_proposals_leave_padding_out():
    anchors = class_free_proposals.anchors("centerness", (16, 16), (4, 8), 2.0)
    logits = np.arange(20, dtype=np.float32)
    boxes = np.tile(np.float32([1, 1, 30, 30]), (20, 1))
    size = np.float32([8, 16])  # the lower half is padding
    options = dict(before=3, total=10)
    found = class_free_proposals.propose(anchors, logits, boxes, size, threshold=1.0, **options)
    # The best three of the eight upper anchors of the first level, and two of the second's four.
    assert found.valid.sum() == 5 and found.boxes[0].tolist() == [1, 1, 16, 8]
    assert not found.boxes[5:].any() and not found.scores[5:].any()
    np.testing.assert_allclose(found.scores[:2], 1 / (1 + np.exp(-np.float32([17, 16]))))
    one = class_free_proposals.propose(anchors, logits, boxes, size, threshold=0.7, **options)
    assert one.valid.sum() == 2  # one of each level


@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_move_with_their_pictures(mirrored):
    """A bright square stays in its box."""
    image = np.zeros((32, 32, 3), np.float32)
    image[6:14, 4:10] = 1.0
    size = np.float32([24, 28])
    boxes = np.float32([[4, 6, 10, 14], [0, 0, 28, 24], [0, 0, 0, 0]])
    masks = np.zeros((3, 2, 2), np.uint8)
    masks[0, :, 0] = 1
    objects = Objects(image, size, boxes, boxes, masks, np.array([True, True, False]))
    for factor, place in ((1.0, [0.0, 0.0]), (1.5, [0.3, 0.6]), (0.5, [0.9, 0.1])):
        moved = jax.jit(jitter._moved)(
            objects, np.float32(factor), np.float32(place), np.array(mirrored)
        )
        bright = np.asarray(moved.images[..., 0]) > 0.5
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(moved.boxes[0], around, atol=1.01)
        np.testing.assert_allclose(moved.size, np.minimum(size * factor, 32), atol=2.6)
        assert moved.real.tolist() == [True, True, False]
        assert moved.masks[0, 0].tolist() == ([0, 1] if mirrored else [1, 0])
        beyond = np.asarray(moved.images)[int(np.ceil(moved.size[0])) :]
        assert not beyond.any()


def test_masks_as_boxes_see_them():
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[0, :, :4] = 1  # the left half
    frame = np.float32([[0, 0, 16, 16]])
    boxes = np.float32([[0, 0, 16, 16], [0, 0, 8, 16], [8, 0, 16, 8], [4, 4, 12, 12]])
    found = np.asarray(jitter.mask_targets(mask, frame, boxes, np.zeros(4, int), 4))
    assert found[0].tolist() == [[True, True, False, False]] * 4
    assert found[1].all() and not found[2].any()
    assert found[3].tolist() == [[True, True, False, False]] * 4
