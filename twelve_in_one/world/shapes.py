"""Outlines of the things' shapes, which fill their boxes exactly."""

import math

import numpy as np

from twelve_in_one.world.scene import Thing

# Radius of a ring's hole, as a share of the ring's radius.
RING_HOLE = 0.5


def outline(thing: Thing) -> np.ndarray:
    """Corners of the thing's outline in pixels: float64[P, 2], x and y.

    The outline is turned by `thing.turn` and then fitted to the box, so it touches all four sides;
    a ring's outline is its outer circle.
    """
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    points = _UNIT_OUTLINES[thing.shape] @ np.array([[cos, sin], [-sin, cos]])
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (2 * thing.radius / (high - low)) + (thing.x, thing.y)


def _arc(start: float, stop: float, radius: float = 1.0, count: int = 40) -> np.ndarray:
    """Points of a circle about the origin, angles in degrees from the right, downwards."""
    angles = np.radians(np.linspace(start, stop, count))
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _star() -> np.ndarray:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2, 0.46, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1)


def _crescent() -> np.ndarray:
    """A moon that opens to the upper right: tilted, it fills its box better."""
    moon = np.concatenate([_arc(48, 312), _arc(285, 75, 0.77) + (0.47, 0)])
    angle = math.radians(-35)
    cos, sin = math.cos(angle), math.sin(angle)
    return moon @ np.array([[cos, sin], [-sin, cos]])


_ARM = 0.36  # half the width of a cross's arms
_UNIT_OUTLINES = {
    "circle": _arc(0, 360),
    "ring": _arc(0, 360),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float),
    "triangle": np.array([(0, -1), (1, 1), (-1, 1)], float),
    "diamond": np.array([(0, -1), (0.8, 0), (0, 1), (-0.8, 0)], float),
    "star": _star(),
    "heart": _heart(),
    "crescent": _crescent(),
    "cross": np.array(
        [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
        + [(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
        float,
    ),
    "arrow": np.array(
        [(0, -1), (0.92, 0.08), (0.36, 0.08), (0.36, 1), (-0.36, 1), (-0.36, 0.08), (-0.92, 0.08)],
        float,
    ),
}
