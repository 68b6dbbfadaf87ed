"""Draws what a detector found in a photo: the surest boxes, with the names of their classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Colours that differ in brightness too, by class.
_COLOURS = (
    (230, 60, 50), (40, 120, 220), (240, 180, 30), (50, 160, 80), (160, 70, 190), (20, 170, 180),
    (240, 120, 30), (210, 60, 130),
)  # fmt: skip
_WHITE = (255, 255, 255)


def draw_regions(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    scores: np.ndarray,
    *,
    count: int = 12,
) -> "Image.Image":
    """A photo with its boxes.

    Args:
      image: uint8[H, W, 3].
      boxes: float[N, 4], corners in pixels.
      labels: N names of classes; "" draws no label.
      scores: float[N], of which the highest are drawn, the highest on top.
      count: how many at most.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    width = max(1, round(min(picture.size) / 200))
    font = ImageFont.load_default(max(10, min(picture.size) / 35))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(dict.fromkeys(labels))}
    for i in np.argsort(-np.asarray(scores), kind="stable")[:count][::-1]:
        colour = colours[labels[i]]
        x1, y1, x2, y2 = map(float, boxes[i])
        canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=width)
        if labels[i]:
            label = f"{labels[i]} {scores[i]:.2f}"
            place = x1 + width, max(y1 - font.size - 2 * width, 0)
            canvas.rectangle(canvas.textbbox(place, label, font=font), fill=colour)
            canvas.text(place, label, fill=_WHITE, font=font)
    return picture
