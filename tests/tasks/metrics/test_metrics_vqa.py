"""VQA accuracy against the official evaluation's results and against its definition."""

import copy
import gzip
import itertools
import json
import random

import numpy as np
import pytest

from twelve_in_one.tasks.metrics import vqa


def _annotation(question_id, answers, answer_type="other", question_type="what"):
    return {
        "question_id": question_id,
        "question_type": question_type,
        "answer_type": answer_type,
        "answers": [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers, 1)],
    }


def _prediction(question_id, answer):
    return {"question_id": question_id, "answer": answer}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A Red-White  kite", "red white kite"),
        ("red-white , kite", "red white kite"),
        ("left- right-most", "left rightmost"),  # A blank after one hyphen deletes both.
        ("2,500-strong", "2500strong"),  # A digit-comma-digit deletes every mark.
        ("half,full", "half full"),
        ("7.", "7"),
        (".25", ".25"),
        ("10:45", "10:45"),
        ("The None", "0"),
        ("twenty three", "twenty 3"),
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("owsat", "owsat"),
        ("'ow'sat", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("Ive", "ive"),
        ("shes", "shes"),
        ("up\n\tand down ", "up and down"),
        ("ok" + "." * 32, "ok"),
        ("ok" + "." * 34, "ok.."),
    ],
)
def test_normalise_answer(text, expected):
    assert vqa.normalise_answer(text) == expected


def test_normalised_strings_match_the_official_steps(recorded_dir):
    rows = json.loads((recorded_dir / "metrics/vqa_normalise.json").read_text())["rows"]
    for text, punctuated, final in rows:
        assert vqa.process_punctuation(text) == punctuated
        assert vqa.process_digit_article(punctuated) == final


def test_accuracy_is_the_mean_over_all_groups_of_nine():
    rng = random.Random(0)
    for _ in range(200):
        answers = rng.choices(["cat", "dog", "bird", "two"], k=10)
        groups = list(itertools.combinations(answers, 9))
        expected = np.mean([min(1, group.count("cat") / 3) for group in groups])
        assert vqa.accuracy("cat", answers) == pytest.approx(expected, abs=1e-12)


def test_unanimous_answers_are_not_normalised():
    assert vqa.accuracy("Yes.", ["yes"] * 10) == 0
    assert vqa.accuracy(" yes\n", ["yes", "yes "] * 5) == 1
    assert vqa.accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1


def test_soft_score_equals_accuracy_of_ten():
    counts = np.arange(11)
    by_accuracy = [vqa.accuracy("x", ["x"] * n + ["y"] * (10 - n)) for n in counts]
    np.testing.assert_allclose(vqa.soft_score(counts), by_accuracy, atol=1e-12)
    assert vqa.soft_score(counts.reshape(11, 1)).shape == (11, 1)
    assert vqa.soft_score(3) == 0.9


@pytest.mark.parametrize("num_people", range(1, 10))
def test_fewer_than_ten_people_count_by_their_share(num_people):
    for count in range(num_people + 1):
        answers = ["A dog."] * count + ["cat"] * (num_people - count)
        share = count / num_people
        assert vqa.accuracy("dog", answers) == pytest.approx(share)
        assert vqa.soft_score(count, num_people) == pytest.approx(share)
    with pytest.raises(ValueError, match=f"at most num_people {num_people}, got 12"):
        vqa.soft_score([0, 12], num_people)


def test_more_than_ten_people_count_by_the_official_formula():
    assert vqa.accuracy("x", ["x"] * 2 + ["y"] * 9) == pytest.approx((2 / 3 * 9 + 1 / 3 * 2) / 11)
    assert vqa.soft_score(2, 11) == 0.6


def test_evaluate_counts_questions_with_fewer_answers():
    annotations = [_annotation(1, ["Yes"]), _annotation(2, ["2", "3"]), _annotation(3, ["a"] * 10)]
    predictions = [_prediction(1, "yes"), _prediction(2, "two"), _prediction(3, "a")]
    found = vqa.evaluate(predictions, annotations)
    assert found["with_fewer_answers"] == 2
    assert [found["per_question"][i]["accuracy"] for i in (1, 2, 3)] == [100, 50, 100]


def test_soft_score_errors():
    with pytest.raises(ValueError, match="negative, got -2"):
        vqa.soft_score(np.array([1, -2]))
    with pytest.raises(ValueError, match="integers"):
        vqa.soft_score([0.5])


