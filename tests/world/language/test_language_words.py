"""The language as a whole: grammar, size of the vocabulary, number of forms, speed."""

import collections
import re
import time

import numpy as np
import pytest

from twelve_in_one.world.language import (
    captions,
    dialogue,
    entailment,
    pairs,
    questions,
    references,
    which,
    words,
)
from twelve_in_one.world.language.facts import Beside, Kind, Place
from twelve_in_one.world.scene import COLOURS, PATTERNS, SHAPES, SIZES


def _spoken(scenes, seed):
    """Sentences of all kinds about each scene: kind -> texts."""
    rng = np.random.default_rng(seed)
    found = collections.defaultdict(list)
    for number, scene in enumerate(scenes):
        found["caption"].append(captions.caption(scene, rng))
        for style in ("vqa", "vg", "gqa"):
            question = questions.ask(scene, rng, style)
            found[style].append(question and question.text)
        target = int(rng.integers(len(scene.things)))
        for style in ("refcoco", "refcoco+", "refcocog"):
            found[style].append(references.refer(scene, target, rng, style))
        question = which.which(scene, rng)
        found["which"].append(question and question.question)
        found["dialogue"] += [question for question, _ in dialogue.game(scene, target, rng)]
        label = entailment.LABELS[number % 3]
        found["entailment"].append(entailment.hypothesis(scene, rng, label))
        found["pairs"].append(pairs.sentence(rng).text)
    return {kind: [text for text in texts if text] for kind, texts in found.items()}


@pytest.fixture(scope="module")
def spoken(scenes):
    return _spoken(scenes[:2000], 41)


def test_grammar(spoken):
    nouns = f"(?:{'|'.join((*SHAPES, 'disc', 'moon', 'thing', 'object'))})"
    described = (*COLOURS, *PATTERNS, *SIZES, "big", "little", "dark", "shadowy")
    adjectives = f"(?:(?:{'|'.join(described)}) )*"
    for kind, texts in spoken.items():
        for text in texts:
            lower = text.lower()
            assert not re.search(r"[\[\]{}|_]|  | [,.?]|\.\.", text), text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", lower), text
            assert not re.search(rf"\b(an?|every|one|is no) {adjectives}{nouns}e?s\b", lower), text
            assert not re.search(rf"\b(two|many|all|are no) {adjectives}{nouns}\b", lower), text
            if not kind.startswith("refcoco"):
                assert text[0].isupper() and text[-1] in ".?", text


def test_forms_and_vocabulary(spoken, reading):
    forms = {kind: reading.forms(texts) for kind, texts in spoken.items()}
    assert all(len(found) >= 20 for found in forms.values())
    assert len(set().union(*forms.values())) > 400
    vocabulary = {
        word
        for texts in spoken.values()
        for text in texts
        for word in re.findall(r"[\w']+", text.lower())
    }
    assert len(vocabulary) <= 400


def test_speed(scenes):
    """50,000 sentences take less than 20 s on a core."""
    start = time.process_time()
    spoken = _spoken(scenes[:600], 43)
    used = time.process_time() - start
    assert used / sum(map(len, spoken.values())) < 20 / 50_000


def test_templates():
    rng = np.random.default_rng(0)
    star = Kind("star", "orange", "striped", "large")
    texts = {words.say(rng, "[see|find] {a:x}", x=star) for _ in range(200)}
    assert texts == {
        f"{verb} a {size} {look}"
        for verb in ("see", "find")
        for size in ("large", "big")
        for look in ("striped orange star", "orange star with stripes")
    }
    assert words.say(rng, "{a:x} {n}", x=Kind("arrow"), n="here") == "an arrow here"
    assert words.say(rng, "{many:x}", x=Kind("cross", dark=False)) == "crosses"
    assert words.the(rng, Place(Kind("ring"), "top", 2)) == "the second ring from the top"
    beside = words.the(rng, Beside(Kind("heart"), "above", Kind("ring")))
    assert re.fullmatch("the heart (that is )?(above|over|higher than) the ring", beside)
    assert words.sentence("a star") == "A star." and words.question("a star") == "A star?"
    with pytest.raises(ValueError, match="a template asks for 'some'"):
        words.say(rng, "{some:x}", x=star)
