"""Scores of written texts, by group; examples in the order of a set with unreadable pictures."""

import numpy as np
import pytest

from twelve_in_one.data.images.image_set import ImageExample, ImageSet
from twelve_in_one.data.images.texts import TextTargets
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.sentence_pieces import train_sentencepiece
from twelve_in_one.evaluators import texts
from twelve_in_one.tasks.image_task import ImageTask

WORDS = train_sentencepiece(["a red dog", "two cats", "yes no maybe", "red blue green"] * 3, 60)


def _task(group):
    return ImageTask("t", "T", group, 0, "text", 2)


def _encode(**fields):
    return TextTargets(**dict(tokenizer=WORDS, prompt="", max_tokens=12, max_prompt=6) | fields)


def test_classes_are_right_as_a_whole_and_by_the_nearest_name():
    encode = _encode(labels=("Red", "blue", "green"))
    examples = [ImageExample(b"", str(i), label) for i, label in enumerate((0, 1, 2, 2))]
    score, further = texts.score_texts(
        _task("classify"), encode, examples, ["red", "blu", "blue", "green"]
    )
    assert score.tolist() == [1, 0, 0, 1] and further == {"nearest": 0.75}


def test_answers_get_their_credit():
    examples = [
        ImageExample(b"", "1", texts=("yes", "no"), scores=(0.3, 1.0)),
        ImageExample(b"", "2", texts=("the dog",), scores=(0.9,)),
        ImageExample(b"", "3", texts=("2",)),
    ]
    written = ["yes", "dog", "two"]  # articles and numbers are compared as the VQA program does
    score, further = texts.score_texts(_task("vqa"), _encode(), examples, written)
    np.testing.assert_allclose(score, [0.3, 0.9, 1.0])
    assert further == {"exact": pytest.approx(1 / 3)}
    score, _ = texts.score_texts(_task("ocr"), _encode(), examples[:2], ["no", "dog"])
    assert score.tolist() == [1, 0]


def test_captions_are_scored_by_picture():
    examples = [
        ImageExample(b"", "1", texts=("a red dog", "a dog"), image_id="7"),
        ImageExample(b"", "2", texts=("two cats",)),
    ]
    score, further = texts.score_texts(
        _task("caption"), _encode(), examples, ["a red dog", "a red dog"]
    )
    assert score[0] > 1 > score[1] == 0 and 0 < further["BLEU-1"] < 1


def test_examples_are_found_behind_unreadable_ones():
    images = ImageSet("set", (5,), lambda i: ImageExample(b"data", f"id {i}"))
    found = texts.examples_of(images, ["id 1", "id 4"])
    assert [(x.example_id, x.data) for x in found] == [("id 1", b""), ("id 4", b"")]
    with pytest.raises(DataError, match="set: no example id 1, which has a prediction"):
        texts.examples_of(images, ["id 4", "id 1"])


def test_a_text_is_drawn_by_its_credit_behind_its_prompt():
    encode = _encode(prompt="red", condition=3)
    example = ImageExample(b"", "x", question="two cats", texts=("yes", "no"), scores=(0.25, 0.75))
    drawn = []
    for seed in range(200):
        row = encode(example, np.random.default_rng(seed))
        length = int(row["prompt_length"])
        assert WORDS.decode(row["tokens"][:length]) == "red two cats"
        drawn.append(WORDS.decode(row["tokens"][length:]))
    assert abs(drawn.count("no") - 150) < 25 and set(drawn) == {"yes", "no"}
    assert row["condition"] == 3 and encode.empty["tokens"].tolist() == [WORDS.pad_id] * 12


def test_questions_of_their_own_encoder():
    encode = _encode(max_question=5)
    row = encode(
        ImageExample(b"", "x", question="two cats", texts=("yes",)), np.random.default_rng(0)
    )
    assert row["prompt_length"] == 0
    assert WORDS.decode(row["question"]) == "two cats"
    with pytest.raises(DataError, match="x: the question .* tokens, model.max_question is 5"):
        encode(ImageExample(b"", "x", question="dog " * 8, texts=("yes",)), None)


@pytest.mark.parametrize(
    ("example", "named"),
    [
        (ImageExample(b"", "x"), "x: has no text to learn"),
        (ImageExample(b"", "x", texts=("",)), "x: has no text to learn"),
        (ImageExample(b"", "x", question="dog " * 8, texts=("yes",)), "model.max_prompt is 6"),
    ],
)
def test_texts_that_cannot_be_learnt(example, named):
    with pytest.raises(DataError, match=named):
        _encode()(example, np.random.default_rng(0))
