"""What the page asks is what the predictor is asked, and what is wrong comes back as words."""

import dataclasses

import pytest

from twelve_in_one.demo.questions import QUESTIONS, ask, found_boxes, parse_boxes
from twelve_in_one.predict import Predictor

BY_NAME = {question.name: question for question in QUESTIONS}
BOXES = "10, 20, 40, 50\n\n80 40 110 75\n"


def ask_about(predictor, name, images, text="word1 word2", **options):
    question = BY_NAME[name]
    task = question.tasks(predictor.serving)[0]
    return ask(predictor, question, [str(x) for x in images], text, task=task, **options)


def test_every_question_is_a_method_and_every_task_answers_one(predictor):
    assert all(callable(getattr(Predictor, name)) for name in BY_NAME)
    asked = [task for question in QUESTIONS for task in question.tasks(predictor.serving)]
    assert sorted(asked) == sorted(task.name for task in predictor.serving.tasks)
    some = dataclasses.replace(predictor.serving, tasks=predictor.serving.tasks[:3])
    assert [q.name for q in QUESTIONS if q.tasks(some)] == ["answer"]


def test_answers_are_the_predictors(predictor, pictures):
    one, two, _ = map(str, pictures)
    text = "word1 word2"
    expected = predictor.answer(one, text)
    reply = ask_about(predictor, "answer", [one])
    assert reply.words == f"{expected.answer} ({expected.probability:.2f})"
    assert [line.split()[-1] for line in reply.details.splitlines()] == [a for a, _ in expected.top]

    best = int(predictor.rank([one, two], text).order[0]) + 1
    reply = ask_about(predictor, "rank", [one, two])
    assert reply.words == f"picture {best} of 2 fits best"
    assert f"picture {best}: squares-{best - 1}.png" in reply.details.splitlines()[0]

    boxes = parse_boxes(BOXES)
    expected = predictor.point(one, text, boxes)
    assert ask_about(predictor, "point", [one], boxes=BOXES).words.startswith(
        f"box {expected.best} "
    )
    free, among = (predictor.ground(one, text, boxes=given) for given in (None, boxes))
    assert ask_about(predictor, "ground", [one]).words.startswith(f"box {free.best} ")
    assert f"({among.score:.2f})" in ask_about(predictor, "ground", [one], boxes=BOXES).words

    assert predictor.entails(one, text).label in ask_about(predictor, "entails", [one]).words
    reply = ask_about(predictor, "compare", [one, two])
    assert str(predictor.compare(one, two, text).label) in reply.words


def test_attention_is_drawn_beside_the_picture(predictor, pictures):
    plain = ask_about(predictor, "ground", pictures[:1])
    drawn = ask_about(predictor, "ground", pictures[:1], attention=True)
    assert drawn.picture.width > 1.5 * plain.picture.width
    assert "regions that the words read most" in drawn.details


def test_texts_that_are_cut_are_said(predictor, pictures):
    reply = ask_about(predictor, "answer", pictures[:1], "word1 " * 30)
    assert "note: " in reply.details


@pytest.mark.parametrize(
    ("name", "images", "options", "words"),
    [
        ("answer", [None], {}, "choose a picture"),
        ("rank", [], {}, "choose a picture"),
        ("compare", ["squares-0.png", None], {}, "choose two pictures"),
        ("answer", ["squares-0.png"], {"text": " "}, "type a question"),
        ("rank", ["squares-0.png"], {"text": ""}, "type a caption"),
        ("point", ["squares-0.png"], {}, "give boxes to choose from"),
        ("point", ["squares-0.png"], {"boxes": "1,2,3"}, "boxes, line 1: '1,2,3' should be x1, y1"),
        ("ground", ["squares-0.png"], {"boxes": "1,2,3,4\na"}, "boxes, line 2: 'a'"),
        ("answer", ["there-is-none.png"], {}, "there-is-none.png"),
    ],
)
def test_what_is_wrong_is_said(predictor, pictures, name, images, options, words):
    paths = [image and str(pictures[0].parent / image) for image in images]
    question = BY_NAME[name]
    task = question.tasks(predictor.serving)[0]
    reply = ask(predictor, question, paths, **{"text": "word1", "task": task} | options)
    assert reply.words.startswith("Not answered: ") and words in reply.words
    assert reply.picture is None and not reply.details


def test_found_boxes_can_be_chosen_from(predictor, pictures):
    found, wrong = found_boxes(predictor, str(pictures[0]))
    assert not wrong and len(parse_boxes(found)) >= 2
    assert "fits" not in ask_about(predictor, "point", pictures[:1], boxes=found).words
    assert found_boxes(predictor, None) == ("", "Choose a picture first.")
    assert found_boxes(predictor, "none.png")[1].startswith("No boxes: ")
