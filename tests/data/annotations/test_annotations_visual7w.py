"""Visual7W questions.

There is no real record to be had: all files here are made by hand in the official schema.
"""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from reference.spoiled_files import read_spoiled

from twelve_in_one.data.annotations import visual7w
from twelve_in_one.data.annotations.select import only_images
from twelve_in_one.data.stored.records import DataError, MissingFile

_FILE = "dataset_v7w_pointing.json"
# Sizes of the fixture's images, which only its feature store states.
_SIZES = [
    {"image_id": 301, "width": 640, "height": 480, "coco_id": 7301},
    {"image_id": 302, "width": 500, "height": 375, "coco_id": None},
]


def _box(box_id, **changes):
    return {"box_id": box_id, "x": box_id, "y": 10, "width": 20, "height": 5.5} | changes


def _question(qa_id, answer=3, others=(1, 4, 2), **changes):
    record = {"qa_id": qa_id, "question": "Which?", "answer": answer, "type": "which"}
    return record | {"multiple_choices": list(others)} | changes


def _image(image_id, *questions, split="train"):
    file_name = f"v7w_{image_id}.jpg"
    return dict(image_id=image_id, filename=file_name, split=split, qa_pairs=list(questions))


def _write(folder: Path, *images, boxes=()):
    content = {"boxes": [*map(_box, range(1, 9)), *boxes], "images": images}
    (folder / _FILE).write_text(json.dumps(content))
    return folder


def _cleaning_list(loaders):
    return set(map(str, np.load(loaders / "visual7w/cache/genome_test_ids.npy")))


def test_questions_on_cleaned_images(shared_dir):
    loaders = shared_dir / "fixtures/loaders"
    train = visual7w.read(loaders / "visual7w", "train")
    cleaned = only_images(train, _cleaning_list(loaders))  # "mteval" of the released code
    (annotation,) = cleaned.annotations
    assert (annotation.image_id, annotation.example_id) == ("303", "4")
    # Its distractors are one box three times, and the released loader keeps them all.
    assert annotation.choice_ids == (7020, 7021, 7021, 7021)
    assert cleaned.images["303"].box_ids == (7020, 7021)


def test_annotations_of_a_small_file(tmp_path):
    _write(
        tmp_path,
        _image(5, _question(11), _question(10, answer=8)),
        _image("6", _question(12, question="  Where's  it? "), split="val"),
        _image(5, _question(13, answer=7), split="test"),
    )
    train = visual7w.read(tmp_path, "train")
    first, second = train.annotations
    assert (first.example_id, second.example_id) == ("11", "10")  # as in the file
    assert (first.choice_ids, first.target_id) == ((1, 2, 3, 4), 3)
    assert (second.choice_ids, second.target_id) == ((1, 2, 4, 8), 8)
    assert first.box == (3.0, 10.0, 23.0, 15.5)
    image = train.images["5"]
    assert image.box_ids == (1, 2, 3, 4, 7, 8)  # box 7 is only in a question of "test"
    assert image == visual7w.read(tmp_path, "test").images["5"]
    assert (image.file_name, image.width, image.coco_id) == ("v7w_5.jpg", 0, -1)
    assert visual7w.read(tmp_path, "val").annotations[0].text == "  Where's  it? "
    assert visual7w.feature_key(first.image_id) == "v7w_5"


@pytest.mark.parametrize("name", ["image_data.json", "../visual_genome/image_data.json"])
def test_sizes_are_found(tmp_path, name):
    folder = _write(tmp_path, _image(301, _question(1)), _image(9, _question(2))) / "visual7w"
    folder.mkdir()
    (tmp_path / "visual_genome").mkdir()
    shutil.move(tmp_path / _FILE, folder / _FILE)
    bad = [{"image_id": 9, "width": 0, "height": 5}, {"width": 3}, 7, {"image_id": 1, "width": ""}]
    (folder / name).write_text(json.dumps(_SIZES + bad))
    got = visual7w.read(folder, "train")
    image, other = got.images["301"], got.images["9"]
    assert (image.width, image.height, image.coco_id) == (640, 480, 7301)
    assert (other.width, other.height, other.coco_id) == (0, 0, -1)
    assert [skipped.record for skipped in got.skipped] == ["9", "record 4", "record 5"]


