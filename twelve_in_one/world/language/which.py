"""Questions answered by pointing at one of four things (Visual7W)."""

import dataclasses
from collections.abc import Callable

import numpy as np

from twelve_in_one.world.language import facts, statements
from twelve_in_one.world.language.facts import Kind
from twelve_in_one.world.language.naming import by_looks
from twelve_in_one.world.language.statements import Statement
from twelve_in_one.world.language.words import MARKS, pick, question, say, shuffled
from twelve_in_one.world.scene import PATTERNS, SIZES, Scene

NUM_CHOICES = 4
_TRIES = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Which:
    """A question and the things to choose from.

    Attributes:
      question: the text.
      answer: index of the thing that fits.
      choices: indices of four different things in random order; only the answer fits.
      statements: for each of the four, the statement that must be true for it to fit.
    """

    question: str
    answer: int
    choices: tuple[int, int, int, int]
    statements: tuple[Statement, Statement, Statement, Statement]


# A question's text, the condition for a thing to fit, and things that cannot be choices.
_Asked = tuple[str, Callable[[int], Statement], tuple[int, ...]]


def which(scene: Scene, rng: np.random.Generator) -> Which | None:
    """A question with four choices; three are as similar to the answer as the scene allows.

    Args:
      scene: contents of the picture.
      rng: source of all random draws.

    Returns:
      The question, or None if the scene does not support the drawn forms.
    """
    for _ in range(_TRIES):
        asked = pick(rng, _FORMS)(scene, rng)
        found = None if asked is None else _choices(scene, rng, asked)
        if found is not None:
            return found
    return None


def _choices(scene: Scene, rng: np.random.Generator, asked: _Asked) -> Which | None:
    text, fitting, excluded = asked
    told = {
        index: fitting(index).verdict(scene)
        for index in range(len(scene.things))
        if index not in excluded
    }
    right = [index for index, fits in told.items() if fits]
    wrong = [index for index, fits in told.items() if fits is False]
    if not right or len(wrong) < NUM_CHOICES - 1:
        return None
    answer = pick(rng, right)
    wrong = sorted(shuffled(rng, wrong), key=lambda i: -_likeness(scene, i, answer))
    choices = tuple(shuffled(rng, [answer, *wrong[: NUM_CHOICES - 1]]))
    return Which(question(text), answer, choices, tuple(fitting(i) for i in choices))


def _likeness(scene: Scene, one: int, two: int) -> int:
    """Visual similarity of two things, with most weight on shape."""
    first, second = scene.things[one], scene.things[two]
    lit = not first.shaded and not second.shaded
    return (
        3 * (first.shape == second.shape)
        + (2 * (first.colour == second.colour) + (first.pattern == second.pattern)) * lit
        + (first.size == second.size)
    )


_THING = "[thing|object|of the four things|one]"


