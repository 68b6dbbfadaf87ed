"""Hypotheses: labels against all ways to fill in what is hidden, and words that tell nothing."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import pytest

from twelve_in_one.world.language import entailment, statements
from twelve_in_one.world.language.facts import Kind
from twelve_in_one.world.scene import COLOURS, CURTAIN_SHARE, PATTERNS, SHAPES, SIZES, Thing
from twelve_in_one.world.scenes import sample_scene


@pytest.fixture(scope="module")
def drawn(scenes):
    rng = np.random.default_rng(3)
    found = [
        (scene, entailment.draw(scene, rng, label))
        for scene in scenes
        for label in entailment.LABELS
    ]
    return [(scene, hypothesis) for scene, hypothesis in found if hypothesis is not None]


def _mentioned(statement, scene):
    """Values that matter to a statement, by property, and one other of what is named at all."""
    found = collections.defaultdict(set)
    todo = [statement]
    while todo:
        part = todo.pop()
        if isinstance(part, Kind):
            for name in ("shape", "colour", "pattern", "size"):
                if getattr(part, name):
                    found[name].add(getattr(part, name))
        elif isinstance(part, statements.Same):
            pair = scene.things[part.index], scene.things[part.other]
            found[part.name] |= {getattr(thing, part.name) for thing in pair}
        elif isinstance(part, tuple):
            todo += part
        elif dataclasses.is_dataclass(part):
            todo += [getattr(part, field.name) for field in dataclasses.fields(part)]
    every = {"shape": SHAPES, "colour": tuple(COLOURS), "pattern": PATTERNS, "size": SIZES}
    for name, values in found.items():
        values |= set([value for value in every[name] if value not in values][:1])
    return {name: sorted(found[name]) or [every[name][0]] for name in every}


def _completions(statement, scene):
    """Scenes that look like this one: shaded things of any colour, up to two behind the curtain."""
    values = _mentioned(statement, scene)
    looks = [
        [
            dataclasses.replace(thing, colour=colour, pattern=pattern, shaded=False)
            for colour, pattern in itertools.product(values["colour"], values["pattern"])
        ]
        if thing.shaded
        else [thing]
        for thing in scene.things
    ]
    hidden = [()]
    if scene.curtain:
        x = 12.0 if scene.curtain == "left" else 148.0
        kinds = [
            Thing(*look, x=x, y=64.0, radius=10.0)
            for look in itertools.product(
                *(values[n] for n in ("shape", "colour", "pattern", "size"))
            )
        ]
        for count in (1, 2):
            hidden += itertools.combinations_with_replacement(kinds, count)
    for things, extra in itertools.product(itertools.product(*looks), hidden):
        yield dataclasses.replace(scene, things=things + extra, curtain=None)


def test_labels_are_what_all_completions_say(drawn, reading):
    checked = collections.Counter()
    for scene, hypothesis in drawn[::2]:
        if sum(thing.shaded for thing in scene.things) > 3:
            continue
        seen = set()
        for complete in itertools.islice(_completions(hypothesis.statement, scene), 40_000):
            seen.add(bool(reading.true(hypothesis.statement, complete)))
            if len(seen) == 2:
                break
        label = "neutral" if len(seen) == 2 else "entailment" if True in seen else "contradiction"
        assert label == hypothesis.label, (hypothesis, scene)
        checked[label, bool(scene.curtain)] += 1
    assert min(checked.values()) > 50 and len(checked) == 6


def test_neutral_comes_from_shade_and_from_curtains(drawn):
    neutral = [(s, h) for s, h in drawn if h.label == "neutral"]
    there = [
        h.text
        for s, h in neutral
        if re.match(
            r"(There|The (picture|image|scene)) (is|are|has|contains) (an?|no) \w+( in|\.)", h.text
        )
    ]
    assert len(there) > 5
    assert all(any(t.shaded for t in s.things) for s, _ in neutral)


def test_rows_are_counted_away_from_the_curtain(drawn):
    sides = {"right": r"rightmost|to the right\.|from the right", "left": "leftmost|from the left"}
    level = "topmost|highest|nearest the|lowest|from the (?:top|bottom)"
    for scene, hypothesis in drawn:
        if scene.curtain:
            assert not re.search(f"{sides[scene.curtain]}|{level}", hypothesis.text), hypothesis


def test_every_form_has_every_label(drawn, reading):
    labels = collections.defaultdict(collections.Counter)
    for _, hypothesis in drawn:
        labels[reading.form(hypothesis.text)][hypothesis.label] += 1
    common = [counts for counts in labels.values() if counts.total() >= 24]
    assert len(common) > 20
    assert all(len(counts) == 3 for counts in common)


def test_words_tell_nothing(drawn, blind_accuracy):
    order = np.random.default_rng(0).permutation(len(drawn))
    texts = [drawn[i][1].text for i in order]
    labels = np.array([drawn[i][1].label for i in order])
    assert len(texts) > 4000
    for label in entailment.LABELS:
        assert (labels == label).mean() == pytest.approx(1 / 3, abs=0.02)
    assert blind_accuracy(texts, labels) < 1 / 3 + 0.05

    rows = collections.defaultdict(list)
    for row, text in enumerate(texts):
        for word in set(re.findall(r"[\w']+", text.lower())):
            rows[word].append(row)
    frequent = {word: found for word, found in rows.items() if len(found) >= 120}
    assert {"not", "no", "red", "star", "there"} <= frequent.keys()
    for word, found in frequent.items():
        spread = 3.5 * (2 / 9 / len(found)) ** 0.5  # of fair draws, that of rare words is wide
        for label in entailment.LABELS:
            share = (labels[found] == label).mean()
            assert abs(share - 1 / 3) < max(0.07, spread), (word, label, share)


def test_curtains_are_as_frequent_as_assumed():
    rng = np.random.default_rng(1)
    share = np.mean([sample_scene(rng).curtain is not None for _ in range(400)])
    assert share == pytest.approx(CURTAIN_SHARE, abs=0.05)


def test_deterministic_and_none_for_all_labels_alike(scenes):
    for scene in scenes[:60]:
        texts = [
            [entailment.hypothesis(scene, np.random.default_rng(5), label) for _ in range(2)]
            for label in entailment.LABELS
        ]
        assert all(first == second for first, second in texts)
        assert len({first is None for first, _ in texts}) == 1


def test_unknown_label(scenes):
    with pytest.raises(ValueError, match="label must be one of .* got 'maybe'"):
        entailment.hypothesis(scenes[0], np.random.default_rng(0), "maybe")
