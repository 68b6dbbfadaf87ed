"""Code that writers share: the form of numbers, addresses and files, and the handout of work."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image

from twelve_in_one.world.collections import Picture
from twelve_in_one.world.scene import HEIGHT, WIDTH, Thing

Item = TypeVar("Item")
Result = TypeVar("Result")

# Nothing is ever served from there (RFC 2606), so no address belongs to a real picture.
_ADDRESS = "http://world.invalid"
_JPEG_QUALITY = 92


class Count(NamedTuple):
    """Size of a split: its records (questions, captions, expressions, games) and its pictures."""

    records: int
    pictures: int


Counts = dict[str, Count]


class Run(Protocol):
    """Calls a function on each item, perhaps in several processes."""

    def __call__(
        self,
        name: str,
        function: Callable[[Item, np.random.Generator], Result],
        items: Sequence[Item],
    ) -> list[Result]:
        """Results in the order of the items; randomness depends on `name` and position only."""


def write_picture(pixels: np.ndarray, files: Iterable[Path]) -> None:
    """Writes uint8[H, W, 3] as one JPEG under several names."""
    stream = io.BytesIO()
    # With colours at full resolution: things are small.
    Image.fromarray(pixels).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    for file in files:
        file.write_bytes(stream.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one line, like the official files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Writes one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


def address(picture: Picture) -> str:
    """An address for the picture, which cannot be reached."""
    return address_of(picture.file)


def address_of(file: str) -> str:
    """An address, which cannot be reached, for a path below the folder of all images."""
    return f"{_ADDRESS}/{file}"


def info(description: str) -> dict[str, str]:
    """The block that COCO and VQA files begin with."""
    return {"description": f"{description} of a generated world", "version": "1.0"}


def image_record(picture: Picture) -> dict[str, Any]:
    """A COCO picture as in COCO's instance files; GuessWhat's games have the same keys."""
    return {
        "id": picture.image_id,
        "width": WIDTH,
        "height": HEIGHT,
        "file_name": picture.name,
        "coco_url": address(picture),
        "flickr_url": "",
    }


def bounding_box(thing: Thing) -> list[float]:
    """The thing's box in COCO's form: x, y, width, height in pixels, two decimals."""
    x1, y1, x2, y2 = thing.box
    return [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]


def whole_box(thing: Thing) -> dict[str, int]:
    """The smallest box of whole pixels around the thing: x, y, width and height."""
    x1, y1, x2, y2 = thing.box
    x, y = int(x1), int(y1)
    return {"x": x, "y": y, "width": -int(-x2 // 1) - x, "height": -int(-y2 // 1) - y}
