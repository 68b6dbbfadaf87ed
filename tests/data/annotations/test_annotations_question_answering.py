import copy
import json
import pickle

import numpy as np
import pytest

from twelve_in_one.data.annotations import gqa, visual_genome_qa, vqa
from twelve_in_one.data.annotations.question_answering import HELD_OUT, hold_out, num_held_out
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    Skipped,
)


@pytest.mark.parametrize(
    ("num_questions", "num_val", "expected"),
    [
        (214_354, None, 3000),
        (12_000, None, 3000),
        (11_999, None, 2399),
        (5, None, 1),
        (4, None, 1),
        (1, None, 1),
        (0, None, 0),
        (10, 3000, 10),
        (10, 0, 0),
        (10, 4, 4),
    ],
)
def test_num_held_out(num_questions, num_val, expected):
    assert num_held_out(num_questions, 3000, num_val) == expected


def _five_questions():
    questions = tuple(Annotation(str(i), str(i // 2), "Q?") for i in range(5))
    images = {str(i): AnnotatedImage(str(i)) for i in range(3)}
    return AnnotationSet(questions, images, skipped=(Skipped("file", "9", "no answer"),))


def test_questions_of_a_list_are_held_out(tmp_path):
    questions = _five_questions()
    (tmp_path / HELD_OUT).write_text(json.dumps([3, "0", 9]))  # 9 was skipped
    rest, held_out = hold_out(questions, 3000, None, tmp_path)
    assert [a.example_id for a in held_out.annotations] == ["0", "3"]
    assert [a.example_id for a in rest.annotations] == ["1", "2", "4"]
    assert (set(held_out.images), set(rest.images)) == ({"0", "1"}, {"0", "1", "2"})
    _, last = hold_out(questions, 3000, 2, tmp_path)
    assert [a.example_id for a in last.annotations] == ["3", "4"], (
        "a number is a wish of the caller"
    )
    assert hold_out(questions, 3000, None, tmp_path / "none")[1].annotations == (
        questions.annotations[-1],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([3, 17, 12], "no question has 2 of the 3 ids, first 12"),
        ([3, None], "numbers or texts; found None"),
        ([], "found empty"),
        ({"3": 1}, "top level must be a list"),
    ],
)
def test_lists_of_held_out_questions_are_checked(tmp_path, content, message):
    (tmp_path / HELD_OUT).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        hold_out(_five_questions(), 3000, None, tmp_path)


# Damaged files: whatever comes of them is a consistent set or a `DataError`.

TARGETS = [
    dict(question_id=1, image_id=7, question="Q?", labels=[0, 2], scores=[0.3, 1.0]),
    dict(question_id=2, image_id=8, question="", labels=[], scores=[]),
]
LABELS = ["red", "", "two"]
SOURCES = {
    "vqa": (
        lambda folder: vqa.read(folder, "val"),
        {
            "v2_OpenEnded_mscoco_val2014_questions.json": {
                "info": {"year": 2017},
                "questions": [
                    {"question_id": i, "image_id": 7, "question": "What?"} for i in range(1, 4)
                ],
            },
            "v2_mscoco_val2014_annotations.json": {
                "annotations": [
                    {
                        "question_id": i,
                        "image_id": 7,
                        "answers": [{"answer": a, "answer_id": 1} for a in ("red", "red", "two")],
                    }
                    for i in range(1, 4)
                ]
            },
        },
    ),
    "vqa caches": (
        lambda folder: vqa.read(folder, "val"),
        {
            "v2_OpenEnded_mscoco_val2014_questions.json": {
                "questions": [
                    {"question_id": 1, "image_id": 7, "question": "What?"},
                    {"question_id": 2, "image_id": 8, "question": "Who?"},
                ],
            },
            "cache/val_target.pkl": TARGETS,
            "cache/trainval_label2ans.pkl": LABELS,
        },
    ),
    "visual genome": (
        lambda folder: visual_genome_qa.read(folder, "val"),
        {
            "question_answers.json": [
                {
                    "id": i,
                    "qas": [{"qa_id": i, "image_id": i, "question": "Q?", "answer": "A cat."}],
                }
                for i in (1, 2)
            ],
            "image_data.json": [
                {"image_id": i, "width": 64, "height": 48, "coco_id": c}
                for i, c in ((1, None), (2, 5))
            ],
        },
    ),
    "visual genome caches": (
        lambda folder: visual_genome_qa.read(folder, "val"),
        {"cache/trainval_target.pkl": TARGETS, "cache/trainval_label2ans.pkl": LABELS},
    ),
    "gqa": (
        lambda folder: gqa.read(folder, "val"),
        {
            f"{split}_balanced_questions.json": {
                f"{split}{i}": {"imageId": "n5", "question": "Q?", "answer": "yes"} for i in (1, 2)
            }
            for split in ("train", "val")
        },
    ),
    "gqa caches": (
        lambda folder: gqa.read(folder, "val"),
        {"cache/trainval_target.pkl": TARGETS, "cache/trainval_label2ans.pkl": LABELS},
    ),
}
_DEEP: list = []
for _ in range(200):
    _DEEP = [_DEEP]
STRANGE = [
    None,
    True,
    -1,
    1 << 63,
    10**4000,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    [None, 1, "a"],
    {"question_id": {}},
    _DEEP,
]


def _nodes(value):
    """(container, key) of everything inside `value`."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _nodes(value[key])


def _damage_value(value, rng):
    value = copy.deepcopy(value)
    for _ in range(rng.integers(1, 3)):
        nodes = list(_nodes(value))
        if not nodes or rng.random() < 0.05:
            return copy.deepcopy(STRANGE[rng.integers(len(STRANGE))])
        container, key = nodes[rng.integers(len(nodes))]
        action = rng.integers(4)
        if action == 0:
            del container[key]
        elif action == 1 and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif action == 2 and isinstance(container, dict):
            container[key + "x"] = container.pop(key)
        else:
            container[key] = copy.deepcopy(STRANGE[rng.integers(len(STRANGE))])
    return value


def _damage_bytes(data, rng):
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data))) if data else 0
        action = rng.integers(4)
        if action == 0:
            del data[place:]
        elif action == 1:
            data[place : place + 1] = bytes([rng.integers(256)])
        elif action == 2:
            data[place:place] = b"\xff\xfe\x80"[: rng.integers(1, 4)]
        else:
            del data[place : place + int(rng.integers(1, 30))]
    return bytes(data)


def _encode(name, value):
    return pickle.dumps(value) if name.endswith(".pkl") else json.dumps(value).encode()


def _write(folder, name, data):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("source", SOURCES)
def test_damaged_files(tmp_path, source):
    read, files = SOURCES[source]
    for name, value in files.items():
        _write(tmp_path, name, _encode(name, value))
    assert read(tmp_path).annotations
    rng = np.random.default_rng(7)
    num_sets = 0
    for trial in range(120):
        name = list(files)[rng.integers(len(files))]
        if trial % 2:
            data = _damage_bytes(_encode(name, files[name]), rng)
        else:
            data = _encode(name, _damage_value(files[name], rng))
        _write(tmp_path, name, data)
        try:
            result = read(tmp_path)
        except DataError as error:
            assert str(tmp_path) in str(error)
        else:
            num_sets += 1
            _check_consistent(result)
        _write(tmp_path, name, _encode(name, files[name]))
    assert 0 < num_sets < 120


def _check_consistent(result):
    assert isinstance(result, AnnotationSet)
    ids = [a.example_id for a in result.annotations]
    assert len(set(ids)) == len(ids) > 0
    assert {a.image_id for a in result.annotations} == set(result.images)
    for annotation in result.annotations:
        texts = (annotation.example_id, annotation.image_id, annotation.text, *annotation.answers)
        assert all(type(text) is str and text.encode() is not None for text in texts)
        assert len(annotation.answers) == len(annotation.scores) == len(set(annotation.answers))
        assert all(type(score) is float and 0 <= score <= 1 for score in annotation.scores)
    for skipped in result.skipped:
        assert skipped.file.encode() and skipped.record.encode() and skipped.reason.encode()
