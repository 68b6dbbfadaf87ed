"""Grounds of scenes: a textured ground, and the curtain in front of one side of it."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from twelve_in_one.world.scene import HEIGHT, WIDTH
from twelve_in_one.world.scenes import CURTAIN_WIDTH

# Pale and dull compared with COLOURS, so things of any colour stand out.
_GROUND_COLOURS = {
    "grass": (150, 184, 112),
    "sand": (228, 208, 164),
    "sea": (126, 182, 206),
    "snow": (226, 233, 240),
    "street": (158, 157, 160),
}
_CURTAIN_COLOURS = ((112, 70, 84), (78, 92, 120), (134, 118, 92), (92, 112, 104))


def ground(name: str, rng: np.random.Generator) -> np.ndarray:
    """float32[H, W, 3], 0 to 255: the ground `name` with its texture, not yet lit."""
    base = np.asarray(_GROUND_COLOURS[name], np.float32) + rng.normal(0, 4, 3).astype(np.float32)
    clouds = 10 * _noise(4, 5, rng) + 5 * _noise(16, 20, rng)
    return base + (clouds + _TEXTURES[name](rng))[..., None]


def draw_curtain(picture: np.ndarray, side: str, rng: np.random.Generator) -> None:
    """Covers the left or right side of `picture`, float32[H, W, 3], with a folded curtain."""
    colour = np.asarray(_CURTAIN_COLOURS[rng.integers(len(_CURTAIN_COLOURS))], np.float32)
    colour += rng.normal(0, 5, 3).astype(np.float32)
    width = int(CURTAIN_WIDTH)
    y, x = np.mgrid[:HEIGHT, :width].astype(np.float32)
    sway = 1.5 * np.sin(y / rng.uniform(18, 30) + rng.uniform(0, 6))
    folds = np.sin((x + sway) * 2 * np.pi / rng.uniform(7.5, 10.5) + rng.uniform(0, 6))
    shade = 1 + 0.2 * folds + 0.06 * np.sin(2.3 * x + rng.uniform(0, 6))
    # The inner seam is dark and throws a soft shadow on the ground beside it.
    shade[:, -2:] *= 0.7
    panel = np.clip(shade, 0.4, 1.5)[..., None] * colour
    shadow = 1 - 0.35 * np.exp(-np.arange(10, dtype=np.float32) / 4)[:, None]
    if side == "left":
        picture[:, :width] = panel
        picture[:, width : width + 10] *= shadow
    else:
        picture[:, WIDTH - width :] = panel[:, ::-1]
        picture[:, WIDTH - width - 10 : WIDTH - width] *= shadow[::-1]


def _noise(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """float32[H, W], about -1 to 1: a coarse grid of random numbers, smoothly interpolated."""
    grid = Image.fromarray(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _grass(rng: np.random.Generator) -> np.ndarray:
    blades = Image.new("L", (WIDTH, HEIGHT), 128)
    draw = ImageDraw.Draw(blades)
    count = 220
    roots = rng.integers(0, (WIDTH, HEIGHT), (count, 2))
    tips = roots + np.stack([rng.integers(-1, 2, count), rng.integers(-5, -2, count)], 1)
    lines = np.concatenate([roots, tips], 1).tolist()
    for line, tone in zip(lines, rng.integers(104, 146, count).tolist(), strict=True):
        draw.line(line, fill=tone)
    return np.asarray(blades, np.float32) - 128


def _sand(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    bend = 14 * _noise(3, 4, rng)
    ripples = np.sin((y + rng.uniform(-0.4, 0.4) * x + bend) / 2.6)
    grains = rng.random((HEIGHT, WIDTH), np.float32)
    return 4 * ripples + 14 * (grains > 0.985) - 22 * (grains < 0.02)


def _sea(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    phase = y / 2.2 + 1.4 * np.sin(x / rng.uniform(9, 13) + 3 * _noise(5, 5, rng))
    crests = np.clip(np.sin(phase) - 0.55 + 0.5 * _noise(8, 8, rng), 0, None)
    return 34 * crests - 4


def _snow(rng: np.random.Generator) -> np.ndarray:
    glints = rng.random((HEIGHT, WIDTH), np.float32)
    return 9 * _noise(5, 4, rng) - 4 + 16 * (glints > 0.99) - 12 * (glints < 0.006)


def _street(rng: np.random.Generator) -> np.ndarray:
    """Paving stones in rows, every other row shifted by half a stone."""
    y = (np.arange(HEIGHT) + rng.integers(16)) % 16
    rows = np.cumsum(y == 0)
    x = np.arange(WIDTH)[None] + (rows % 2 * 13)[:, None] + rng.integers(26)
    tones = rng.uniform(-9, 9, (int(rows[-1]) + 1, WIDTH // 26 + 3)).astype(np.float32)
    stones = tones[rows[:, None], x // 26]
    joints = (x % 26 == 0) | (y == 0)[:, None]
    grain = rng.normal(0, 4, (HEIGHT, WIDTH)).astype(np.float32)
    return np.where(joints, -24, stones) + grain


_TEXTURES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "grass": _grass,
    "sand": _sand,
    "sea": _sea,
    "snow": _snow,
    "street": _street,
}
