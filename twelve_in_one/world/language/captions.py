"""Captions: true sentences about a picture that name one to three facts."""

import dataclasses
from collections.abc import Callable

import numpy as np

from twelve_in_one.world.language import facts, statements
from twelve_in_one.world.language.facts import Kind, Place
from twelve_in_one.world.language.statements import Statement
from twelve_in_one.world.language.words import NUMBERS, pick, say, sentence, shuffled
from twelve_in_one.world.scene import SHAPES, Scene


@dataclasses.dataclass(frozen=True, slots=True)
class Caption:
    """A caption and its meaning.

    Attributes:
      text: the sentence.
      facts: its claims, all certainly true of the picture.
    """

    text: str
    facts: tuple[Statement, ...]


_Part = tuple[str, tuple[Statement, ...]] | None


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """The text of `draw`."""
    return draw(scene, rng).text


def draw(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption of a scene.

    Args:
      scene: contents of the picture.
      rng: source of all random draws.
    """
    part = None
    while part is None:  # `_one` succeeds in every scene.
        part = pick(rng, _FORMS)(scene, rng)
    text, told = part
    on = [isinstance(fact, statements.On) for fact in told]
    if not any(on) and rng.random() < 0.3:
        text = say(rng, pick(rng, _WITH_GROUND), text=text, ground=scene.ground)
        told += (statements.On(scene.ground),)
    return Caption(sentence(text), told)


_WITH_GROUND = (
    "{text}, on the {ground:ground}",
    "on the {ground:ground}: {text}",
    "{text}, [all of this|everything] on the {ground:ground}",
)


def _look(scene: Scene, index: int, rng: np.random.Generator) -> Kind:
    """A thing's looks: its shape, most of the time, and up to two further properties."""
    thing = scene.things[index]
    more = ("dark", "size") if thing.shaded else ("colour", "colour", "pattern", "size")
    chosen = set(shuffled(rng, more)[: pick(rng, (1, 1, 2, 2, 3))])
    if rng.random() < 0.92 or not chosen:
        chosen.add("shape")
    return facts.kind_of(thing, chosen)


def _looks(
    scene: Scene, rng: np.random.Generator, count: int
) -> tuple[list[int], list[Kind], tuple[Statement, ...]]:
    """A few things, what they look like, and that they do."""
    chosen = shuffled(rng, range(len(scene.things)))[:count]
    kinds = [_look(scene, index, rng) for index in chosen]
    told = tuple(statements.Is(i, kind) for i, kind in zip(chosen, kinds, strict=True))
    return chosen, kinds, told


def _one(scene: Scene, rng: np.random.Generator) -> _Part:
    _, (x,), told = _looks(scene, rng, 1)
    templates = (
        "there is {a:x}[ in the picture|]",
        "{a:x} [can be seen|is shown|is part of the scene]",
        "the [picture|image|scene] [shows|has] {a:x}",
        "[a picture|an image] of {a:x}",
    )
    return say(rng, pick(rng, templates), x=x), told


def _one_on_ground(scene: Scene, rng: np.random.Generator) -> _Part:
    _, (x,), told = _looks(scene, rng, 1)
    templates = (
        "{a:x} on the {ground:ground}",
        "{a:x} [lies|is] on the {ground:ground}",
        "on the {ground:ground} [lies|is] {a:x}",
        "there is {a:x} on the {ground:ground}",
    )
    text = say(rng, pick(rng, templates), x=x, ground=scene.ground)
    return text, (*told, statements.On(scene.ground))


def _two(scene: Scene, rng: np.random.Generator) -> _Part:
    _, (x, y), told = _looks(scene, rng, 2)
    templates = (
        "{a:x} and {a:y}",
        "there are {a:x} and {a:y}[ in the picture|]",
        "{a:x} [together |]with {a:y}",
        "the [picture|image] shows {a:x} and {a:y}",
    )
    return say(rng, pick(rng, templates), x=x, y=y), told


def _three(scene: Scene, rng: np.random.Generator) -> _Part:
    _, (x, y, z), told = _looks(scene, rng, 3)
    templates = (
        "{a:x}, {a:y} and {a:z}",
        "[a picture|an image] of {a:x}, {a:y} and {a:z}",
        "there are {a:x}, {a:y} and {a:z}",
    )
    return say(rng, pick(rng, templates), x=x, y=y, z=z), told


def _relation(scene: Scene, rng: np.random.Generator) -> _Part:
    chosen, (x, y), told = _looks(scene, rng, 2)
    for relation in shuffled(rng, facts.RELATIONS):
        stands = statements.Stands(chosen[0], relation, chosen[1])
        if stands.verdict(scene):
            templates = (
                "{a:x} {to:relation} {a:y}",
                "{a:x} is {to:relation} {a:y}",
                "{to:relation} {a:y} is {a:x}",
                "there is {a:x} {to:relation} {a:y}",
                "{a:y} with {a:x} {to:relation} it",
            )
            text = say(rng, pick(rng, templates), x=x, y=y, relation=relation)
            return text, (*told, stands)
    return None


def _between(scene: Scene, rng: np.random.Generator) -> _Part:
    chosen, (x, y, z), told = _looks(scene, rng, 3)
    between = statements.Between(*chosen)
    if not between.verdict(scene):
        return None
    templates = (
        "{a:x} between {a:y} and {a:z}",
        "{a:x} is [in |]between {a:y} and {a:z}",
        "between {a:y} and {a:z} [is|lies] {a:x}",
    )
    return say(rng, pick(rng, templates), x=x, y=y, z=z), (*told, between)


def _larger(scene: Scene, rng: np.random.Generator) -> _Part:
    chosen, _, _ = _looks(scene, rng, 2)
    larger = statements.Larger(*chosen)
    if not larger.verdict(scene):
        return None
    x, y = (
        facts.kind_of(
            scene.things[i], ("shape",) if scene.things[i].shaded else ("colour", "shape")
        )
        for i in chosen
    )
    templates = (
        "{a:x} that is [larger|bigger] than {a:y}",
        "{a:x} is [larger|bigger] than {a:y}",
        "{a:y} is smaller than {a:x}",
    )
    told = (statements.Is(chosen[0], x), statements.Is(chosen[1], y), larger)
    return say(rng, pick(rng, templates), x=x, y=y), told


def _alike(scene: Scene, rng: np.random.Generator) -> _Part:
    chosen = shuffled(rng, range(len(scene.things)))[:2]
    what = pick(rng, ("colour", "pattern", "size"))
    same = statements.Same(*chosen, what)
    x, y = (facts.kind_of(scene.things[i], ("shape",)) for i in chosen)
    if not same.verdict(scene):
        return None
    templates = (
        "{a:x} and {a:y} [of|have] the same {what}",
        "{a:x} has the same {what} as {a:y}",
    )
    told = (statements.Is(chosen[0], x), statements.Is(chosen[1], y), same)
    return say(rng, pick(rng, templates), x=x, y=y, what=what), told


def _half(scene: Scene, rng: np.random.Generator) -> _Part:
    (index,), (x,), told = _looks(scene, rng, 1)
    for side in shuffled(rng, facts.SIDES):
        lies = statements.Lies(index, side)
        if lies.verdict(scene):
            templates = (
                "{a:x} in the {side} half[ of the picture|]",
                "in the {side} half[ of the image| of the scene|] [is|there is] {a:x}",
                "the {side} half of the [picture|image] [has|shows] {a:x}",
            )
            return say(rng, pick(rng, templates), x=x, side=side), (*told, lies)
    return None


def _outermost(scene: Scene, rng: np.random.Generator) -> _Part:
    (index,), (x,), told = _looks(scene, rng, 1)
    others = [other for other in range(len(scene.things)) if other != index]
    for side in shuffled(rng, facts.SIDES):
        relation = {"top": "above", "bottom": "below"}.get(side, side)
        further = statements.All(
            tuple(statements.Stands(index, relation, other) for other in others)
        )
        # A curtain could hide something further out.
        if scene.curtain is None and further.verdict(scene):
            place = Place(Kind(), side, 1)
            text = say(
                rng, pick(rng, ("{the:place} is {a:x}", "{a:x} is {the:place}")), x=x, place=place
            )
            return text, (*told, further)
    return None


def _count(scene: Scene, rng: np.random.Generator) -> _Part:
    index = pick(rng, range(len(scene.things)))
    thing = scene.things[index]
    choices = (("shape",), ("size",), ("size", "shape"))
    if not thing.shaded:
        choices += (("colour",), ("pattern", "shape"))
    kind = facts.kind_of(thing, pick(rng, choices))
    count = len(facts.looking(kind, scene))
    # There may be more hidden things, so nothing is said that excludes them.
    exact = statements.Count(kind, count, count)
    told = exact if exact.verdict(scene) else statements.Count(kind, count)
    if count < 2 or len(scene.things) <= count:
        return None
    fields = {"x": kind, "number": NUMBERS[count]}
    templates = ("{number} {many:x}", "{number} {many:x} [can be seen|are visible|are shown]")
    if told is exact:
        templates += (
            "there are [exactly |]{number} {many:x}",
            "the number of {many:x} is {number}",
        )
    return say(rng, pick(rng, templates), **fields), (told,)


def _all_things(scene: Scene, rng: np.random.Generator) -> _Part:
    count = len(scene.things)
    low = statements.Count(Kind(), count, None if scene.curtain else count)
    templates = (
        "{number} {many:x} on the {ground:ground}",
        "{number} {many:x} [lie|are] on the {ground:ground}",
        "on the {ground:ground} are {number} {many:x}",
    )
    fields = {"x": Kind(), "number": NUMBERS[count], "ground": scene.ground}
    return say(rng, pick(rng, templates), **fields), (low, statements.On(scene.ground))


def _every(scene: Scene, rng: np.random.Generator) -> _Part:
    thing = scene.things[pick(rng, range(len(scene.things)))]
    kind = facts.kind_of(thing, (pick(rng, ("shape", "size")),))
    what = pick(rng, ("size", "colour", "pattern"))
    every = statements.Every(kind, facts.kind_of(thing, (what,)))
    if (what == "size" and kind.size) or len(facts.looking(kind, scene)) < 2:
        return None
    if not every.verdict(scene):
        return None
    templates = (
        "all {many:x} are {value}",
        "every {bare:x} is {value}",
        "{many:x} that are all {value}",
    )
    return say(rng, pick(rng, templates), x=kind, value=getattr(thing, what)), (every,)


def _more(scene: Scene, rng: np.random.Generator) -> _Part:
    one, two = (scene.things[i] for i in shuffled(rng, range(len(scene.things)))[:2])
    x, y = Kind(one.shape), Kind(two.shape)
    more = statements.Compare(x, y)
    if not more.verdict(scene):
        return None
    templates = ("more {many:x} than {many:y}", "there are fewer {many:y} than {many:x}")
    return say(rng, pick(rng, templates), x=x, y=y), (statements.Count(x, 1), more)


def _without(scene: Scene, rng: np.random.Generator) -> _Part:
    _, (x,), told = _looks(scene, rng, 1)
    y = Kind(pick(rng, SHAPES))
    none = statements.Count(y, 0, 0)
    if not none.verdict(scene):
        return None
    templates = (
        "there is {a:x} but no {bare:y}",
        "{a:x} [and|but] no {bare:y} [can be seen|is shown]",
        "[a picture|an image] with {a:x} and without {a:y}",
    )
    return say(rng, pick(rng, templates), x=x, y=y), (*told, none)


def _curtain(scene: Scene, rng: np.random.Generator) -> _Part:
    if scene.curtain is None:
        return None
    _, (x,), told = _looks(scene, rng, 1)
    templates = (
        "a curtain [hides|covers] the {side} side, and there is {a:x}",
        "{a:x} and a curtain on the {side}",
        "a curtain on the {side} and {a:x}[ beside it|]",
    )
    text = say(rng, pick(rng, templates), x=x, side=scene.curtain)
    return text, (*told, statements.Hangs(scene.curtain))


_FORMS: tuple[Callable[[Scene, np.random.Generator], _Part], ...] = (
    _one,
    _one_on_ground,
    _one_on_ground,
    _two,
    _two,
    _three,
    _three,
    _relation,
    _relation,
    _relation,
    _between,
    _larger,
    _alike,
    _half,
    _outermost,
    _count,
    _count,
    _all_things,
    _every,
    _more,
    _without,
    _curtain,
)
