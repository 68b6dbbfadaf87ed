"""Claims about a picture that may be true or false: the basis of questions and hypotheses.

Each function proposes claims of one form. It first draws everything that must not depend on the
truth: way of naming, relation, number, size and pattern words. Its claims differ only in colours,
shapes and the things that they are about, and these are exchangeable in the generated world. So if
a caller draws a truth first and then a claim with that truth, the words reveal nothing.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from twelve_in_one.world.language import facts, statements
from twelve_in_one.world.language.facts import Kind, Name
from twelve_in_one.world.language.naming import Namer
from twelve_in_one.world.language.statements import Statement
from twelve_in_one.world.language.words import MARKS, NUMBERS, pick, shuffled
from twelve_in_one.world.scene import COLOURS, GROUNDS, PATTERNS, SHAPES, SIZES, Scene

# Most claims of one form about a scene: enough for a choice, few enough for speed.
_MOST = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A statement and the data for its wording.

    Attributes:
      statement: the claim itself.
      fields: of the templates that put it into words.
      things: indices of the things it is about, if it names any.
    """

    statement: Statement
    fields: Mapping[str, Name | str]
    things: tuple[int, ...] = ()


def coloured(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x is of a colour."""
    named = namer(scene, rng)
    return [
        Claim(statements.Is(index, Kind(colour=colour)), {"x": name, "value": colour}, (index,))
        for index, name in named.items()
        for colour in facts.palette(scene)
    ]


def of_two_colours(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x is of one of two colours."""
    colours = facts.palette(scene)
    if len(colours) < 3:
        return []
    claims = []
    for index, name in namer(scene, rng).items():
        for one, two in shuffled(rng, tuple(itertools.permutations(colours, 2)))[:6]:
            either = (
                statements.Is(index, Kind(colour=one)),
                statements.Is(index, Kind(colour=two)),
            )
            fields = {"x": name, "value": one, "other": two}
            claims.append(Claim(statements.Any(either), fields, (index,)))
    return claims


def patterned(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x has a pattern."""
    pattern = pick(rng, PATTERNS)
    return [
        Claim(
            statements.Is(index, Kind(pattern=pattern)),
            {"x": name, "value": pattern, "marks": MARKS[pattern]},
            (index,),
        )
        for index, name in namer(scene, rng).items()
    ]


def coloured_and_patterned(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x is of a colour and has a pattern."""
    pattern = pick(rng, PATTERNS)
    return [
        Claim(
            statements.Is(index, Kind(colour=colour, pattern=pattern)),
            {"x": name, "value": colour, "pattern": pattern},
            (index,),
        )
        for index, name in namer(scene, rng).items()
        for colour in facts.palette(scene)
    ]


def sized(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x is small, or large."""
    size = pick(rng, SIZES)
    return [
        Claim(statements.Is(index, Kind(size=size)), {"x": name, "value": size}, (index,))
        for index, name in namer(scene, rng).items()
    ]


def shaped(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x is of a shape."""
    return [
        Claim(statements.Is(index, Kind(shape=shape)), {"x": name, "y": Kind(shape)}, (index,))
        for index, name in namer(scene, rng).items()
        for shape in facts.shapes(scene)
    ]


def standing(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x has a relation to y."""
    relation = pick(rng, facts.RELATIONS)
    return [
        Claim(
            statements.Stands(one, relation, two),
            {"x": name, "relation": relation, "y": other},
            (one, two),
        )
        for (one, name), (two, other) in _pairs(namer(scene, rng), rng)
    ]


def among(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x is between y and z."""
    rows = shuffled(rng, tuple(itertools.permutations(namer(scene, rng).items(), 3)))
    return [
        Claim(statements.Between(i, j, k), {"x": x, "y": y, "z": z}, (i, j, k))
        for (i, x), (j, y), (k, z) in rows[: 2 * _MOST]
    ]


def in_half(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x is in a half of the picture."""
    side = pick(rng, facts.SIDES)
    return [
        Claim(statements.Lies(index, side), {"x": name, "side": side}, (index,))
        for index, name in namer(scene, rng).items()
    ]


def larger(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x is larger than y."""
    return [
        Claim(statements.Larger(one, two), {"x": name, "y": other}, (one, two))
        for (one, name), (two, other) in _pairs(namer(scene, rng), rng)
    ]


def alike(
    scene: Scene,
    rng: np.random.Generator,
    namer: Namer,
    properties: tuple[str, ...] = ("colour", "pattern"),
) -> list[Claim]:
    """x and y have the same property."""
    what = pick(rng, properties)
    return [
        Claim(statements.Same(one, two, what), {"x": name, "y": other, "what": what}, (one, two))
        for (one, name), (two, other) in _pairs(namer(scene, rng), rng)
    ]


def one_of_two(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x or y is of a colour."""
    return _joined(scene, rng, namer, statements.Any)


def both_of_two(scene: Scene, rng: np.random.Generator, namer: Namer) -> list[Claim]:
    """x and y are of a colour."""
    return _joined(scene, rng, namer, statements.All)


def counted(
    scene: Scene,
    rng: np.random.Generator,
    properties: tuple[tuple[str, ...], ...],
    bounds: tuple[tuple[int, int | None], ...],
) -> list[Claim]:
    """There are a given number of things of a kind.

    Args:
      scene: the subject.
      rng: draws the parts that the claims share.
      properties: of the kinds; one of these is drawn.
      bounds: least and greatest number; one of these is drawn. The lower one that is not zero is
        field "number".
    """
    (low, high), chosen = pick(rng, bounds), pick(rng, properties)
    number = NUMBERS[low or high or 0]
    return [
        Claim(
            statements.Count(kind, low, high),
            {"x": kind, "number": number},
            facts.looking(kind, scene),
        )
        for kind in kinds(scene, rng, chosen)
    ]


def compared(
    scene: Scene, rng: np.random.Generator, properties: tuple[str, ...], equal: bool = False
) -> list[Claim]:
    """There are more things of a kind than of another, or as many."""
    pairs = tuple(itertools.permutations(kinds(scene, rng, (pick(rng, properties),)), 2))
    return [
        Claim(statements.Compare(one, two, equal), {"x": one, "y": two})
        for one, two in shuffled(rng, pairs)[: 2 * _MOST]
    ]


def of_each(
    scene: Scene, rng: np.random.Generator, properties: tuple[tuple[str, str], ...]
) -> list[Claim]:
    """There are two or more things of a kind, and all are of another kind."""
    first, second = pick(rng, properties)
    others = kinds(scene, rng, (second,))
    return [
        Claim(
            statements.Every(kind, other),
            {"x": kind, "value": getattr(other, second)},
            facts.looking(kind, scene),
        )
        for kind in kinds(scene, rng, (first,))
        if len(facts.looking(kind, scene)) > 1
        for other in others
    ]


def beside(
    scene: Scene,
    rng: np.random.Generator,
    namer: Namer,
    properties: tuple[tuple[str, ...], ...],
    relations: tuple[str, ...] = facts.RELATIONS,
) -> list[Claim]:
    """A thing of a kind has a relation to y, if no position is in between."""
    relation = pick(rng, relations)
    named = tuple(namer(scene, rng).items())
    choices = itertools.product(kinds(scene, rng, pick(rng, properties)), named)
    return [
        Claim(
            statements.Some(kind, relation, index),
            {"x": kind, "relation": relation, "y": name},
            (index,),
        )
        for kind, (index, name) in shuffled(rng, tuple(choices))[: 2 * _MOST]
        if kind.shape != scene.things[index].shape and _clear(scene, kind, relation, index)
    ]


def either_exists(scene: Scene, rng: np.random.Generator) -> list[Claim]:
    """There is a thing of one kind or a thing of another."""
    return _exist(scene, rng, statements.Any)


def both_exist(scene: Scene, rng: np.random.Generator) -> list[Claim]:
    """There are a thing of one kind and a thing of another."""
    return _exist(scene, rng, statements.All)


def lies_on(scene: Scene, rng: np.random.Generator) -> list[Claim]:
    """The ground is this one."""
    return [Claim(statements.On(ground), {"ground": ground}) for ground in GROUNDS]


def exists_on(
    scene: Scene, rng: np.random.Generator, properties: tuple[tuple[str, ...], ...]
) -> list[Claim]:
    """A thing of a kind is on this ground; false claims err in the kind or in the ground."""
    claims = []
    for kind in kinds(scene, rng, pick(rng, properties)):
        count = statements.Count(kind, 1)
        ground = scene.ground if rng.random() < 0.75 else pick(rng, GROUNDS)
        both = statements.All((count, statements.On(ground)))
        claims.append(Claim(both, {"x": kind, "ground": ground}, facts.looking(kind, scene)))
    return claims


def kinds(scene: Scene, rng: np.random.Generator, properties: tuple[str, ...]) -> list[Kind]:
    """Kinds with these properties, some in the scene and some not.

    They have one size and one pattern, which are drawn. Shapes and colours are all that exist, or
    if both are named, the visible ones, in combinations that need not occur.
    """
    values = []
    for name in properties:
        match name:
            case "shape":
                values.append(SHAPES if "colour" not in properties else facts.shapes(scene))
            case "colour":
                values.append(tuple(COLOURS) if "shape" not in properties else facts.palette(scene))
            case "pattern":
                values.append((pick(rng, PATTERNS),))
            case "size":
                values.append((pick(rng, SIZES),))
    choices = shuffled(rng, tuple(itertools.product(*values)))
    return [Kind(**dict(zip(properties, chosen, strict=True))) for chosen in choices[:_MOST]]


def _pairs(
    named: Mapping[int, Name], rng: np.random.Generator
) -> list[tuple[tuple[int, Name], tuple[int, Name]]]:
    return shuffled(rng, tuple(itertools.permutations(named.items(), 2)))[: 2 * _MOST]


def _clear(scene: Scene, kind: Kind, relation: str, anchor: int) -> bool:
    return not any(
        index != anchor
        and facts.fits(kind, thing) is not False
        and facts.stands(thing, relation, scene.things[anchor]) is None
        for index, thing in enumerate(scene.things)
    )


def _joined(
    scene: Scene,
    rng: np.random.Generator,
    namer: Namer,
    join: type[statements.All] | type[statements.Any],
) -> list[Claim]:
    colours = facts.palette(scene)
    claims = []
    for (one, name), (two, other) in _pairs(namer(scene, rng), rng)[:8]:
        for colour in colours:
            parts = tuple(statements.Is(index, Kind(colour=colour)) for index in (one, two))
            claims.append(Claim(join(parts), {"x": name, "y": other, "value": colour}, (one, two)))
    return claims


def _exist(
    scene: Scene, rng: np.random.Generator, join: type[statements.All] | type[statements.Any]
) -> list[Claim]:
    properties = pick(rng, (("shape",), ("colour", "shape"), ("size", "shape")))
    pairs = tuple(itertools.permutations(kinds(scene, rng, properties), 2))
    claims = []
    for one, two in shuffled(rng, pairs)[:_MOST]:
        if one.shape == two.shape:
            continue  # one shaded thing may be either, but not both
        parts = (statements.Count(one, 1), statements.Count(two, 1))
        claims.append(Claim(join(parts), {"x": one, "y": two}))
    return claims
