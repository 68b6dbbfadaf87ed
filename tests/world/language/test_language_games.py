"""Which-questions and dialogues, played by a reader who has nothing but the words and the scene."""

import collections
import random
import re

import numpy as np
import pytest

from twelve_in_one.world.language import dialogue, which
from twelve_in_one.world.scene import COLOURS, PATTERNS, SIZES

_RELATIONS = {
    "left": "to the left of|left of|on the left side of",
    "right": "to the right of|right of|on the right side of",
    "above": "above|over|higher than",
    "below": "below|under|lower than",
    "near": "near|next to|close to|beside",
}
_OUTERMOST = {
    "left": r"leftmost|furthest to the left",
    "right": r"rightmost|furthest to the right",
    "above": r"topmost|highest|nearest the top",
    "below": r"lowest|nearest the bottom",
}
_MARKS = {"stripes": "striped", "dots": "dotted", "no pattern": "plain"}


def _told(text, index, scene, reading):
    """Own answer to "is it ...": True, False, "N/A" for hidden, None for in between."""
    thing = scene.things[index]
    noun = re.sub(r"\((?!\?)", "(?:", reading.PHRASE)

    def named(phrase):
        (found,) = reading.fitting(phrase, scene)
        return found

    def of(phrase):
        parts = reading.parts(phrase)
        if any(getattr(thing, n) != v for n, v in parts.items() if n in ("shape", "size")):
            return False
        unsure = thing.shaded and parts.keys() & {"colour", "pattern"}
        return "N/A" if unsure else index in reading.fitting(phrase, scene)

    for relation, words in _RELATIONS.items():
        if match := re.search(rf"(?:is it|does it lie) (?:{words}) the ({noun})$", text):
            return reading.stands(thing, relation, scene.things[named(match[1])])
    for relation, words in _OUTERMOST.items():
        match = re.fullmatch(rf"is it the (?:(?:{words}) ({noun})|({noun}) (?:{words}))", text)
        if match:
            phrase = match[1] or match[2]
            row = [i for i in reading.fitting(phrase, scene) if i != index]
            told = [reading.stands(thing, relation, scene.things[i]) for i in row]
            if of(phrase) is False or False in told:
                return False
            return None if None in told else True
    if match := re.search(r"(?:is it|does it lie) (?:in|at|on) the (\w+)", text):
        middle = 80 if match[1] in ("left", "right") else 64
        gap = (thing.x if middle == 80 else thing.y) - middle
        return None if abs(gap) < 8 else (gap < 0) == (match[1] in ("left", "top"))
    if match := re.search(rf"the same (\w+) as the ({noun})$", text):
        other = scene.things[named(match[2])]
        if match[1] == "colour" and (thing.shaded or other.shaded):
            return "N/A"
        return getattr(thing, match[1]) == getattr(other, match[1])
    if match := re.search(rf"(?:larger|bigger) than the ({noun})$", text):
        other = scene.things[named(match[1])]
        return None if thing.size == other.size else thing.size == "large"
    if match := re.fullmatch(r"is it (?:either )?(\w+) or (\w+)", text):
        return "N/A" if thing.shaded else thing.colour in match.groups()
    if match := re.fullmatch(r"does it have (stripes|dots|no pattern)", text):
        return "N/A" if thing.shaded else thing.pattern == _MARKS[match[1]]
    if match := re.fullmatch(rf"is it (?:an?|some|one of the) ({noun})", text):
        return of(match[1])
    look = re.sub(r"^(is it|is its colour|does it look)( a| one of the)? | ones?$", "", text)
    look = {"big": "large", "little": "small"}.get(look, look)
    if look in SIZES:
        return thing.size == look
    assert look in (*COLOURS, *PATTERNS), text
    return "N/A" if thing.shaded else look in (thing.colour, thing.pattern)


@pytest.fixture(scope="module")
def games(scenes):
    rng = np.random.default_rng(23)
    found = []
    for scene in scenes[:2000]:
        target = int(rng.integers(len(scene.things)))
        found.append((scene, target, dialogue.game(scene, target, rng)))
    return found


def test_games_lead_to_the_target(games, reading):
    unsolved = 0
    for scene, target, turns in games:
        assert 2 <= len(turns) <= 6
        left = set(range(len(scene.things)))
        for question, answer in turns:
            text = question[:-1].lower()
            told = {index: _told(text, index, scene, reading) for index in left}
            assert told[target] == {"Yes": True, "No": False, "N/A": "N/A"}[answer], (text, scene)
            left = {index for index in left if told[index] in (told[target], None)}
            assert target in left
        unsolved += len(left) > 1
    assert 0.05 < unsolved / len(games) < 0.14


def test_games_vary(games, reading):
    answers = collections.Counter(answer for _, _, turns in games for _, answer in turns)
    assert answers.keys() == {"Yes", "No", "N/A"}
    assert 0.3 < answers["Yes"] / answers.total() < 0.6
    lengths = collections.Counter(len(turns) for _, _, turns in games)
    assert lengths.keys() >= {2, 3, 4, 5} and lengths[2] < 0.65 * len(games)
    texts = [question for _, _, turns in games for question, _ in turns]
    assert len(reading.forms(texts)) > 60
    assert all(len(set(turns)) == len(turns) for _, _, turns in games)


@pytest.fixture(scope="module")
def chosen(scenes):
    rng = np.random.default_rng(29)
    found = [(scene, which.which(scene, rng)) for scene in scenes]
    return [(scene, question) for scene, question in found if question is not None]


def test_one_of_four_fits(chosen, scenes, reading):
    rng = random.Random(1)
    assert len(chosen) > 0.5 * len(scenes)
    for scene, question in chosen:
        assert len(set(question.choices)) == 4
        assert set(question.choices) <= set(range(len(scene.things)))
        for index, statement in zip(question.choices, question.statements, strict=True):
            for _ in range(4):  # whatever colour shaded things have
                complete = reading.completed(scene, rng)
                assert reading.true(statement, complete) is (index == question.answer), question


def test_words_say_what_fits(chosen, reading):
    """The words are read as the question of a dialogue, asked of each choice."""
    read = 0
    noun = "(?:thing|object|of the four things|one|of the things)"
    for scene, question in chosen:
        text = re.sub(rf"^which {noun} ", "", question.question[:-1].lower())
        if re.match(r"is (?!the|not|no |any|between)|lies|has", text) is None:
            continue
        text = re.sub(r"^lies ", "does it lie ", re.sub(r"^is ", "is it ", text))
        text = re.sub(
            r"^has the colour ", "is it ", re.sub(r"^has (?!the col)", "does it have ", text)
        )
        if "between" in text:
            continue
        for index in question.choices:
            assert _told(text, index, scene, reading) is (index == question.answer), question
        read += 1
    assert read > 600


def test_choices_are_shuffled_and_alike(chosen):
    places = collections.Counter(q.choices.index(q.answer) for _, q in chosen)
    assert max(places.values()) / len(chosen) < 0.29
    twins = [
        any(
            scene.things[i].shape == scene.things[q.answer].shape
            for i in q.choices
            if i != q.answer
        )
        for scene, q in chosen
    ]
    assert np.mean(twins) > 0.3


def test_forms_of_which(chosen, reading):
    assert len(reading.forms(question.question for _, question in chosen[:2000])) > 60


def test_deterministic(scenes):
    for scene in scenes[:40]:
        rngs = [np.random.default_rng(8) for _ in range(2)]
        one, two = ((which.which(scene, rng), dialogue.game(scene, 0, rng)) for rng in rngs)
        assert one == two
