import collections
import contextlib
import gzip
import json
import pickle
import shutil

import numpy as np
import pytest
from reference.spoiled_files import read_spoiled, spoil_bytes

from twelve_in_one.data.annotations import refcoco
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.metrics.boxes import corners_from_xywh, iou

FILES = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
PARTS = [
    *(
        (name, part)
        for name in ("refcoco", "refcoco+")
        for part in ("train", "val", "testA", "testB")
    ),
    *(("refcocog", part) for part in ("train", "val", "test")),
]


@pytest.fixture
def fixture_dir(shared_dir):
    return shared_dir / "fixtures/loaders/refcoco"


@pytest.fixture
def copied_dir(fixture_dir, tmp_path):
    """A copy of the reference's raw files that may be changed."""
    for name, refs in FILES.items():
        (tmp_path / name).mkdir()
        for file in (refs, "instances.json"):
            shutil.copyfile(fixture_dir / name / file, tmp_path / name / file)
    return tmp_path


def _references(folder, name):
    with open(folder / name / FILES[name], "rb") as stream:
        return pickle.load(stream)


def _change(folder, name, change_references=None, change_instances=None):
    path = folder / name / FILES[name]
    if change_references:
        references = _references(folder, name)
        change_references(references)
        path.write_bytes(pickle.dumps(references, 2))
    if change_instances:
        path = folder / name / "instances.json"
        instances = json.loads(path.read_text())
        change_instances(instances)
        path.write_text(json.dumps(instances))


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_states_what_the_files_state(fixture_dir, name, part):
    found = refcoco.read(fixture_dir, name, part)
    instances = json.loads((fixture_dir / name / "instances.json").read_text())
    boxes = {record["id"]: record["bbox"] for record in instances["annotations"]}
    wanted = [ref for ref in _references(fixture_dir, name) if ref["split"] == part]
    assert [(a.example_id, a.image_id, a.text, a.box) for a in found.annotations] == [
        (
            f"{ref['ref_id']}/{sentence['sent_id']}",
            str(ref["image_id"]),
            sentence["raw"],
            tuple(corners_from_xywh(boxes[ref["ann_id"]]).tolist()),
        )
        for ref in wanted
        for sentence in ref["sentences"]
    ]
    assert set(found.images) == {str(ref["image_id"]) for ref in wanted}
    for record in instances["images"]:
        if str(record["id"]) in found.images:
            image = found.images[str(record["id"])]
            assert (image.image_id, image.coco_id) == (str(record["id"]), record["id"])
            assert (image.width, image.height) == (record["width"], record["height"])
            assert image.file_name == record["file_name"]
            own = [a["id"] for a in instances["annotations"] if a["image_id"] == record["id"]]
            assert list(image.box_ids) == sorted(own)
            assert image.boxes == tuple(
                tuple(corners_from_xywh(boxes[i]).tolist()) for i in sorted(own)
            )


def test_boxes_are_sorted_by_id(copied_dir):
    expected = refcoco.read(copied_dir, "refcoco", "train")
    _change(copied_dir, "refcoco", change_instances=lambda x: x["annotations"].reverse())
    found = refcoco.read(copied_dir, "refcoco", "train")
    assert found == expected
    assert found.images["101"].box_ids == (11, 12)


def test_test_is_both_parts_in_the_order_of_the_list(copied_dir):
    _change(copied_dir, "refcoco", lambda references: references.reverse())
    ids = [a.example_id for a in refcoco.read(copied_dir, "refcoco", "test").annotations]
    assert ids == ["45/6", "45/7", "46/5"]
    parts = [refcoco.read(copied_dir, "refcoco", part).annotations for part in ("testA", "testB")]
    assert [a.example_id for part in parts for a in part] == ["46/5", "45/6", "45/7"]


def _official_form(rows):
    """References and instances of expressions that are listed with their boxes.

    What the list leaves out (annotation ids, order of references of the same box) is made up.
    """
    boxes, images, references = {}, {}, {}
    for sent_id, row in enumerate(rows):
        image_id = int(row["img_id"].split("_")[2])
        images[image_id] = {
            "id": image_id,
            "file_name": f"COCO_train2014_{image_id:012}.jpg",
            "width": row["width"],
            "height": row["height"],
        }
        box_id = boxes.setdefault((image_id, *row["bbox"]), len(boxes))
        reference = references.setdefault(
            row["img_id"],
            {
                "ref_id": len(references),
                "ann_id": box_id,
                "image_id": image_id,
                "split": "val",
                "sentences": [],
                "file_name": f"{row['img_id']}.jpg",
            },
        )
        reference["sentences"].append({"raw": row["sents"], "sent_id": sent_id})
    annotations = [
        {"id": box_id, "image_id": image_id, "bbox": box, "segmentation": []}
        for (image_id, *box), box_id in boxes.items()
    ]
    instances = {"images": list(images.values()), "annotations": annotations, "categories": []}
    return list(references.values()), instances


