"""Reads official files of boxes: COCO's instances and LVIS v1.

Both have "images", "annotations" and "categories". LVIS adds the frequency of each category, and
for each image the categories that it is known not to show and those that are not annotated
completely. Records that cannot be used are skipped and counted. The text of a file is in memory,
its records one at a time; what is kept are arrays.
"""

import array
import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from twelve_in_one.data.formats import files, json_stream
from twelve_in_one.data.formats.files import RecordError, field
from twelve_in_one.data.stored.records import DataError, Skipped

FREQUENCIES = ("r", "c", "f")
_MAX_SIDE = 1 << 16
_MAX_POINTS = 20_000  # numbers of one outline; the longest of LVIS have some 10,000


@dataclasses.dataclass(frozen=True)
class Objects:
    """What is annotated in an image.

    Attributes:
      image_id: official.
      names: of its file, most likely first: as stated, and by the parts of its address.
      size: width and height in pixels.
      boxes: float64[G, 4], corners in pixels.
      classes: int32[G].
      areas: float64[G], as annotated: of the outlines.
      crowd: bool[G].
      outlines: of each object its polygons, float32[P * 2] each; () where there is none.
      absent: int32[], classes it is known not to show; None if all others are.
      not_exhaustive: int32[], classes of which not all are annotated.
    """

    image_id: int
    names: tuple[str, ...]
    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    outlines: tuple[tuple[np.ndarray, ...], ...]
    absent: np.ndarray | None
    not_exhaustive: np.ndarray


@dataclasses.dataclass(frozen=True)
class Instances:
    """A file.

    Attributes:
      images: in the order of their ids.
      category_ids: official numbers of the classes, ascending; those of COCO have gaps.
      names: of the classes, in the same order.
      frequencies: of each class; () if the file states none.
      skipped: records that cannot be used.
    """

    images: tuple[Objects, ...]
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    frequencies: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def read(path: Path, *, outlines: bool) -> Instances:
    """Reads a file of COCO or LVIS.

    Args:
      path: the file, perhaps compressed.
      outlines: also keep the polygons, which take most of the memory.

    Raises:
      DataError: the file cannot be read, or has no usable image, category or annotation.
    """
    text, where = files.read_text(path), str(path)
    number_of, names, frequencies = _categories(text, where)
    skipped: list[Skipped] = []
    images: dict[int, dict[str, Any]] = {}
    for place, record in enumerate(json_stream.elements(text, where, "images")):
        try:
            found = _image(record, number_of)
            if found["image_id"] in images:
                raise RecordError(f"'id' {found['image_id']} occurs twice")
            images[found["image_id"]] = found
        except RecordError as error:
            skipped.append(Skipped(where, f"image {place}", str(error)))
    columns = _Columns()
    for place, record in enumerate(json_stream.elements(text, where, "annotations")):
        try:
            columns.add(record, images, number_of, outlines)
        except RecordError as error:
            skipped.append(Skipped(where, f"annotation {place}", str(error)))
    if not images or not columns.rows:
        raise DataError(
            f"{path}: no usable {'annotation' if images else 'image'}"
            + (f"; the first of {len(skipped)} skipped: {skipped[0].reason}" if skipped else "")
        )
    made = columns.by_image(images)
    return Instances(tuple(made), tuple(number_of), names, frequencies, tuple(skipped))


def _categories(text: str, where: str) -> tuple[dict[int, int], tuple[str, ...], tuple[str, ...]]:
    """Number of each category's id, names and frequencies.

    Raises:
      DataError: one cannot be used: without it all classes would be others.
    """
    found: dict[int, tuple[str, str]] = {}
    for place, record in enumerate(json_stream.elements(text, where, "categories")):
        try:
            number, name = field(record, "id", int), field(record, "name", str)
            frequency = field(record, "frequency", str) if "frequency" in record else ""
            if number in found:
                raise RecordError(f"'id' {number} occurs twice")
            if frequency and frequency not in FREQUENCIES:
                raise RecordError(f"'frequency' {frequency!r} is none of r, c, f")
        except RecordError as error:
            raise DataError(f"{where}: category {place}: {error}") from error
        found[number] = " ".join(name.replace("_", " ").split()), frequency
    if not found:
        raise DataError(f"{where}: no categories")
    order = sorted(found)
    frequencies = tuple(found[number][1] for number in order)
    stated = frequencies if all(frequencies) else ()
    number_of = {number: place for place, number in enumerate(order)}
    return number_of, tuple(found[number][0] for number in order), stated


