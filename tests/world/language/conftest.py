"""Scenes to speak of, and an own reading of phrases and statements to check what is said."""

import collections
import dataclasses
import math
import random
import re
import types

import pytest

from twelve_in_one.world.language import statements
from twelve_in_one.world.scene import (
    COLOURS,
    GROUNDS,
    HEIGHT,
    PATTERNS,
    RADIUS,
    SHAPES,
    SIZES,
    WIDTH,
    Scene,
    Thing,
)

_SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
_NOUNS = {shape: shape for shape in SHAPES} | {"disc": "circle", "moon": "crescent"}
_ANYTHING = ("thing", "object")
_MARKS = {"with stripes": "striped", "with dots": "dotted", "without a pattern": "plain"}
_SINGULARS = {noun + ("es" if noun == "cross" else "s"): noun for noun in (*_NOUNS, *_ANYTHING)}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS += ("eleven", "twelve")
_ORDINALS = ["first", "second", "third", "fourth", "fifth"]


def _any_of(words):
    return "|".join(sorted(words, key=len, reverse=True))


# A noun phrase without article; its groups are size, shade, pattern, colour, noun and marks.
PHRASE = (
    rf"(?:({_any_of(_SIZES)}) )?(?:(dark|shadowy) )?(?:({_any_of(PATTERNS)}) )?"
    rf"(?:({_any_of(COLOURS)}) )?({_any_of((*_NOUNS, *_ANYTHING, *_SINGULARS))})\b"
    rf"(?: ({_any_of(_MARKS)}))?"
)


def _parts(phrase):
    """Properties that a phrase names: field of a thing -> value."""
    size, dark, pattern, colour, noun, marks = re.fullmatch(PHRASE, phrase).groups()
    named = {
        "size": _SIZES.get(size),
        "shaded": True if dark else None,
        "pattern": pattern or _MARKS.get(marks),
        "colour": colour,
        "shape": _NOUNS.get(_SINGULARS.get(noun, noun)),
    }
    return {name: value for name, value in named.items() if value is not None}


def _fitting(phrase, scene):
    """Indices of the things that look as a phrase says; a shaded thing looks of no colour."""
    parts = _parts(phrase)
    hidden = {"colour", "pattern"} & parts.keys()
    return [
        index
        for index, thing in enumerate(scene.things)
        if not (thing.shaded and hidden)
        and all(getattr(thing, name) == value for name, value in parts.items())
    ]


def _form(text):
    """The text with placeholders for colours, shapes, patterns, sizes, numbers and grounds."""
    text = text.lower()
    for words, mark in (
        ((*_NOUNS, *_SINGULARS, *_ANYTHING), "NOUN"),
        (COLOURS, "COLOUR"),
        ((*PATTERNS, "stripes", "dots", "no pattern"), "PATTERN"),
        ((*_SIZES, "larger", "bigger", "smaller", "largest", "biggest", "smallest"), "SIZE"),
        ((*_NUMBERS, *_ORDINALS), "NUMBER"),
        (("grass", "sand", "sea", "water", "snow", "street", "road"), "GROUND"),
    ):
        text = re.sub(rf"\b({_any_of(words)})\b", mark, text)
    text = re.sub(r"\ban?\b", "a", text.replace("without a pattern", "with PATTERN"))
    text = re.sub(r"\b(SIZE |dark |shadowy |PATTERN |COLOUR )*NOUN( with PATTERN)?", "NOUN", text)
    return " ".join(text.split())


def _stands(one, relation, other):
    if relation == "near":
        apart = math.dist((one.x, one.y), (other.x, other.y))
        return True if apart <= 42 else False if apart >= 64 else None
    gap = {
        "left": other.x - one.x,
        "right": one.x - other.x,
        "above": other.y - one.y,
        "below": one.y - other.y,
    }[relation]
    return None if abs(gap) < 8 else gap > 0


def _between(thing, one, other):
    line = complex(other.x - one.x, other.y - one.y)
    seen = complex(thing.x - one.x, thing.y - one.y) / (line / abs(line))
    inside = min(seen.real, abs(line) - seen.real)
    if inside <= -8 or abs(seen.imag) >= 32:
        return False
    return True if inside >= 8 and abs(seen.imag) <= 16 else None


