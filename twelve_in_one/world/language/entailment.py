"""Hypotheses about a picture that it entails, contradicts or leaves open (SNLI-VE).

Shade or a curtain leaves things open. Hypotheses of the three labels have the same words in
the same forms: a form is drawn before the label plays a part, and if this picture cannot show it
with every label, the pictures that differ only in the curtain make up for that.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from twelve_in_one.world.language import claims, statements
from twelve_in_one.world.language.claims import Claim
from twelve_in_one.world.language.naming import in_row, uncoloured
from twelve_in_one.world.language.statements import Statement
from twelve_in_one.world.language.words import pick, say, sentence
from twelve_in_one.world.scene import CURTAIN_SHARE, Scene

_VERDICTS = {"contradiction": False, "neutral": None, "entailment": True}
LABELS = tuple(_VERDICTS)
_DENIED = 0.2  # share of denials among sentences of forms that can deny
_TRIES = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Hypothesis:
    """A hypothesis and its meaning.

    Attributes:
      text: the sentence.
      statement: its claim.
      label: one of LABELS, the statement's verdict in this scene.
    """

    text: str
    statement: Statement
    label: str


@dataclasses.dataclass(frozen=True)
class _Form:
    """Claims and templates that affirm or deny them; `sided` if the curtain's side matters."""

    claims: Callable[[Scene, np.random.Generator], list[Claim]]
    affirm: tuple[str, ...]
    deny: tuple[str, ...] = ()
    sided: bool = False


def hypothesis(scene: Scene, rng: np.random.Generator, label: str) -> str | None:
    """The text of `draw`, or None if that is None."""
    drawn = draw(scene, rng, label)
    return None if drawn is None else drawn.text


def draw(scene: Scene, rng: np.random.Generator, label: str) -> Hypothesis | None:
    """A hypothesis with a label.

    Args:
      scene: contents of the picture.
      rng: source of all random draws.
      label: one of LABELS.

    Returns:
      The hypothesis, or None if the scene offers none: it needs a shaded thing and another
      that is named the same way. This does not depend on the label, so labels stay balanced if
      the caller asks for each of them equally often.

    Raises:
      ValueError: the label is not in LABELS.
    """
    if label not in LABELS:
        raise ValueError(f"label must be one of {LABELS}, got {label!r}")
    plain = _plain(scene, rng)
    if plain is None:
        return None
    chosen = _behind(scene, rng, label) or plain
    claim = pick(rng, chosen.pools[label])
    text = say(rng, pick(rng, chosen.templates), **claim.fields)
    statement = statements.Not(claim.statement) if chosen.denies else claim.statement
    return Hypothesis(sentence(text), statement, label)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A form's claims, by the label of the claim or its denial."""

    templates: tuple[str, ...]
    denies: bool
    pools: dict[str, list[Claim]]


def _plain(scene: Scene, rng: np.random.Generator) -> _Choice | None:
    """A form about visible things that this scene can show with every label."""
    if not any(thing.shaded for thing in scene.things):
        return None
    for form in (*(pick(rng, _PLAIN_SHARES) for _ in range(_TRIES)), _SUREST, _SUREST):
        denies = bool(form.deny) and rng.random() < _DENIED
        pools = _pooled(form.claims(scene, rng), denies, scene)
        if all(pools.values()):
            return _Choice(form.deny if denies else form.affirm, denies, pools)
    return None


def _behind(scene: Scene, rng: np.random.Generator, label: str) -> _Choice | None:
    """A form about all things, or None.

    A scene shows it with some labels only if it has a curtain, with others only if it has none.
    The offer is thinned out so that each label is as frequent as the rarest, over
    scenes with the usual share of curtains.
    """
    form = pick(rng, _BEHIND)
    denies = bool(form.deny) and rng.random() < _DENIED
    if form.sided:
        shares = {None: 1 - CURTAIN_SHARE, "left": CURTAIN_SHARE / 2, "right": CURTAIN_SHARE / 2}
    else:
        shares = {None: 1 - CURTAIN_SHARE, scene.curtain or "left": CURTAIN_SHARE}
    proposed = form.claims(scene, rng)
    versions = {
        side: _pooled(proposed, denies, dataclasses.replace(scene, curtain=side)) for side in shares
    }
    reach = {
        name: sum(share for side, share in shares.items() if versions[side][name])
        for name in LABELS
    }
    offered = rng.random() * reach[label] < min(reach.values())
    pools = versions[scene.curtain]
    if not offered or not pools[label]:
        return None
    return _Choice(form.deny if denies else form.affirm, denies, pools)


