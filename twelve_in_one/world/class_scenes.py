"""Scenes for image classification: one large thing among small ones, or a ground to recognise.

The pictures' other properties are drawn without regard to the class, so nothing but what names the
class tells it.
"""

import dataclasses

import numpy as np

from twelve_in_one.world.scene import (
    COLOURS,
    CURTAIN_SHARE,
    GROUNDS,
    HEIGHT,
    PATTERNS,
    SHAPES,
    WIDTH,
    Scene,
    Thing,
)
from twelve_in_one.world.scenes import CURTAIN_WIDTH, sample_scene

_MAIN_RADIUS, _OTHER_RADIUS = (19.0, 32.0), (7.0, 11.0)  # pixels
_MAX_OTHERS = 5
_MAX_TURN = 0.15  # radians, 9 degrees: a square must not be taken for a diamond
_SHADED_SHARE = 0.15  # of the small things
_PLACES_TRIED = 32
_MARGIN = 1.0  # pixels between things, and to the border

# Class -> shape and colour of its thing. Each shape comes in half of the colours, each colour in
# half of the shapes: neither alone tells the class.
THINGS: dict[str, tuple[str, str]] = {
    f"{colour}_{shape}": (shape, colour)
    for i, shape in enumerate(SHAPES)
    for j, colour in enumerate(COLOURS)
    if (i + j) % 2 == 0
}
# Class -> ground, and whether it lies beside a curtain.
GROUNDS_SEEN: dict[str, tuple[str, bool]] = {
    f"{ground}{'_beside_a_curtain' if curtain else ''}": (ground, curtain)
    for ground in GROUNDS
    for curtain in (False, True)
}
SETS: dict[str, tuple[str, ...]] = {"things": tuple(THINGS), "grounds": tuple(GROUNDS_SEEN)}


def sample(image_set: str, name: str, rng: np.random.Generator) -> Scene:
    """A scene of the class `name` of a set."""
    if image_set == "things":
        return _with_main_thing(*THINGS[name], rng)
    ground, curtain = GROUNDS_SEEN[name]
    side = ("left", "right")[rng.integers(2)] if curtain else None
    return dataclasses.replace(sample_scene(rng), ground=ground, curtain=side)


def in_any_light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture, uint8[H, W, 3], at another time of day: greyer, tinted, darker or brighter.

    A ground's colour then hints at its name, but only its texture proves it.
    """
    picture = pixels.astype(np.float32)
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + np.float32(rng.uniform(0, 1)) * (picture - grey)
    light = np.float32(rng.uniform(0.45, 1.1)) * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    return np.clip(picture * light, 0, 255).astype(np.uint8)


def _with_main_thing(shape: str, colour: str, rng: np.random.Generator) -> Scene:
    """A scene with one large thing, and up to five small ones of other looks."""
    curtain = None
    if rng.random() < CURTAIN_SHARE:
        curtain = ("left", "right")[rng.integers(2)]
    radius = rng.uniform(*_MAIN_RADIUS)
    x, y = _centres(radius, curtain, 1, rng)[0]
    things = [_thing(shape, colour, "large", x, y, radius, False, rng)]
    names = tuple(COLOURS)
    for _ in range(rng.integers(_MAX_OTHERS + 1)):
        other = (SHAPES[rng.integers(len(SHAPES))], names[rng.integers(len(names))])
        radius = rng.uniform(*_OTHER_RADIUS)
        centres = _centres(radius, curtain, _PLACES_TRIED, rng)
        free = np.ones(len(centres), bool)
        for thing in things:
            reach = radius + thing.radius + _MARGIN
            free &= (np.abs(centres - (thing.x, thing.y)) > reach).any(1)
        shaded = bool(rng.random() < _SHADED_SHARE)
        if other == (shape, colour) or not free.any():
            continue
        x, y = centres[np.argmax(free)]
        things.append(_thing(*other, "small", x, y, radius, shaded, rng))
    return Scene(GROUNDS[rng.integers(len(GROUNDS))], tuple(things), curtain)


def _thing(
    shape: str,
    colour: str,
    size: str,
    x: float,
    y: float,
    radius: float,
    shaded: bool,
    rng: np.random.Generator,
) -> Thing:
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    turn = float(rng.uniform(-_MAX_TURN, _MAX_TURN))
    return Thing(shape, colour, pattern, size, float(x), float(y), float(radius), turn, shaded)


def _centres(
    radius: float, curtain: str | None, count: int, rng: np.random.Generator
) -> np.ndarray:
    """float64[count, 2]: places at which a thing of this radius is in the picture, uncovered."""
    edge = _MARGIN + radius
    left = edge + (CURTAIN_WIDTH if curtain == "left" else 0)
    right = WIDTH - 1 - edge - (CURTAIN_WIDTH if curtain == "right" else 0)
    low, high = (left, edge), (right, HEIGHT - 1 - edge)
    return rng.uniform(low, high, (count, 2))
