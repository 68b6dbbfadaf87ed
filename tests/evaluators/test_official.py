"""Official figures: by hand where that is short, and what is said where they cannot be computed."""

import numpy as np
import pytest

from twelve_in_one.data.official import OfficialRecords
from twelve_in_one.evaluators import official
from twelve_in_one.evaluators.rows import Outcome, summarise
from twelve_in_one.tasks.twelve import TASKS

WORDS = {0: "yes", 1: "no", 2: "two", 3: "a red car"}


def outcome(labels, ids=None, score=None):
    count = len(labels)
    score = np.zeros(count, np.float32) if score is None else np.array(score, np.float32)
    ids = tuple(map(str, range(count))) if ids is None else tuple(ids)
    rows = np.ones(count, np.float32)
    return Outcome(ids, np.array(labels, np.int32), score, rows, rows, 0.5)


def figures(name, found, records=None, program="vqa", **options):
    task = TASKS[name]
    known = None if records is None else OfficialRecords(program, records)
    summary = summarise(task, found)
    return official.figures(task, found, summary, words=WORDS, records=known, **options)


def asked(*answers, kind="yes/no"):
    return {"answers": list(answers), "answer_type": kind, "question_type": f"is {kind}"}


def test_vqa_by_hand():
    """Three of ten agree: (7 + 3 x 2/3) / 10 = .9. Numbers and articles are normalised."""
    records = {
        "0": asked(*["yes"] * 3, *["no"] * 7),
        "1": asked(*["2"] * 9, "3", kind="number"),
        "2": asked(*["the red car"] * 6, *["truck"] * 4, kind="other"),
    }
    found = figures("vqa", outcome([0, 2, 3]), records)
    assert found["figures"] == {
        "accuracy": 96.67,
        "yes/no": 90.0,
        "number": 100.0,
        "other": 100.0,
    }
    assert (found["metric"], found["score"], found["examples"]) == ("accuracy", 96.67, 3)
    assert found["by"]["question_type"]["is yes/no"] == 90.0
    assert found["not_computed"] == {} and "VQA" in found["program"]


def test_people_without_types():
    records = {"0": {"answers": ["yes"] * 10}, "1": {"answers": ["no"] * 10}}
    found = figures("vgqa", outcome([0, 0]), records)
    assert found["figures"] == {"accuracy": 50.0} and found["by"] == {}


def test_a_rule_for_ten_people_does_not_judge_by_one():
    records = {"0": asked("yes"), "1": asked(*["no"] * 10)}
    found = figures("vqa", outcome([0, 1]), records)
    assert found["figures"] == {} and found["score"] is None
    assert "1 of 2 questions have fewer than 4" in found["not_computed"]["accuracy"]


def gqa_question(answer, structural="verify", **fields):
    defaults = {
        "answer": answer,
        "question": "is it here?",
        "isBalanced": True,
        "types": {"structural": structural, "semantic": "obj", "detailed": "exist"},
        "groups": {"global": None, "local": None},
        "semantic": [],
        "entailed": [],
    }
    return defaults | fields


def test_gqa_says_what_it_lacks():
    records = {
        "0": gqa_question("yes", entailed=["1", "77"]),
        "1": gqa_question("no"),
        "2": gqa_question("a red car", "query", groups={"global": "car", "local": None}),
    }
    found = figures("gqa", outcome([0, 0, 3]), records, "gqa")
    assert found["figures"] == {
        "accuracy": pytest.approx(200 / 3),
        "binary": 50.0,
        "open": 100.0,
        "distribution": 0.0,
        "consistency": 0.0,
    }
    missing = found["not_computed"]
    assert "1 entailed" in missing["consistency of all"]
    assert "all_questions.json" in missing["consistency of all"]
    assert "choices.json" in missing["validity, plausibility"]
    assert "grounding" in missing
    assert found["by"]["structural_type"] == {"query": 100.0, "verify": 50.0}
    alone = figures("gqa", outcome([0]), {"0": gqa_question("yes")}, "gqa")
    assert alone["figures"] == {"accuracy": 100.0, "binary": 100.0}
    assert {"open", "distribution", "consistency"} < alone["not_computed"].keys()


def test_gqa_with_choices():
    records = {
        "0": gqa_question("yes", choices={"valid": ["yes", "no"], "plausible": ["yes"]}),
        "1": gqa_question("yes", choices={"valid": ["yes", "no"], "plausible": ["yes"]}),
    }
    found = figures("gqa", outcome([0, 1]), records, "gqa")
    assert (found["figures"]["validity"], found["figures"]["plausibility"]) == (100.0, 50.0)
    assert "validity, plausibility" not in found["not_computed"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"answer": "yes"}, "has no question, isBalanced"),
        (gqa_question("yes", isBalanced=False), "balanced"),
    ],
)
def test_a_question_file_that_is_not_gqas(record, reason):
    found = figures("gqa", outcome([0]), {"0": record}, "gqa")
    assert found["score"] is None and reason in found["not_computed"]["accuracy"]


def test_without_records():
    assert figures("vgqa", outcome([0])) is None  # there is no such program
    found = figures("vqa", outcome([0]), expected=True)
    assert found["figures"] == {} and "build" in found["not_computed"]["accuracy"]
    with pytest.raises(ValueError, match="lack 1 of 2 examples, the first 1: .* --overwrite"):
        figures("vqa", outcome([0, 0]), {"0": asked(*["yes"] * 10)})


def test_of_other_kinds():
    ids = ["test1-0-0-0", "test1-0-1-0", "test1-0-2-0", "test1-1-0-0"]
    found = figures("nlvr2", outcome([1] * 4, ids, score=[1, 1, 0, 1]))
    assert found["figures"] == {"accuracy": 75.0, "consistency": 50.0}
    found = figures("refcoco", outcome([0, 1], score=[1, 0]))
    assert found["figures"] == {"accuracy": 50.0, "oracle": 100.0}
    assert "IoU > 0.5" in found["program"] and "detected" in found["program"]
    assert figures("snli_ve", outcome([0], score=[1]))["figures"] == {"accuracy": 100.0}
    unanswered = summarise(TASKS["vqa"], outcome([0]), answered=False)
    assert official.figures(TASKS["vqa"], outcome([0]), unanswered) is None