def _pooled(proposed: list[Claim], denies: bool, scene: Scene) -> dict[str, list[Claim]]:
    """Claims by the label of the claim (or its denial) in a scene.

    Claims that depend on how many things fit behind a curtain are left out.
    """
    names = {told: label for label, told in _VERDICTS.items()}
    pools: dict[str, list[Claim]] = {label: [] for label in LABELS}
    for claim in proposed:
        told = claim.statement.verdict(scene)
        if not scene.curtain or told == claim.statement.verdict(scene, hidden=99):
            pools[names[told if told is None else told != denies]].append(claim)
    return pools


_PLAIN = (
    _Form(
        partial(claims.coloured, namer=uncoloured),
        ("{the:x} is {value}", "the colour of {the:x} is {value}", "{the:x} is [painted |]{value}"),
        ("{the:x} [is not|isn't] {value}", "the colour of {the:x} is not {value}"),
    ),
    _Form(
        partial(claims.of_two_colours, namer=uncoloured),
        ("{the:x} is [either |]{value} or {other}", "{value} or {other} is the colour of {the:x}"),
        ("{the:x} is neither {value} nor {other}", "{the:x} is not {value} and not {other}"),
    ),
    _Form(
        partial(claims.patterned, namer=uncoloured),
        ("{the:x} is {value}", "{the:x} has {marks}"),
        ("{the:x} [is not|isn't] {value}", "the pattern of {the:x} is not {value}"),
    ),
    _Form(
        partial(claims.coloured_and_patterned, namer=uncoloured),
        ("{the:x} is {pattern} and {value}", "{the:x} is [both |]{value} and {pattern}"),
        ("{the:x} is not both {pattern} and {value}",),
    ),
    _Form(
        partial(claims.alike, namer=uncoloured),
        (
            "{the:x} and {the:y} have the same {what}",
            "{the:x} has the same {what} as {the:y}",
            "{the:x} matches {the:y} in {what}",
        ),
        (
            "{the:x} and {the:y} [differ in|are not the same] {what}",
            "{the:x} does not have the same {what} as {the:y}",
            "{the:x} has another {what} than {the:y}",
        ),
    ),
    _Form(
        partial(claims.one_of_two, namer=uncoloured),
        ("[either |]{the:x} or {the:y} is {value}", "{the:x} is {value} or {the:y} is"),
        (
            "neither {the:x} nor {the:y} is {value}",
            "{the:x} is not {value} and {the:y} isn't either",
        ),
    ),
    _Form(
        partial(claims.both_of_two, namer=uncoloured),
        ("both {the:x} and {the:y} are {value}", "{the:x} is {value} and so is {the:y}"),
        ("{the:x} and {the:y} are not both {value}",),
    ),
)
_PLAIN_SHARES = (*12 * (_PLAIN[0],), *_PLAIN)
# Hardly ever impossible if something is shaded.
_SUREST = dataclasses.replace(
    _PLAIN[0], claims=partial(claims.coloured, namer=partial(in_row, sides=("left", "right")))
)

