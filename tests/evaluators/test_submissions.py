"""Files of predictions, read as the official scripts read them; completeness."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from twelve_in_one.evaluators import submissions
from twelve_in_one.evaluators.retrieval import Ranking
from twelve_in_one.evaluators.rows import Outcome
from twelve_in_one.tasks.metrics import gqa, vqa
from twelve_in_one.tasks.twelve import TWELVE

ANSWERS = {"yes": 0, "no": 1, 'on the, "left"': 2}
TASKS = {task.name: task for task in TWELVE}


def stream(name, examples):
    return SimpleNamespace(
        task=TASKS[name],
        encoding=SimpleNamespace(answers=ANSWERS),
        selection=SimpleNamespace(num_examples=examples),
    )


def outcome(ids, predictions, oracle=1.0):
    scores = np.full(len(ids), oracle, np.float32)
    return Outcome(
        tuple(ids),
        np.array(predictions, np.int32),
        scores,
        np.full(len(ids), 0.5, np.float32),
        scores,
        0.0,
    )


def written(tmp_path, name, predictions, split="test"):
    path = submissions.write(tmp_path / "out", stream(name, 3), split, predictions)
    assert path.parent == tmp_path / "out" and path.stem == f"{name}-{split}"
    assert list(path.parent.iterdir()) == [path]
    return path


def test_vqa_is_what_the_test_server_takes(tmp_path):
    path = written(tmp_path, "vqa", outcome(["42000", "7", "9"], [1, 0, 2], oracle=0))
    found = json.loads(path.read_text())
    assert found[0] == {"question_id": 42000, "answer": "no"}
    assert all(row.keys() == {"question_id", "answer"} for row in found)
    assert set(vqa.answers_by_id(found, "question_id", "answer")) == {42000, 7, 9}


def test_vqa_is_what_the_official_metric_reads(tmp_path):
    path = written(tmp_path, "vqa", outcome(["1", "2", "3"], [0, 1, 0]), split="val")
    annotations = [
        {
            "question_id": i,
            "question_type": "is",
            "answer_type": "yes/no",
            "answers": [{"answer": "yes", "answer_id": n} for n in range(10)],
        }
        for i in (1, 2, 3)
    ]
    result = vqa.evaluate(json.loads(path.read_text()), annotations)
    assert result["overall"] == 66.67


def test_gqa_is_what_its_script_reads(tmp_path):
    path = written(tmp_path, "gqa", outcome(["01", "02", "n3"], [0, 1, 1]))
    found = json.loads(path.read_text())
    assert found[2] == {"questionId": "n3", "prediction": "no"}
    question = dict(
        answer="no",
        question="is it",
        isBalanced=True,
        types=dict(structural="verify", semantic="obj", detailed="exist"),
        groups={"global": "g", "local": "l"},
        semantic=[],
        entailed=[],
    )
    questions = {row["questionId"]: question for row in found}
    assert gqa.evaluate(found, questions)["accuracy"] == pytest.approx(200 / 3)


def test_nlvr2_is_what_its_script_reads(tmp_path):
    ids = ["test1-0-1-0", "test1-0-1-1", "test1-12-0-0"]
    path = written(tmp_path, "nlvr2", outcome(ids, [1, 0, 1]))
    # As nlvr2/eval/metrics.py does: split at commas, no header, labels compared in lower case.
    found = dict(line.strip().split(",") for line in path.read_text().splitlines())
    assert {key: value.lower() for key, value in found.items()} == dict(
        zip(ids, ("true", "false", "true"), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "key", "label"), [("vgqa", "answer", "no"), ("snli_ve", "label", "neutral")]
)
@pytest.mark.parametrize("oracle", [0.0, 1.0])
def test_lines(tmp_path, name, key, label, oracle):
    path = written(tmp_path, name, outcome(["a", "b", "c"], [1, 1, 0], oracle))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    expected = {"id": "a", key: label, "confidence": 0.5} | ({"score": 1.0} if oracle else {})
    assert rows[0] == expected and len(rows) == 3


def test_rankings(tmp_path):
    scores = np.array([[0, 3, 1], [5, 5, 9], [0, 0, 0]], np.float32)
    ranking = Ranking(("c0", "c1", "c2"), ("x", "y", "z"), np.array([0, 1, 1]), scores)
    path = written(tmp_path, "coco", ranking)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [
        {"id": "c0", "images": ["y", "z", "x"], "rank": 3},
        {"id": "c1", "images": ["z", "x", "y"], "rank": 3},
        {"id": "c2", "images": ["x", "y", "z"], "rank": 2},
    ]


def test_the_twenty_best_of_many():
    scores = np.arange(50, dtype=np.float32)[None]
    ranking = Ranking(("c",), tuple(map(str, range(50))), np.array([3]), scores)
    row = json.loads(submissions.render(stream("coco", 1), "test", ranking))
    assert row == {"id": "c", "images": [str(i) for i in range(49, 29, -1)], "rank": 47}


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        (["1", "2"], [0, 0], r"vqa/test: 2 predictions for 3 examples"),
        (["1", "2", "3", "4"], [0] * 4, r"vqa/test: 4 predictions for 3 examples"),
        (["1", "2", "2"], [0] * 3, r"vqa/test: 1 ids have several predictions, first \['2'\]"),
        (["1", "2", ""], [0] * 3, r"vqa/test: a prediction has no id"),
        (["1", "2", "2a"], [0] * 3, r"vqa/test: question id '2a' is no number"),
        (["1", "2", "3"], [0, 0, 9], r"example 3: .* label 9, but the vocabulary has 3 answers"),
    ],
)
def test_refused(tmp_path, ids, labels, message):
    path = tmp_path / "vqa-test.json"
    path.write_text("as it was")
    with pytest.raises(ValueError, match=message):
        submissions.write(tmp_path, stream("vqa", 3), "test", outcome(ids, labels))
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "vqa-test.json"
    path.write_text("as it was")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        submissions.write(tmp_path, stream("vqa", 3), "test", outcome(["1", "2", "3"], [0, 0, 0]))
    assert path.read_text() == "as it was" and list(tmp_path.iterdir()) == [path]
