"""Regions of a dataset's images: from stores, from pictures, or none."""

import dataclasses
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.builders import region_inputs
from twelve_in_one.data.builders.assemble import make_record
from twelve_in_one.data.builders.base import BuildInputs, made_of
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.regions.descriptor import FEATURE_DIM
from twelve_in_one.data.regions.records import write_shard
from twelve_in_one.data.stored.image_rows import load
from twelve_in_one.data.stored.records import AnnotatedImage, Annotation, DataError, Regions
from twelve_in_one.data.stored.schema import example_of, record_of
from twelve_in_one.tasks.metrics.boxes import iou

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


def test_normalised_annotations(store):
    """Whatever says how large the picture is, and also where no regions are used."""
    shares = tuple((x1 / 60, y1 / 50, x2 / 60, y2 / 50) for x1, y1, x2, y2 in BOXES)
    image = dataclasses.replace(IMAGE, boxes=shares)
    message = "image 7: of the annotations, all boxes .* multiply x by 60 and y by 50"
    target = Annotation("1", "7", "text", box=shares[0])
    stored = region_inputs.from_stores(SOURCES["refcoco"], store("a", {"7": _regions()}), None)
    unsized = dataclasses.replace(image, width=0, height=0)
    for inputs, one in ((region_inputs.no_regions(), image), (stored, unsized)):
        with pytest.raises(DataError, match=message):
            make_record("7", [one], (target,), inputs)
        bare = dataclasses.replace(one, boxes=(), box_ids=(), width=60, height=50)
        with pytest.raises(DataError, match=message):
            make_record("7", [bare], (target,), inputs)


def test_stores_say_which_detector_filled_them(store, tmp_path):
    specs = []
    for name, extractor in (("a", "small-1"), ("b", "small-1"), ("c", "x152-1"), ("d", "")):
        specs.append(store(name, {"7": _regions()}))
        if extractor:
            (tmp_path / name / "extraction.json").write_text(f'{{"extractor": "{extractor}"}}')
    a, b, c, d = specs

    def extractor(detected, annotated):
        inputs = region_inputs.from_stores(SOURCES["visual7w"], detected, annotated)
        assert made_of(BuildInputs(tmp_path, inputs)).get("extractor", "") == inputs.extractor
        return inputs.extractor

    assert (extractor(a, b), extractor(a, d), extractor(d, d)) == ("small-1", "", "")
    for stores in ((a, c), (f"{a},{c}", b)):
        with pytest.raises(DataError, match="two detectors: .*a of small-1 and .*c of x152-1"):
            extractor(*stores)


def test_several_stores(store):
    first = store("first", {"7": _regions()})
    second = store("second", {"7": _regions(value=3.0), "8": _regions(value=2.0)})
    inputs = region_inputs.from_stores(SOURCES["vqa"], f"{first},{second}", None)
    assert inputs.describes == "first + second"
    assert [inputs.has(image_id) for image_id in "789"] == [True, True, False]
    values = [inputs.detected(AnnotatedImage(image_id)).features[0, 0] for image_id in "78"]
    assert values == [1, 2]


def test_stamps_of_stores(store, tmp_path):
    first, second = store("first", {"7": _regions()}), store("second", {"8": _regions()})

    def stamps():
        inputs = region_inputs.from_stores(SOURCES["vqa"], f"{first},{second}", None)
        return [inputs.stamp(image_id) for image_id in "789"]

    before = stamps()
    assert before == stamps() and before[0] and before[1] and not before[2]
    (path,) = (tmp_path / "second").iterdir()
    os.utime(path, (1, 1))
    after = stamps()
    assert after[0] == before[0] and after[1] != before[1]


def test_sizes_of_detected_and_annotated_regions(store):
    """The same rule for both; with the released loader's rule each store has its own frame."""
    wider = dataclasses.replace(_regions(), width=120, height=60)
    stores = store("detected", {"7": _regions()}), store("annotated", {"7": wider})
    unsized = dataclasses.replace(IMAGE, width=0, height=0)
    inputs = region_inputs.from_stores(SOURCES["guesswhat"], *stores)
    with pytest.raises(
        DataError, match=r"image 7: .* were found in 60 x 50 .*, annotated regions are of 120 x 60"
    ):
        _record(SOURCES["guesswhat"], inputs, unsized)
    inputs = region_inputs.from_stores(SOURCES["guesswhat"], *stores, official_sizes=True)
    for image in (unsized, dataclasses.replace(IMAGE, width=50, height=60)):
        record = _record(SOURCES["guesswhat"], inputs, image)
        assert record.sizes.tolist() == [[60, 50]] and record.annotated_size.tolist() == [120, 60]
        loaded = load(record_of(_stored(record), "test"), "test")
        corners = np.array(BOXES, np.float32)
        places = loaded.images[0].locations[1:], loaded.annotated.locations
        for rows, size in zip(places, ((60, 50), (120, 60)), strict=True):
            np.testing.assert_array_equal(rows[:, :4], corners / np.array(size * 2, np.float32))


