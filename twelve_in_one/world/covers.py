"""Covers of invented books: title and author to read, and a genre to see and to read.

A genre has a motif of its own; everything else about a cover's looks is drawn at random.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from twelve_in_one.world.scene import COLOURS

MAX_WORDS = 40  # in each of the lists below
_UNIT = 64  # sizes and places below are in 64ths of the cover's side
_MARGIN = 3  # at the right

_ADJECTIVES = (
    "silent golden hidden wild lost bright winter paper little secret frozen broken velvet dark "
    "gentle silver blue hollow quiet last royal narrow simple early young bitter humble iron "
    "sweet vivid empty fallen modern rusty copper lonely tender solar yellow long"
)
_NOUNS = (
    "garden river house night bridge road island tower forest mirror letter window ocean castle "
    "planet engine market valley shadow harbor candle dragon desert circus museum voyage signal "
    "puzzle rocket temple violin wagon canyon empire flower guitar jungle ladder meadow palace"
)
_FIRST_NAMES = (
    "Ann Ben Cora Dan Eva Finn Gus Hana Ivan Jane Karl Lena Mark Nora Omar Paul Rosa Sam Tess Uma "
    "Vera Will Yara Zoe Adam Beth Carl Dora Emil Fay Gail Hugo Iris Jack Kate Leo Mia Ned Olga Ruth"
)
_LAST_NAMES = (
    "Abel Black Cole Drake Egan Frost Green Hart Irwin Jones Klein Lane Moore Nash Olsen Price "
    "Quill Reed Stone Tate Usher Vance Wood Young Adler Bell Cruz Dean Ellis Ford Grant Hayes King "
    "Lopez Marsh Nolan Pratt Shaw Todd West"
)


Canvas = ImageDraw.ImageDraw
Colour = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Cover:
    """What a cover says.

    Attributes:
      title: two words.
      author: first and last name.
      genre: one of GENRES.
    """

    title: str
    author: str
    genre: str


def titles(words: int) -> list[str]:
    """All titles of the first `words` words of either list."""
    return [
        f"{first.title()} {second.title()}"
        for first in _ADJECTIVES.split()[:words]
        for second in _NOUNS.split()[:words]
    ]


def authors(words: int) -> list[str]:
    """All authors of the first `words` names of either list."""
    return [
        f"{first} {last}"
        for first in _FIRST_NAMES.split()[:words]
        for last in _LAST_NAMES.split()[:words]
    ]


def draw(cover: Cover, side: int, rng: np.random.Generator) -> np.ndarray:
    """The cover, uint8[side, side, 3]; `rng` decides colours, light and noise.

    Title words stand in a line each, the author below, the genre at the foot.
    """
    paper, motif, ink, halo = _colours(rng)
    image = Image.new("RGB", (side, side), paper)
    canvas = ImageDraw.Draw(image)
    scale = side / _UNIT
    GENRES[cover.genre](canvas, scale, motif, rng)
    first, second = cover.title.split()
    left = rng.uniform(2, 5)
    for text, top, size in (
        (first, 3, 18),
        (second, 19, 18),
        (cover.author, 36, 12),
        (cover.genre, 49, 11),
    ):
        _write(canvas, text, (left, top + rng.uniform(-1, 1)), size, scale, ink, halo)
    pixels = np.asarray(image, np.float32) * np.float32(rng.uniform(0.88, 1.05))
    pixels += np.float32(rng.uniform(1, 5)) * rng.standard_normal((side, side, 1), np.float32)
    drawn = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return np.asarray(drawn.filter(ImageFilter.BoxBlur(rng.uniform(0, 0.2))))


def _write(
    canvas: Canvas,
    text: str,
    place: tuple[float, float],
    size: float,
    scale: float,
    ink: Colour,
    halo: Colour,
) -> None:
    """One line of text, smaller if it would reach beyond the margin; place and size in units."""
    room = (_UNIT - _MARGIN - place[0]) * scale
    font = ImageFont.load_default(size * scale)
    while font.getlength(text) > room:  # in whole pixels, so lengths are not in proportion
        font = ImageFont.load_default(font.size - 0.5)
    canvas.text(
        (place[0] * scale, place[1] * scale),
        text,
        fill=ink,
        font=font,
        stroke_width=max(1, round(scale)),
        stroke_fill=halo,
    )


def _colours(rng: np.random.Generator) -> tuple[Colour, ...]:
    """Paper, motif, ink and the halo that parts the ink from the motif."""
    hues = np.array(list(COLOURS.values()), float)
    first, second = hues[rng.choice(len(hues), 2, replace=False)] + rng.normal(0, 8, (2, 3))
    dark = rng.random() < 0.35
    ground = np.array((38.0, 36, 44)) if dark else np.array((246.0, 244, 238))
    paper = 0.7 * ground + 0.3 * first
    motif = 0.45 * paper + 0.55 * second
    ink = np.array((250.0, 248, 240)) if dark else np.array((22.0, 20, 30))
    parts = (np.clip(part, 0, 255).astype(int).tolist() for part in (paper, motif, ink, paper))
    return tuple(tuple(part) for part in parts)


# Draws a motif: on what, pixels per unit, in which colour.
_Motif = Callable[[Canvas, float, Colour, np.random.Generator], None]


def _bars(canvas: Canvas, s: float, fill: Colour, rng: np.random.Generator) -> None:
    step = rng.uniform(11, 15)
    for x in np.arange(rng.uniform(-step, 0), _UNIT, step).tolist():
        canvas.rectangle((x * s, 0, (x + step / 2) * s, _UNIT * s), fill=fill)


def _lines(canvas: Canvas, s: float, fill: Colour, rng: np.random.Generator) -> None:
    step = rng.uniform(9, 12)
    for y in np.arange(rng.uniform(-step, 0), _UNIT, step).tolist():
        canvas.rectangle((0, y * s, _UNIT * s, (y + step / 3) * s), fill=fill)


def _slants(canvas: Canvas, s: float, fill: Colour, rng: np.random.Generator) -> None:
    step = rng.uniform(14, 18)
    for x in np.arange(rng.uniform(-step, 0) - _UNIT, _UNIT, step).tolist():
        corners = [(x, 0), (x + step / 2, 0), (x + step / 2 + _UNIT, _UNIT), (x + _UNIT, _UNIT)]
        canvas.polygon([(a * s, b * s) for a, b in corners], fill=fill)


def _dots(canvas: Canvas, s: float, fill: Colour, rng: np.random.Generator) -> None:
    step = rng.uniform(11, 14)
    x0, y0 = rng.uniform(0, step, 2)
    for x in np.arange(x0 - step, _UNIT + step, step).tolist():
        for y in np.arange(y0 - step, _UNIT + step, step).tolist():
            canvas.circle((x * s, y * s), step / 3.2 * s, fill=fill)


def _checks(canvas: Canvas, s: float, fill: Colour, rng: np.random.Generator) -> None:
    step = rng.uniform(12, 16)
    x0, y0 = rng.uniform(-step, 0, 2)
    for i in range(7):
        for j in range(i % 2, 7, 2):
            x, y = x0 + i * step, y0 + j * step
            canvas.rectangle((x * s, y * s, (x + step) * s, (y + step) * s), fill=fill)


def _frame(canvas: Canvas, s: float, fill: Colour, rng: np.random.Generator) -> None:
    for inset in (0, rng.uniform(6, 8)):
        box = (inset * s, inset * s, (_UNIT - inset) * s - 1, (_UNIT - inset) * s - 1)
        canvas.rectangle(box, outline=fill, width=round(3.5 * s))


def _sun(canvas: Canvas, s: float, fill: Colour, rng: np.random.Generator) -> None:
    x, y = rng.uniform(24, 40), rng.uniform(24, 40)
    for radius in (30, 19, 8):
        canvas.circle((x * s, y * s), radius * s, outline=fill, width=round(5 * s))


def _hills(canvas: Canvas, s: float, fill: Colour, rng: np.random.Generator) -> None:
    x = np.linspace(0, _UNIT, 65)
    y = rng.uniform(30, 38) - 12 * np.sin(x / rng.uniform(6, 9) + rng.uniform(0, 6))
    outline = [(0, _UNIT), *zip(x.tolist(), y.tolist(), strict=True), (_UNIT, _UNIT)]
    canvas.polygon([(a * s, b * s) for a, b in outline], fill=fill)


# Genre -> what draws its motif.
GENRES: dict[str, _Motif] = {
    "Romance": _dots,
    "Travel": _hills,
    "History": _bars,
    "Cooking": _checks,
    "Poetry": _frame,
    "Science": _sun,
    "Mystery": _slants,
    "Sports": _lines,
}
