"""Words for kinds, names and relations, and templates that put them into sentences.

A template is text in which "[a|b|c]" means one of its alternatives, drawn evenly, and
"{how:name}" for a field: "{the:x}" and "{a:x}" with article, "{bare:x}" without, "{many:x}" plural,
"{to:x}" for a relation, "{ground:x}" and "{scenery:x}" for a ground, "{name}" for text inserted
unchanged.
"""

import functools
import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from twelve_in_one.world.language.facts import Beside, Kind, Name

_T = TypeVar("_T")

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_ORDINALS = ("zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_NOUNS = {"circle": ("circle", "circle", "disc"), "crescent": ("crescent", "crescent", "moon")}
_PLURALS = {"cross": "crosses"}
_SIZES = {"small": ("small", "small", "little"), "large": ("large", "big")}
_DARK = ("dark", "shadowy")
# Noun for what a thing with a pattern "has".
MARKS = {"plain": "no pattern", "striped": "stripes", "dotted": "dots"}
_WITH = {"plain": "without a pattern", "striped": "with stripes", "dotted": "with dots"}
_RELATIONS = {
    "left": ("to the left of", "left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
    "near": ("near", "next to", "close to", "beside"),
}
_OUTERMOST = {
    "left": ("leftmost {}", "{} furthest to the left"),
    "right": ("rightmost {}", "{} furthest to the right"),
    "top": ("topmost {}", "highest {}", "{} nearest the top"),
    "bottom": ("lowest {}", "{} nearest the bottom"),
}
_GROUNDS = {
    "grass": ("grass",),
    "sand": ("sand",),
    "sea": ("sea", "water"),
    "snow": ("snow",),
    "street": ("street", "road"),
}
_SCENERY = {
    "grass": ("grass",),
    "sand": ("sand",),
    "sea": ("the sea", "water"),
    "snow": ("snow",),
    "street": ("a street", "a road"),
}


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """One of the options, drawn evenly."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: np.random.Generator, options: Sequence[_T]) -> list[_T]:
    """The options in random order."""
    if len(options) < 2:
        return list(options)
    return [options[i] for i in rng.random(len(options)).argsort().tolist()]


def article(text: str) -> str:
    """The text with "a" or "an" before it."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def bare(rng: np.random.Generator, kind: Kind, plural: bool = False, trailing: bool = True) -> str:
    """A kind without article: "large striped red star", sometimes "large red star with stripes".

    Args:
      rng: draws among synonyms.
      kind: to name.
      plural: whether there are several.
      trailing: whether words may follow the noun.
    """
    after = trailing and kind.pattern is not None and rng.random() < 0.25
    words = [] if kind.size is None else [pick(rng, _SIZES[kind.size])]
    if kind.dark:
        words.append(pick(rng, _DARK))
    if kind.pattern is not None and not after:
        words.append(kind.pattern)
    if kind.colour is not None:
        words.append(kind.colour)
    noun = "thing" if kind.shape is None else pick(rng, _NOUNS.get(kind.shape, (kind.shape,)))
    if kind.shape is None and rng.random() < 0.4:
        noun = "object"
    words.append(_PLURALS.get(noun, noun + "s") if plural else noun)
    if after:
        words.append(_WITH[kind.pattern])
    return " ".join(words)


def the(rng: np.random.Generator, name: Name) -> str:
    """A definite description of one thing."""
    if isinstance(name, Kind):
        return f"the {bare(rng, name)}"
    if isinstance(name, Beside):
        that = " that is " if rng.random() < 0.5 else " "
        kind = bare(rng, name.kind, trailing=False)
        return f"the {kind}{that}{relation(rng, name.relation)} {the(rng, name.anchor)}"
    kind = bare(rng, name.kind, trailing=False)
    if name.rank == 1:
        return f"the {pick(rng, _OUTERMOST[name.side]).format(kind)}"
    return f"the {_ORDINALS[name.rank]} {kind} from the {name.side}"


def relation(rng: np.random.Generator, name: str) -> str:
    """Words for one of `facts.RELATIONS`."""
    return pick(rng, _RELATIONS[name])


def ground(rng: np.random.Generator, name: str) -> str:
    """A noun for one of the grounds, to be used with "the"."""
    return pick(rng, _GROUNDS[name])


def scenery(rng: np.random.Generator, name: str) -> str:
    """One of the grounds as the contents of a picture: "grass", "a street"."""
    return pick(rng, _SCENERY[name])


def ordinal(rank: int) -> str:
    """The word for a rank: "first" for 1."""
    return _ORDINALS[rank]


def say(rng: np.random.Generator, template: str, **fields: Name | str) -> str:
    """Fills a template of the language that this module describes."""
    text = "".join(
        piece if isinstance(piece, str) else pick(rng, piece) for piece in _pieces(template)
    )
    return _FIELD.sub(lambda match: _filled(rng, match[1], fields[match[2]]), text)


def sentence(text: str) -> str:
    """The text with an initial capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def question(text: str) -> str:
    """The text with an initial capital and a question mark."""
    return f"{text[0].upper()}{text[1:]}?"


_FIELD = re.compile(r"\{(?:(\w+):)?(\w+)\}")


@functools.cache
def _pieces(template: str) -> tuple[str | tuple[str, ...], ...]:
    parts = re.split(r"\[([^\]]*)\]", template)
    return tuple(tuple(p.split("|")) if i % 2 else p for i, p in enumerate(parts))


def _filled(rng: np.random.Generator, how: str | None, field: Name | str) -> str:
    match how:
        case None:
            return field
        case "the":
            return the(rng, field)
        case "a":
            return article(bare(rng, field))
        case "bare":
            return bare(rng, field)
        case "many":
            return bare(rng, field, plural=True)
        case "to":
            return relation(rng, field)
        case "ground":
            return ground(rng, field)
        case "scenery":
            return scenery(rng, field)
    raise ValueError(f"a template asks for {how!r}, which is none of the ways to fill a field")
