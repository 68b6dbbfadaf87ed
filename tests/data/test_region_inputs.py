"""Regions of a dataset's images: from stores, from pictures, or none."""

import dataclasses
import re
import shutil

import numpy as np
import pytest

from twelve_in_one.data import region_inputs
from twelve_in_one.data.assemble import make_record
from twelve_in_one.data.records import AnnotatedImage, Annotation, DataError, Regions
from twelve_in_one.data.regions.descriptor import FEATURE_DIM
from twelve_in_one.data.regions.records import write_shard
from twelve_in_one.data.sources import SOURCES

BOXES = ((2.0, 2.0, 30.0, 40.0), (10.0, 5.0, 50.0, 45.0))
IMAGE = AnnotatedImage("7", width=60, height=50, box_ids=(3, 5), boxes=BOXES)


def _regions(dim=4, boxes=BOXES, value=1.0):
    features = np.full((len(boxes), dim), value, np.float32)
    return Regions(np.array(boxes, np.float32), features, 60, 50)


@pytest.fixture
def store(tmp_path):
    """Writes a store of given regions: `store("name", {id: regions})`."""

    def write(name, items):
        write_shard(tmp_path / name, 0, 1, items, dtype=np.float32)
        return f"records:{tmp_path / name}"

    return write


def _record(source, inputs, image=IMAGE):
    annotation = Annotation("1", image.image_id, "text", box=BOXES[0])
    return make_record(image.image_id, [image], (annotation,), inputs)


def test_no_regions():
    inputs = region_inputs.no_regions()
    assert inputs.name == "none" and inputs.has("anything")
    record = _record(SOURCES["refcoco"], inputs)
    assert record.features.shape == (0, 0) and record.annotated_features.shape == (2, 0)
    np.testing.assert_array_equal(record.annotated_boxes, BOXES)
    assert record.sizes.tolist() == [[60, 50]]


def test_boxes_of_a_picture_of_unknown_size():
    inputs = region_inputs.no_regions()
    unsized = dataclasses.replace(IMAGE, width=0, height=0)
    with pytest.raises(DataError, match="image 7 has annotated boxes, but neither.* how large"):
        _record(SOURCES["refcoco"], inputs, unsized)
    without = AnnotatedImage("7")
    assert _record(SOURCES["vqa"], inputs, without).sizes.tolist() == [[1, 1]]


def test_stores(store):
    detected = store("detected", {"7": _regions(), "8": _regions(boxes=BOXES[:1])})
    annotated = store("annotated", {"7": _regions(value=2.0)})
    inputs = region_inputs.from_stores(SOURCES["refcoco"], detected, annotated, "mine")
    assert (inputs.name, inputs.describes) == ("mine", "detected")
    assert [inputs.has(image_id) for image_id in "789"] == [True, True, False]
    assert region_inputs.missing_images(inputs, "987") == {"9": ""}
    record = _record(SOURCES["refcoco"], inputs)
    assert (record.features == 1).all() and (record.annotated_features == 2).all()
    # Only training on RefCOCO uses features of annotated boxes; where there are none, it does
    # without.
    other = dataclasses.replace(IMAGE, image_id="8")
    assert _record(SOURCES["refcoco"], inputs, other).annotated_features.shape == (2, 0)
    choosing = region_inputs.from_stores(SOURCES["guesswhat"], detected, annotated)
    assert choosing.name == region_inputs.STORED
    with pytest.raises(DataError, match="annotated: no image '8'"):
        _record(SOURCES["guesswhat"], choosing, other)


@pytest.mark.parametrize("name", ["visual7w", "guesswhat"])
def test_candidates_need_features(store, name):
    detected = store("detected", {"7": _regions()})
    with pytest.raises(DataError, match=f"{name} chooses among annotated.*--annotated_features"):
        region_inputs.from_stores(SOURCES[name], detected, None)


def test_prefix_of_visual7w(store):
    detected = store("detected", {"v7w_7": _regions(), "8": _regions(value=3.0)})
    annotated = store("annotated", {"v7w_7": _regions(value=2.0)})
    inputs = region_inputs.from_stores(SOURCES["visual7w"], detected, annotated)
    assert (_record(SOURCES["visual7w"], inputs).annotated_features == 2).all()
    assert inputs.has("8") and not inputs.has("9")
    plain = region_inputs.from_stores(SOURCES["gqa"], detected, None)
    assert not plain.has("7") and plain.has("v7w_7")


def test_annotated_features_of_another_size(store):
    detected = store("detected", {"7": _regions(dim=4)})
    annotated = store("annotated", {"7": _regions(dim=5)})
    inputs = region_inputs.from_stores(SOURCES["guesswhat"], detected, annotated)
    with pytest.raises(DataError, match="7: .*annotated boxes have size 5, .* detected ones 4"):
        _record(SOURCES["guesswhat"], inputs)


def test_features_beyond_float16(store):
    inputs = region_inputs.from_stores(
        SOURCES["vqa"], store("detected", {"7": _regions(value=1e5)}), None
    )
    with pytest.raises(DataError, match="7: a region feature of 100000 is beyond what float16"):
        _record(SOURCES["vqa"], inputs)


def test_picture_of_another_size(store):
    inputs = region_inputs.from_stores(SOURCES["vqa"], store("detected", {"7": _regions()}), None)
    with pytest.raises(DataError, match="image 7: .* found in 60 x 50 pixels, .* say 50 x 60"):
        _record(SOURCES["vqa"], inputs, dataclasses.replace(IMAGE, width=50, height=60))