@pytest.mark.parametrize("name", FILES)
def test_real_expressions(samples_dir, tmp_path, name):
    with gzip.open(samples_dir / f"refcoco/{name}_val.json.gz", "rt", encoding="utf-8") as stream:
        rows = json.load(stream)
    references, instances = _official_form(rows)
    (tmp_path / name).mkdir()
    (tmp_path / name / FILES[name]).write_bytes(pickle.dumps(references, 2))
    (tmp_path / name / "instances.json").write_text(json.dumps(instances))
    found = refcoco.read(tmp_path, name, "val")
    assert found.skipped == ()
    assert len(found.annotations) == len(rows) > len(references) > 0
    by_sentence = {int(a.example_id.split("/")[1]): a for a in found.annotations}
    for sent_id, row in enumerate(rows):
        annotation = by_sentence[sent_id]
        assert (annotation.text, annotation.image_id) == (
            row["sents"],
            str(int(row["img_id"].split("_")[2])),
        )
        x, y, width, height = row["bbox"]
        assert annotation.box == (x, y, x + width, y + height)
        assert annotation.box in found.images[annotation.image_id].boxes


def test_real_sample_on_photos(samples_dir, tmp_path):
    path = samples_dir / "coco/annotations/refcoco_records_subset.json"
    rows = json.loads(path.read_text())["refcocog_val"]
    references, instances = _official_form(rows)
    (tmp_path / "refcocog").mkdir()
    (tmp_path / "refcocog/refs(umd).p").write_bytes(pickle.dumps(references))
    (tmp_path / "refcocog/instances.json").write_text(json.dumps(instances))
    found = refcoco.read(tmp_path, "refcocog", "val")
    assert [a.text for a in found.annotations] == [row["sents"] for row in rows]
    assert found.annotations and found.skipped == ()
    assert set(found.images) == {str(int(row["img_id"].split("_")[2])) for row in rows}
    # The same objects in COCO's own annotations, of the photos that the sample has some of.
    path = samples_dir / "coco/annotations/instances_subset.json"
    annotated = json.loads(path.read_text())["annotations"]
    things = collections.defaultdict(list)
    for record in annotated:
        things[str(record["image_id"])].append(record["bbox"])
    on_photo = [a for a in found.annotations if a.image_id in things]
    assert on_photo
    for annotation in on_photo:
        others = np.array(things[annotation.image_id])
        assert iou(np.array(annotation.box), corners_from_xywh(others)).max() > 0.99


def _drop_annotation(instances):
    del instances["annotations"][0]


def _drop_image(instances):
    del instances["images"][0]


def _bbox(*box):
    return lambda instances: instances["annotations"][0].update(bbox=list(box))


def _beside(instances):
    annotation = instances["annotations"][0]
    (image,) = (one for one in instances["images"] if one["id"] == annotation["image_id"])
    annotation["bbox"] = [image["width"], 0, 5, 5]


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (_drop_annotation, ["no usable annotation 11 of image 101"] * 2),
        (_drop_image, ["no usable image 101"] * 3),
        (_bbox(100, 120, 0, 150), ["no positive width and height"] + ["no usable annot"] * 2),
        (_beside, ["lies outside of the image, "] + ["no usable annot"] * 2),
        (_bbox(-9, 5, 9, 5), ["lies outside of the image"] + ["no usable annot"] * 2),
        (_bbox(1, 2, 3), ["must be [x, y, width, height]"] + ["no usable annot"] * 2),
        (_bbox(1, 2, 3, "4"), ["must be [x, y, width, height]"] + ["no usable annot"] * 2),
        (_bbox(1, 2, float("nan"), 4), ["must be [x, y, width"] + ["no usable annot"] * 2),
        (_bbox(-9, 470, 10, 100), []),
        (lambda x: x["images"][0].update(width=0), ["'width' is out"] + ["no usable image"] * 3),
        (lambda x: x["annotations"][1].update(id=11), ["of this id already"] + ["no usable annot"]),
        (lambda x: x["annotations"][1].update(image_id=103), ["no usable annotation 12"]),
    ],
)
def test_unusable_boxes_are_counted(copied_dir, change, reasons):
    _change(copied_dir, "refcoco", change_instances=change)
    found = refcoco.read(copied_dir, "refcoco", "train")
    assert len(found.skipped) == len(reasons)
    for skipped, reason in zip(found.skipped, reasons, strict=True):
        assert reason in skipped.reason
    lost = sum("no usable" in reason for reason in reasons)
    assert len(found.annotations) == 4 - lost
    for image in found.images.values():
        assert len(image.boxes) == len(image.box_ids) > 0


