"""Contents of a picture of the world: things on a ground, some in shadow, perhaps a curtain.

A scene is plain data. `render` turns it into pixels, `language` into sentences; nothing else
connects the two, and nothing downstream of the written files sees a scene.
"""

import dataclasses

WIDTH, HEIGHT = 160, 128

# Names with the RGB of a thing of that colour before light and noise.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 42, 42),
    "green": (52, 160, 62),
    "blue": (48, 84, 204),
    "yellow": (238, 206, 52),
    "purple": (142, 62, 176),
    "orange": (240, 134, 36),
    "brown": (124, 78, 44),
    "white": (244, 244, 240),
}
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "heart",
    "ring",
    "diamond",
    "crescent",
    "arrow",
)
PATTERNS = ("plain", "striped", "dotted")
SIZES = ("small", "large")
GROUNDS = ("grass", "sand", "sea", "snow", "street")
# Radius in pixels of a thing of each size, before a variation of 10 % either way.
RADIUS = {"small": 10.0, "large": 17.0}
# Share of scenes with a curtain: for the sampler, and for sentences about hidden things.
CURTAIN_SHARE = 0.3


@dataclasses.dataclass(frozen=True, slots=True)
class Thing:
    """One thing in a scene.

    Attributes:
      shape: one of SHAPES.
      colour: one of COLOURS. Cannot be told if `shaded`.
      pattern: one of PATTERNS. Cannot be told if `shaded`.
      size: one of SIZES.
      x: centre, pixels from the left.
      y: centre, pixels from the top.
      radius: pixels.
      turn: rotation, radians, within a few degrees of upright.
      shaded: drawn as a dark silhouette, so shape and size are visible, but not its colour.
    """

    shape: str
    colour: str
    pattern: str
    size: str
    x: float
    y: float
    radius: float
    turn: float = 0.0
    shaded: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Corners x1, y1, x2, y2, pixels, within the picture."""
        return (
            max(self.x - self.radius, 0.0),
            max(self.y - self.radius, 0.0),
            min(self.x + self.radius, WIDTH - 1.0),
            min(self.y + self.radius, HEIGHT - 1.0),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn.

    Attributes:
      ground: one of GROUNDS, the background.
      things: 3 to 8, no two of equal shape, colour, pattern and size; none covers another's centre.
      curtain: "left" or "right" if a curtain hides that side of the picture (the space behind it
        is unknown, and in fact empty), else None.
    """

    ground: str
    things: tuple[Thing, ...]
    curtain: str | None = None
