"""Records of a user's own: every kind is read, every mistake is named with line, key and value."""

import json

import pytest

from twelve_in_one.data.annotations import jsonl, jsonl_fields
from twelve_in_one.data.annotations.jsonl import Rules, file_part, image_id_of, read
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import DataError

SIZE = (64, 48)


def rules(kind, **fields):
    pair = fields.pop("images", 1)
    defaults = dict(picture=lambda name: None, size_of=lambda name: SIZE, val_share=0.2)
    return Rules(kind, pair, **{**defaults, **fields})


def write(path, records):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines))
    return file_part(path)


def question(number, **fields):
    record = {"image": f"{number}.jpg", "question": f"what is {number}?", "answer": "yes"}
    return {k: v for k, v in {**record, **fields}.items() if v is not None}


def annotations(found):
    return {a.example_id: a for s in found.splits.values() for a in s.annotations}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (dict(answer=" a kettle "), {"a kettle": 1.0}),
        (dict(answer=3), {"3": 1.0}),
        (dict(answers=["yes", "yes", "no", "yes"]), {"yes": 0.75, "no": 0.25}),
        # Ten people: VQA's 0.3, 0.6, 0.9, 1.
        (dict(answers=["a"] * 7 + ["b"] * 2 + ["c"]), {"a": 1.0, "b": 0.6, "c": 0.3}),
        (dict(answers={"sofa": 1, "couch": 0.9}), {"sofa": 1.0, "couch": 0.9}),
    ],
)
def test_answers_and_their_scores(tmp_path, answers, expected):
    records = [question(i, **{"answer": None, **answers}) for i in range(5)]
    found = annotations(read([write(tmp_path / "a.jsonl", records)], rules("answer")))
    one = found["1"]
    assert dict(zip(one.answers, one.scores, strict=True)) == pytest.approx(expected)
    assert one.image_id == "0.jpg"


def test_captions_boxes_and_statements(tmp_path):
    many = range(6)
    part = write(
        tmp_path / "captions.jsonl",
        [{"image": f"{i}.png", "captions": ["a", f"b {i}"]} for i in many],
    )
    found = annotations(read([part], rules("match")))
    assert [found[i].text for i in ("2#0", "2#1")] == ["a", "b 1"]

    box = [3, 4, 10, 20]
    records = [{"image": f"{i}", "expression": "it", "box": box, "id": f"x{i}"} for i in many]
    for box_format, corners in (("xyxy", (3, 4, 10, 20)), ("xywh", (3, 4, 13, 24))):
        found = read(
            [write(tmp_path / "boxes.jsonl", records)], rules("region", box_format=box_format)
        )
        assert annotations(found)["x3"].box == corners
        assert all(i.boxes == (corners,) for s in found.splits.values() for i in s.images.values())

    labels = ["Neutral", "contradiction", "entailment"] * 2
    records = [{"image": f"{i}", "statement": "s", "label": name} for i, name in enumerate(labels)]
    names = ("contradiction", "neutral", "entailment")
    found = annotations(
        read([write(tmp_path / "s.jsonl", records)], rules("verdict", labels=names))
    )
    assert [found[str(i)].label for i in (1, 2, 3)] == [1, 0, 2]


def test_pairs_that_share_a_picture_stay_in_one_split(tmp_path):
    pairs = [(2 * i, 2 * i + 1) for i in range(30)] + [(2 * i + 1, 2 * i) for i in range(30)]
    records = [
        {"left": f"{a}", "right": f"{b}", "statement": "same", "label": i % 2 == 0}
        for i, (a, b) in enumerate(pairs)
    ]
    found = read(
        [write(tmp_path / "p.jsonl", records)],
        rules("verdict", images=2, labels=("False", "True"), test_share=0.3),
    )
    images = [set(split.images) for split in found.splits.values()]
    assert len(images) == 3 and sum(map(len, images)) == 60
    (one,) = [a for s in found.splits.values() for a in s.annotations if a.example_id == "3"]
    assert (one.image_id, one.label) == ("4&5", 1)


def test_the_draw_depends_on_the_names_alone(tmp_path):
    def held_out(records):
        found = read([write(tmp_path / "q.jsonl", records)], rules("answer", test_share=0.2))
        return {image: split for split, s in found.splits.items() for image in s.images}

    few = held_out([question(i) for i in range(100)])
    more = held_out([question(i) for i in reversed(range(120))])
    assert few == {image: more[image] for image in few}
    counts = [list(few.values()).count(split) for split in ("train", "val", "test")]
    assert counts[0] > 45 and min(counts[1:]) > 8


def test_splits_by_mark_and_by_file(tmp_path):
    marks = ["train", "dev", "test", "Train"]
    marked = [question(i, split=mark) for i, mark in enumerate(marks)]
    found = read([write(tmp_path / "m.jsonl", marked)], rules("answer"))
    assert {s: len(x.annotations) for s, x in found.splits.items()} == dict(train=2, val=1, test=1)

    parts = []
    for role in ("train", "val", "test"):
        write(tmp_path / role, [question(role, answer=None if role == "test" else "no")])
        parts.append(file_part(tmp_path / role, role))
    found = read(parts, rules("answer"))
    assert [list(s.images) for s in found.splits.values()] == [
        ["train.jpg"],
        ["val.jpg"],
        ["test.jpg"],
    ]
    assert found.splits["test"].annotations[0].answers == ()


