import dataclasses

import numpy as np
import pytest

from twelve_in_one.data.regions import open_store
from twelve_in_one.data.regions.checks import (
    check_annotated,
    check_regions,
    check_store,
    normalised,
)
from twelve_in_one.data.stored.records import AnnotatedImage, DataError, Regions


def _check(regions, **options):
    return check_regions(regions, store="a.lmdb", image_id="7", **options)


@pytest.fixture
def regions(make_regions):
    return make_regions(1, rows=3)["11"]  # of a picture of 100 x 120


def _with(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


def test_good_regions_pass(regions):
    assert _check(regions) is regions and _check(regions, feature_dim=5) is regions
    edges = np.array([[-1, -1, 101, 121], [0, 0, 1, 1]], np.float32)
    _check(Regions(edges, np.ones((2, 3), np.float16), 100, 120))
    _check(Regions(np.zeros((0, 4), np.float32), np.zeros((0, 0), np.float32), 1, 1))


@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("boxes", (1, 2), 101.5, r"box 1 \[.*, 101.5, .*\] lies outside the picture of 100 x 120$"),
        ("boxes", (2, 3), 121.5, "box 2 .* lies outside"),
        ("boxes", (0, 0), -1.5, r"box 0 \[-1.5, .*\] lies outside"),
        ("boxes", (0, 3), 3e38, "box 0 .* lies outside"),
        ("class_probs", 1, 3e38, "class probabilities of region 1 add up to inf"),
        ("boxes", (1, 2), 0.0, r"box 1 .* has no area$"),
        ("boxes", (1, 2), np.nan, r"boxes\[1, 2\] is nan"),
        ("features", (2, 4), np.inf, r"features\[2, 4\] is inf"),
        ("class_probs", (1, 0), np.nan, r"class probabilities\[1, 0\] is nan"),
        ("class_probs", 1, 0.5, "class probabilities of region 1 add up to 2, from 0.5 upwards"),
        ("class_probs", 0, [-1, 0, 1, 1], ".* region 0 add up to 1, from -1 upwards"),
    ],
)
def test_bad_values_are_named(regions, field, index, value, message):
    bad = dataclasses.replace(regions, **{field: _with(getattr(regions, field), index, value)})
    with pytest.raises(DataError, match=rf"^a\.lmdb: image '7': {message}"):
        _check(bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "a picture of 0 x 120 pixels; its size is missing"),
        ({"height": -3}, "a picture of 100 x -3 pixels"),
        ({"boxes": np.ones((2, 4))}, "2 rows of boxes, 3 of features"),
        ({"class_probs": np.ones((4, 2))}, "4 rows of class probabilities, 3 of features"),
    ],
)
def test_bad_shapes_are_named(regions, changes, message):
    with pytest.raises(DataError, match=message):
        _check(dataclasses.replace(regions, **changes))
    with pytest.raises(DataError, match="features have size 5, must have 2048"):
        _check(regions, feature_dim=2048)


def test_xywh_is_recognised(regions):
    xywh = np.array([[10, 10, 80, 100], [60, 70, 30, 20], [0, 0, 5, 5]], np.float32)
    with pytest.raises(DataError, match=r"box 1 \[60, 70, .*\] has no area; .* looks like x, y"):
        _check(dataclasses.replace(regions, boxes=xywh))
    # One wrong box among right ones is no such case, whether those fit if read so or not.
    for rest in ([0, 0, 20, 20], [50, 60, 90, 110]):
        boxes = np.array([[60, 70, 30, 20], *[rest] * 9], np.float32)
        with pytest.raises(DataError, match=r"box 0 \[60, 70, 30, 20\] has no area$"):
            _check(Regions(boxes, np.ones((10, 2), np.float32), 100, 120))


def test_normalised_boxes_are_recognised(regions):
    factors = r"all boxes lie within 0 and 1 of a picture of 100 x 120 .* x by 100 and y by 120$"
    for scale in ((100, 120, 100, 120), (99.5, 119.5, 99.5, 119.5)):
        shares = dataclasses.replace(regions, boxes=regions.boxes / np.array(scale, np.float32))
        with pytest.raises(DataError, match=rf"^a\.lmdb: image '7': {factors}"):
            _check(shares)
        with pytest.raises(DataError, match=rf"^gt\.lmdb: image '7': {factors}"):
            check_annotated(shares, _annotated(regions.boxes), "gt.lmdb")
    assert normalised(np.array([[0, 0, 1, 1], [0, 0, 2, 1]]), 100, 120) == ""
    assert normalised(np.array([[0, 0, 1, 1]]), 2, 2) == ""  # a pixel of a picture of four
    assert normalised(np.zeros((0, 4)), 100, 120) == normalised(np.zeros((3, 4)), 100, 120) == ""
    assert normalised(np.full((1, 4), np.nan), 100, 120) == ""


