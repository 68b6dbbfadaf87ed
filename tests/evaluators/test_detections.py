"""Detections as other programs read them."""

import numpy as np

from twelve_in_one.evaluators.detections import DetectionOutcome
from twelve_in_one.tasks.metrics.detection import Detections


def test_results_have_the_official_numbers():
    boxes = np.array([[1.0, 2.0, 4.0, 7.0], [0.0, 0.0, 2.0, 2.0]])
    found = Detections(boxes, np.array([0.5, 0.25]), np.array([1, 0]))
    outcome = DetectionOutcome(("139",), (found,), (), category_ids=(3, 90))
    assert outcome.results() == [
        {"image_id": 139, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 5.0], "score": 0.5},
        {"image_id": 139, "category_id": 3, "bbox": [0.0, 0.0, 2.0, 2.0], "score": 0.25},
    ]
