"""Definite descriptions: names of a visible thing that fit no other visible thing."""

import functools
import itertools
from collections.abc import Callable, Collection

import numpy as np

from twelve_in_one.world.language import facts
from twelve_in_one.world.language.facts import Beside, Kind, Name, Place
from twelve_in_one.world.language.words import pick, shuffled
from twelve_in_one.world.scene import Scene

# Names things of a scene; those that it cannot name are missing.
Namer = Callable[[Scene, np.random.Generator], dict[int, Name]]

_LAST_RANK = 3  # "the third star from the left"
# Rows nearly always offer names, so they are not tried too often.
_WAYS = (*4 * ("shape",), *4 * ("size",), "row", "row of shape", "row of size")
_LIT, _SHADED = ("shape", "colour", "pattern", "size"), ("shape", "size", "dark")


def by_looks(
    scene: Scene, index: int, rng: np.random.Generator, hide: Collection[str] = ()
) -> Kind | None:
    """A kind with few properties that fits only this thing.

    Args:
      scene: the scene.
      index: of the thing.
      rng: draws among properties.
      hide: properties that must not be named; "dark" is one.
    """
    thing = scene.things[index]
    properties = tuple(name for name in (_SHADED if thing.shaded else _LIT) if name not in hide)
    for choices in _subsets(properties):
        for chosen in shuffled(rng, choices):
            kind = facts.kind_of(thing, chosen)
            if facts.only(kind, scene) is not None:
                return kind
    return None


def names(scene: Scene, rng: np.random.Generator, hide: Collection[str] = ()) -> dict[int, Kind]:
    """All things that `by_looks` can name."""
    named = ((index, by_looks(scene, index, rng, hide)) for index in range(len(scene.things)))
    return {index: kind for index, kind in named if kind is not None}


def uncoloured(scene: Scene, rng: np.random.Generator) -> dict[int, Name]:
    """Names without colour, pattern, shade or curtain, all made in one drawn way.

    Shaded and other things are named the same way, so a name does not reveal which it is.
    Rows go from left to right or back, because with a curtain they cannot be counted downwards.
    """
    way = pick(rng, _WAYS)
    if way in ("shape", "size"):
        named: dict[int, Name] = {}
        properties = ("shape",) if way == "shape" else ("size", "shape")
        for index, thing in enumerate(scene.things):
            kind = facts.kind_of(thing, properties)
            if facts.only(kind, scene) is not None:
                named[index] = kind
        return named
    properties = {"row of shape": ("shape",), "row of size": ("size",)}.get(way, ())
    return in_row(scene, rng, properties, ("left", "right"))


def in_row(
    scene: Scene,
    rng: np.random.Generator,
    properties: Collection[str] = (),
    sides: tuple[str, ...] = facts.SIDES,
) -> dict[int, Name]:
    """Names by rank, counted from a drawn side, among things that share properties."""
    # From all sides but one, hidden things behind a curtain might count too.
    away = {None: sides, "left": ("right",), "right": ("left",)}
    side = pick(rng, away[scene.curtain])
    named: dict[int, Name] = {}
    for index, thing in enumerate(scene.things):
        kind = facts.kind_of(thing, properties)
        row = facts.looking(kind, scene)
        place = facts.rank(index, row, side, scene) if len(row) > 1 else None
        if place is not None and place <= _LAST_RANK:
            named[index] = Place(kind, side, place)
    return named


def by_neighbour(
    scene: Scene, index: int, rng: np.random.Generator, hide: Collection[str] = ()
) -> Beside | None:
    """A name by a relation to another thing, like "the small thing above the red star"."""
    thing = scene.things[index]
    free = [p for p in (_SHADED if thing.shaded else _LIT) if p not in hide and p != "dark"]
    for relation in shuffled(rng, facts.RELATIONS)[:3]:
        for other in shuffled(rng, range(len(scene.things)))[:4]:
            if other == index or not facts.stands(thing, relation, scene.things[other]):
                continue
            kind = Kind() if rng.random() < 0.5 else facts.kind_of(thing, [pick(rng, free)])
            if _only_beside(scene, index, kind, relation, other):
                anchor = by_looks(scene, other, rng)
                if anchor is not None:
                    return Beside(kind, relation, anchor)
    return None


def neighbours(
    scene: Scene, rng: np.random.Generator, hide: Collection[str] = ()
) -> dict[int, Beside]:
    """All things that `by_neighbour` can name."""
    named = ((index, by_neighbour(scene, index, rng, hide)) for index in range(len(scene.things)))
    return {index: name for index, name in named if name is not None}


def _only_beside(scene: Scene, index: int, kind: Kind, relation: str, anchor: int) -> bool:
    return all(
        other in (index, anchor)
        or facts.fits(kind, thing) is False
        or facts.stands(thing, relation, scene.things[anchor]) is False
        for other, thing in enumerate(scene.things)
    )


@functools.cache
def _subsets(properties: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Subsets by size, the smallest first."""
    sizes = range(1, len(properties) + 1)
    return tuple(tuple(itertools.combinations(properties, size)) for size in sizes)
