"""Games in which questions answered by Yes, No and N/A single out one thing (GuessWhat?!)."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from twelve_in_one.world.language import facts, statements
from twelve_in_one.world.language.facts import Kind, Place
from twelve_in_one.world.language.naming import by_looks
from twelve_in_one.world.language.statements import Statement
from twelve_in_one.world.language.words import MARKS, pick, question, say, shuffled
from twelve_in_one.world.scene import PATTERNS, SIZES, Scene

FEWEST_TURNS, MOST_TURNS = 2, 6
_ANSWERS = {True: "Yes", False: "No", None: "N/A"}
_GIVEN_UP = 0.11  # of the games
_SPOILED = 0.8  # of the first questions that would end the game are not asked
_IDEAS = 80  # questions considered in a game; not all are useful
_ATTEMPTS = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """A question with its answer.

    Attributes:
      question: the text.
      answer: "Yes", "No" or "N/A".
      left: indices of the things that fit all answers so far.
    """

    question: str
    answer: str
    left: tuple[int, ...]


def game(scene: Scene, target: int, rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
    """Questions and answers of `draw`."""
    return tuple((turn.question, turn.answer) for turn in draw(scene, target, rng))


def draw(scene: Scene, target: int, rng: np.random.Generator) -> tuple[Turn, ...]:
    """A dialogue about a thing that one of two players has in mind.

    Args:
      scene: contents of the picture.
      target: index of the thing.
      rng: source of all random draws.

    Returns:
      2 to 6 turns, answered "N/A" if the shade of the target hides the answer. All answers
      together leave only the target, except in about one game in ten, which ends too early.
    """
    given_up = rng.random() < _GIVEN_UP
    turns = _play(scene, target, rng)
    for _ in range(_ATTEMPTS):
        if len(turns[-1].left) == 1 and not (given_up and len(turns) == FEWEST_TURNS):
            break
        turns = _play(scene, target, rng)
    if given_up:
        early = [n for n in range(FEWEST_TURNS, len(turns)) if len(turns[n - 1].left) > 1]
        turns = turns[: pick(rng, early)] if early else turns
    return tuple(turns)


@dataclasses.dataclass(frozen=True, slots=True)
class _Idea:
    """A question without mark, its verdict on each thing, and whether shade can hide the answer.

    If shade cannot, a verdict of None means a position in between, which no question is about.
    """

    text: str
    asks: Callable[[int], Statement]
    hidden: bool = False


def _play(scene: Scene, target: int, rng: np.random.Generator) -> list[Turn]:
    """Turns that each leave fewer things, until the target is found or no turns remain."""
    left = tuple(range(len(scene.things)))
    turns: list[Turn] = []
    asked: set[str] = set()
    for thought in range(_IDEAS):
        if len(turns) == MOST_TURNS or (len(left) == 1 and len(turns) >= FEWEST_TURNS):
            break
        idea = pick(rng, _FORMS)(scene, left, rng)
        if idea is None or idea.text in asked:
            continue
        told = idea.asks(target).verdict(scene)
        if told is None and not idea.hidden:
            continue
        remaining = _remaining(scene, left, idea, told)
        if not turns and len(remaining) == 1 and rng.random() < _SPOILED:
            continue
        stuck = len(turns) < FEWEST_TURNS and thought > _IDEAS // 2
        if len(remaining) < len(left) or len(left) == 1 or stuck:
            turns.append(Turn(question(idea.text), _ANSWERS[told], remaining))
            asked.add(idea.text)
            left = remaining
    return turns


def _remaining(
    scene: Scene, left: Sequence[int], idea: _Idea, told: bool | None
) -> tuple[int, ...]:
    """The things for which the answer would, or might, have been the same."""
    verdicts = ((index, idea.asks(index).verdict(scene)) for index in left)
    return tuple(
        index
        for index, verdict in verdicts
        if verdict is told or (verdict is None and not idea.hidden)
    )


def _shape(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea:
    kind = Kind(scene.things[pick(rng, left)].shape)
    templates = ("is it {a:x}", "is it one of the {many:x}", "is it some {bare:x}")
    text = say(rng, pick(rng, templates), x=kind)
    return _Idea(text, lambda i: statements.Is(i, kind))


def _colour(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea | None:
    lit = [i for i in left if not scene.things[i].shaded]
    if not lit:
        return None
    value = scene.things[pick(rng, lit)].colour
    templates = (
        "is it {value}",
        "is it one of the {value} ones",
        "is its colour {value}",
        "does it look {value}",
    )
    return _Idea(say(rng, pick(rng, templates), value=value), _is(Kind(colour=value)), True)


def _two_colours(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea | None:
    colours = facts.palette(scene)
    if len(colours) < 2:
        return None
    one, two = shuffled(rng, colours)[:2]
    text = say(rng, "is it [either |]{one} or {two}", one=one, two=two)
    either = Kind(colour=one), Kind(colour=two)
    return _Idea(text, lambda i: statements.Any(tuple(statements.Is(i, k) for k in either)), True)


def _pattern(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea:
    value = pick(rng, PATTERNS)
    templates = ("is it {value}", "does it have {marks}")
    text = say(rng, pick(rng, templates), value=value, marks=MARKS[value])
    return _Idea(text, _is(Kind(pattern=value)), True)


def _size(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea:
    value = pick(rng, SIZES)
    how = {"large": "[large|big]", "small": "[small|little]"}[value]
    templates = (f"is it {how}", f"is it a {how} one", f"is it one of the {how} ones")
    return _Idea(say(rng, pick(rng, templates)), _is(Kind(size=value)))


def _kind(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea:
    thing = scene.things[pick(rng, left)]
    names = ("size", "shape") if thing.shaded or rng.random() < 0.3 else ("colour", "shape")
    kind = facts.kind_of(thing, names)
    text = say(rng, pick(rng, ("is it {a:x}", "is it one of the {many:x}")), x=kind)
    return _Idea(text, _is(kind), "colour" in names)


def _half(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea:
    side = pick(rng, facts.SIDES)
    templates = (
        "is it in the {side} half[ of the picture| of the image|]",
        "is it [on|at] the {side}" if side in ("left", "right") else "is it at the {side}",
        "does it lie in the {side} half",
    )
    text = say(rng, pick(rng, templates), side=side)
    return _Idea(text, lambda i: statements.Lies(i, side))


def _outermost(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea:
    kind = facts.kind_of(scene.things[pick(rng, left)], pick(rng, ((), ("shape",))))
    side, row = pick(rng, facts.SIDES), facts.looking(kind, scene)
    relation = {"top": "above", "bottom": "below"}.get(side, side)

    def asks(index: int) -> Statement:
        others = (statements.Stands(index, relation, other) for other in row if other != index)
        return statements.All((statements.Is(index, kind), *others))

    return _Idea(say(rng, "is it {the:x}", x=Place(kind, side, 1)), asks)


def _related(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea | None:
    anchor = pick(rng, range(len(scene.things)))
    name, relation = by_looks(scene, anchor, rng), pick(rng, facts.RELATIONS)
    if name is None:
        return None
    templates = ("is it {to:relation} {the:y}", "does it lie {to:relation} {the:y}")
    text = say(rng, pick(rng, templates), relation=relation, y=name)
    return _Idea(text, lambda i: statements.Stands(i, relation, anchor))


def _alike(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea | None:
    anchor, what = pick(rng, range(len(scene.things))), pick(rng, ("colour", "shape", "size"))
    name = by_looks(scene, anchor, rng)
    if name is None or (what == "colour" and scene.things[anchor].shaded):
        return None
    text = say(rng, "[does it have|is it of] the same {what} as {the:y}", what=what, y=name)
    return _Idea(text, lambda i: statements.Same(i, anchor, what), what == "colour")


def _larger(scene: Scene, left: Sequence[int], rng: np.random.Generator) -> _Idea | None:
    anchor = pick(rng, range(len(scene.things)))
    name = by_looks(scene, anchor, rng)
    if name is None:
        return None
    text = say(rng, "is it [larger|bigger] than {the:y}", y=name)
    return _Idea(text, lambda i: statements.Larger(i, anchor))


def _is(kind: Kind) -> Callable[[int], Statement]:
    return lambda index: statements.Is(index, kind)


_FORMS = (
    _shape,
    _shape,
    _colour,
    _colour,
    _two_colours,
    _pattern,
    _size,
    _kind,
    _half,
    _half,
    _outermost,
    _related,
    _related,
    _alike,
    _larger,
)