_HERE = "[ in the picture| in the image| in this scene|]"
_KINDS = (
    *3 * (("shape",),),
    ("size", "shape"),
    ("colour", "shape"),
    ("pattern", "shape"),
    ("colour",),
    ("size", "colour"),
    ("pattern", "colour"),
)
_EXISTS = _Form(
    partial(claims.counted, properties=_KINDS, bounds=((1, None),)),
    (
        "there is {a:x}" + _HERE,
        "{a:x} is [in the picture|part of the scene|somewhere in the image]",
        "the [picture|image|scene] [contains|has] {a:x}",
        "[at least|no fewer than] one {bare:x} is there",
    ),
    (
        "there is no {bare:x}" + _HERE,
        "there are no {many:x}" + _HERE,
        "no {bare:x} is [in the picture|part of the scene]",
        "the [picture|image|scene] [contains|has] no {many:x}",
        "not a single {bare:x} is there",
    ),
)
_BEHIND = (
    *20 * (_EXISTS,),  # most of what people write is that plain
    _Form(
        partial(claims.counted, properties=_KINDS, bounds=((1, 1),)),
        ("there is [exactly|just|only] one {bare:x}" + _HERE, "the scene has a single {bare:x}"),
        ("the number of {many:x} is not one", "there is not exactly one {bare:x}" + _HERE),
    ),
    _Form(
        partial(claims.counted, properties=_KINDS, bounds=((2, 2), (2, 2), (3, 3))),
        (
            "there are [exactly|just|only] {number} {many:x}" + _HERE,
            "the number of {many:x} is {number}",
            "the [picture|image] [contains|has] exactly {number} {many:x}",
        ),
        ("there are not exactly {number} {many:x}" + _HERE,),
    ),
    _Form(
        partial(claims.counted, properties=_KINDS, bounds=((2, None),)),
        ("there are [at least {number}|{number} or more] {many:x}" + _HERE,),
        (
            "there are [fewer than|not even] {number} {many:x}" + _HERE,
            "there is at most one {bare:x}" + _HERE,
        ),
    ),
    _Form(
        partial(claims.compared, properties=("shape", "colour")),
        ("there are more {many:x} than {many:y}" + _HERE, "{many:x} outnumber {many:y}"),
        ("there are not more {many:x} than {many:y}" + _HERE,),
    ),
    _Form(
        partial(claims.compared, properties=("shape", "colour")),
        ("there are fewer {many:y} than {many:x}" + _HERE,),
        ("there are at least as many {many:y} as {many:x}" + _HERE,),
    ),
    _Form(
        partial(claims.of_each, properties=(("shape", "size"), ("colour", "size"))),
        ("all {many:x}[ in the picture|] are {value}", "every {bare:x} is {value}"),
        ("not all {many:x} are {value}", "not every {bare:x} is {value}"),
    ),
    _Form(
        partial(
            claims.of_each,
            properties=(("shape", "pattern"), ("colour", "pattern"), ("shape", "colour")),
        ),
        ("all {many:x}[ in the picture|] are {value}", "every {bare:x} is {value}"),
        ("not all {many:x} are {value}", "not every {bare:x} is {value}"),
    ),
    _Form(
        partial(claims.beside, namer=uncoloured, properties=_KINDS, relations=("left", "right")),
        (
            "there is {a:x} {to:relation} {the:y}",
            "{a:x} is {to:relation} {the:y}",
            "{to:relation} {the:y} is {a:x}",
        ),
        (
            "there is no {bare:x} {to:relation} {the:y}",
            "no {bare:x} is {to:relation} {the:y}",
            "there are no {many:x} {to:relation} {the:y}",
        ),
        sided=True,
    ),
    _Form(
        partial(claims.exists_on, properties=_KINDS),
        (
            "there is {a:x} on the {ground:ground}",
            "{a:x} [lies|is] on the {ground:ground}",
            "on the {ground:ground} is {a:x}",
        ),
    ),
    _Form(
        claims.either_exists,
        ("there is {a:x} or {a:y}" + _HERE, "the [picture|image] has {a:x} or {a:y}"),
        ("there is neither {a:x} nor {a:y}" + _HERE,),
    ),
    _Form(
        claims.both_exist,
        ("there are {a:x} and {a:y}" + _HERE, "the [picture|image] [has|contains] {a:x} and {a:y}"),
        ("the [picture|image] does not have both {a:x} and {a:y}",),
    ),
)
