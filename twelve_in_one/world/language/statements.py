"""Statements about a picture in machine form, and the picture's verdict on their truth.

Indices are those of visible things. `verdict` has three values: True and False if they are
certain, None if it cannot be told, as for colour and pattern of shaded things and for things
behind a curtain. Its argument `hidden` is the largest number of things that may be there.
"""

import dataclasses
from typing import Protocol

from twelve_in_one.world.language import facts
from twelve_in_one.world.language.facts import Kind
from twelve_in_one.world.scene import Scene

HIDDEN = 2


class Statement(Protocol):
    """Something that is true or false of a scene."""

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        """The picture's verdict on the statement's truth."""


@dataclasses.dataclass(frozen=True, slots=True)
class Is:
    """A visible thing is of a kind."""

    index: int
    kind: Kind

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        return facts.fits(self.kind, scene.things[self.index])


@dataclasses.dataclass(frozen=True, slots=True)
class Stands:
    """A visible thing has a relation (of `facts.RELATIONS`) to another."""

    index: int
    relation: str
    other: int

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        return facts.stands(scene.things[self.index], self.relation, scene.things[self.other])


@dataclasses.dataclass(frozen=True, slots=True)
class Between:
    """A visible thing is between two others."""

    index: int
    one: int
    other: int

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        return facts.between(*(scene.things[i] for i in (self.index, self.one, self.other)))


@dataclasses.dataclass(frozen=True, slots=True)
class Lies:
    """A visible thing is in the half of the picture at a side (of `facts.SIDES`)."""

    index: int
    side: str

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        return facts.in_half(scene.things[self.index], self.side)


@dataclasses.dataclass(frozen=True, slots=True)
class Same:
    """Two visible things have the same property: "shape", "colour", "pattern" or "size"."""

    index: int
    other: int
    name: str

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        one, two = scene.things[self.index], scene.things[self.other]
        if self.name in ("colour", "pattern") and (one.shaded or two.shaded):
            return None
        return getattr(one, self.name) == getattr(two, self.name)


@dataclasses.dataclass(frozen=True, slots=True)
class Larger:
    """A visible thing is larger than another; not told for two of one size."""

    index: int
    other: int

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        one, two = scene.things[self.index], scene.things[self.other]
        return None if one.size == two.size else one.size == "large"


@dataclasses.dataclass(frozen=True, slots=True)
class Count:
    """The number of things of a kind is at least `low` and at most `high` (None: no limit)."""

    kind: Kind
    low: int
    high: int | None = None

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        least, most = _range(self.kind, scene, hidden)
        if least >= self.low and (self.high is None or most <= self.high):
            return True
        return False if most < self.low or (self.high is not None and least > self.high) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Compare:
    """There are more things of a kind than of another, or as many if `equal`."""

    kind: Kind
    other: Kind
    equal: bool = False

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        least, most = _range(self.kind, scene, hidden)
        fewest, greatest = _range(self.other, scene, hidden)
        low, high = least - greatest, most - fewest
        if self.equal:
            return True if low == high == 0 else None if low <= 0 <= high else False
        return True if low > 0 else None if high > 0 else False


@dataclasses.dataclass(frozen=True, slots=True)
class Every:
    """There are things of a kind, and each is also of another kind."""

    kind: Kind
    other: Kind

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        told = [None] if scene.curtain else []
        exists = False
        for thing in scene.things:
            first, second = facts.fits(self.kind, thing), facts.fits(self.other, thing)
            exists |= first is True
            if first is not False and second is not True:
                told.append(False if first and second is False else None)
        return _least(told) if exists else None


@dataclasses.dataclass(frozen=True, slots=True)
class Some:
    """A thing of a kind has a relation to a visible thing."""

    kind: Kind
    relation: str
    other: int

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        # Things behind a curtain are further out on its side than all visible things.
        doubtful = scene.curtain is not None and (
            self.relation not in ("left", "right") or self.relation == scene.curtain
        )
        anchor = scene.things[self.other]
        for index, thing in enumerate(scene.things):
            fit = facts.fits(self.kind, thing)
            if index == self.other or fit is False:
                continue
            holds = facts.stands(thing, self.relation, anchor)
            if fit and holds:
                return True
            doubtful |= holds is not False
        return None if doubtful else False


@dataclasses.dataclass(frozen=True, slots=True)
class On:
    """The ground is this one."""

    ground: str

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        return scene.ground == self.ground


@dataclasses.dataclass(frozen=True, slots=True)
class Hangs:
    """A curtain hides this side."""

    side: str

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        return scene.curtain == self.side


@dataclasses.dataclass(frozen=True, slots=True)
class Not:
    """The statement is false."""

    statement: Statement

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        told = self.statement.verdict(scene, hidden)
        return None if told is None else not told


@dataclasses.dataclass(frozen=True, slots=True)
class All:
    """All statements are true.

    Decided one after another, which is exact if no two depend on the same unknown.
    """

    statements: tuple[Statement, ...]

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        return _least([part.verdict(scene, hidden) for part in self.statements])


@dataclasses.dataclass(frozen=True, slots=True)
class Any:
    """At least one statement is true; as exact as `All`."""

    statements: tuple[Statement, ...]

    def verdict(self, scene: Scene, hidden: int = HIDDEN) -> bool | None:
        told = [part.verdict(scene, hidden) for part in self.statements]
        return True if True in told else None if None in told else False


def _range(kind: Kind, scene: Scene, hidden: int) -> tuple[int, int]:
    """The least and the greatest possible number of things of a kind."""
    fit = [facts.fits(kind, thing) for thing in scene.things]
    least = fit.count(True)
    return least, least + fit.count(None) + (hidden if scene.curtain else 0)


def _least(told: list[bool | None]) -> bool | None:
    """The conjunction: False if one is, else None if one is, else True."""
    return False if False in told else None if None in told else True
