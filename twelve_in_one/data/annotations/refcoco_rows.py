"""RefCOCO, RefCOCO+ and RefCOCOg as rows, one per expression: a form common in evaluations.

A JSON list of {"img_id": "COCO_train2014_000000580957_4", "sents": expression, "bbox": [x, y,
width, height], "width", "height"}, as in `eval_scripts/eval_data` of MiniGPT-4 (BSD-3). There are
no ids of references and no instances file: an image's only known boxes are those that expressions
refer to.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from twelve_in_one.data.annotations.retrieval import text_of
from twelve_in_one.data.formats import files, json_stream
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    Skipped,
    none_usable,
)

_NAME = re.compile(r"COCO_(?:train|val)2014_0*(\d{1,12})(?:_\d+)?")

Box = tuple[float, float, float, float]


class _Row(NamedTuple):
    name: str
    image_id: str
    size: tuple[int, int]
    text: str
    box: Box


def read(path: Path, beside: Iterable[Path] = ()) -> AnnotationSet:
    """Expressions of a file, in its order, with the boxes referred to in their images.

    The example id is "<img_id>#<n>", n counting the expressions of this `img_id` from 0. An image
    has every distinct box of its rows, in ascending order of corners, with ids from 1.

    Args:
      path: of the expressions.
      beside: further files whose boxes count, such as RefCOCO+'s for RefCOCO.

    Raises:
      DataError: a file is missing or is not what it should be, or `path` holds no usable row.
    """
    skipped: list[Skipped] = []
    sizes: dict[str, tuple[int, int]] = {}
    rows = _rows(path, sizes, skipped)
    if not rows:
        raise none_usable(path, "expression", skipped)
    boxes: dict[str, set[Box]] = {row.image_id: set() for row in rows}
    # Faults in the other files are reported when they are read for their own expressions.
    others = (row for other in beside for row in _rows(other, sizes, []))
    for row in (*rows, *others):
        if row.image_id in boxes:
            boxes[row.image_id].add(row.box)
    counts: dict[str, int] = {}
    annotations = []
    for row in rows:
        number = counts[row.name] = counts.get(row.name, -1) + 1
        annotations.append(Annotation(f"{row.name}#{number}", row.image_id, row.text, box=row.box))
    images = {image_id: _image(image_id, sizes[image_id], boxes[image_id]) for image_id in boxes}
    return AnnotationSet(tuple(annotations), images, skipped=tuple(skipped))


def _rows(path: Path, sizes: dict[str, tuple[int, int]], skipped: list[Skipped]) -> list[_Row]:
    """Returns usable rows; adds the sizes of images that are not in `sizes` yet."""
    rows = []
    for position, record in enumerate(json_stream.elements(files.read_text(path), str(path)), 1):
        name = f"record {position}"
        try:
            name = f"record {position} ({files.text_id(record, 'img_id')})"
            row = _row(record)
            if sizes.setdefault(row.image_id, row.size) != row.size:
                raise RecordError(
                    f"image of {row.size} pixels, of {sizes[row.image_id]} in an earlier record"
                )
        except RecordError as error:
            skipped.append(Skipped(str(path), name, str(error)))
            continue
        rows.append(row)
    return rows


def _row(record: object) -> _Row:
    name = files.text_id(record, "img_id")
    match = _NAME.fullmatch(name)
    if match is None:
        raise RecordError(
            f"'img_id' must be COCO_train2014_<image>_<number>, is {files.shorten(name)}"
        )
    width, height = (files.field(record, key, int) for key in ("width", "height"))
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise RecordError(f"no image size: {files.shorten([width, height])}")
    x1, y1, x2, y2 = box = files.box_from_xywh(record, "bbox")
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise RecordError(f"box {box} lies outside of the image, {width} x {height}")
    return _Row(name, match[1], (width, height), text_of(record, "sents"), box)


def _image(image_id: str, size: tuple[int, int], boxes: set[Box]) -> AnnotatedImage:
    ordered = tuple(sorted(boxes))
    ids = tuple(range(1, len(ordered) + 1))
    return AnnotatedImage(image_id, "", *size, int(image_id), ids, ordered)