def _stored(record):
    """What TFDS makes of a record, as far as `record_of` needs it."""
    example = example_of(record) | {"record_id": record.record_id.encode()}
    example["image_ids"] = [image_id.encode() for image_id in record.image_ids]
    names = ("example_id", "text", "answers", "scores", "label", "box", "choice_ids", "target_id")
    rows = [
        {k: v.encode() if isinstance(v, str) else v for k, v in row.items()}
        for row in example["annotations"]
    ]
    return example | {"annotations": {name: [row[name] for row in rows] for name in names}}


def test_datasets_without_a_size_of_annotated_boxes_can_be_read(store):
    """They were built before it was stored."""
    inputs = region_inputs.from_stores(SOURCES["vqa"], store("detected", {"7": _regions()}), None)
    example = _stored(_record(SOURCES["vqa"], inputs))
    del example["annotated_size"]
    assert record_of(example, "test").annotated_size.tolist() == [60, 50]


def test_picture_of_another_size(store):
    inputs = region_inputs.from_stores(SOURCES["vqa"], store("detected", {"7": _regions()}), None)
    with pytest.raises(DataError, match="image 7: .* in 60 x 50 pixels, .* say 51 x 60 pixels$"):
        _record(SOURCES["vqa"], inputs, dataclasses.replace(IMAGE, width=51, height=60))
    with pytest.raises(DataError, match="say 50 x 60 .*width and height are exchanged"):
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


@pytest.fixture
def touch(tmp_path):
    """Makes a file below a folder of pictures: `touch("coco/a.jpg", b"content")`."""

    def write(name, content=b""):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def test_pictures_of_the_same_id(tmp_path, touch):
    first = touch("coco/000000000009.jpg")
    second = touch("coco/train2014/COCO_train2014_000000000009.jpg")
    other = touch("coco/000000000008.jpg")
    for content, wanted, what in (
        (b"", {"8": other, "9": first}, "has the same size and is used"),
        (b"x", {"8": other}, "is another picture: remove one"),
    ):
        second.write_bytes(content)
        found, (left_out,) = region_inputs.picture_files(tmp_path / "coco")
        assert (found, left_out.file, left_out.record) == (wanted, str(second), "9")
        assert left_out.reason == f"image 9: {first} {what}"


@pytest.mark.parametrize(
    "name",
    [
        "COCO_train2014_000000000009 (1)", "COCO_train2014_000000000009-copy",
        "COCO_train2014_000000000009 - Copy (2)", "COCO_train2014_000000000009_copy",
        "Copy of COCO_train2014_000000000009", "COCO_train2014_000000000009 copy 3",
        "COCO_train2014_00000000000x", "COCO_train2014_00000000000\u00b2",
    ],
)  # fmt: skip
def test_copies_of_pictures_are_left_out(tmp_path, touch, name):
    path = touch("coco/COCO_train2014_000000000009.jpg")
    strange = touch(f"coco/{name}.jpg")
    found, (left_out,) = region_inputs.picture_files(tmp_path / "coco")
    assert found == {"9": path}
    assert (left_out.file, left_out.record) == (str(strange), name)
    assert re.search("like a copy of COCO.*9: remove it|does not end in a number", left_out.reason)
    path.unlink()
    if name.startswith("COCO"):
        with pytest.raises(DataError, match="no pictures that can be used: .*does not end in a"):
            region_inputs.picture_files(tmp_path / "coco")


def test_numbered_pictures_are_no_copies(tmp_path, touch):
    paths = {name: touch(f"mine/{name}.png") for name in ("trip (1)", "trip (2)", "photocopy")}
    assert region_inputs.picture_files(tmp_path / "mine") == (paths, ())