def _true(statement, scene):
    """Truth of a statement where all is known: nothing in the scene counts as shaded or hidden."""
    things = scene.things

    def of(kind, thing):
        named = {n: getattr(kind, n) for n in ("shape", "colour", "pattern", "size")}
        return (not kind.dark or thing.shaded) and all(
            v is None or v == getattr(thing, n) for n, v in named.items()
        )

    def number(kind):
        return sum(of(kind, thing) for thing in things)

    s = statement
    match type(s):
        case statements.Is:
            return of(s.kind, things[s.index])
        case statements.Stands:
            return _stands(things[s.index], s.relation, things[s.other])
        case statements.Between:
            return _between(things[s.index], things[s.one], things[s.other])
        case statements.Lies:
            at = {"left": (80, 0), "right": (80, 0), "top": (0, 64), "bottom": (0, 64)}[s.side]
            thing = things[s.index]
            gap = (at[0] and thing.x - at[0]) or (at[1] and thing.y - at[1])
            return None if abs(gap) < 8 else (gap < 0) == (s.side in ("left", "top"))
        case statements.Same:
            return getattr(things[s.index], s.name) == getattr(things[s.other], s.name)
        case statements.Larger:
            return things[s.index].radius > things[s.other].radius
        case statements.Count:
            return s.low <= number(s.kind) <= (math.inf if s.high is None else s.high)
        case statements.Compare:
            gap = number(s.kind) - number(s.other)
            return gap == 0 if s.equal else gap > 0
        case statements.Every:
            return number(s.kind) > 0 and all(of(s.other, t) for t in things if of(s.kind, t))
        case statements.Some:
            return any(
                of(s.kind, t) and _stands(t, s.relation, things[s.other])
                for i, t in enumerate(things)
                if i != s.other
            )
        case statements.On:
            return scene.ground == s.ground
        case statements.Hangs:
            return scene.curtain == s.side
        case statements.Not:
            return not _true(s.statement, scene)
        case statements.All:
            return all(_true(part, scene) for part in s.statements)
        case statements.Any:
            return any(_true(part, scene) for part in s.statements)
    raise TypeError(s)


def _scene(rng):
    """A scene as `sample_scene` would draw it, more quickly and with more shade."""

    def pick(options, like=()):
        return rng.choice(like if like and rng.random() < 0.4 else options)

    things, looks = [], set()
    curtain = rng.choice(("left", "right")) if rng.random() < 0.3 else None
    low, high = 40 if curtain == "left" else 2, WIDTH - (40 if curtain == "right" else 2)
    wanted, tries = rng.randint(3, 8), 0
    while len(things) < wanted and not (tries > 400 and len(things) > 2):
        tries += 1
        size = pick(SIZES)
        radius = RADIUS[size] * rng.uniform(0.9, 1.1)
        x, y = rng.uniform(low + radius, high - radius), rng.uniform(radius, HEIGHT - radius)
        reach = [max(abs(x - t.x), abs(y - t.y)) - max(radius, t.radius) for t in things]
        shape = pick(SHAPES, [t.shape for t in things])
        colour = pick(tuple(COLOURS), [t.colour for t in things])
        look = shape, colour, pick((*PATTERNS, "plain")), size
        if min(reach, default=1) > 0 and look not in looks:
            looks.add(look)
            things.append(Thing(*look, x, y, radius, shaded=rng.random() < 0.2))
    return Scene(pick(GROUNDS), tuple(things), curtain)


def _completed(scene, rng):
    """A scene that looks like this one: shaded things of random colour, any behind the curtain."""
    things = [
        dataclasses.replace(
            thing, colour=rng.choice(tuple(COLOURS)), pattern=rng.choice(PATTERNS), shaded=False
        )
        if thing.shaded
        else thing
        for thing in scene.things
    ]
    for _ in range(rng.randint(0, 2) if scene.curtain else 0):
        x = rng.uniform(10, 24) + (WIDTH - 34 if scene.curtain == "right" else 0)
        look = [rng.choice(tuple(values)) for values in (SHAPES, COLOURS, PATTERNS, SIZES)]
        things.append(Thing(*look, x, rng.uniform(20, HEIGHT - 20), 10.0))
    return dataclasses.replace(scene, things=tuple(things))


@pytest.fixture(scope="session")
def scenes():
    """Three thousand scenes."""
    rng = random.Random(7)
    return [_scene(rng) for _ in range(3000)]


@pytest.fixture(scope="session")
def reading():
    """Own reading of phrases and statements, to compare with."""
    return types.SimpleNamespace(
        PHRASE=PHRASE,
        NUMBERS=_NUMBERS,
        parts=_parts,
        fitting=_fitting,
        stands=_stands,
        between=_between,
        true=_true,
        completed=_completed,
        form=_form,
        forms=lambda texts: collections.Counter(map(_form, texts)),
    )


@pytest.fixture(scope="session")
def blind_accuracy():
    """Held-out accuracy of a linear model of words and pairs of words."""
    sklearn_text = pytest.importorskip("sklearn.feature_extraction.text")
    linear = pytest.importorskip("sklearn.linear_model")

    def accuracy(texts, labels):
        half = len(texts) // 2
        vectors = sklearn_text.CountVectorizer(ngram_range=(1, 2), min_df=2)
        model = linear.LogisticRegression(C=0.1, max_iter=1000)
        model.fit(vectors.fit_transform(texts[:half]), labels[:half])
        return model.score(vectors.transform(texts[half:]), labels[half:])

    return accuracy
