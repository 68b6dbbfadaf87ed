"""Clips of the world: a few things on a ground, some of which move, or show and go.

What a clip shows is drawn so that no single frame tells it. Things that move and things that stay
are alike in the middle of the clip, where they are equally likely to be anywhere; of two that show
one after the other, the one that is seen in a frame near the middle is as likely the first as the
second.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from twelve_in_one.world.grounds import ground
from twelve_in_one.world.render import draw_thing
from twelve_in_one.world.scene import COLOURS, GROUNDS, HEIGHT, SHAPES, WIDTH, Thing

SIDE, FRAMES = 64, 8  # pixels of a frame, frames of a clip
# Kind of clip: one thing moves; one to three move at once; two move, one after the other; two show,
# one after the other.
KINDS = ("moves", "count", "turns", "shows")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_THINGS, _RADIUS, _REACH = 3, 7.0, 20.0  # pixels
_SHOWN = 2  # frames that a thing shows for
_MARGIN = 5  # pixels around a frame, for shadows


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that happens.

    Attributes:
      thing: number of the thing.
      what: one of DIRECTIONS, into which it moves, or "shows": it is seen only then.
      start: first frame.
      stop: last frame of a movement; of "shows" the first without it.
    """

    thing: int
    what: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, slots=True)
class ClipScene:
    """A clip before it is drawn.

    Attributes:
      kind: one of KINDS.
      ground: one of GROUNDS.
      things: three of different shapes and colours, where they are half-way.
      events: in the order of their time.
    """

    kind: str
    ground: str
    things: tuple[Thing, ...]
    events: tuple[Event, ...]

    def frame(self, number: int) -> Iterator[Thing]:
        """The things that are seen in a frame, where they then are."""
        for place, thing in enumerate(self.things):
            x, y, seen = thing.x, thing.y, True
            for event in self.events:
                if event.thing != place:
                    continue
                if event.what == "shows":
                    seen = event.start <= number < event.stop
                    continue
                done = np.clip((number - event.start) / (event.stop - event.start), 0, 1)
                across, down = DIRECTIONS[event.what]
                x += across * _REACH * (done - 0.5)
                y += down * _REACH * (done - 0.5)
            if seen:
                yield dataclasses.replace(thing, x=float(x), y=float(y))


def sample(kind: str, rng: np.random.Generator) -> ClipScene:
    """A clip of a kind."""
    events = _events(kind, rng)
    shapes, colours = (rng.permutation(names)[:_THINGS] for names in (SHAPES, tuple(COLOURS)))
    radius = _RADIUS * rng.uniform(0.95, 1.05)
    while True:
        edge = radius + _REACH / 2 + 1
        places = rng.uniform(edge, SIDE - edge, (_THINGS, 2))
        things = tuple(
            Thing(str(shape), str(colour), "plain", "small", float(x), float(y), float(radius))
            for shape, colour, (x, y) in zip(shapes, colours, places, strict=True)
        )
        scene = ClipScene(kind, GROUNDS[rng.integers(len(GROUNDS))], things, events)
        if all(_apart(tuple(scene.frame(number)), radius) for number in range(FRAMES)):
            return scene


def _events(kind: str, rng: np.random.Generator) -> tuple[Event, ...]:
    order = [int(number) for number in rng.permutation(_THINGS)]
    ways = [str(way) for way in rng.choice(list(DIRECTIONS), _THINGS)]
    last = FRAMES - 1
    if kind == "turns":
        middle = FRAMES // 2
        return Event(order[0], ways[0], 0, middle - 1), Event(order[1], ways[1], middle, last)
    if kind == "shows":
        # Symmetric about the frame from which a middle frame is taken, FRAMES // 2.
        starts = np.arange(1, FRAMES - 1)
        pairs = [(a, b) for a in starts for b in starts if b - a >= _SHOWN]
        times = pairs[rng.integers(len(pairs))]
        return tuple(
            Event(thing, "shows", int(start), int(start) + _SHOWN)
            for thing, start in zip(order, times, strict=False)
        )
    moving = 1 if kind == "moves" else int(rng.integers(1, _THINGS + 1))
    return tuple(Event(order[i], ways[i], 0, last) for i in range(moving))


def _apart(things: tuple[Thing, ...], radius: float) -> bool:
    """Whether no thing touches another."""
    places = np.array([(thing.x, thing.y) for thing in things])
    gaps = np.abs(places[:, None] - places[None]).max(-1) + np.eye(len(things)) * SIDE
    return bool((gaps > 2 * radius).all())


def render(scene: ClipScene, rng: np.random.Generator) -> np.ndarray:
    """Pixels of the frames, uint8[FRAMES, SIDE, SIDE, 3]; `rng` decides looks, not contents."""
    whole = SIDE + 2 * _MARGIN
    y, x = (int(rng.integers(size - whole)) for size in (HEIGHT, WIDTH))
    backdrop = ground(scene.ground, rng)[y : y + whole, x : x + whole]
    seeds = {thing.shape: int(rng.integers(1 << 32)) for thing in scene.things}
    light, grain = rng.uniform(0.9, 1.08), rng.uniform(1, 4)
    frames = []
    for number in range(FRAMES):
        canvas = backdrop.copy()
        for thing in scene.frame(number):
            # The same tints in every frame.
            draw_thing(canvas, thing, np.random.default_rng(seeds[thing.shape]), _MARGIN)
        frame = canvas[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] * light
        frame += grain * rng.standard_normal((SIDE, SIDE, 1))
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return np.stack(frames)
