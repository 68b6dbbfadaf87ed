"""Expressions that single out one thing in a picture, in the styles of RefCOCO, + and g.

Nothing shaded looks coloured, so "the red star" means the lit one of two stars; shaded things
are called dark.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from twelve_in_one.world.language import facts
from twelve_in_one.world.language.facts import Kind, Place
from twelve_in_one.world.language.naming import by_looks
from twelve_in_one.world.language.words import ordinal, pick, say, shuffled
from twelve_in_one.world.scene import Scene

_LIT, _SHADED = ("shape", "colour", "pattern", "size"), ("shape", "size", "dark")
_TRIES = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """An expression and its meaning.

    Attributes:
      text: the expression.
      kind: looks of the thing.
      sides: ("left",) if it is the leftmost of those that look like this, ("left", "top") if
        it is the only one in that quarter, () if its place is not named.
      rank: from that one side, 1 for the outermost.
      relations: all its relations to other things, with their indices ("between" has two);
        "colour", "shape" and "size" mean having the same one.
      unlike: a kind that it does not look like.
    """

    text: str
    kind: Kind
    sides: tuple[str, ...] = ()
    rank: int = 1
    relations: tuple[tuple[str, tuple[int, ...]], ...] = ()
    unlike: Kind | None = None


def refer(scene: Scene, target: int, rng: np.random.Generator, style: str) -> str | None:
    """The text of `draw`, or None if that is None."""
    drawn = draw(scene, target, rng, style)
    return None if drawn is None else drawn.text


def draw(scene: Scene, target: int, rng: np.random.Generator, style: str) -> Reference | None:
    """An expression that can only mean the target.

    Args:
      scene: contents of the picture.
      target: index of the target thing.
      rng: source of all random draws.
      style: "refcoco" (short, places allowed), "refcoco+" (looks only) or "refcocog" (long, with
        relations to other things).

    Returns:
      The expression, or None if none was found.

    Raises:
      ValueError: the style is not in STYLES.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}, got {style!r}")
    for _ in range(_TRIES):
        found = pick(rng, _WAYS[style])(scene, target, rng)
        if found is not None:
            return found
    return None


def hard_targets(scene: Scene) -> tuple[int, ...]:
    """Indices of all things, starting with those that share their shape with the most others."""
    shapes = [thing.shape for thing in scene.things]
    return tuple(sorted(range(len(shapes)), key=lambda i: (-shapes.count(shapes[i]), i)))


def _looks(scene: Scene, target: int, rng: np.random.Generator) -> Kind:
    """Some properties of the target; shape and colour are the most common."""
    thing = scene.things[target]
    shares = {"shape": 0.8, "colour": 0.5, "dark": 0.5, "pattern": 0.2, "size": 0.3}
    names = _SHADED if thing.shaded else _LIT
    return facts.kind_of(thing, [name for name in names if rng.random() < shares[name]])


def _single(scene: Scene, target: int, rng: np.random.Generator) -> Kind | None:
    """Few properties that no other thing seems to have, sometimes more than needed."""
    thing = scene.things[target]
    names = _SHADED if thing.shaded else _LIT
    for size in range(1, len(names) + 1):
        for chosen in shuffled(rng, tuple(itertools.combinations(names, size))):
            kind = facts.kind_of(thing, chosen)
            if facts.looking(kind, scene) == (target,) and (
                "shape" in chosen or rng.random() < 0.3
            ):
                if rng.random() < 0.25:
                    kind = facts.kind_of(thing, {*chosen, pick(rng, names)})
                return kind
    return None


