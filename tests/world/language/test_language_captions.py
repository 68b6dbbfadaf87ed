"""Captions: what they say is true of every scene that looks like the one they describe."""

import random
import re

import numpy as np
import pytest

from twelve_in_one.world.language import captions, statements


@pytest.fixture(scope="module")
def drawn(scenes):
    rng = np.random.default_rng(17)
    return [(scene, captions.draw(scene, rng)) for scene in scenes]


def _is_dark(fact):
    return isinstance(fact, statements.Is) and fact.kind.dark


def test_facts_hold_whatever_is_hidden(drawn, reading):
    rng = random.Random(0)
    for scene, caption in drawn:
        assert 1 <= len(caption.facts) <= 5
        for fact in caption.facts:
            assert fact.verdict(scene) is True
            if _is_dark(fact):
                assert scene.things[fact.index].shaded
                continue  # what is told of it is that nobody sees its colour
            for _ in range(4):
                assert reading.true(fact, reading.completed(scene, rng)), (caption, scene)


def test_text_names_what_is_there(drawn, reading):
    phrase = re.compile(r"(\b(?:no|without an?|than|fewer) )?" + reading.PHRASE)
    for scene, caption in drawn:
        text = caption.text.lower().replace("curtain", "")
        found = list(phrase.finditer(text))
        assert found
        for match in found:
            named = match[0].removeprefix(match[1] or "")
            fitting = reading.fitting(named, scene)
            if match[1] in ("no ", "without a ", "without an "):
                assert not fitting
            elif match[1] is None:
                assert fitting, (caption, scene)


def test_text_counts_right(drawn, reading):
    numbers = "|".join(reading.NUMBERS)
    counted = 0
    for scene, caption in drawn:
        match = re.search(rf"\b({numbers}) ({reading.PHRASE})", caption.text.lower())
        if match and match[1] != "one":
            assert len(reading.fitting(match[2], scene)) == reading.NUMBERS.index(match[1])
            counted += 1
    assert counted > 100


def test_colour_of_shade_is_never_named(drawn):
    for scene, caption in drawn:
        for fact in caption.facts:
            if isinstance(fact, statements.Is) and scene.things[fact.index].shaded:
                assert fact.kind.colour is None and fact.kind.pattern is None


def test_forms_and_variety(drawn, reading):
    assert len(reading.forms(caption.text for _, caption in drawn[:2000])) > 100
    assert len({caption.text for _, caption in drawn}) > 0.85 * len(drawn)


def test_deterministic(scenes):
    for scene in scenes[:50]:
        one, two = (captions.caption(scene, np.random.default_rng(4)) for _ in range(2))
        assert one == two
