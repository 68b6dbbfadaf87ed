"""Weighted accuracy of question and expression pairs, against all pairs one by one."""

import itertools

import numpy as np
import pytest

from twelve_in_one.experiments import consistency
from twelve_in_one.experiments.consistency import Judged


def test_content_words():
    assert consistency.content_words("Is the RED circle's edge next to a re-used box_2?") == {
        "red", "circle", "s", "edge", "re", "used", "box", "2",
    }  # fmt: skip
    assert not consistency.content_words("What is it? Which one is there?")


def test_pairs_count_by_shared_words():
    questions = [
        Judged("1", "what colour is the large circle", True),
        Judged("1", "is a square here", False),
        Judged("2", "how many large circles", True),
    ]
    expressions = [
        Judged("1", "large circle", True),  # 2 with the first question, right
        Judged("1", "the small circle", False),  # 1 with the first, not localised
        Judged("1", "red square", True),  # 1 with the second, not answered
        Judged("2", "triangle", True),  # nothing
        Judged("3", "large circle", True),  # of another picture
    ]
    found = consistency.consistency(questions, expressions)
    assert found == consistency.Consistency(score=2 / 4, pairs=3, weight=4, images=1)
    with pytest.raises(ValueError, match="none of 1 questions shares a word with any of 5"):
        consistency.consistency(questions[2:], expressions)


def test_as_all_pairs_one_by_one():
    rng = np.random.default_rng(0)
    words = ["red", "blue", "circle", "box", "the", "is", "left"]

    def some(count):
        return [
            Judged(str(rng.integers(4)), " ".join(rng.choice(words, 3)), bool(rng.random() < 0.6))
            for _ in range(count)
        ]

    questions, expressions = some(30), some(40)
    total = right = 0
    for question, expression in itertools.product(questions, expressions):
        if question.image == expression.image:
            shared = set(question.text.split()) & set(expression.text.split()) - {"the", "is"}
            total += len(shared)
            right += len(shared) if question.right and expression.right else 0
    found = consistency.consistency(questions, expressions)
    assert found.weight == total and found.score == pytest.approx(right / total)


def test_every_model_is_judged_on_every_task(base, pretend, monkeypatch, tmp_path):
    asked = []

    def judge(folder, name):
        asked.append((str(folder.relative_to(tmp_path)), name))
        right = "tuned" in folder.parent.name
        return [
            Judged("7", "red circle", right),
            Judged("7", "box", True),
            Judged("9", "box", True),
        ]

    monkeypatch.setattr(consistency, "judge", judge)
    runner, trainer = pretend()
    models = consistency.MODELS
    outcomes = consistency.run(runner, base, [0, 1], models)
    assert len(trainer.configs) == consistency.count(base, [0, 1], models)
    folders = [folder for folder, _ in asked]
    assert folders[3:6] == ["all/seed-0"] * 3
    assert [name for _, name in asked[:3]] == ["vqa", "refcoco", "refcoco+"]
    assert folders[6:9] == [
        f"tuned-all-{name}/seed-0" for name in ("vqa", "refcoco", "refcoco_plus")
    ]
    results = outcomes[1].results
    # Of image 7: two words of the first pair, one of the second; of image 9 one.
    assert results["all"]["refcoco"]["score"] == 2 / 4
    assert results["tuned"]["both"]["score"] == 1
    assert results["all"]["both"]["examples"] == 6 and results["all"]["both"]["images"] == 2
    assert results["all"]["questions"]["score"] == pytest.approx(2 / 3)
    lines = consistency.report(outcomes).splitlines()
    assert lines[4].startswith("| questions × both | 6 | 2 | 50.0 ± 0.0 | 50.0 ± 0.0 | 100.0 ±")
    consistency.plot(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_configs_that_cannot_be_judged(base):
    base.data.clean = False
    with pytest.raises(ValueError, match="nobody trained on"):
        consistency.count(base, [0], consistency.MODELS)
    base.tasks = ("vqa", "refcocog")
    with pytest.raises(ValueError, match="needs vqa and one of refcoco, refcoco+"):
        consistency.count(base, [0], consistency.MODELS)