@pytest.mark.parametrize(
    ("change", "record", "reason"),
    [
        (lambda x: x[0].pop("split"), "record 0", "no 'split'"),
        (lambda x: x[0].update(split="dev"), "record 0", "'split' must be in"),
        (lambda x: x[0].pop("ann_id"), "record 0", "no 'ann_id'"),
        (lambda x: x[0].update(ann_id=-1), "record 0", "'ann_id' is out of range"),
        (lambda x: x[0].update(image_id=10**6000), "record 0", "'image_id' is out of range"),
        (lambda x: x[0].update(sentences=()), "record 0", "'sentences' must be a list"),
        (lambda x: x.__setitem__(0, {10**6000: 1}), "record 0", "Exceeds the limit"),
        (lambda x: x[0]["sentences"][0].update(raw=" "), "50/0", "'raw' is empty"),
        (lambda x: x[0]["sentences"][0].update(raw=b"dog"), "50/0", "'raw' must be a text"),
        (lambda x: x[0]["sentences"][0].pop("sent_id"), "50/sentence 0", "no 'sent_id'"),
        (lambda x: x[0]["sentences"][1].update(sent_id=0), "50/0", "has the same ids"),
    ],
)
def test_broken_references_are_counted(copied_dir, change, record, reason):
    _change(copied_dir, "refcoco", change)
    found = refcoco.read(copied_dir, "refcoco", "train")
    path = copied_dir / "refcoco/refs(unc).p"
    assert len(found.annotations) == (2 if record == "record 0" else 3)
    (skipped,) = found.skipped
    assert (skipped.file, skipped.record) == (str(path), record)
    assert reason in skipped.reason


def test_errors(copied_dir):
    with pytest.raises(ValueError, match=r"name must be one of refcoco, refcoco\+, refcocog, got"):
        refcoco.read(copied_dir, "refclef", "val")
    with pytest.raises(ValueError, match="train, val, testA, testB, test, got 'dev'"):
        refcoco.read(copied_dir, "refcoco", "dev")
    with pytest.raises(ValueError, match="must be one of train, val, test, got 'testA'"):
        refcoco.read(copied_dir, "refcocog", "testA")
    path = copied_dir / "refcocog/refs(umd).p"
    path.write_bytes(pickle.dumps({"refs": []}))
    with pytest.raises(DataError, match="must be a list of references, is a dict"):
        refcoco.read(copied_dir, "refcocog", "val")
    path.rename(path.with_name("refs(google).p"))
    with pytest.raises(DataError, match=r"refcocog: no refs\(umd\).p; other divisions are not"):
        refcoco.read(copied_dir, "refcocog", "val")
    (copied_dir / "refcoco/instances.json").unlink()
    with pytest.raises(DataError, match="no instances.json"):
        refcoco.read(copied_dir, "refcoco", "val")


class _Evaluate:
    """Pickles as a call that makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return eval, (f"open({self.path!r}, 'w').close()",)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_pickle_runs(copied_dir, protocol):
    canary = copied_dir / "canary"
    places = (
        lambda x: x.append(_Evaluate(canary)),
        lambda x: x[0].update(extra=_Evaluate(canary)),
        lambda x: x[0]["sentences"][0].update(raw=_Evaluate(canary)),
    )
    original = pickle.dumps(_references(copied_dir, "refcoco"))
    for place in places:
        references = pickle.loads(original)
        place(references)
        data = pickle.dumps(references, protocol)
        (copied_dir / "refcoco/refs(unc).p").write_bytes(data)
        with pytest.raises(DataError, match="nothing was executed"):
            refcoco.read(copied_dir, "refcoco", "train")
        assert not canary.exists()
    # The files do what they are made for where they are trusted.
    pickle.loads(data)
    assert canary.exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_spoiled_files(copied_dir, monkeypatch, split):
    monkeypatch.chdir(copied_dir)
    path = copied_dir / "refcocog/refs(umd).p"
    hostile = _references(copied_dir, "refcocog")
    hostile[1]["sentences"].append(_Evaluate("canary"))

    def read(folder):
        found = refcoco.read(folder, "refcocog", split)
        for annotation in found.annotations:
            image = found.images[annotation.image_id]
            assert annotation.box in image.boxes and list(image.box_ids) == sorted(image.box_ids)
        return found

    names = ("refcocog/refs(umd).p", "refcocog/instances.json")
    found = read_spoiled(read, copied_dir, *names, num=240, blank_texts=False)
    assert found["error"] > 20 and found["fine"] + found["skipped"] > 20
    rng = np.random.default_rng(0)
    for seed in range(120):
        path.write_bytes(spoil_bytes(pickle.dumps(hostile, seed % 6), rng))
        with contextlib.suppress(DataError):
            read(copied_dir)
    assert not (copied_dir / "canary").exists()
