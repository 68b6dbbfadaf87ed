"""Regions that bottom-up attention's own script found in COCO photos obey this project's rules."""

import functools

import jax
import numpy as np

from twelve_in_one.convert.faster_rcnn import USES
from twelve_in_one.data.regions.tsv import TsvStore
from twelve_in_one.models.detection.boxes import iou


def test_boxes_of_the_real_file(samples_dir):
    overlap = jax.jit(functools.partial(iou, inclusive=True))
    settings = USES["caffe-36"][1]
    resizing, threshold = settings["resizing"], settings["proposals"].threshold
    with TsvStore(samples_dir / "bottom_up_features/train2014_obj36.tsv") as store:
        found = [store.get(image_id) for image_id in store.ids()]
    assert len(found) == 10
    for regions in found:
        rows, columns, scale = resizing.size(regions.height, regions.width)
        last = (np.array([columns, rows]) - 1) / scale
        low, high = regions.boxes[:, :2], regions.boxes[:, 2:]
        # Cut at the border of the resized photo, which some box touches.
        assert low.min() >= 0 and (high <= last + 1e-3).all()
        np.testing.assert_allclose((high - last).max(), 0, atol=1e-3)
        assert len(regions.boxes) == settings["choice"].most
        # Boxes are proposals, whose overlap was limited on the resized photo.
        pairs = np.asarray(overlap(regions.boxes * scale, regions.boxes * scale))
        assert pairs[np.triu_indices(len(pairs), 1)].max() <= threshold + 1e-4
        assert regions.features.min() >= 0
        assert 0.2 < (regions.features == 0).mean() < 0.45