def _of_colour(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    colours = facts.palette(scene)
    if not colours:
        return None
    value = pick(rng, colours)
    templates = ("which " + _THING + " is {value}", "which {x} has the colour {value}")
    text = say(rng, pick(rng, templates), value=value, x=pick(rng, ("thing", "object")))
    return text, lambda i: statements.Is(i, Kind(colour=value)), ()


def _of_shape(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    kind = Kind(pick(rng, facts.shapes(scene)))
    templates = (
        "which " + _THING + " is {a:x}",
        "which one looks like {a:x}",
        "which is the {bare:x}",
    )
    return say(rng, pick(rng, templates), x=kind), lambda i: statements.Is(i, kind), ()


def _of_pattern(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    value = pick(rng, PATTERNS)
    templates = ("which " + _THING + " is {value}", "which " + _THING + " has {marks}")
    text = say(rng, pick(rng, templates), value=value, marks=MARKS[value])
    return text, lambda i: statements.Is(i, Kind(pattern=value)), ()


def _of_size(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    value = pick(rng, SIZES)
    how = {"large": ("large", "[biggest|largest]"), "small": ("small", "smallest")}[value]
    text = say(rng, "which " + _THING + " is " + pick(rng, (how[0], f"the {how[1]}")))
    return text, lambda i: statements.Is(i, Kind(size=value)), ()


def _of_kind(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    """Two properties at once, so some of the choices may have one of them."""
    lit = [thing for thing in scene.things if not thing.shaded]
    if not lit:
        return None
    names = pick(rng, (("colour", "shape"), ("pattern", "shape"), ("colour", "pattern")))
    kind = facts.kind_of(pick(rng, lit), names)
    templates = ("which one is {a:x}", "which is the {bare:x}", "which of the things is {a:x}")
    return say(rng, pick(rng, templates), x=kind), lambda i: statements.Is(i, kind), ()


def _not_of_colour(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    colours = facts.palette(scene)
    if not colours:
        return None
    value = pick(rng, colours)
    text = say(rng, "which " + _THING + " is [not|any colour but] {value}", value=value)
    return text, lambda i: statements.Not(statements.Is(i, Kind(colour=value))), ()


def _not_of_shape(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    kind = Kind(pick(rng, facts.shapes(scene)))
    templates = ("which " + _THING + " is not {a:x}", "which " + _THING + " is no {bare:x}")
    text = say(rng, pick(rng, templates), x=kind)
    return text, lambda i: statements.Not(statements.Is(i, kind)), ()


def _related(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    anchor = pick(rng, range(len(scene.things)))
    name, relation = by_looks(scene, anchor, rng), pick(rng, facts.RELATIONS)
    if name is None:
        return None
    templates = (
        "which " + _THING + " is {to:relation} {the:y}",
        "which " + _THING + " lies {to:relation} {the:y}",
        "which of the things is {to:relation} {the:y}",
    )
    text = say(rng, pick(rng, templates), relation=relation, y=name)
    return text, lambda i: statements.Stands(i, relation, anchor), (anchor,)


def _related_kind(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    anchor, other = shuffled(rng, range(len(scene.things)))[:2]
    name, relation = by_looks(scene, anchor, rng), pick(rng, facts.RELATIONS)
    if name is None:
        return None
    kind = facts.kind_of(scene.things[other], (pick(rng, ("shape", "size")),))
    templates = (
        "which {bare:x} is {to:relation} {the:y}",
        "which is the {bare:x} {to:relation} {the:y}",
    )
    text = say(rng, pick(rng, templates), x=kind, relation=relation, y=name)

    def fitting(index: int) -> Statement:
        stands = statements.Stands(index, relation, anchor)
        return statements.All((statements.Is(index, kind), stands))

    return text, fitting, (anchor,)


def _between(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    one, two = shuffled(rng, range(len(scene.things)))[:2]
    y, z = by_looks(scene, one, rng), by_looks(scene, two, rng)
    if y is None or z is None:
        return None
    template = "which " + _THING + " [is|lies] between {the:y} and {the:z}"
    text = say(rng, template, y=y, z=z)
    return text, lambda i: statements.Between(i, one, two), (one, two)


def _alike(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    anchor, what = pick(rng, range(len(scene.things))), pick(rng, ("colour", "shape", "size"))
    name = by_looks(scene, anchor, rng)
    if name is None:
        return None
    templates = (
        "which " + _THING + " has the same {what} as {the:y}",
        "which " + _THING + " is of the same {what} as {the:y}",
        "{the:y} has the same {what} as which other one",
    )
    text = say(rng, pick(rng, templates), what=what, y=name)
    return text, lambda i: statements.Same(i, anchor, what), (anchor,)


def _in_half(scene: Scene, rng: np.random.Generator) -> _Asked | None:
    side = pick(rng, facts.SIDES)
    template = "which " + _THING + " is in the {side} half[ of the picture| of the image|]"
    return say(rng, template, side=side), lambda i: statements.Lies(i, side), ()


_FORMS = (
    _of_colour,
    _of_shape,
    _of_pattern,
    _of_size,
    _of_kind,
    _of_kind,
    _not_of_colour,
    _not_of_shape,
    _related,
    _related,
    _related,
    _related_kind,
    _between,
    _alike,
    _in_half,
)
