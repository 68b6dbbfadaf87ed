"""GQA figures against the official script's results and against plain loops."""

import gzip
import json
import random

import pytest

from twelve_in_one.tasks.metrics import gqa

FIXTURES = ("gqa", "gqa_entailed")
KINDS = ("per_structural_type", "per_semantic_type", "per_steps", "per_length")


def _question(answer, structural="query", group="g", balanced=True, entailed=(), text="a b c ?"):
    return {
        "answer": answer,
        "question": text,
        "isBalanced": balanced,
        "types": {"structural": structural, "semantic": "obj"},
        "groups": {"global": group, "local": "x"},
        "semantic": [
            {"operation": "select", "argument": "dog (1)"},
            {"operation": "query", "argument": "name"},
        ],
        "entailed": list(entailed),
    }


def _predictions(answers):
    return [{"questionId": key, "prediction": answer} for key, answer in answers.items()]


def _load(shared_dir, name):
    expected = json.loads((shared_dir / f"fixtures/metrics/{name}.json").read_text())
    raw = (shared_dir / "data/gqa" / expected["ground_truth"]).read_bytes()
    questions = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    return expected, questions


def _check(got, expected):
    for key in ("accuracy", "binary", "open", "distribution"):
        assert got[key] == pytest.approx(expected[key], abs=1e-9)
    for key in KINDS:
        by_kind = {str(kind): value for kind, value in got[key].items()}
        assert by_kind.keys() == expected[key].keys()
        for kind, (percent, count) in expected[key].items():
            assert by_kind[kind] == (pytest.approx(percent, abs=1e-9), count)


@pytest.mark.parametrize("name", FIXTURES)
def test_evaluate_matches_official_results(shared_dir, name):
    expected, questions = _load(shared_dir, name)
    got = gqa.evaluate(expected["predictions"], questions)
    _check(got, expected["all_balanced"])
    consistency = expected["consistency_entailed_kept_where_present"]
    assert got["consistency"] == pytest.approx(consistency["consistency"], abs=1e-9)
    assert got["counts"]["consistency"] == consistency["questions_entering"]
    for record in expected["predictions"]:
        correct = record["prediction"] == questions[record["questionId"]]["answer"]
        assert correct == record["correct"]


@pytest.mark.parametrize("name", FIXTURES)
def test_unbalanced_questions_count_nowhere(shared_dir, name):
    expected, questions = _load(shared_dir, name)
    for question_id in sorted(questions)[::5]:
        questions[question_id] = questions[question_id] | {"isBalanced": False}
    _check(gqa.evaluate(expected["predictions"], questions), expected["every_fifth_unbalanced"])


def test_evaluate_equals_plain_loops():
    rng = random.Random(1)
    words = ["red", "blue", "green"]
    ids = [str(i) for i in range(120)]
    questions = {
        key: _question(
            rng.choice(words),
            structural=rng.choice(["query", "verify", "logical"]),
            group=rng.choice(["g1", "g2", None]),
            balanced=rng.random() < 0.8,
            entailed=rng.sample(ids, rng.randrange(4)),
            text=" ".join(["w"] * rng.randrange(1, 5)),
        )
        for key in ids
    }
    predicted = {key: rng.choice([*words, "pink"]) for key in ids}
    got = gqa.evaluate(_predictions(predicted), questions, entailed="all")

    right = {key: predicted[key] == questions[key]["answer"] for key in ids}
    balanced = [key for key in ids if questions[key]["isBalanced"]]
    is_open = {key: questions[key]["types"]["structural"] == "query" for key in ids}

    def percent(keys):
        return 100 * sum(right[key] for key in keys) / len(keys)

    assert got["accuracy"] == pytest.approx(percent(balanced))
    assert got["open"] == pytest.approx(percent([key for key in balanced if is_open[key]]))
    assert got["binary"] == pytest.approx(percent([key for key in balanced if not is_open[key]]))
    for length, (value, count) in got["per_length"].items():
        keys = [key for key in balanced if questions[key]["question"].count("w") == length]
        assert (value, count) == (pytest.approx(percent(keys)), len(keys))

    shares = []
    for key in balanced:
        others = [other for other in questions[key]["entailed"] if other != key]
        if right[key] and others:
            shares.append(percent(others))
    assert got["consistency"] == pytest.approx(sum(shares) / len(shares))

    total, size = 0.0, 0
    for group in ("g1", "g2"):
        keys = [key for key in balanced if questions[key]["groups"]["global"] == group]
        for word in words:
            true = sum(questions[key]["answer"] == word for key in keys)
            given = sum(predicted[key] == word for key in keys)
            total += len(keys) * (given - true) ** 2 / true
        size += len(keys)
    assert got["distribution"] == pytest.approx(total / size / 100)