def test_all_mistakes_are_listed_with_line_key_value_and_fix(tmp_path):
    bad = [
        question(0),
        "{no json",
        question(1, question=None, qestion="what?"),
        question(2, answer=None),
        question(3, answer=True),
        question(4, answer=None, answers=[]),
        question(5, answer=None, answers={"a": 2}),
        question(6, split="exam"),
        question(7, id="same"),
        question(8, id="same"),
        question(9, question="  "),
        question(10, image=None),
        question(11, answers=["no"]),
        question(12, id="15"),
        question(13),
    ]
    with pytest.raises(DataError) as error:
        read([write(tmp_path / "bad.jsonl", bad)], rules("answer"))
    text = str(error.value)
    for message in (
        "12 of 15 records cannot be used",
        "bad.jsonl: line 2: not JSON",
        "line 3: no 'question'; keys: image, answer, qestion; is 'qestion' meant to be it?",
        "line 4: no 'answer'",
        "line 5: 'answer' must be a text, is True",
        "line 6: 'answers' is empty",
        "line 7: 'answers': score 2 of 'a' is not in [0, 1]",
        "line 8: 'split' must be train, val or test, is 'exam'",
        "line 10: 'id' 'same' is the id of line 9, too",
        "line 11: 'question' is empty",
        "line 12: no 'image'",
        "line 13: has both 'answer' and 'answers': keep one of them",
        "line 15: the number of its line, '15', is the id of line 14, too",
    ):
        assert message in text
    both = [{"image": "0", "caption": "a", "captions": ["b"]}]
    with pytest.raises(DataError, match="has both 'caption' and 'captions'"):
        read([write(tmp_path / "both.jsonl", both)], rules("match"))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            [0.1, 0.2, 0.5, 0.9],
            "is a share of the picture: multiply it by 64 and 48, the picture's",
        ),
        ([10, 10, 5, 30], "read as xyxy, is empty; it would fit as xywh: set box_format"),
        ([10, 10, 20, 50], "is outside the picture of 64 x 48 pixels"),
        ([10, 10, 10, 20], "is empty"),
        ([1, 2, 3], "must be four numbers in pixels, is [1, 2, 3]"),
        ([1, 2, 3, float("nan")], "must be four numbers"),
        ("1,2,3,4", "must be a list"),
    ],
)
def test_boxes_that_are_none(box, message):
    with pytest.raises(RecordError) as error:
        jsonl_fields.box({"box": box}, "box", "xyxy", SIZE)
    assert message in str(error.value)


def test_few_mistakes_are_counted_and_repeated_records_count_once(tmp_path):
    records = [question(i, source="x") for i in range(40)] + [
        question(3),
        question(50, answer=None),
    ]
    found = read([write(tmp_path / "q.jsonl", records)], rules("answer"))
    (skipped,) = [skip for split in found.splits.values() for skip in split.skipped]
    assert (skipped.record, skipped.reason[:11]) == ("line 42", "no 'answer'")
    assert found.repeated == 1 and len(annotations(found)) == 40
    assert "keys that are not read: source (40)" in found.notes


@pytest.mark.parametrize(
    ("records", "fields", "message"),
    [
        ([], {}, "the files hold no record"),
        ([question(1)], {}, "no record for val"),
        ([question(1, split="train"), question(2)], {}, "line 2: no 'split', which others have"),
        ([question(i, split="val") for i in range(3)], {}, "no record for train"),
        ([question(i) for i in range(9)], dict(val_share=0.0), "no record for val"),
    ],
)
def test_nothing_to_train_on(tmp_path, records, fields, message):
    with pytest.raises(DataError) as error:
        read([write(tmp_path / "q.jsonl", records)], rules("answer", **fields))
    assert message in str(error.value)


def test_a_label_that_nobody_named(tmp_path):
    records = [{"image": f"{i}", "statement": "s", "label": "maybe"} for i in range(3)]
    with pytest.raises(DataError, match="'label' must be one of no, yes, is 'maybe'"):
        read([write(tmp_path / "q.jsonl", records)], rules("verdict", labels=("no", "yes")))


def test_pictures_are_found_or_a_near_one_is_named(tmp_path):
    (tmp_path / "kitchen.jpeg").touch()
    find = jsonl.picture_in(tmp_path)
    assert find("kitchen.jpeg") == tmp_path / "kitchen.jpeg"
    with pytest.raises(RecordError, match=r"no such file in .*; did you mean kitchen.jpeg\?"):
        find("kitchen.jpg")


def test_ids_of_pictures():
    assert image_id_of("COCO_val2014_000000000042.jpg", "coco") == "42"
    assert image_id_of("shelf/a b.jpg") == image_id_of("./shelf/a b.jpg") == "shelf%2Fa b.jpg"
    assert image_id_of("2334.jpg", "flickr30k") == "2334"
    with pytest.raises(RecordError, match="ends in no number"):
        image_id_of("cat.jpg", "coco")