def _short(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    kind = _single(scene, target, rng)
    if kind is None:
        return None
    templates = (
        "[the |]{bare:x}",
        "{bare:x}",
        "the one {bare:x}",
        "{a:x}",
        "only {bare:x}",
        "[find|see|choose] the {bare:x}",
        "it is the {bare:x}",
        "{bare:x} and no other",
    )
    return Reference(say(rng, pick(rng, templates), x=kind), kind)


def _compared(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    """By size among things that otherwise look alike: "the bigger red star"."""
    thing = scene.things[target]
    kind = dataclasses.replace(_looks(scene, target, rng), size=None)
    alike = facts.looking(kind, scene)
    sizes = [scene.things[i].size for i in alike]
    if len(alike) < 2 or sizes.count(thing.size) != 1:
        return None
    more, most = {"large": (("bigger", "larger"), ("biggest", "largest"))}.get(
        thing.size, (("smaller",), ("smallest",))
    )
    how = pick(rng, more if len(alike) == 2 else most)
    templates = (
        "[the |]{how} {bare:x}",
        "the {how} [one |]of the {many:x}",
        "{bare:x}, the {how} one",
    )
    text = say(rng, pick(rng, templates), x=kind, how=how)
    return Reference(text, dataclasses.replace(kind, size=thing.size))


def _unlike(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    """By a colour or pattern that all others of its kind have: "the star that is not red"."""
    thing = scene.things[target]
    kind = facts.kind_of(thing, ("shape",) if rng.random() < 0.7 else ("shape", "size"))
    others = [scene.things[i] for i in facts.looking(kind, scene) if i != target]
    name = pick(rng, ("colour", "pattern", "size"))
    values = {None if other.shaded and name != "size" else getattr(other, name) for other in others}
    # A shaded thing cannot be said not to be red.
    if len(values) != 1 or None in values or thing.shaded or getattr(thing, name) in values:
        return None
    value = values.pop()
    templates = (
        "[the |]{bare:x} that is not {value}",
        "[the |]{bare:x} [that isn't|which is not] {value}",
        "not the {value} {bare:x} but the other[ one|]",
    )
    text = say(
        rng, pick(rng, templates[:2] if len(others) != 1 else templates), x=kind, value=value
    )
    return Reference(text, kind, unlike=Kind(**{name: value}))


def _alike(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    """By a property that it shares with another thing: "heart of the same colour as the star"."""
    what, kind = pick(rng, ("colour", "shape", "size")), _looks(scene, target, rng)
    kind = dataclasses.replace(kind, **{what: None})
    anchor = pick(rng, [index for index in range(len(scene.things)) if index != target])
    thing, other = scene.things[target], scene.things[anchor]
    if getattr(thing, what) != getattr(other, what):
        return None
    if what == "colour" and (thing.shaded or other.shaded):
        return None
    relations = ((what, (anchor,)),)
    alike = [index for index in facts.looking(kind, scene) if index != target]
    name = by_looks(scene, anchor, rng)
    if name is None or not _only_related(scene, alike, relations):
        return None
    templates = (
        "[the |]{bare:x} of the same {what} as {the:y}",
        "[the |]{bare:x} with the same {what} as {the:y}",
        "{a:x}, same {what} as {the:y}",
    )
    text = say(rng, pick(rng, templates), x=kind, what=what, y=name)
    return Reference(text, kind, relations=relations)


def _quarter(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    """By the quarter of the picture: "red star top left"."""
    kind = _looks(scene, target, rng)
    sides = pick(rng, ("left", "right")), pick(rng, ("top", "bottom"))
    for index in facts.looking(kind, scene):
        inside = [facts.in_half(scene.things[index], side) for side in sides]
        if inside != [True, True] if index == target else False not in inside:
            return None
    templates = (
        "{bare:x} {tall} {side}",
        "[the |]{bare:x} [in the |]{upper} {side}",
        "{tall} {side} {bare:x}",
        "[the |]{upper} {side} {bare:x}",
    )
    upper = {"top": "upper", "bottom": "lower"}[sides[1]]
    fields = {"x": kind, "side": sides[0], "tall": sides[1], "upper": upper}
    return Reference(say(rng, pick(rng, templates), **fields), kind, sides)


def _outermost(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    """By the side of the picture: "red star left"."""
    kind, side = _looks(scene, target, rng), pick(rng, facts.SIDES)
    alike = facts.looking(kind, scene)
    # For a thing clearly on the other side this would mislead even if it is unique.
    away = facts.in_half(scene.things[target], side) is False
    if facts.rank(target, alike, side, scene) != 1 or (away and len(alike) < 3):
        return None
    templates = [
        "[the |]{side}most {bare:x}" if side != "top" else "topmost {bare:x}",
        "{the:name}",
    ]
    if not away:
        at = "[on|to] the" if side in ("left", "right") else "[at|near] the"
        templates += ["{bare:x} {side}", "{bare:x} " + at + " {side}", "{side} {bare:x}"]
    text = say(rng, pick(rng, templates), x=kind, side=side, name=Place(kind, side, 1))
    return Reference(text, kind, (side,))


def _ranked(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    """By counting from a side: "second heart from the top", or "middle star" of three."""
    kind, side = _looks(scene, target, rng), pick(rng, facts.SIDES)
    alike = facts.looking(kind, scene)
    place = facts.rank(target, alike, side, scene)
    if place is None or not 2 <= place <= 4:
        return None
    if 2 * place == len(alike) + 1 and rng.random() < 0.5:
        across = "top" if side in ("left", "right") else "left"
        rows = [facts.rank(index, alike, across, scene) for index in alike if index != target]
        if place in rows:
            return None  # another thing is in the middle in the other direction
        text = say(rng, pick(rng, ("[the |]middle {bare:x}", "{bare:x} in the middle")), x=kind)
        return Reference(text, kind, (side,), place)
    templates = (
        "{the:name}",
        "{ordinal} {bare:x} from [the |]{side}",
        "{bare:x}, {ordinal} from [the |]{side}",
    )
    fields = {"ordinal": ordinal(place), "side": side}
    text = say(rng, pick(rng, templates), x=kind, name=Place(kind, side, place), **fields)
    return Reference(text, kind, (side,), place)


def _related(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    """By one or two relations: "the small star to the left of the blue ring"."""
    kind = _looks(scene, target, rng)
    relations: list[tuple[str, tuple[int, ...]]] = []
    alike = [index for index in facts.looking(kind, scene) if index != target]
    wanted = pick(rng, (1, 1, 2))
    for others in shuffled(rng, [i for i in range(len(scene.things)) if i != target])[:wanted]:
        for relation in shuffled(rng, facts.RELATIONS):
            if facts.stands(scene.things[target], relation, scene.things[others]):
                relations.append((relation, (others,)))
                break
    if len(relations) < wanted or (not alike and rng.random() < 0.7):
        return None
    anchors = [by_looks(scene, anchors[0], rng) for _, anchors in relations]
    if None in anchors or not _only_related(scene, alike, relations):
        return None
    fields = {"x": kind, "r": relations[0][0], "y": anchors[0]}
    if wanted == 1:
        templates = (
            "the {bare:x} [|that is |which is |lying ]{to:r} {the:y}",
            "{a:x} [|that is |which is ]{to:r} {the:y}",
            "the {bare:x} that has {the:y} {its}",
            "the {bare:x}, {to:r} {the:y}",
        )
        fields["its"] = _ITS[relations[0][0]]
    else:
        templates = (
            "the {bare:x} [|that is |which is ]{to:r} {the:y} and {to:s} {the:z}",
            "{a:x} {to:r} {the:y} and also {to:s} {the:z}",
        )
        fields |= {"s": relations[1][0], "z": anchors[1]}
    text = say(rng, pick(rng, templates), **fields)
    return Reference(text, kind, relations=tuple(relations))


def _between(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    """By two others: "the star between the ring and the heart"."""
    kind = _looks(scene, target, rng)
    others = [index for index in range(len(scene.things)) if index != target]
    for one, two in shuffled(rng, tuple(itertools.combinations(others, 2))):
        if facts.between(*(scene.things[i] for i in (target, one, two))):
            relations = (("between", (one, two)),)
            alike = [index for index in facts.looking(kind, scene) if index != target]
            y, z = by_looks(scene, one, rng), by_looks(scene, two, rng)
            if y is None or z is None or not _only_related(scene, alike, relations):
                return None
            rest = " [|that is |which lies ][|in ]between {the:y} and {the:z}"
            template = pick(rng, ("the {bare:x}", "{a:x}")) + rest
            return Reference(say(rng, template, x=kind, y=y, z=z), kind, relations=relations)
    return None


def _long(scene: Scene, target: int, rng: np.random.Generator) -> Reference | None:
    """By looks alone, in a full phrase."""
    kind = _single(scene, target, rng)
    if kind is None:
        return None
    templates = (
        "[the|the only] {bare:x} [|that lies |lying ]on the {ground:ground}",
        "{a:x} [in this picture|on the {ground:ground}]",
        "the {bare:x} that [is unlike all others|no other thing looks like]",
    )
    return Reference(say(rng, pick(rng, templates), x=kind, ground=scene.ground), kind)


def _only_related(
    scene: Scene, alike: Sequence[int], relations: Sequence[tuple[str, tuple[int, ...]]]
) -> bool:
    """Whether every other thing with the same looks clearly lacks one of the relations."""
    for index in alike:
        lacks = False
        for relation, anchors in relations:
            if index in anchors:
                lacks = True
            elif relation in ("colour", "shape", "size"):
                one, two = scene.things[index], scene.things[anchors[0]]
                # Nothing shaded seems to have a colour.
                lacks |= getattr(one, relation) != getattr(two, relation)
                lacks |= relation == "colour" and one.shaded
            elif relation == "between":
                lacks |= facts.between(*(scene.things[i] for i in (index, *anchors))) is False
            else:
                anchor = scene.things[anchors[0]]
                lacks |= facts.stands(scene.things[index], relation, anchor) is False
        if not lacks:
            return False
    return True


# Place of the other thing, seen from the target.
_ITS = {
    "left": "to its right",
    "right": "to its left",
    "above": "below it",
    "below": "above it",
    "near": "near it",
}
_WAYS = {
    "refcoco": (_outermost, _outermost, _ranked, _quarter, _short),
    "refcoco+": (_short, _short, _compared, _alike, _unlike),
    "refcocog": (_related, _related, _related, _between, _long),
}
STYLES = tuple(_WAYS)