def test_answers_are_compared_exactly():
    questions = {"1": _question("left"), "2": _question("left"), "3": _question("left")}
    answers = {"1": "left", "2": "Left", "3": "left "}
    assert gqa.evaluate(_predictions(answers), questions)["accuracy"] == pytest.approx(100 / 3)


def test_steps_leave_out_reading_the_answer():
    question = _question("dog")
    assert gqa.num_steps(question) == 1
    extra = [
        {"operation": "exist", "argument": "?"},
        {"operation": "choose name", "argument": "cat|dog"},
        {"operation": "filter color", "argument": "nonexistent"},
        {"operation": "query", "argument": "color"},
    ]
    assert gqa.num_steps(question | {"semantic": question["semantic"] + extra}) == 2


def test_nothing_counted_gives_zero():
    got = gqa.evaluate(_predictions({"1": "x"}), {"1": _question("x", group=None)})
    zeros = [got[key] for key in ("binary", "consistency", "distribution")]
    assert (got["accuracy"], zeros) == (100, [0, 0, 0])
    assert got["counts"]["binary"] == got["counts"]["consistency"] == 0


def test_a_question_does_not_entail_itself():
    questions = {"1": _question("x", entailed=["1", "2"]), "2": _question("y", entailed=["2"])}
    got = gqa.evaluate(_predictions({"1": "x", "2": "z"}), questions, entailed="all")
    assert (got["consistency"], got["counts"]["consistency"]) == (0, 1)


def test_absent_entailed_questions_are_counted_or_refused():
    questions = {"1": _question("x", entailed=["2", "9"]), "2": _question("y")}
    predictions = _predictions({"1": "x", "2": "y"})
    got = gqa.evaluate(predictions, questions)
    assert (got["consistency"], got["counts"]["entailed_absent"]) == (100, 1)
    with pytest.raises(ValueError, match=r"entailed questions without .*: 1 \('9'\)"):
        gqa.evaluate(predictions, questions, entailed="all")


def test_evaluate_errors():
    questions = {str(i): _question("x") for i in range(7)}
    answers = dict.fromkeys(questions, "x")
    with pytest.raises(ValueError, match=r"balanced questions without a prediction: 1 \('6'\)"):
        gqa.evaluate(_predictions(answers)[:6], questions)
    with pytest.raises(ValueError, match=r"not in the question file: 1 \('z'\)"):
        gqa.evaluate(_predictions(answers | {"z": "x"}), questions)
    with pytest.raises(ValueError, match=r"predicted more than once: 7 \('0', '1', '2', '3', '4'"):
        gqa.evaluate(_predictions(answers) * 2, questions)
    with pytest.raises(ValueError, match="'present' or 'all', got 'some'"):
        gqa.evaluate(_predictions(answers), questions, entailed="some")
    with pytest.raises(ValueError, match="question '1' lacks"):
        gqa.evaluate(_predictions({"1": "x"}), {"1": {"answer": "x"}})
    with pytest.raises(ValueError, match="none of the 1 questions is balanced"):
        gqa.evaluate(_predictions({"1": "x"}), {"1": _question("x", balanced=False)})


def test_validity_and_plausibility():
    """Of balanced questions; what two things have in common is a property, whatever the choices."""
    questions = {str(i): _question("red") for i in range(4)}
    questions["3"]["types"]["detailed"] = "compareCommon"
    questions["4"] = _question("red", balanced=False)
    choices = {str(i): {"valid": ["red", "blue"], "plausible": ["red"]} for i in range(4)}
    predictions = _predictions({"0": "red", "1": "blue", "2": "dog", "3": "color", "4": "dog"})
    found = gqa.evaluate(predictions, questions, choices=choices)
    assert (found["validity"], found["plausibility"]) == (75.0, 50.0)
    found = gqa.evaluate(predictions, questions)
    assert found["validity"] is None and found["plausibility"] is None
    del choices["2"]["plausible"]
    with pytest.raises(ValueError, match=r"without 'plausible' choices: 1 \('2'\)"):
        gqa.evaluate(predictions, questions, choices=choices)
