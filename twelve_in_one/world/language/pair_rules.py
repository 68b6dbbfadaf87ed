"""Meanings of sentences about two pictures, in machine form.

Only visible facts count: nothing shaded is coloured, and nothing is behind a curtain.
"""

import dataclasses
from typing import Literal, Protocol

from twelve_in_one.world.language import facts
from twelve_in_one.world.language.facts import Kind
from twelve_in_one.world.scene import Scene

Picture = Literal["left", "right", "each", "one", "any", "neither"]


class Rule(Protocol):
    """Something that is true or false of two scenes."""

    def holds(self, left: Scene, right: Scene) -> bool:
        """Whether it is true."""


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """A picture shows at least `low` and at most `high` (None: no limit) things of a kind."""

    kind: Kind
    low: int
    high: int | None = None

    def shown(self, scene: Scene) -> bool:
        count = len(facts.looking(self.kind, scene))
        return count >= self.low and (self.high is None or count <= self.high)


@dataclasses.dataclass(frozen=True, slots=True)
class Every:
    """A picture shows things of a kind, and all of these are of another kind."""

    kind: Kind
    other: Kind

    def shown(self, scene: Scene) -> bool:
        fit = facts.looking(self.kind, scene)
        return bool(fit) and all(facts.fits(self.other, scene.things[i]) for i in fit)


@dataclasses.dataclass(frozen=True, slots=True)
class More:
    """A picture shows more things of a kind than of another."""

    kind: Kind
    other: Kind

    def shown(self, scene: Scene) -> bool:
        return len(facts.looking(self.kind, scene)) > len(facts.looking(self.other, scene))


@dataclasses.dataclass(frozen=True, slots=True)
class Ground:
    """A picture's ground is one of these."""

    grounds: tuple[str, ...]

    def shown(self, scene: Scene) -> bool:
        return scene.ground in self.grounds


Shown = Number | Every | More | Ground


@dataclasses.dataclass(frozen=True, slots=True)
class In:
    """Something is shown in the left or right picture, in each, exactly one, any or neither."""

    which: Picture
    shown: Shown

    def holds(self, left: Scene, right: Scene) -> bool:
        one, two = self.shown.shown(left), self.shown.shown(right)
        return {
            "left": one,
            "right": two,
            "each": one and two,
            "one": one != two,
            "any": one or two,
            "neither": not one and not two,
        }[self.which]


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """One picture shows the first and the other one the second."""

    first: Shown
    second: Shown

    def holds(self, left: Scene, right: Scene) -> bool:
        straight = self.first.shown(left) and self.second.shown(right)
        crossed = self.first.shown(right) and self.second.shown(left)
        return straight or crossed


@dataclasses.dataclass(frozen=True, slots=True)
class Total:
    """Both pictures together show at least `low` and at most `high` things of a kind."""

    kind: Kind
    low: int
    high: int | None = None

    def holds(self, left: Scene, right: Scene) -> bool:
        count = sum(len(facts.looking(self.kind, scene)) for scene in (left, right))
        return count >= self.low and (self.high is None or count <= self.high)


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """How many more things of a kind the left picture shows: at least `low`, at most `high`."""

    kind: Kind
    low: int | None = None
    high: int | None = None

    def holds(self, left: Scene, right: Scene) -> bool:
        more = len(facts.looking(self.kind, left)) - len(facts.looking(self.kind, right))
        return (self.low is None or more >= self.low) and (self.high is None or more <= self.high)
