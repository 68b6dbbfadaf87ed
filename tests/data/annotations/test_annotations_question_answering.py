import json

import pytest
from reference.spoiled_files import encoded, read_spoiled

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


@pytest.mark.parametrize("source", SOURCES)
def test_spoiled_files(tmp_path, source):
    read, files = SOURCES[source]
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(name, value))
    found = read_spoiled(read, tmp_path)
    assert found["error"] > 10 and found["fine"] + found["skipped"] > 10
