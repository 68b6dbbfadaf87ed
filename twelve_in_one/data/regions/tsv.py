"""Region features in the TSV files of bottom-up attention, LXMERT and VinVL.

One line per image, with or without a heading; arrays are little-endian float32 (or float64, as
their lengths show) in base64:

* 10 columns (LXMERT): img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf,
  num_boxes, boxes, features;
* 6 columns (original): image_id, image_w, image_h, num_boxes, boxes, features;
* 3 columns (VinVL): image_id, num_boxes, features;
* 2 columns (VinVL): image_id, {"num_boxes": N, "features": ...} in JSON.

VinVL's features end in the box: x1, y1, x2, y2, width and height as shares of the picture. Its size
is in a file beside it, `hw.tsv` beside `features.tsv` or `val.hw.tsv` beside `val.feature.tsv`
(image_id, [{"height": H, "width": W}]); without one, boxes are such shares.

Note the order of height and width in the first two. Files have tens of gigabytes, so opening one
streams through it once to note the position of each image's line; nothing else is kept.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data.formats.files import MAX_LINE_BYTES, parse_json, shorten
from twelve_in_one.data.regions.store import (
    RegionStore,
    base64_array,
    base64_arrays,
    entry,
    image_key,
    make_regions,
    missing_image,
)
from twelve_in_one.data.stored.records import DataError, Regions, Skipped

# Columns of width, height, number of boxes, boxes and features by the number of columns.
_COLUMNS = {10: (2, 1, 7, 8, 9), 6: (1, 2, 3, 4, 5)}
_HEADINGS = {
    10: "img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features",
    6: "image_id image_w image_h num_boxes boxes features",
}
_WORD = re.compile(r"[A-Za-z]\w*")
_VINVL_BOX = 6  # numbers at the end of a feature
_BOX_TOLERANCE = 1e-3


class TsvStore(RegionStore):
    """See the module. The id is the first column, after `image_key`.

    Lines with another number of columns, such as two lines without a break between them, and images
    with two different lines are `damaged`.

    Args:
      path: the file.

    Raises:
      DataError: unreadable, a heading with other columns, or no usable line at all.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        self._kinds = frozenset(_COLUMNS)  # numbers of columns that lines may have
        self._sizes: dict[str, tuple[int, int]] = {}
        try:
            self._stream = open(path, "rb", buffering=1 << 20)  # noqa: SIM115, see `close`
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        try:
            self._spans, self.damaged = self._index()
            if self._kinds & {2, 3}:
                self._sizes = _sizes_beside(path)
        except BaseException:
            self._stream.close()
            raise

    def _index(self) -> tuple[dict[str, tuple[int, int]], tuple[Skipped, ...]]:
        """Start and length of each image's line, and the unusable lines."""
        spans: dict[str, tuple[int, int]] = {}
        lines: dict[str, int] = {}
        damaged: list[Skipped] = []
        number = begin = 0
        while line := self._stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES:
                raise DataError(f"{self.name}: line {number} exceeds {MAX_LINE_BYTES} bytes")
            if line.strip() and not (number == 1 and self._is_heading(line)):
                image_id = image_key(line.split(b"\t", 1)[0].strip().decode("utf-8", "replace"))
                columns = line.count(b"\t") + 1
                if not spans and not damaged and _is_vinvl(line):
                    self._kinds = frozenset({columns})
                if columns not in self._kinds:
                    needed = "10 (LXMERT) or 6 (bottom-up attention)"
                    if self._kinds & {2, 3}:
                        needed = f"{min(self._kinds)} as the first line (VinVL)"
                    damaged.append(
                        Skipped(
                            self.name,
                            image_id if columns > 1 else f"line {number}",
                            f"line {number} has {columns} columns, not {needed}: cut off, or two "
                            "lines in one",
                        )
                    )
                elif image_id not in lines:
                    spans[image_id], lines[image_id] = (begin, len(line)), number
                elif image_id in spans and self._read(*spans[image_id]).strip() != line.strip():
                    del spans[image_id]
                    reason = f"lines {lines[image_id]} and {number} give it differently"
                    damaged.append(Skipped(self.name, image_id, reason))
            begin += len(line)
        if damaged and not spans:
            raise DataError(f"{self.name}: no line can be used; the first: {damaged[0].reason}")
        return spans, tuple(damaged)

    def _is_heading(self, line: bytes) -> bool:
        """Returns whether a line names the columns; raises DataError if these are not ours."""
        cells = line.strip().split(b"\t")
        names = _HEADINGS.get(len(cells), "").split()
        found = [cell.decode("latin-1") for cell in cells]
        if not names or not all(map(_WORD.fullmatch, found)):
            return False
        if found != names:
            raise DataError(
                f"{self.name}: line 1 names the columns {', '.join(found)}; they must be "
                f"{', '.join(names)}"
            )
        return True

    def _read(self, begin: int, size: int) -> bytes:
        return os.pread(self._stream.fileno(), size, begin)

    def ids(self) -> Iterator[str]:
        return iter(self._spans)

    def get(self, image_id: str) -> Regions:
        if image_id not in self._spans:
            raise missing_image(self, image_id)
        where = f"{self.name}: image {image_id!r}"
        cells = self._read(*self._spans[image_id]).rstrip(b"\r\n").split(b"\t")
        if len(cells) not in self._kinds:
            raise DataError(f"{where}: the file was changed while it was open")
        if len(cells) not in _COLUMNS:
            return _vinvl(cells, self._sizes.get(image_id, (0, 0)), where)
        columns = _COLUMNS[len(cells)]
        width, height, count = (_whole(cells[column], where) for column in columns[:3])
        boxes, features = base64_arrays(cells[columns[3]], cells[columns[4]], count, where)
        return make_regions(where, boxes=boxes, features=features, width=width, height=height)

    def close(self) -> None:
        self._stream.close()

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._spans

    def __len__(self) -> int:
        return len(self._spans)