def test_pair(store):
    items = {"left": _regions(), "right": _regions(boxes=BOXES[:1], value=2.0)}
    inputs = region_inputs.from_stores(SOURCES["nlvr2"], store("detected", items), None)
    images = [AnnotatedImage("left"), AnnotatedImage("right", width=60, height=50)]
    record = make_record("pair", images, (Annotation("1", "pair", "text", label=1),), inputs)
    assert record.image_ids == ("left", "right")
    assert record.num_regions.tolist() == [2, 1]
    assert record.features[:, 0].tolist() == [1, 1, 2]
    items["right"] = _regions(dim=5)
    inputs = region_inputs.from_stores(SOURCES["nlvr2"], store("other", items), None)
    with pytest.raises(DataError, match=r"pair: .* have sizes \[4, 5\]"):
        make_record("pair", images, (), inputs)


@pytest.mark.parametrize(
    ("collection", "name", "image_id"),
    [
        ("coco", "train2014/COCO_train2014_000000000009.jpg", "9"),
        ("coco", "000000318556.png", "318556"),
        ("visual_genome", "VG_100K/0012.JPG", "0012"),
        ("visual_genome", "gqa/n161313.jpg", "n161313"),
        ("nlvr2", "dev/3/dev-3-0-img1.png", "dev-3-0-img1"),
        ("flickr30k", "1000092795.jpeg", "1000092795"),
    ],
)
def test_ids_of_pictures(tmp_path, collection, name, image_id):
    path = tmp_path / collection / name
    path.parent.mkdir(parents=True)
    path.touch()
    (path.parent / "notes.txt").touch()
    assert region_inputs.picture_files(tmp_path / collection) == ({image_id: path}, ())


def test_pictures_of_the_same_id(tmp_path):
    for name in ("train2014/COCO_train2014_000000000009.jpg", "000000000009.jpg"):
        (tmp_path / "coco" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "coco" / name).touch()
    with pytest.raises(DataError, match="image 9 is also at"):
        region_inputs.picture_files(tmp_path / "coco")


def _from_pixels(name, images, cache, **options):
    options = {"cluttered": False, "num_regions": None, "jobs": 1} | options
    return region_inputs.from_pixels(SOURCES[name], images, cache, **options)


def test_pictures(small_world, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(small_world.raw / "images/flickr30k", images / "flickr30k")
    inputs = _from_pixels("snli_ve", images, tmp_path / "cache")
    assert (inputs.name, inputs.unreadable) == ("pixels", ())
    paths, _ = region_inputs.picture_files(images / "flickr30k")
    assert not region_inputs.missing_images(inputs, paths)
    image_id = min(paths)
    regions = inputs.detected(AnnotatedImage(image_id))
    assert regions.features.shape == (len(regions.boxes), FEATURE_DIM)
    assert inputs.annotated(AnnotatedImage(image_id)).features.shape == (0, 0)
    assert "images" in capsys.readouterr().err
    # The same again, by another dataset of the collection: nothing is extracted.
    again = _from_pixels("flickr30k", images, tmp_path / "cache")
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(again.detected(AnnotatedImage(image_id)).boxes, regions.boxes)
    fewer = _from_pixels("flickr30k", images, tmp_path / "cache", num_regions=2)
    assert (
        len(fewer.detected(AnnotatedImage(image_id)).boxes) <= 2
        and fewer.describes != again.describes
    )
    photos = _from_pixels("flickr30k", images, tmp_path / "cache", cluttered=True)
    assert photos.name == "photos" and photos.describes != inputs.describes


def test_candidates_of_a_picture(small_world, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(small_world.raw / "images/visual_genome", images / "visual_genome")
    paths, _ = region_inputs.picture_files(images / "visual_genome")
    image_id = min(paths)
    inputs = _from_pixels("visual7w", images, tmp_path / "cache")
    found = inputs.detected(AnnotatedImage(image_id))
    boxes = tuple(map(tuple, found.boxes.tolist()))
    image = AnnotatedImage(image_id, box_ids=tuple(range(len(boxes))), boxes=boxes)
    features = inputs.annotated(image).features
    # A box has the same features whoever names it; the store keeps half precision.
    np.testing.assert_allclose(features, found.features, rtol=2e-3, atol=1e-3)
    elsewhere = dataclasses.replace(
        image, box_ids=(1,), boxes=((found.width + 9.0, 0.0, found.width + 20.0, 9.0),)
    )
    with pytest.raises(DataError, match=rf"{re.escape(str(paths[image_id]))}: annotated box 0 .*"):
        inputs.annotated(elsewhere)
    assert _from_pixels("gqa", images, tmp_path / "cache").annotated(image).features.shape[1] == 0


def test_unreadable_picture(small_world, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(small_world.raw / "images/flickr30k", images / "flickr30k")
    image_id, path = min(region_inputs.picture_files(images / "flickr30k")[0].items())
    path.write_bytes(path.read_bytes()[:1000])
    for _ in range(2):  # also when regions are kept
        inputs = _from_pixels("snli_ve", images, tmp_path / "cache")
        assert [(skip.file, skip.record) for skip in inputs.unreadable] == [(str(path), image_id)]
        assert not inputs.has(image_id)


def test_no_pictures(tmp_path):
    with pytest.raises(DataError, match="images: no such folder; pass --images"):
        _from_pixels("vqa", tmp_path / "images", tmp_path / "cache")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="images/coco: no pictures; pass --images"):
        _from_pixels("vqa", tmp_path / "images", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
