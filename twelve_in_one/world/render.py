"""Draws scenes: everything that a question may ask for is visible, and nothing else reveals it."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from twelve_in_one.world.grounds import draw_curtain, ground
from twelve_in_one.world.scene import COLOURS, HEIGHT, WIDTH, Scene, Thing
from twelve_in_one.world.shapes import RING_HOLE, outline

_SCALE = 3  # things are drawn this much larger, then reduced: soft edges, places between pixels
_BORDER = 4  # pixels around a thing's box, and so around the picture, for its shadow
_SILHOUETTE = np.array((34, 33, 40), np.float32)


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Pixels of the scene, uint8[H, W, 3].

    `rng` decides details that no sentence mentions: texture, light, tints, sharpness and noise.
    """
    border = (_BORDER, _BORDER)
    canvas = np.pad(ground(scene.ground, rng), (border, border, (0, 0)), mode="edge")
    for thing in scene.things:
        draw_thing(canvas, thing, rng)
    picture = canvas[_BORDER:-_BORDER, _BORDER:-_BORDER]
    if scene.curtain is not None:
        draw_curtain(picture, scene.curtain, rng)
    _shine(picture, rng)
    noise = rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
    picture += np.float32(rng.uniform(1, 4)) * noise
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.BoxBlur(rng.uniform(0, 0.35))))


def draw_thing(
    canvas: np.ndarray, thing: Thing, rng: np.random.Generator, border: int = _BORDER
) -> None:
    """Lays one thing and its shadow on `canvas`, float32[H + 2 borders, W + 2 borders, 3]."""
    left, top = int(thing.x - thing.radius) - _BORDER, int(thing.y - thing.radius) - _BORDER
    size = int(2 * thing.radius) + 2 * _BORDER + 2
    mask = _mask(thing, left, top, size)
    cover = _share(np.asarray(mask) == 255)
    shadow = np.asarray(mask.reduce(_SCALE).filter(ImageFilter.BoxBlur(1.5)), np.float32) / 255
    if thing.shaded:
        surface = cover * (_SILHOUETTE + np.float32(rng.normal(0, 3)))
    else:
        surface = _surface(thing, mask, cover, rng)
    part = canvas[top + border :, left + border :][:size, :size]
    part *= 1 - np.float32(0.4) * np.roll(shadow, (2, 1), (0, 1))[..., None]
    part *= 1 - cover
    part += surface


def _mask(thing: Thing, left: int, top: int, size: int) -> Image.Image:
    """The points of the square of `size` pixels at (left, top) that the thing covers, enlarged."""
    mask = Image.new("L", (size * _SCALE, size * _SCALE))
    draw = ImageDraw.Draw(mask)
    draw.polygon(((outline(thing) - (left, top)) * _SCALE).ravel().tolist(), fill=255)
    if thing.shape == "ring":
        centre = ((thing.x - left) * _SCALE, (thing.y - top) * _SCALE)
        draw.circle(centre, thing.radius * RING_HOLE * _SCALE, fill=0)
    return mask


def _surface(
    thing: Thing, mask: Image.Image, cover: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The thing's colour and pattern with a dark rim, lit from above, times `cover`.

    Args:
      thing: not shaded.
      mask: its points, enlarged.
      cover: float32[S, S, 1], share of each pixel that it covers.
      rng: decides tints and the start of the pattern.

    Returns:
      float32[S, S, 3].
    """
    colour = np.array(COLOURS[thing.colour]) * rng.uniform(0.92, 1.06) + rng.normal(0, 5, 3)
    # Dark marks on light things, light marks on dark ones.
    mark = colour * 0.42 if colour.mean() > 125 else colour * 0.25 + 185
    colour, mark = colour.astype(np.float32), mark.astype(np.float32)
    # A point is not on the rim if nothing around it is outside.
    rim = max(3.0, 0.1 * thing.radius * _SCALE)
    inside = np.asarray(mask.filter(ImageFilter.BoxBlur(rim))) == 255
    inner = _share(inside)
    if thing.pattern == "plain":
        surface = inner * colour
    else:
        marks = _marks(thing.pattern, mask.size[0], max(5.0, 0.42 * thing.radius) * _SCALE, rng)
        marked = _share(inside & marks)
        surface = (inner - marked) * colour + marked * mark
    surface += (cover - inner) * (0.45 * colour)
    return surface * np.linspace(1.1, 0.9, len(cover), dtype=np.float32)[:, None, None]


def _marks(pattern: str, size: int, step: float, rng: np.random.Generator) -> np.ndarray:
    """bool[size, size], the stripes or dots, which repeat every `step` points."""
    x = (np.arange(size, dtype=np.float32) + rng.uniform(0, size))[None] / np.float32(step)
    y = (np.arange(size, dtype=np.float32) + rng.uniform(0, size))[:, None] / np.float32(step)
    if pattern == "striped":
        # Slanted by more than any thing is turned.
        return _fraction(np.float32(0.86) * y + np.float32(0.52) * x) < 0.42
    # A grid of dots that stands on its corner.
    u, v = _fraction((y + x) * np.float32(0.7)) - 0.5, _fraction((y - x) * np.float32(0.7)) - 0.5
    return u * u + v * v < 0.075


def _fraction(values: np.ndarray) -> np.ndarray:
    return values - np.floor(values)


def _share(covered: np.ndarray) -> np.ndarray:
    """float32[S, S, 1]: share of each pixel that is covered, from enlarged bool[_, _]."""
    reduced = Image.fromarray(covered.astype(np.uint8) * np.uint8(255)).reduce(_SCALE)
    return np.asarray(reduced, np.float32)[..., None] / 255


def _shine(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Lights `picture`, float32[H, W, 3]: brighter towards one side, a little tinted."""
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.12)
    x = np.linspace(-1, 1, WIDTH, dtype=np.float32) * np.float32(slope * np.cos(angle))
    y = np.linspace(-1, 1, HEIGHT, dtype=np.float32) * np.float32(slope * np.sin(angle))
    picture *= (1 + x[None] + y[:, None])[..., None]
    picture *= (rng.uniform(0.88, 1.08) * rng.uniform(0.97, 1.03, 3)).astype(np.float32)