def _is_vinvl(line: bytes) -> bool:
    cells = line.rstrip().split(b"\t")
    return (len(cells) == 2 and cells[1].startswith(b"{")) or (
        len(cells) == 3 and cells[1].isdigit()
    )


def _vinvl(cells: list[bytes], size: tuple[int, int], where: str) -> Regions:
    if len(cells) == 2:
        record = _json(cells[1], where)
        count, features = entry(record, "num_boxes", where), entry(record, "features", where)
    else:
        count, features = _whole(cells[1], where), cells[2]
    if type(count) is not int or type(features) not in (str, bytes):
        raise DataError(f"{where}: num_boxes must be a whole number, and features base64")
    rows = base64_array(features, count, where)
    if count and rows.shape[1] <= _VINVL_BOX:
        raise DataError(f"{where}: features of {rows.shape[1]} numbers, without a box at the end")
    boxes, sides = rows[:, -_VINVL_BOX:-2], rows[:, -2:]
    with np.errstate(invalid="ignore", over="ignore"):
        fits = np.abs(boxes[:, 2:] - boxes[:, :2] - sides) <= _BOX_TOLERANCE
        fits &= (np.abs(boxes[:, :2] - 0.5) <= 0.51) & (np.abs(boxes[:, 2:] - 0.5) <= 0.51)
    if not fits.all():
        row = int(np.argmin(fits.all(axis=1)))
        raise DataError(
            f"{where}: the last {_VINVL_BOX} numbers of feature {row} are no box x1, y1, x2, y2, "
            f"width, height in shares of the picture: {shorten(rows[row, -_VINVL_BOX:].tolist())}"
        )
    width, height = size
    factors = np.array([width or 1, height or 1] * 2, np.float32)
    return make_regions(where, boxes=boxes * factors, features=rows, width=width, height=height)


def _sizes_beside(path: Path) -> dict[str, tuple[int, int]]:
    """Width and height of pictures, from the file for them."""
    stem = re.sub(r"features?\.tsv$|\.tsv$", "", path.name)
    beside = path.with_name(f"{stem}hw.tsv")
    if not beside.is_file() or beside == path:
        return {}
    sizes = {}
    with beside.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES), b""), start=1):
            where = f"{beside}: line {number}"
            key, _, text = line.strip().partition(b"\t")
            content = _json(text, where)
            record = content[0] if isinstance(content, list) and content else content
            size = tuple(entry(record, name, where) for name in ("width", "height"))
            if not all(type(n) is int and 0 < n < 1_000_000 for n in size):
                raise DataError(f"{where}: {shorten(size)} is no width and height in pixels")
            sizes[image_key(key.decode("utf-8", "replace"))] = size
    return sizes


def _json(cell: bytes, where: str) -> Any:
    try:
        return parse_json(cell.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is no text: {error}") from error


def _whole(cell: bytes, where: str) -> int:
    if not cell.isdigit() or len(cell) > 9:
        raise DataError(f"{where}: {shorten(cell)} is no size or count")
    return int(cell)