def test_links_to_folders_are_followed(tmp_path, touch):
    outside = touch("elsewhere/train2014/COCO_train2014_000000000009.jpg")
    inside = touch("coco/val2014/COCO_val2014_000000000010.jpg")
    (tmp_path / "coco/train2014").symlink_to(outside.parent)
    (tmp_path / "coco/again").symlink_to(outside.parent)
    (tmp_path / "coco/val2014/loop").symlink_to(tmp_path / "coco")
    (tmp_path / "coco/broken.jpg").symlink_to(tmp_path / "nowhere")
    found, left_out = region_inputs.picture_files(tmp_path / "coco")
    assert {key: path.resolve() for key, path in found.items()} == {"9": outside, "10": inside}
    assert left_out == ()
    (tmp_path / "linked").symlink_to(tmp_path / "coco")
    assert region_inputs.picture_files(tmp_path / "linked")[0].keys() == found.keys()


def _from_pixels(name, images, cache, *, cluttered=False, num_regions=None, **options):
    extractor = region_inputs.pixel_extractor(cluttered=cluttered, num_regions=num_regions)
    called = "photos" if cluttered else "pixels"
    return region_inputs.from_folder(SOURCES[name], images, cache, extractor, called, **options)


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


@pytest.mark.parametrize("turned", [3, 6])
def test_turned_picture(tmp_path, turned):
    """Boxes that come with the data are of the frame in which the data describe the picture."""
    folder, cache = tmp_path / "images/coco", tmp_path / "cache"
    folder.mkdir(parents=True)
    pixels = np.full((96, 160, 3), (120, 160, 90), np.uint8)
    pixels[20:50, 30:90] = (220, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(pixels).save(folder / "9.png", exif=exif)
    Image.fromarray(pixels).save(folder / "8.png")
    box = (30.0, 20.0, 89.0, 49.0)
    image = AnnotatedImage("9", width=160, height=96, box_ids=(1,), boxes=(box,))
    inputs = _from_pixels("guesswhat", tmp_path / "images", cache)
    for one in (image, dataclasses.replace(image, width=0, height=0)):
        record = _record(SOURCES["guesswhat"], inputs, one)
        assert record.sizes.tolist() == [[160, 96]]
        assert iou(record.boxes, np.array(box, np.float32)).max() > 0.85
        straight = dataclasses.replace(one, image_id="8")
        wanted = _record(SOURCES["guesswhat"], inputs, straight)
        np.testing.assert_array_equal(record.boxes, wanted.boxes)
        np.testing.assert_array_equal(record.annotated_features, wanted.annotated_features)
    # The same from a store of annotated boxes, which is made at once.
    kept = _from_pixels("guesswhat", tmp_path / "images", cache, annotated=[image]).annotated(image)
    assert len([*cache.glob("*/coco-boxes-*/regions-*")]) == 1 and kept.width == 160
    described = inputs.annotated(image).features
    np.testing.assert_allclose(kept.features, described, rtol=2e-3, atol=1e-3)
    # Without boxes, the picture as it is seen; also where its size is stated for that.
    seen = (96, 160) if turned == 6 else (160, 96)
    for width, height in ((0, 0), seen):
        record = _record(SOURCES["vqa"], inputs, AnnotatedImage("9", width=width, height=height))
        assert record.sizes.tolist() == [list(seen)]
        assert iou(record.boxes, np.array(box, np.float32)).max() < 0.5


def test_pictures_that_are_repaired_or_added(small_world, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(small_world.raw / "images/flickr30k", images / "flickr30k")
    (one, path), (two, other), *_ = region_inputs.picture_files(images / "flickr30k")[0].items()
    contents = path.read_bytes(), other.read_bytes()
    path.write_bytes(contents[0][:1000])
    other.unlink()
    before = _from_pixels("snli_ve", images, tmp_path / "cache")
    missing = region_inputs.missing_images(before, [one, two])
    stamps = before.stamp(one), before.stamp(two)
    assert missing.keys() == {one, two} and "cannot be read" in missing[one] and not missing[two]
    path.write_bytes(contents[0])
    other.write_bytes(contents[1])
    after = _from_pixels("snli_ve", images, tmp_path / "cache")
    assert not region_inputs.missing_images(after, [one, two]) and not after.unreadable
    for image_id, stamp in zip((one, two), stamps, strict=True):
        assert len(after.detected(AnnotatedImage(image_id)).boxes)
        assert after.stamp(image_id) != stamp


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