def _image(record: Any, number_of: dict[int, int]) -> dict[str, Any]:
    size = field(record, "width", int), field(record, "height", int)
    if not all(0 < side < _MAX_SIDE for side in size):
        raise RecordError(f"{size} is no size of a picture")
    names = []
    if "file_name" in record:
        names.append(field(record, "file_name", str))
    if "coco_url" in record:
        parts = field(record, "coco_url", str).split("/")
        names += ["/".join(parts[-2:]), parts[-1]]
    for name in names:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise RecordError(f"{name!r} is no name of a file in the folder")
    if not names:
        raise RecordError("no 'file_name' and no 'coco_url'")
    absent = None
    if "neg_category_ids" in record:
        absent = _numbers(record, "neg_category_ids", number_of)
    partly = np.zeros(0, np.int32)
    if "not_exhaustive_category_ids" in record:
        partly = _numbers(record, "not_exhaustive_category_ids", number_of)
    number = field(record, "id", int)
    if not abs(number) < 1 << 63:
        raise RecordError("'id' is out of range")
    return {
        "image_id": number,
        "names": tuple(dict.fromkeys(names)),
        "size": size,
        "absent": absent,
        "not_exhaustive": partly,
    }


def _numbers(record: Any, key: str, number_of: dict[int, int]) -> np.ndarray:
    found = []
    for one in field(record, key, list):
        if isinstance(one, bool) or not isinstance(one, int) or one not in number_of:
            raise RecordError(f"{key!r}: {files.shorten(one)} is no category")
        found.append(number_of[one])
    return np.array(found, np.int32)


class _Columns:
    """Annotations of all images, column by column."""

    def __init__(self) -> None:
        self.image = array.array("q")
        self.numbers = array.array("d")  # four corners and the area of each
        self.kind = array.array("i")
        self.crowd = array.array("b")
        self.outlines: list[tuple[np.ndarray, ...]] = []

    @property
    def rows(self) -> int:
        return len(self.image)

    def add(
        self, record: Any, images: dict[int, Any], number_of: dict[int, int], outlines: bool
    ) -> None:
        """Adds a record.

        Raises:
          RecordError: it cannot be used.
        """
        image, kind = field(record, "image_id", int), field(record, "category_id", int)
        if image not in images:
            raise RecordError(f"'image_id' {files.shorten(image)} is of no usable image")
        if kind not in number_of:
            raise RecordError(f"'category_id' {files.shorten(kind)} is no category")
        x1, y1, x2, y2 = files.box_from_xywh(record, "bbox")
        width, height = images[image]["size"]
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
        if x1 >= x2 or y1 >= y2:
            raise RecordError(f"'bbox' {record['bbox']} is outside of {width} x {height} pixels")
        area = field(record, "area", float) if "area" in record else (x2 - x1) * (y2 - y1)
        if not 0 <= area < 1e12:
            raise RecordError(f"'area' {area} is no area")
        polygons = _polygons(record) if outlines else ()
        self.image.append(image)
        self.numbers.extend((x1, y1, x2, y2, area))
        self.kind.append(number_of[kind])
        self.crowd.append(int(record.get("iscrowd", 0) == 1))
        self.outlines.append(polygons)

    def by_image(self, images: dict[int, dict[str, Any]]) -> Sequence[Objects]:
        """The annotations of every image, in the order of their ids and of the file."""
        numbers = np.array(self.numbers, np.float64).reshape(-1, 5)
        image, kind = np.array(self.image, np.int64), np.array(self.kind, np.int32)
        crowd = np.array(self.crowd, bool)
        order = np.argsort(image, kind="stable")
        ids = sorted(images)
        ends = np.searchsorted(image[order], [*ids, np.iinfo(np.int64).max])
        found = []
        for place, one in enumerate(ids):
            rows = order[ends[place] : ends[place + 1]]
            found.append(
                Objects(
                    boxes=numbers[rows, :4],
                    classes=kind[rows],
                    areas=numbers[rows, 4],
                    crowd=crowd[rows],
                    outlines=tuple(self.outlines[row] for row in rows),
                    **images[one],
                )
            )
        return found


def _polygons(record: Any) -> tuple[np.ndarray, ...]:
    """Polygons of an object; run lengths, which COCO has for crowds, give none."""
    found = record.get("segmentation")
    if not isinstance(found, list):
        return ()
    made = []
    for one in found:
        if not isinstance(one, list) or not 6 <= len(one) <= _MAX_POINTS or len(one) % 2:
            raise RecordError(f"'segmentation' {files.shorten(one)} is no list of corners")
        if not all(isinstance(x, int | float) and abs(x) < 1e9 for x in one):
            raise RecordError(f"'segmentation' {files.shorten(one)} has no finite corners")
        made.append(np.array(one, np.float32))
    return tuple(made)
