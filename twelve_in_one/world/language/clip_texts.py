"""Questions about clips with their answers, and captions: what moves, where to, in what order."""

from typing import NamedTuple

import numpy as np

from twelve_in_one.world.clips import ClipScene
from twelve_in_one.world.language import words
from twelve_in_one.world.language.facts import Kind
from twelve_in_one.world.scene import Thing

QUESTIONS = 2  # of a clip
CAPTIONS = 3
# Kind of clip -> question -> answer, in the language of `words`; {the:first} is the first thing to
# which something happens. Every answer is equally likely, but for what the question says.
_QUESTIONS: dict[str, dict[str, str]] = {
    "moves": {
        "[what|which thing] [moves|is moving]": "{shape}",
        "[what colour is|which colour has] the thing that moves": "{colour}",
        "where does the [thing|{bare:first}] [move|go]": "{way}",
    },
    "count": {
        "how many [things|of the things] [move|are moving]": "{number}",
        "how many [things|of them] [stay|do not move]": "{rest}",
    },
    "turns": {
        "what [moves first|is the first to move]": "{shape}",
        "what [moves last|is the last to move]": "{last_shape}",
        "what colour [moves first|is the first thing to move]": "{colour}",
        "what colour [moves last|is the last thing to move]": "{last_colour}",
        "what moves after {the:first}": "{last_shape}",
        "where does the thing go that moves last": "{last_way}",
    },
    "shows": {
        "what [comes|shows|appears] first": "{shape}",
        "what [comes|shows|appears] last": "{last_shape}",
        "what colour is the thing that [comes|shows|appears] first": "{colour}",
        "what colour is the thing that [comes|shows|appears] last": "{last_colour}",
    },
}
_CAPTIONS: dict[str, tuple[str, ...]] = {
    "moves": ("{a:first} [moves|goes] {to_way}", "{the:first} is moving {to_way}"),
    "count": (
        "{number} of three things [move|are moving]",
        "{rest} of three things [stay|do not move]",
    ),
    "turns": (
        "{a:first} moves, then {a:last}",
        "first {the:first} moves {to_way}, then {the:last} {last_to_way}",
    ),
    "shows": ("{a:first} [shows|appears], then {a:last}", "{a:last} appears after {a:first}"),
}
_TO = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}


class Question(NamedTuple):
    """A question about a clip, and its answer."""

    text: str
    answer: str


def ask(clip: ClipScene, rng: np.random.Generator) -> list[Question]:
    """Different questions about a clip."""
    known = _QUESTIONS[clip.kind]
    chosen = rng.permutation(len(known))[:QUESTIONS]
    fields, templates = _fields(clip), list(known.items())
    found = []
    for number in sorted(chosen):
        template, answer = templates[number]
        text = words.question(words.say(rng, template, **fields))
        found.append(Question(text.lower(), words.say(rng, answer, **fields)))
    return found


def describe(clip: ClipScene, rng: np.random.Generator) -> list[str]:
    """Captions of a clip."""
    fields, known = _fields(clip), _CAPTIONS[clip.kind]
    return [
        words.say(rng, known[rng.integers(len(known))], **fields).lower() for _ in range(CAPTIONS)
    ]


def _fields(clip: ClipScene) -> dict[str, Kind | str]:
    first, last = clip.things[clip.events[0].thing], clip.things[clip.events[-1].thing]
    count = len(clip.events)
    ways = clip.events[0].what, clip.events[-1].what
    return {
        "first": _kind(first),
        "last": _kind(last),
        "shape": first.shape,
        "last_shape": last.shape,
        "colour": first.colour,
        "last_colour": last.colour,
        "way": ways[0],
        "last_way": ways[1],
        "to_way": _TO.get(ways[0], ""),
        "last_to_way": _TO.get(ways[1], ""),
        "number": words.NUMBERS[count],
        "rest": words.NUMBERS[len(clip.things) - count],
    }


def _kind(thing: Thing) -> Kind:
    return Kind(thing.shape, thing.colour)
