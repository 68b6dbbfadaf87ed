"""Drafts of questions: claims to verify, properties, numbers, grounds, places, choices.

Yes and no are drawn first, then a claim with that truth, see `claims`.
If the values of an answer are not equally frequent in the world (numbers, patterns, sizes), a
question is only asked about a scene in which each of them can be made the answer, and the
value is drawn before the things. Colours, shapes, grounds and sides need no such care.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from twelve_in_one.world.language import facts
from twelve_in_one.world.language.claims import Claim, kinds
from twelve_in_one.world.language.facts import Kind, Name
from twelve_in_one.world.language.naming import Namer, names
from twelve_in_one.world.language.words import pick, shuffled
from twelve_in_one.world.scene import GROUNDS, PATTERNS, SIZES, Scene


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """A question before it is worded.

    Attributes:
      answer: the right one.
      fields: of the templates.
      things: indices of the things it is about.
      wrong: answers that people may give by mistake, () to use those of the world at large.
    """

    answer: str
    fields: Mapping[str, Name | str]
    things: tuple[int, ...] = ()
    wrong: tuple[str, ...] = ()


def truth(
    scene: Scene,
    rng: np.random.Generator,
    propose: Callable[[Scene, np.random.Generator], list[Claim]],
) -> Draft | None:
    """A claim to be verified; None unless the form has true and false ones in this scene."""
    pools: dict[bool, list[Claim]] = {True: [], False: []}
    for claim in propose(scene, rng):
        told = claim.statement.verdict(scene)
        if told is not None:
            pools[told].append(claim)
    if not all(pools.values()):
        return None
    told = bool(rng.random() < 0.5)
    claim = pick(rng, pools[told])
    answer, wrong = ("yes", "no") if told else ("no", "yes")
    return Draft(answer, claim.fields, claim.things, (wrong,))


def value(scene: Scene, rng: np.random.Generator, what: str, namer: Namer) -> Draft | None:
    """Asks for a property of a thing: "shape", "colour", "pattern" or "size"."""
    drafts = [
        Draft(getattr(scene.things[index], what), {"x": name, "what": what}, (index,))
        for index, name in namer(scene, rng).items()
        if what in ("shape", "size") or not scene.things[index].shaded
    ]
    return _balanced(drafts, {"pattern": PATTERNS, "size": SIZES}.get(what, ()), rng)


def shared_value(scene: Scene, rng: np.random.Generator) -> Draft | None:
    """Asks for the colour of all things of a shape that several things have."""
    drafts = []
    for shape in facts.shapes(scene):
        fit = facts.looking(Kind(shape), scene)
        colours = {None if scene.things[i].shaded else scene.things[i].colour for i in fit}
        if len(fit) > 1 and len(colours) == 1 and None not in colours and not scene.curtain:
            drafts.append(Draft(colours.pop(), {"x": Kind(shape)}, fit))
    return _balanced(drafts, (), rng)


def shape_of_kind(scene: Scene, rng: np.random.Generator) -> Draft | None:
    """Asks for the shape of the one thing of a colour or pattern."""
    named = names(scene, rng, hide=("shape", "dark"))
    drafts = [Draft(scene.things[i].shape, {"x": kind}, (i,)) for i, kind in named.items()]
    return _balanced(drafts, (), rng)


def neighbour(scene: Scene, rng: np.random.Generator, namer: Namer, words: int = 1) -> Draft | None:
    """Asks which thing has a relation to a thing; the answer is a shape, or colour and shape."""
    relation = pick(rng, facts.RELATIONS)
    drafts = []
    for index, name in namer(scene, rng).items():
        found = facts.related(scene, relation, index)
        if found is not None and len(found) == 1:
            thing = scene.things[found[0]]
            if words == 1 or not thing.shaded:
                answer = thing.shape if words == 1 else f"{thing.colour} {thing.shape}"
                fields = {"relation": relation, "y": name}
                drafts.append(Draft(answer, fields, (*found, index)))
    return _balanced(drafts, (), rng)


def number(
    scene: Scene,
    rng: np.random.Generator,
    properties: tuple[tuple[str, ...], ...],
    values: tuple[int, ...] = (0, 1, 2),
) -> Draft | None:
    """Asks how many things of a kind there are, or can be seen if there is a curtain."""
    drafts = []
    for kind in kinds(scene, rng, pick(rng, properties)):
        fit = [facts.fits(kind, thing) for thing in scene.things]
        if None not in fit:
            fields = {"x": kind, "there": _there(scene)}
            drafts.append(Draft(str(fit.count(True)), fields, facts.looking(kind, scene)))
    return _balanced(drafts, tuple(map(str, values)), rng)


def number_of_all(scene: Scene, rng: np.random.Generator) -> Draft:
    """Asks how many things there are, or can be seen."""
    every = tuple(range(len(scene.things)))
    return Draft(str(len(every)), {"x": Kind(), "there": _there(scene)}, every)


def number_beside(scene: Scene, rng: np.random.Generator, namer: Namer) -> Draft | None:
    """Asks how many things have a relation to a thing."""
    relation = pick(rng, facts.RELATIONS[:4])
    kind = Kind(size=pick(rng, (None, *SIZES)))
    # Things hidden by a curtain on the other side would not count.
    if scene.curtain not in {"left": (None, "right"), "right": (None, "left")}.get(
        relation, (None,)
    ):
        return None
    drafts = []
    for index, name in namer(scene, rng).items():
        found = facts.related(scene, relation, index)
        if found is not None:
            count = sum(facts.fits(kind, scene.things[i]) is True for i in found)
            fields = {"x": kind, "relation": relation, "y": name}
            drafts.append(Draft(str(count), fields, (*found, index)))
    return _balanced(drafts, ("0", "1", "2"), rng)


def number_alike(scene: Scene, rng: np.random.Generator) -> Draft | None:
    """Asks how many of several things of a shape have a size."""
    size = pick(rng, SIZES)
    drafts = []
    for shape in facts.shapes(scene):
        fit = facts.looking(Kind(shape), scene)
        if len(fit) > 1 and not scene.curtain:
            count = sum(scene.things[i].size == size for i in fit)
            drafts.append(Draft(str(count), {"x": Kind(shape), "value": size}, fit))
    return _balanced(drafts, ("1", "2"), rng)


def ground(scene: Scene, rng: np.random.Generator) -> Draft:
    """Asks for the ground."""
    return Draft(scene.ground, {})


def ground_under(
    scene: Scene, rng: np.random.Generator, namer: Namer, phrase: bool = False
) -> Draft | None:
    """Asks what a thing lies on, or where it is: "grass" or "on the grass"."""
    named = tuple(namer(scene, rng).items())
    if not named:
        return None
    index, name = pick(rng, named)
    return Draft(f"on the {scene.ground}" if phrase else scene.ground, {"x": name}, (index,))


def ground_of_two(scene: Scene, rng: np.random.Generator) -> Draft:
    """Asks which of two grounds it is."""
    other = pick(rng, [name for name in GROUNDS if name != scene.ground])
    one, two = shuffled(rng, (scene.ground, other))
    return Draft(scene.ground, {"one": one, "two": two}, wrong=(other,))


def side(scene: Scene, rng: np.random.Generator, namer: Namer, long: bool = False) -> Draft | None:
    """Asks in which half of the picture a thing is: "left", or "on the left"."""
    one, two = pick(rng, (("left", "right"), ("top", "bottom")))
    first, second = shuffled(rng, (one, two))
    how = "on the {}" if one == "left" else "at the {}"
    drafts = []
    for index, name in namer(scene, rng).items():
        at = facts.in_half(scene.things[index], one)
        if at is not None:
            here = one if at else two
            fields = {"x": name, "one": first, "two": second}
            drafts.append(Draft(how.format(here) if long else here, fields, (index,)))
    answers = (one, two) if not long else (how.format(one), how.format(two))
    return _balanced(drafts, answers, rng)


def value_of_two(scene: Scene, rng: np.random.Generator, what: str, namer: Namer) -> Draft | None:
    """Asks which of two colours, shapes, patterns or sizes a thing has, named in random order."""
    draft = value(scene, rng, what, namer)
    if draft is None:
        return None
    seen = {
        "colour": facts.palette(scene),
        "shape": facts.shapes(scene),
        "pattern": PATTERNS,
        "size": SIZES,
    }[what]
    others = [other for other in seen if other != draft.answer]
    if not others:
        return None
    wrong = pick(rng, others)
    one, two = shuffled(rng, (draft.answer, wrong))
    fields = {**draft.fields, "one": one, "two": two}
    return Draft(draft.answer, fields, draft.things, (wrong,))


def relation_of_two(scene: Scene, rng: np.random.Generator, namer: Namer) -> Draft | None:
    """Asks which of two opposite relations a thing has to another."""
    one, two = pick(rng, (("left", "right"), ("above", "below")))
    first, second = shuffled(rng, (one, two))
    drafts = []
    named = tuple(namer(scene, rng).items())
    for index, name in named:
        for other, anchor in named:
            holds = other != index and facts.stands(scene.things[index], one, scene.things[other])
            if index != other and holds is not None:
                fields = {"x": name, "y": anchor, "one": first, "two": second}
                answer, wrong = (one, two) if holds else (two, one)
                drafts.append(Draft(answer, fields, (index, other), (wrong,)))
    return _balanced(drafts, (one, two), rng)


def larger_of_two(scene: Scene, rng: np.random.Generator) -> Draft | None:
    """Asks which of two shapes, with one thing each, is larger, or smaller."""
    size = pick(rng, SIZES)
    single = [s for s in facts.shapes(scene) if facts.only(Kind(s), scene) is not None]
    drafts = []
    for one in single:
        for two in single:
            i, j = (facts.only(Kind(shape), scene) for shape in (one, two))
            if scene.things[i].size == size != scene.things[j].size:
                first, second = shuffled(rng, (one, two))
                fields = {
                    "x": Kind(first),
                    "y": Kind(second),
                    "size": "larger" if size == "large" else "smaller",
                }
                drafts.append(Draft(one, fields, (i, j), (two,)))
    return _balanced(drafts, (), rng)


def holder_of_two(scene: Scene, rng: np.random.Generator) -> Draft | None:
    """Asks which of two shapes, with one thing each, has a colour."""
    single = [s for s in facts.shapes(scene) if facts.only(Kind(s), scene) is not None]
    drafts = []
    for one in single:
        for two in single:
            i, j = (facts.only(Kind(shape), scene) for shape in (one, two))
            things = scene.things[i], scene.things[j]
            if not any(t.shaded for t in things) and things[0].colour != things[1].colour:
                first, second = shuffled(rng, (one, two))
                fields = {"x": Kind(first), "y": Kind(second), "value": things[0].colour}
                drafts.append(Draft(one, fields, (i, j), (two,)))
    return _balanced(drafts, (), rng)


def _there(scene: Scene) -> str:
    """With a curtain only visible things can be counted."""
    return "can be seen" if scene.curtain else "are there"


def _balanced(
    drafts: Sequence[Draft], answers: Sequence[str], rng: np.random.Generator
) -> Draft | None:
    """A draft for an answer drawn first, or None if some answer has no draft."""
    found: dict[str, list[Draft]] = {answer: [] for answer in answers}
    for draft in drafts:
        if not answers:
            found.setdefault(draft.answer, []).append(draft)
        elif draft.answer in found:
            found[draft.answer].append(draft)
    if not found or not all(found.values()):
        return None
    return pick(rng, found[pick(rng, tuple(found))])
