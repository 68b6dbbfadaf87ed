"""Facts about the things in a picture, in three values: yes, no, cannot be told.

Colour and pattern of a shaded thing cannot be told. Positions are those of box centres, and a
relation is told only if a margin separates it from its opposite.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from twelve_in_one.world.scene import HEIGHT, WIDTH, Scene, Thing

MARGIN = 8.0  # pixels that one centre must be beyond another for "left of" and the like
NEAR, FAR = 42.0, 64.0  # pixels between centres: near up to the first, not near from the second on
RELATIONS = ("left", "right", "above", "below", "near")
SIDES = ("left", "right", "top", "bottom")


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing: the properties of its things; None leaves a property open.

    Attributes:
      shape: one of SHAPES.
      colour: one of COLOURS.
      pattern: one of PATTERNS.
      size: one of SIZES.
      dark: whether its things are shaded; False leaves it open.
    """

    shape: str | None = None
    colour: str | None = None
    pattern: str | None = None
    size: str | None = None
    dark: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Names a thing by its rank among those of a kind.

    Attributes:
      kind: of the counted things.
      side: one of SIDES, where counting starts.
      rank: 1 for the outermost.
    """

    kind: Kind
    side: str
    rank: int


@dataclasses.dataclass(frozen=True, slots=True)
class Beside:
    """Names the one thing of a kind that has a relation to another.

    Attributes:
      kind: of the named thing.
      relation: one of RELATIONS.
      anchor: the other thing in the relation.
    """

    kind: Kind
    relation: str
    anchor: Kind


Name = Kind | Place | Beside


def kind_of(thing: Thing, properties: Iterable[str]) -> Kind:
    """The kind with these properties of the thing, named like the fields of `Kind`."""
    return Kind(**{name: name == "dark" or getattr(thing, name) for name in properties})


def fits(kind: Kind, thing: Thing) -> bool | None:
    """Whether the thing is of the kind; None if its shade hides that."""
    if (
        (kind.shape is not None and kind.shape != thing.shape)
        or (kind.size is not None and kind.size != thing.size)
        or (kind.dark and not thing.shaded)
    ):
        return False
    if kind.colour is None and kind.pattern is None:
        return True
    if thing.shaded:
        return None
    return kind.colour in (None, thing.colour) and kind.pattern in (None, thing.pattern)


def looking(kind: Kind, scene: Scene) -> tuple[int, ...]:
    """Indices of the things that look like the kind; nothing shaded looks coloured."""
    return tuple(i for i, thing in enumerate(scene.things) if fits(kind, thing))


def only(kind: Kind, scene: Scene) -> int | None:
    """Index of the one visible thing of the kind, if no other can be."""
    found = None
    for index, thing in enumerate(scene.things):
        fit = fits(kind, thing)
        if fit is None or (fit and found is not None):
            return None
        if fit:
            found = index
    return found


def stands(one: Thing, relation: str, other: Thing) -> bool | None:
    """Whether `one` is left of, right of, above, below or near `other`; None in between."""
    if relation == "near":
        apart = math.hypot(one.x - other.x, one.y - other.y)
        return True if apart <= NEAR else False if apart >= FAR else None
    if relation in ("left", "right"):
        gap = other.x - one.x if relation == "left" else one.x - other.x
    else:
        gap = other.y - one.y if relation == "above" else one.y - other.y
    return True if gap >= MARGIN else False if gap <= -MARGIN else None


def between(thing: Thing, one: Thing, other: Thing) -> bool | None:
    """Whether the thing is on the line between two others, or clearly not; None in doubt.

    It is if its foot on the line is `MARGIN` inside both ends and its distance from the line at
    most twice that; it is not if the foot is as far outside or the distance above four times that.
    """
    x, y = other.x - one.x, other.y - one.y
    length = math.hypot(x, y)
    foot = ((thing.x - one.x) * x + (thing.y - one.y) * y) / length
    away = abs((thing.x - one.x) * y - (thing.y - one.y) * x) / length
    if foot <= -MARGIN or foot >= length + MARGIN or away >= 4 * MARGIN:
        return False
    return True if MARGIN <= foot <= length - MARGIN and away <= 2 * MARGIN else None


def in_half(thing: Thing, side: str) -> bool | None:
    """Whether the centre is in that half of the picture; None within `MARGIN` of the middle."""
    if side in ("left", "right"):
        gap = WIDTH / 2 - thing.x if side == "left" else thing.x - WIDTH / 2
    else:
        gap = HEIGHT / 2 - thing.y if side == "top" else thing.y - HEIGHT / 2
    return True if gap >= MARGIN else False if gap <= -MARGIN else None


def rank(index: int, among: Sequence[int], side: str, scene: Scene) -> int | None:
    """Place of a thing in the row counted from a side, from 1; None if another is level with it."""
    relation = {"top": "above", "bottom": "below"}.get(side, side)
    place = 1
    for other in among:
        if other != index:
            further = stands(scene.things[other], relation, scene.things[index])
            if further is None:
                return None
            place += further
    return place


def related(scene: Scene, relation: str, anchor: int) -> tuple[int, ...] | None:
    """Indices of the things in a relation to another; None if that cannot be told for one."""
    found = []
    for index, thing in enumerate(scene.things):
        if index != anchor:
            holds = stands(thing, relation, scene.things[anchor])
            if holds is None:
                return None
            if holds:
                found.append(index)
    return tuple(found)


def palette(scene: Scene) -> tuple[str, ...]:
    """Visible colours of things, each once."""
    return tuple(dict.fromkeys(thing.colour for thing in scene.things if not thing.shaded))


def shapes(scene: Scene) -> tuple[str, ...]:
    """Visible shapes, each once."""
    return tuple(dict.fromkeys(thing.shape for thing in scene.things))
