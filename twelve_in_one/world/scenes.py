"""Draws scenes at random: the things on the ground, their places, and the curtain.

Things in a scene often share shape or colour, so a question or an expression that names only
one of these does not say which thing it means.
"""

import numpy as np

from twelve_in_one.world.scene import (
    COLOURS,
    CURTAIN_SHARE,
    GROUNDS,
    HEIGHT,
    PATTERNS,
    RADIUS,
    SHAPES,
    SIZES,
    WIDTH,
    Scene,
    Thing,
)

MIN_THINGS, MAX_THINGS = 3, 8
CURTAIN_WIDTH = 0.22 * WIDTH  # pixels
_SHADED_SHARE = 0.15
# How often a thing takes a property from an existing one.
_SAME_SHAPE, _SAME_COLOUR = 0.4, 0.35
_PATTERN_SHARES = (0.5, 0.25, 0.25)
_MAX_OVERLAP = 0.2  # of two boxes, as a share of the smaller one
_MAX_TURN = 0.07  # radians, 4 degrees
_MARGIN = 1.0  # pixels between a thing and the border or the curtain
_PLACES_TRIED = 48


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene of 3 to 8 things, all fully visible up to a small overlap of their boxes.

    Number, shape, colour, size and ground are nearly uniform; 15 % of the things are shaded, 30 %
    of the scenes have a curtain. Coordinates have two decimals, as in annotation files.
    """
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    curtain = None
    if rng.random() < CURTAIN_SHARE:
        curtain = ("left", "right")[rng.integers(2)]
    count = int(rng.integers(MIN_THINGS, MAX_THINGS + 1))
    things: list[Thing] = []
    while len(things) < count:
        thing = placed(_looks(things, rng), things, curtain, rng)
        if thing is not None:
            things.append(thing)
        elif len(things) >= MIN_THINGS and rng.random() < 0.2:
            break  # the picture is full
        elif len(things) < MIN_THINGS:
            things.clear()
    return Scene(ground, tuple(things), curtain)


def _looks(things: list[Thing], rng: np.random.Generator) -> tuple[str, str, str, str]:
    """Shape, colour, pattern and size that no other thing has in this combination."""
    taken = {(t.shape, t.colour, t.pattern, t.size) for t in things}
    names = tuple(COLOURS)
    while True:
        shape, colour = SHAPES[rng.integers(len(SHAPES))], names[rng.integers(len(names))]
        if things and rng.random() < _SAME_SHAPE:
            shape = things[rng.integers(len(things))].shape
        if things and rng.random() < _SAME_COLOUR:
            colour = things[rng.integers(len(things))].colour
        pattern = PATTERNS[np.searchsorted(np.cumsum(_PATTERN_SHARES), rng.random(), "right")]
        looks = (shape, colour, pattern, SIZES[rng.integers(len(SIZES))])
        if looks not in taken:
            return looks


def placed(
    looks: tuple[str, str, str, str],
    things: list[Thing],
    curtain: str | None,
    rng: np.random.Generator,
) -> Thing | None:
    """A thing with these looks at a free place, or None if a few dozen random places are taken."""
    shape, colour, pattern, size = looks
    radius = round(float(RADIUS[size] * rng.uniform(0.9, 1.1)), 2)
    left = _MARGIN + radius + (CURTAIN_WIDTH if curtain == "left" else 0)
    right = WIDTH - 1 - _MARGIN - radius - (CURTAIN_WIDTH if curtain == "right" else 0)
    x = rng.uniform(left, right, _PLACES_TRIED).round(2)
    y = rng.uniform(_MARGIN + radius, HEIGHT - 1 - _MARGIN - radius, _PLACES_TRIED).round(2)
    free = np.ones(_PLACES_TRIED, bool)
    for other in things:
        dx, dy = np.abs(x - other.x), np.abs(y - other.y)
        reach, smaller = radius + other.radius, min(radius, other.radius)
        shared = np.clip(reach - dx, 0, 2 * smaller) * np.clip(reach - dy, 0, 2 * smaller)
        free &= shared <= _MAX_OVERLAP * (2 * smaller) ** 2
        free &= np.maximum(dx, dy) > max(radius, other.radius)
    turn = round(float(rng.uniform(-_MAX_TURN, _MAX_TURN)), 3)
    shaded = bool(rng.random() < _SHADED_SHARE)
    if not free.any():
        return None
    place = int(np.argmax(free))
    return Thing(
        shape, colour, pattern, size, float(x[place]), float(y[place]), radius, turn, shaded
    )