@pytest.mark.parametrize("name", ["vqa_real", "vqa_invented"])
def test_evaluate_matches_official_results(recorded_dir, request, name):
    shared_dir = request.getfixturevalue("shared_dir") if name == "vqa_real" else None
    expected = json.loads((recorded_dir / f"metrics/{name}.json").read_text())
    questions = {question["question_id"]: question for question in expected["questions"]}
    if name == "vqa_real":
        path = shared_dir / "data/vqav2" / expected["ground_truth"]
        annotations = json.loads(gzip.decompress(path.read_bytes()))["annotations"]
        annotations = [record for record in annotations if record["question_id"] in questions]
    else:
        annotations = [
            _annotation(key, q["answers"], q["answer_type"], q["question_type"])
            for key, q in questions.items()
        ]
    predictions = [_prediction(key, q["prediction"]) for key, q in questions.items()]
    got = vqa.evaluate(predictions, annotations)

    for question_id, question in questions.items():
        result = got["per_question"][question_id]
        assert result["compared_as"] == question["compared_as"]
        assert result["accuracy"] == question["accuracy"]
        expected_percent = 100 * question["accuracy_unrounded"]
        assert result["accuracy_unrounded"] == pytest.approx(expected_percent, abs=1e-9)
    for key in ("overall", "per_answer_type", "per_question_type"):
        assert got[key] == expected[key]
        unrounded = expected[f"{key}_unrounded"]
        assert got[f"{key}_unrounded"] == pytest.approx(unrounded, abs=1e-9)


def test_evaluate_by_hand_and_leaves_inputs_alone():
    annotations = [
        _annotation(1, ["Two."] * 4 + ["three"] * 6, "number", "how many"),
        _annotation(2, ["a dog"] * 2 + ["cat"] * 8, "other", "what"),
        _annotation(3, ["yes"] * 10, "yes/no", "how many"),
    ]
    predictions = [_prediction(2, "dog"), _prediction(1, "two"), _prediction(3, "no")]
    before = copy.deepcopy((annotations, predictions))
    first = vqa.evaluate(predictions, annotations)
    assert (annotations, predictions) == before
    assert first == vqa.evaluate(predictions, annotations)
    assert first["overall"] == 53.33
    assert first["overall_unrounded"] == pytest.approx(160 / 3)
    assert first["per_answer_type"] == {"number": 100, "other": 60, "yes/no": 0}
    assert first["per_question_type"] == {"how many": 50, "what": 60}
    assert first["per_question"][2]["compared_as"] == "dog"


def test_evaluate_names_missing_unknown_and_duplicate_ids():
    annotations = [_annotation(i, ["a"] * 10) for i in range(8)]
    predictions = [_prediction(i, "a") for i in range(8)]
    with pytest.raises(ValueError, match=r"without a prediction: 7 \(1, 2, 3, 4, 5, \.\.\.\)"):
        vqa.evaluate(predictions[:1], annotations)
    with pytest.raises(ValueError, match=r"without an annotation: 2 \(6, 7\)"):
        vqa.evaluate(predictions, annotations[:6])
    with pytest.raises(ValueError, match=r"predicted more than once: 1 \(3\)"):
        vqa.evaluate([*predictions, predictions[3]], annotations)
    with pytest.raises(ValueError, match=r"annotated more than once: 1 \(2\)"):
        vqa.evaluate(predictions, [*annotations, annotations[2]])


def test_evaluate_rejects_malformed_records():
    good = [_annotation(1, ["a"] * 10)]
    with pytest.raises(ValueError, match="no predictions"):
        vqa.evaluate([], good)
    with pytest.raises(ValueError, match="prediction 0 needs 'question_id' and 'answer'"):
        vqa.evaluate([{"question_id": 1}], good)
    with pytest.raises(ValueError, match="question 1 must be a string, got 3"):
        vqa.evaluate([_prediction(1, 3)], good)
    with pytest.raises(ValueError, match=r"annotation 0 lacks \['question_type', 'answer_type'\]"):
        vqa.evaluate([_prediction(1, "a")], [{"question_id": 1, "answers": []}])
    with pytest.raises(ValueError, match="question 1 needs a non-empty list 'answers'"):
        vqa.evaluate([_prediction(1, "a")], [_annotation(1, [])])
    with pytest.raises(ValueError, match="answers is empty"):
        vqa.accuracy("a", [])
