"""Statements about two pictures side by side (NLVR2), each as often true as false of its pairs.

A sentence comes first; the writer of examples then looks for pairs of scenes for which it is true
and for pairs for which it is false, so the sentence alone tells nothing.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from twelve_in_one.world.language import words
from twelve_in_one.world.language.facts import Kind
from twelve_in_one.world.language.pair_rules import (
    Difference,
    Every,
    Ground,
    In,
    More,
    Number,
    Picture,
    Rule,
    Shown,
    Split,
    Total,
)
from twelve_in_one.world.language.words import NUMBERS, pick, say, shuffled
from twelve_in_one.world.scene import COLOURS, GROUNDS, SHAPES, SIZES, Scene


@dataclasses.dataclass(frozen=True, slots=True)
class PairSentence:
    """A sentence about two pictures and its meaning."""

    text: str
    rule: Rule

    def truth(self, left: Scene, right: Scene) -> bool:
        """Whether the sentence is true of the two pictures."""
        return self.rule.holds(left, right)


# What may be shown, with how often a picture shows it deciding where it can be said to be.
_RARELY: tuple[Picture, ...] = ("left", "right", "any", "one", "neither")
_AT_A_GLANCE: tuple[Picture, ...] = ("left", "right", "any", "neither")
_EVENLY: tuple[Picture, ...] = ("left", "right", "one")
_MOSTLY: tuple[Picture, ...] = ("left", "right", "each", "one")
_NUMBERS: tuple[tuple[tuple[str, ...], int, int | None, tuple[Picture, ...]], ...] = (
    (("shape",), 1, None, _RARELY),
    (("colour",), 1, None, _RARELY),
    (("size", "dark"), 1, None, _RARELY),
    (("marked",), 2, None, _RARELY),
    (("size", "plain"), 2, None, _RARELY),
    (("size",), 4, None, _RARELY),
    ((), 7, None, _RARELY),
    (("size",), 2, 2, _RARELY),
    (("size",), 3, 3, _RARELY),
    (("marked",), 1, 1, _RARELY),
    (("plain",), 2, 2, _RARELY),
    (("marked",), 0, 0, ("left", "right", "any")),
    (("size", "plain"), 0, 0, ("left", "right", "any")),
    (("size",), 3, None, _EVENLY),
    ((), 6, None, _EVENLY),
    (("size", "marked"), 1, None, _EVENLY),
    (("plain",), 3, None, _EVENLY),
    (("size",), 0, 2, _EVENLY),
    ((), 0, 5, _EVENLY),
    (("plain",), 0, 2, _EVENLY),
    (("dark",), 1, None, _MOSTLY),
    (("marked",), 1, None, _MOSTLY),
    (("size", "plain"), 1, None, _MOSTLY),
    (("plain",), 2, None, _MOSTLY),
)
_TOTALS = (
    (("shape",), 2, None),
    (("colour",), 2, None),
    (("marked",), 3, None),
    (("size",), 5, None),
    (("size",), 6, None),
    ((), 11, None),
    ((), 12, None),
    (("dark",), 2, None),
    (("plain",), 5, None),
    (("shape",), 1, 1),
    (("colour",), 1, 1),
    (("dark",), 1, 1),
    (("marked",), 2, 2),
    (("size", "marked"), 1, 1),
    (("size", "plain"), 2, 2),
    (("shape",), 0, 1),
    (("colour",), 0, 1),
    (("marked",), 0, 2),
    (("dark",), 0, 1),
)
_DIFFERENCES = (("size",), (), ("plain",), ("marked",), ("dark",), ("shape",), ("colour",))
_EQUALS = (("shape",), ("colour",), ("dark",), ("size", "dark"), ("size", "marked"))
# Pairs of things: one picture has the first and the other has the second.
_SPLITS = (
    ((("marked",), 1, None), (("plain",), 3, None)),
    ((("marked",), 1, 1), (("size", "plain"), 1, None)),
    ((("size",), 3, None), (("marked",), 1, None)),
    ((("dark",), 1, None), (("marked",), 1, None)),
    ((("dark",), 1, None), (("shape",), 1, None)),
    ((("plain",), 2, None), (("colour",), 1, None)),
    ((("size",), 2, 2), (("size",), 3, None)),
    ((("size", "marked"), 1, None), (("dark",), 0, 0)),
)


def sentence(rng: np.random.Generator) -> PairSentence:
    """A sentence about two pictures that is true of about a quarter to three quarters of all pairs.

    Args:
      rng: source of all random draws.
    """
    rule, text = pick(rng, _FORMS)(rng)
    return PairSentence(words.sentence(text), rule)


def _kind(rng: np.random.Generator, names: tuple[str, ...]) -> Kind:
    kind = Kind(dark="dark" in names)
    for name in names:
        if name in _VALUES:
            field, values = _VALUES[name]
            kind = dataclasses.replace(kind, **{field: pick(rng, values)})
    return kind


_VALUES: dict[str, tuple[str, tuple[str, ...]]] = {
    "shape": ("shape", SHAPES),
    "colour": ("colour", tuple(COLOURS)),
    "size": ("size", SIZES),
    "marked": ("pattern", ("striped", "dotted")),
    "plain": ("pattern", ("plain",)),
}


def _number(rng: np.random.Generator, names: tuple[str, ...], low: int, high: int | None) -> Number:
    return Number(_kind(rng, names), low, high)


def _counted(rng: np.random.Generator, number: Number | Total) -> str:
    """Words for a number of things: "exactly two red stars"."""
    low, high = number.low, number.high
    if (low, high) == (1, None):
        templates = ("{a:x}", "{a:x}", "at least one {bare:x}")
    elif high is None:
        templates = (
            "at least {low} {many:x}",
            "{low} or more {many:x}",
            "no fewer than {low} {many:x}",
        )
    elif high == 0:
        templates = ("no {many:x}", "not a single {bare:x}")
    elif low == high:
        noun = "{bare:x}" if low == 1 else "{many:x}"
        templates = ("exactly {low} " + noun, "[just|only] {low} " + noun)
    else:
        noun = "{bare:x}" if high == 1 else "{many:x}"
        templates = ("at most {high} " + noun, "no more than {high} " + noun)
    fields = {"low": NUMBERS[low], "high": NUMBERS[high or 0]}
    return say(rng, pick(rng, templates), x=number.kind, **fields)


def _in(rng: np.random.Generator, which: Picture, shown: Shown, text: str) -> tuple[Rule, str]:
    return In(which, shown), say(rng, pick(rng, _WHERE[which]), x=text)


def _shows_number(rng: np.random.Generator) -> tuple[Rule, str]:
    names, low, high, places = pick(rng, _NUMBERS)
    number = _number(rng, names, low, high)
    return _in(rng, pick(rng, places), number, _counted(rng, number))


def _shows(rng: np.random.Generator) -> tuple[Rule, str]:
    number = _number(rng, (pick(rng, ("shape", "colour")),), 1, None)
    text = say(rng, "{a:x}", x=number.kind)
    return _in(rng, pick(rng, _AT_A_GLANCE), number, text)


def _shows_more(rng: np.random.Generator) -> tuple[Rule, str]:
    kinds = pick(
        rng,
        (
            shuffled(rng, [Kind(size=size) for size in SIZES]),
            shuffled(rng, [Kind(pattern=pattern) for pattern in ("striped", "dotted")]),
            [Kind(pattern="plain"), Kind(pattern=pick(rng, ("striped", "dotted")))],
        ),
    )
    places = _MOSTLY if kinds[0].pattern == "plain" else _RARELY
    text = say(rng, "more {many:x} than {many:y}", x=kinds[0], y=kinds[1])
    return _in(rng, pick(rng, places), More(*kinds), text)


def _shows_alike(rng: np.random.Generator) -> tuple[Rule, str]:
    kind, size = _kind(rng, ("marked",)), pick(rng, SIZES)
    text = say(rng, "{many:x} that are all {size}", x=kind, size=size)
    return _in(rng, pick(rng, ("left", "right", "any", "one")), Every(kind, Kind(size=size)), text)


def _shows_ground(rng: np.random.Generator) -> tuple[Rule, str]:
    count = pick(rng, (1, 2))
    grounds = tuple(shuffled(rng, GROUNDS)[:count])
    places: tuple[Picture, ...] = ("any", "one") if count == 1 else (*_EVENLY, "any", "neither")
    text = " or ".join(words.scenery(rng, name) for name in grounds)
    return _in(rng, pick(rng, places), Ground(grounds), text)


def _total(rng: np.random.Generator) -> tuple[Rule, str]:
    names, low, high = pick(rng, _TOTALS)
    total = Total(_kind(rng, names), low, high)
    verb = "is" if high == 1 else "are"
    templates = (
        f"there {verb} {{x}} in both [pictures|images] together",
        "together the two [pictures|images] [show|contain|have] {x}",
        "the [pictures|images] [show|contain|have] {x} in [all|total]",
    )
    if low == high:
        templates += ("the number of {many:k} in both [pictures|images] together is {n}",)
    fields = {"x": _counted(rng, total), "k": total.kind, "n": NUMBERS[low]}
    return total, say(rng, pick(rng, templates), **fields)


def _difference(rng: np.random.Generator) -> tuple[Rule, str]:
    kind = _kind(rng, pick(rng, _DIFFERENCES))
    more = rng.random() < 0.5
    one, two = ("left", "right") if rng.random() < 0.5 else ("right", "left")
    low, high = (1, None) if more == (one == "left") else (None, -1)
    templates = (
        "there are {how} {many:x} in the {one} [picture|image] than in the {two} one",
        "the {one} [picture|image] [shows|contains|has] {how} {many:x} than the {two} one",
        "{how} {many:x} are in the {one} [picture|image] than in the {two} one",
    )
    how = "more" if more else "fewer"
    return Difference(kind, low, high), say(
        rng, pick(rng, templates), x=kind, how=how, one=one, two=two
    )


def _no_difference(rng: np.random.Generator) -> tuple[Rule, str]:
    kind = _kind(rng, pick(rng, _EQUALS))
    templates = (
        "both [pictures|images] [show|contain|have] the same number of {many:x}",
        "there are as many {many:x} in the left [picture|image] as in the right one",
        "the number of {many:x} is the same in [both|the two] [pictures|images]",
    )
    return Difference(kind, 0, 0), say(rng, pick(rng, templates), x=kind)


def _no_more(rng: np.random.Generator) -> tuple[Rule, str]:
    kind = _kind(rng, pick(rng, _DIFFERENCES[:5]))
    one, two = ("left", "right") if rng.random() < 0.5 else ("right", "left")
    low, high = (None, 0) if one == "left" else (0, None)
    templates = (
        "there are not more {many:x} in the {one} [picture|image] than in the {two} one",
        "the {two} [picture|image] [shows|contains|has] at least as many {many:x} as the {one} one",
    )
    return Difference(kind, low, high), say(rng, pick(rng, templates), x=kind, one=one, two=two)


def _split(rng: np.random.Generator) -> tuple[Rule, str]:
    first, second = shuffled(rng, [_number(rng, *part) for part in pick(rng, _SPLITS)])
    templates = (
        "one of the [pictures|images] [shows|contains|has] {x}, and the other [one |]{y}",
        "one [picture|image] [shows|contains|has] {x}[,|] while the other [shows|contains|has] {y}",
        "there is one [picture|image] that [shows|contains|has] {x}[,|] and the other "
        + _HAS
        + " {y}",
    )
    text = say(rng, pick(rng, templates), x=_counted(rng, first), y=_counted(rng, second))
    return Split(first, second), text


_HAS = "[shows|contains|has]"
_IN_ONE = (
    "the {side} [picture|image] " + _HAS + " {x}",
    "[on|to] the {side} is a picture that " + _HAS + " {x}",
    "{x} can be seen in the {side} [picture|image]",
)
_WHERE: dict[Picture, tuple[str, ...]] = {
    "left": tuple(template.replace("{side}", "left") for template in _IN_ONE),
    "right": tuple(template.replace("{side}", "right") for template in _IN_ONE),
    "each": (
        "each [picture|image] " + _HAS + " {x}",
        "both [pictures|images] [show|contain|have] {x}",
        "each of the two [pictures|images] " + _HAS + " {x}",
    ),
    "one": (
        "[exactly|only|just] one of the [pictures|images] " + _HAS + " {x}",
        "one [picture|image] " + _HAS + " {x}, but the other one does not",
    ),
    "any": (
        "at least one of the [pictures|images] " + _HAS + " {x}",
        "one or both of the [pictures|images] show {x}",
    ),
    "neither": (
        "neither [picture|image] " + _HAS + " {x}",
        "neither of the [pictures|images] " + _HAS + " {x}",
    ),
}
_FORMS: tuple[Callable[[np.random.Generator], tuple[Rule, str]], ...] = (
    # Mostly facts visible at a glance: there are far fewer pairs to learn from than pictures.
    *14 * (_shows,),
    _shows_number,
    _shows_number,
    _shows_number,
    _shows_more,
    _shows_alike,
    _shows_ground,
    _total,
    _total,
    _difference,
    _no_difference,
    _no_more,
    _split,
)