def _annotated(boxes, **fields):
    boxes = tuple(map(tuple, np.asarray(boxes, float).tolist()))
    ids = tuple(range(3, 3 + len(boxes)))
    return AnnotatedImage("7", box_ids=ids, boxes=boxes, **fields)


def test_annotated_boxes_agree(regions):
    for boxes in (regions.boxes, regions.boxes + 0.4):
        assert check_annotated(regions, _annotated(boxes), "gt.lmdb") is regions
    none = Regions(np.zeros((0, 4), np.float32), np.zeros((0, 5), np.float32), 100, 120)
    assert check_annotated(none, _annotated([]), "gt.lmdb") is none
    # Annotators draw beyond the picture; extraction clips.
    clipped = dataclasses.replace(regions, boxes=_with(regions.boxes, 0, [50, 60, 100, 120]))
    beyond = _with(regions.boxes, 0, [50, 60, 140, 150])
    check_annotated(clipped, _annotated(beyond), "gt.lmdb")


def test_annotated_boxes_that_disagree_are_named(regions):
    with pytest.raises(DataError, match=r"^gt\.lmdb: image '7': 3 boxes are stored, 2 are annot"):
        check_annotated(regions, _annotated(regions.boxes[:2]), "gt.lmdb")
    moved = _with(regions.boxes, 1, [0, 0, 9, 9])
    with pytest.raises(DataError, match=r"box 1 \[.*\] is not annotated box 4 \[0, 0, 9, 9\]$"):
        check_annotated(regions, _annotated(moved), "gt.lmdb")
    with pytest.raises(DataError, match="in another order"):
        check_annotated(regions, _annotated(regions.boxes[::-1]), "gt.lmdb")
    with pytest.raises(DataError, match="is 100 x 120 in the store and 200 x 240 in the annot"):
        check_annotated(regions, _annotated(regions.boxes * 2, width=200, height=240), "gt.lmdb")
    xywh = regions.boxes.copy()
    xywh[:, 2:] -= xywh[:, :2]
    with pytest.raises(DataError, match=r"looks like x, y, width, height.* extract .* anew"):
        check_annotated(
            dataclasses.replace(regions, boxes=xywh), _annotated(regions.boxes), "gt.lmdb"
        )
    features = _with(regions.features, (0, 1), np.nan)
    with pytest.raises(DataError, match=r"features\[0, 1\] is nan"):
        check_annotated(
            dataclasses.replace(regions, features=features), _annotated(regions.boxes), "gt.lmdb"
        )


def test_released_annotated_stores_agree_with_their_own_boxes(shared_dir):
    """The boxes of the Visual7W fixtures, in the order of the store, are accepted; swapped not."""
    with open_store(str(shared_dir / "fixtures/loaders/features/v7w_gt.lmdb")) as store:
        for image_id in store.ids():
            stored = store.get(image_id)
            check_annotated(stored, _annotated(stored.boxes), store.name)
            with pytest.raises(DataError, match="is not annotated box 3"):
                check_annotated(stored, _annotated(stored.boxes[::-1]), store.name)


def test_check_store_lists_every_problem(write_store, make_regions):
    items = make_regions(5)
    items["12"] = dataclasses.replace(items["12"], width=3)
    items["14"] = dataclasses.replace(items["14"], features=items["14"].features * np.nan)
    seen = []
    with open_store(write_store("lmdb", items)) as store:
        problems = check_store(store, ["15", "14", "13", "12", "11", "10"], 5, seen.append)
        assert seen == [1, 2, 3, 4, 5, 6]
        for problem, image_id, text in zip(
            problems, ("14", "12", "10"), ("is nan", "outside the picture", "no image"), strict=True
        ):
            assert store.name in problem and f"'{image_id}'" in problem and text in problem
        assert len(check_store(store, items, feature_dim=2048)) == 5
        assert check_store(store, ["11", "13"]) == []
