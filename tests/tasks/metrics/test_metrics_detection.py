"""Average precision against the official program's numbers, and by hand for LVIS's protocol."""

import contextlib
import io
import json

import numpy as np
import pytest

from twelve_in_one.tasks.metrics import detection
from twelve_in_one.tasks.metrics.detection import Detections, Evaluation, Truth


def _corners(rows):
    boxes = np.array([row["bbox"] for row in rows], float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _of_coco(images, categories, truth, found):
    """COCO's layout as ours."""
    number = {one["id"]: i for i, one in enumerate(sorted(categories, key=lambda x: x["id"]))}
    truths, detections = [], []
    for image in sorted(one["id"] for one in images):
        rows = [row for row in truth if row["image_id"] == image]
        truths.append(
            Truth(
                _corners(rows),
                np.array([number[row["category_id"]] for row in rows], int),
                np.array([row["area"] for row in rows], float),
                np.array([row.get("iscrowd", 0) for row in rows], bool),
            )
        )
        rows = [row for row in found if row["image_id"] == image]
        classes = np.array([number[row["category_id"]] for row in rows], int)
        scores = np.array([row["score"] for row in rows], float)
        detections.append(Detections(_corners(rows), scores, classes))
    return truths, detections, len(number)


def test_the_official_figures(recorded_dir):
    known = json.loads((recorded_dir / "metrics/detection.json").read_text())
    sets = (known["images"], known["categories"], known["truth"])
    truths, detections, classes = _of_coco(*sets, known["detections"])
    found = detection.coco_summary(truths, detections, classes)
    for name, value in found.items():
        assert value == pytest.approx(known["expected"][name], abs=1e-12), name
    curves, recalls = Evaluation(truths, detections, classes).precision()
    with np.load(recorded_dir / "metrics/detection_curves.npz") as arrays:
        np.testing.assert_allclose(curves, arrays["precision"], atol=1e-12)
        np.testing.assert_allclose(recalls, arrays["recall"], atol=1e-12)


def test_random_detections_against_the_program():
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(7)
    images = [{"id": i, "width": 200, "height": 200} for i in range(15)]
    categories = [{"id": i, "name": str(i)} for i in (2, 5, 9)]

    def boxes(count, scored):
        rows = []
        for number in range(count):
            box = [*rng.uniform(0, 90, 2), *rng.uniform(5, 110, 2)]
            rows.append(
                {
                    "id": number + 1,
                    "image_id": int(rng.integers(15)),
                    "category_id": int(rng.choice([2, 5, 9])),
                    "bbox": [float(x) for x in box],
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(not scored and rng.random() < 0.1),
                }
                | ({"score": float(rng.integers(9)) / 9} if scored else {})
            )
        return rows

    truth, found = boxes(60, False), boxes(400, True)
    found += [  # some that are near the truth
        {**row, "score": float(rng.random()), "bbox": [x + 2 for x in row["bbox"]]} for row in truth
    ]
    for row in found:
        row["area"] = row["bbox"][2] * row["bbox"][3]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "annotations": truth, "categories": categories}
        coco.createIndex()
        official = COCOeval(coco, coco.loadRes([dict(row) for row in found]), "bbox")
        official.evaluate()
        official.accumulate()
        official.summarize()
    ours = detection.coco_summary(*_of_coco(images, categories, truth, found))
    np.testing.assert_allclose(list(ours.values()), official.stats, atol=1e-12)
    assert 0.05 < ours["AP"] < 0.9


def _truth(boxes, classes, absent, not_exhaustive=()):
    boxes = np.array(boxes, float).reshape(-1, 4)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    numbers = np.array(classes, int)
    crowd = np.zeros(len(boxes), bool)
    return Truth(boxes, numbers, areas, crowd, np.array(absent), np.array(not_exhaustive, int))


def _found(*rows):
    boxes, scores, classes = zip(*rows, strict=True)
    return Detections(np.array(boxes, float), np.array(scores), np.array(classes, int))


BOX, OTHER = (0, 0, 10, 10), (20, 20, 30, 30)


@pytest.mark.parametrize(
    ("absent", "incomplete", "precision"),
    [
        ((), (), 1.0),  # nobody knows whether the second picture shows it
        ((0,), (), 0.5),  # the better detection is a mistake
        ((0,), (0,), 1.0),  # or one of those that were not annotated
    ],
)
def test_the_federated_protocol(absent, incomplete, precision):
    truth = [_truth([BOX], [0], ()), _truth([], [], absent, incomplete)]
    found = [_found((BOX, 0.5, 0)), _found((BOX, 0.9, 0))]
    measures = detection.average_precision(Evaluation(truth, found, 3), "rcf")
    assert measures["AP_r"] == measures["AP"] == pytest.approx(precision)
    assert measures["AP_c"] == measures["AP_f"] == -1


def test_the_limit_is_of_a_picture():
    truth = [_truth([BOX, OTHER], [0, 1], ())]
    found = [_found((BOX, 0.2, 0), (OTHER, 0.9, 1), (BOX, 0.8, 2))]  # one of a class not known
    one = detection.average_precision(Evaluation(truth, found, 3, most=2), "ffr")
    assert one["AP"] == pytest.approx(0.5)  # class 2 takes a place, though it does not count
    assert detection.average_precision(Evaluation(truth, found, 3), "ffr")["AP_f"] == pytest.approx(
        1
    )


def test_intervals_are_of_pictures():
    truth = [_truth([BOX], [0], ())] * 8
    found = [_found((BOX if i % 2 else OTHER, 0.5, 0)) for i in range(8)]
    evaluation = Evaluation(truth, found, 1)
    low, high = detection.bootstrap(evaluation, (), 40)["AP"]
    assert 0 <= low < detection.average_precision(evaluation)["AP"] < high <= 1


def test_recall_of_boxes():
    boxes = np.array([BOX, (0, 0, 10, 4)], float)
    assert detection.recall_of(boxes, np.array([BOX, OTHER], float), 0.5) == (1, 2)
    assert detection.recall_of(np.zeros((0, 4)), np.array([BOX], float), 0.5) == (0, 1)


def test_what_does_not_fit():
    truth, found = [_truth([BOX], [3], ())], [_found((BOX, 0.5, 0))]
    with pytest.raises(ValueError, match="picture 0: a class beyond 3"):
        Evaluation(truth, found, 3)
    with pytest.raises(ValueError, match="1 pictures with truth, 0 with detections"):
        Evaluation(truth, [], 4)