def test_real_sizes(samples_dir, tmp_path):
    _write(tmp_path, _image(3, _question(1)))
    image_data = samples_dir / "visual_genome/image_data.json"
    image = visual7w.read(tmp_path, "train", image_data).images["3"]
    (size,) = (r for r in json.loads(image_data.read_text()) if r["image_id"] == 3)
    assert (image.width, image.height, image.coco_id) == (size["width"], size["height"], -1)


@pytest.mark.parametrize(
    ("question", "name", "reason"),
    [
        (_question(1), "1", "occurs twice"),
        (_question(2, others=(1, 2)), "2", "must be 3 box ids, are 2"),
        (_question(2, others=(1, 2, "4")), "2", "'multiple_choices' must be a whole number"),
        (_question(2, answer=99), "2", "box 99 is not among the usable boxes"),
        (_question(2, answer=20), "2", "box 20 is not among the usable boxes"),
        (_question(2, question=None), "2", "'question' must be a text"),
        (_question(None), "image 5, question 2", "'qa_id' must be a whole number"),
        ([], "image 5, question 2", "must be an object"),
    ],
)
def test_unusable_questions_are_reported(tmp_path, question, name, reason):
    flat = _box(20, width=0)
    _write(tmp_path, _image(5, _question(1), question, _question(3)), boxes=[flat])
    got = visual7w.read(tmp_path, "train")
    assert [annotation.example_id for annotation in got.annotations] == ["1", "3"]
    box, skipped = got.skipped
    assert box.record == "box 20"
    assert "no positive width" in box.reason
    assert skipped.record == name
    assert reason in skipped.reason
    # Who reads another split hears of the box, which is everybody's, but not of the question.
    assert visual7w.read(tmp_path, "val").skipped == (box,)


def test_unusable_boxes_and_images_are_reported(tmp_path):
    contradicting = [_box(1), _box(1, x=7), {"box_id": 1}, None]
    unknown = _image(6, _question(2), split="testA")
    _write(tmp_path, _image(5, _question(1)), unknown, {"image_id": 7}, boxes=contradicting)
    got = visual7w.read(tmp_path, "train")
    assert [(skipped.record, skipped.reason[:16]) for skipped in got.skipped] == [
        ("box 1", "corners (7.0, 10"),
        ("box 1", "no 'x'; keys: bo"),
        ("box record 12", "must be an objec"),
        ("image 6", "'split' is 'test"),
        ("image 7", "no 'split'; keys"),
    ]
    assert got.images["5"].boxes[0] == (1.0, 10.0, 21.0, 15.5)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        visual7w.read(tmp_path, "dev")
    with pytest.raises(MissingFile, match=rf"no {_FILE}"):
        visual7w.read(tmp_path, "train")
    (tmp_path / _FILE).write_text('{"dataset": "v7w_telling", "images": []}')
    with pytest.raises(DataError, match="no 'boxes'; keys: dataset, images"):
        visual7w.read(tmp_path, "train")
    _write(tmp_path)
    with pytest.raises(DataError, match="missing.json"):
        visual7w.read(tmp_path, "train", tmp_path / "missing.json")


@pytest.mark.parametrize("name", [_FILE, f"{_FILE}.gz", "image_data.json"])
def test_spoiled_files(shared_dir, tmp_path, name):
    shutil.copyfile(shared_dir / f"fixtures/loaders/visual7w/{_FILE}", tmp_path / _FILE)
    (tmp_path / "image_data.json").write_text(json.dumps(_SIZES))
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / _FILE).read_bytes(), mtime=0))
        (tmp_path / _FILE).unlink()
    found = read_spoiled(lambda folder: visual7w.read(folder, "train"), tmp_path, name, num=400)
    assert found["error"] > 50 and found["fine"] > 5
