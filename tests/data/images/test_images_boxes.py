"""COCO's and LVIS's files of boxes, and the batches of a detector made of them."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from twelve_in_one.data.annotations import instances
from twelve_in_one.data.images import ops
from twelve_in_one.data.images.boxes import BoxTargets
from twelve_in_one.data.images.image_set import TextMisfit
from twelve_in_one.data.images.letterbox import covered
from twelve_in_one.data.images.sources import open_images
from twelve_in_one.data.stored.records import DataError

OUTLINE = [10.0, 10.0, 30.0, 10.0, 10.0, 20.0]  # a triangle: half of its box


def _lvis():
    category = {"synonyms": [], "def": ""}
    image = {"width": 40, "height": 20}
    return {
        "categories": [
            {"id": 7, "name": "bow_(weapon)", "frequency": "f", **category},
            {"id": 3, "name": "red_star", "frequency": "r", **category},
        ],
        "images": [
            {
                "id": 5,
                "coco_url": "http://x/train2017/a.png",
                "neg_category_ids": [3],
                "not_exhaustive_category_ids": [7],
                **image,
            },
            {"id": 2, "file_name": "b.png", "neg_category_ids": [], **image},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 7,
                "bbox": [10, 10, 20, 10],
                "area": 100.0,
                "segmentation": [OUTLINE],
            },
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [35, 0, 10, 5], "area": 50},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        ],
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "train2017").mkdir(parents=True)
    for name in ("train2017/a.png", "b.png"):
        Image.new("RGB", (40, 20), (200, 10, 10)).save(tmp_path / "images" / name)
    return tmp_path


def _write(folder, raw):
    (folder / "lvis.json").write_text(json.dumps(raw))
    return f"lvis:{folder}/lvis.json,{folder}/images"


def test_what_is_read(folder):
    images = open_images(_write(folder, _lvis()))
    assert images.labels == ("red star", "bow (weapon)") and images.frequencies == ("r", "f")
    assert images.category_ids == (3, 7)
    found = {x.example_id: x.objects for x in map(images.read, range(2))}
    first, second = found["5"], found["2"]
    assert first.boxes.tolist() == [[10, 10, 30, 20]] and first.areas.tolist() == [100]
    assert first.absent.tolist() == [0] and first.not_exhaustive.tolist() == [1]
    # Cut at the border; what no mark calls a crowd is none.
    assert second.boxes.tolist() == [[35, 0, 40, 5], [0, 0, 4, 4]]
    assert second.crowd.tolist() == [False, True] and second.absent.tolist() == []


def test_a_batch(folder):
    images = open_images(_write(folder, _lvis()))
    of = {x.example_id: x for x in map(images.read, range(2))}
    rng = np.random.default_rng(0)
    encode = BoxTargets(80, 3, 4)
    found = encode(of["5"], rng)
    assert found["boxes"].tolist() == [[20, 20, 60, 40], [0] * 4, [0] * 4]
    assert found["classes"].tolist() == [1, -1, -1] and found["size"].tolist() == [40, 80]
    # Below the diagonal from the upper right to the lower left there is nothing.
    assert found["masks"][0].tolist()[0][:3] == [1, 1, 1] and found["masks"][0, 3, 3] == 0
    assert 5 <= found["masks"][0].sum() <= 11
    assert encode(of["2"], rng)["classes"].tolist() == [0, -1, -1]  # not the crowd
    hidden = BoxTargets(80, 3, 0, frozenset([0]))(of["2"], rng)
    assert (hidden["classes"] == -1).all() and hidden["masks"].shape == (3, 0, 0)
    with pytest.raises(TextMisfit, match="5: has no boxes"):
        encode(type(of["5"])(b"", "5"), rng)


@pytest.mark.parametrize("size", [(40, 20), (17, 64), (5, 333), (64, 64)])
def test_pictures_cover_what_boxes_say(size):
    image = tf.fill([size[1], size[0], 3], tf.constant(255, tf.uint8))
    laid = ops.letterbox(image, 48).numpy()
    columns, rows = covered(size, 48)
    expected = np.full((48, 48, 3), 128)
    expected[:rows, :columns] = 255
    np.testing.assert_array_equal(laid, expected)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda r: r["annotations"][0].update(category_id=99), "'category_id' 99 is no category"),
        (lambda r: r["annotations"][0].update(bbox=[1, 2, -3, 4]), "no positive width"),
        (lambda r: r["annotations"][0].update(bbox=[50, 2, 3, 4]), "is outside of 40 x 20"),
        (lambda r: r["annotations"][0].update(image_id=10**30), "is of no usable image"),
        (lambda r: r["annotations"][0].update(segmentation=[[1, 2, 3]]), "is no list of corners"),
        (lambda r: r["annotations"][0].update(area=-1), "is no area"),
        (lambda r: r["images"][0].update(coco_url="http://x/../.."), "is no name of a file"),
        (lambda r: r["images"][0].update(width=0), "is no size of a picture"),
        (lambda r: r["images"][0].update(neg_category_ids=[True]), "True is no category"),
        (lambda r: r["images"].append(dict(r["images"][1])), "'id' 2 occurs twice"),
        (lambda r: r["annotations"].append(7), "must be an object"),
    ],
)
def test_records_that_are_skipped(folder, spoil, reason):
    raw = _lvis()
    spoil(raw)
    _write(folder, raw)
    found = instances.read(folder / "lvis.json", outlines=True)
    assert any(reason in skip.reason for skip in found.skipped), found.skipped
    assert len(found.images) >= 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r["categories"][0].pop("name"), "category 0: no 'name'"),
        (lambda r: r["categories"][0].update(frequency="x"), "'frequency' 'x' is none of r, c, f"),
        (lambda r: r["categories"][1].update(id=7), "'id' 7 occurs twice"),
        (lambda r: r.update(categories=[]), "no categories"),
        (lambda r: r.update(annotations=[]), "no usable annotation"),
        (lambda r: r.update(images={}), "'images' must be a list"),
    ],
)
def test_files_that_are_refused(folder, spoil, message):
    raw = _lvis()
    spoil(raw)
    with pytest.raises(DataError, match=message):
        open_images(_write(folder, raw))


def test_pictures_and_folders(folder):
    place = _write(folder, _lvis())
    Image.new("RGB", (20, 40)).save(folder / "images" / "b.png")
    images = open_images(place)
    wrong = next(i for i in range(2) if "5" not in _id(images, i))
    with pytest.raises(DataError, match="b.png: has 20 x 40 pixels, and its boxes are for 40 x 20"):
        images.read(wrong)
    (folder / "images" / "b.png").unlink()
    with pytest.raises(DataError, match="b.png: no such file"):
        images.read(wrong)
    with pytest.raises(DataError, match="its 2 classes are not the 1 of training"):
        open_images(place, ["red star"])
    for source, message in (
        ("lvis:nothing", "should be FILE,FOLDER"),
        (f"lvis:x.json,{folder}", "x.json: no such file of boxes"),
        (f"lvis:{folder}/lvis.json,{folder}/no", "no such folder of pictures"),
    ):
        with pytest.raises(DataError, match=message):
            open_images(source)


def _id(images, number):
    try:
        return images.read(number).example_id
    except DataError:
        return ""
