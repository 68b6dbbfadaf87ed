"""Draws predictions: boxes, the best images, and attention."""

from typing import TYPE_CHECKING

import numpy as np

from twelve_in_one.predict.inputs import SeenImage
from twelve_in_one.predict.results import (
    Attention,
    Grounding,
    Pointing,
    Ranking,
    Result,
    Things,
)
from twelve_in_one.predict.wording import describe

if TYPE_CHECKING:
    from PIL import Image

_BEST_IMAGES = 10
_PANEL = 640  # pixels, longest side of an attention panel
_GAP = 10
_PAPER = (250, 249, 246)
_BLANK, _UNKNOWN_SIZE = 226, (320, 40)


def picture(result: Result) -> "Image.Image":
    """A result as a picture: its image with text, answer and boxes, and next to it, if it has
    attention maps, each image as the words read it in the last connection layer.

    Images known only by their regions are blank; a ranking shows the best ten.

    Raises:
      ValueError: a picture can no longer be read.
      ImportError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"pictures need pillow ({error}): pip install 'twelve_in_one[data]'"
        ) from error
    from twelve_in_one.report.pictures import ExamplePicture, draw_example, draw_weights

    shown = result.images
    if isinstance(result, Ranking):
        shown = tuple(result.images[i] for i in result.order[:_BEST_IMAGES])
    panels = [
        draw_example(
            ExamplePicture(
                task="",
                text=result.text,
                answer=describe(result),
                expected="",
                right=None,
                images=[image.pixels() for image in shown],
                sizes=[_size(image) for image in shown],
                boxes=_boxes(result),
                chosen_image=0 if isinstance(result, Ranking) else None,
            )
        )
    ]
    for image, attention in zip(shown, result.attention, strict=False):
        panel = draw_weights(_canvas(image), *_weights(attention))
        panel.thumbnail((_PANEL, _PANEL))
        panels.append(panel)
    width = sum(panel.width for panel in panels) + _GAP * len(panels)
    whole = Image.new("RGB", (width, max(panel.height for panel in panels) + 2 * _GAP), _PAPER)
    x = 0
    for panel in panels:
        whole.paste(panel, (x, _GAP))
        x += panel.width + _GAP
    return whole


def _boxes(result: Result) -> list[tuple[float, float, float, float, str]]:
    if isinstance(result, Things):
        return [(*map(float, box), "predicted") for box in result.boxes]
    if not isinstance(result, Grounding | Pointing):
        return []
    other = "choice" if isinstance(result, Pointing) else "region"
    roles = [other if not np.isnan(score) else "region" for score in result.scores]
    roles[result.best] = "predicted"
    return [(*map(float, box), role) for box, role in zip(result.candidates, roles, strict=True)]


def _size(image: SeenImage) -> tuple[int, int]:
    return image.size if all(image.size) else _UNKNOWN_SIZE


def _canvas(image: SeenImage) -> np.ndarray:
    """uint8[H, W, 3], blank if there are no pixels."""
    pixels = image.pixels()
    if pixels is None:
        width, height = _size(image)
        return np.full((height, width, 3), _BLANK, np.uint8)
    return pixels


def _weights(attention: Attention) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and weights without the global region, which covers everything."""
    return attention.boxes[1:], attention.region_weights()[1:]
