"""Referring expressions: each must single out its target among all things, by its words."""

import re

import numpy as np
import pytest

from twelve_in_one.world.language import references
from twelve_in_one.world.language.facts import Kind

STYLES = ("refcoco", "refcoco+", "refcocog")


@pytest.fixture(scope="module")
def drawn(scenes):
    rng = np.random.default_rng(19)
    found = {style: [] for style in STYLES}
    for scene in scenes:
        for style in STYLES:
            target = int(rng.integers(len(scene.things)))
            found[style].append((scene, target, references.draw(scene, target, rng, style)))
    return found


def _looks(kind, thing):
    if thing.shaded and (kind.colour or kind.pattern):
        return False
    named = [(n, getattr(kind, n)) for n in ("shape", "colour", "pattern", "size")]
    return (thing.shaded or not kind.dark) and all(
        value is None or getattr(thing, name) == value for name, value in named
    )


def _meant(reference, scene, reading):
    """Indices of the things that an expression may mean, doubtful ones among them."""
    left = [i for i, thing in enumerate(scene.things) if _looks(reference.kind, thing)]
    if reference.unlike:
        left = [i for i in left if not _looks(reference.unlike, scene.things[i])]
    if len(reference.sides) == 2:
        middle = {"left": 80, "right": 80, "top": 64, "bottom": 64}
        for side in reference.sides:
            axis = "x" if middle[side] == 80 else "y"
            sign = 1 if side in ("left", "top") else -1
            left = [i for i in left if sign * (getattr(scene.things[i], axis) - middle[side]) < 8]
    elif reference.sides:
        side = {"top": "above", "bottom": "below"}.get(reference.sides[0], reference.sides[0])
        ahead = {
            i: [reading.stands(scene.things[j], side, scene.things[i]) for j in left if j != i]
            for i in left
        }
        left = [
            i
            for i in left
            if ahead[i].count(True) < reference.rank <= len(left) - ahead[i].count(False)
        ]
    for relation, anchors in reference.relations:
        others = [scene.things[anchor] for anchor in anchors]

        def holds(thing, relation=relation, others=others):
            if relation == "between":
                return reading.between(thing, *others)
            if relation in ("colour", "shape", "size"):
                alike = getattr(thing, relation) == getattr(others[0], relation)
                return alike and not (relation == "colour" and thing.shaded)
            return reading.stands(thing, relation, *others)

        left = [i for i in left if i not in anchors and holds(scene.things[i]) is not False]
    return left


@pytest.mark.parametrize("style", STYLES)
def test_only_the_target_is_meant(drawn, reading, style):
    found = [(s, t, r) for s, t, r in drawn[style] if r is not None]
    assert len(found) > 0.95 * len(drawn[style])
    for scene, target, reference in found:
        assert _meant(reference, scene, reading) == [target], (reference, scene)


@pytest.mark.parametrize("style", STYLES)
def test_words_say_what_is_meant(drawn, reading, style):
    """Phrases without a place single out the target, others at least fit it."""
    plain, more = 0, 0
    for scene, target, reference in drawn[style]:
        if reference is None:
            continue
        start = r"(?:find |see |choose |it is )?(?:the |an? )?(?:only |one )?"
        alone = re.fullmatch(rf"{start}({reading.PHRASE})", reference.text)
        if alone:
            assert reading.fitting(alone[1], scene) == [target], (reference, scene)
            plain += 1
        elif not reference.unlike and "smaller" not in reference.text:
            first = re.search(reading.PHRASE, reference.text)[0]
            assert target in reading.fitting(first, scene), (reference, scene)
            more += 1
    assert more > 100 and (plain > 100 or style == "refcocog")


def test_manners(drawn):
    lengths = {}
    for style in STYLES:
        texts = [reference.text for _, _, reference in drawn[style] if reference]
        lengths[style] = np.mean([len(text.split()) for text in texts])
        placed = [
            re.search(
                r"\b(left|right|top|bottom|upper|lower|middle|above|near|between|over|under|next|below)",
                text,
            )
            for text in texts
        ]
        if style == "refcoco+":
            assert not any(placed)
        else:
            assert np.mean([bool(match) for match in placed]) > 0.3
    assert lengths["refcocog"] > 1.5 * max(lengths["refcoco"], lengths["refcoco+"])


def test_hard_targets(scenes):
    for scene in scenes[:200]:
        order = references.hard_targets(scene)
        assert sorted(order) == list(range(len(scene.things)))
        twins = [sum(t.shape == scene.things[i].shape for t in scene.things) for i in order]
        assert twins == sorted(twins, reverse=True)


@pytest.mark.parametrize("style, least", [("refcoco", 60), ("refcoco+", 35), ("refcocog", 100)])
def test_forms(drawn, reading, style, least):
    assert len(reading.forms(r.text for _, _, r in drawn[style][:2000] if r)) > least


def test_lit_things_are_not_dark_nor_shaded_ones_coloured(drawn):
    for style in STYLES:
        for scene, target, reference in drawn[style]:
            kind = reference.kind if reference else Kind()
            assert not (kind.dark and not scene.things[target].shaded)
            for relation, anchors in reference.relations if reference else ():
                assert relation != "colour" or not scene.things[anchors[0]].shaded


def test_deterministic_and_unknown_style(scenes):
    for style in STYLES:
        for scene in scenes[:40]:
            one, two = (
                references.refer(scene, 1, np.random.default_rng(6), style) for _ in range(2)
            )
            assert one == two
    with pytest.raises(ValueError, match="style must be one of .* got 'refclef'"):
        references.refer(scenes[0], 0, np.random.default_rng(0), "refclef")
