"""Region features in the TSV files of bottom-up attention, with LXMERT's columns or the original's.

One line an image, no heading; arrays are little-endian float32 in base64:

* 10 columns (LXMERT): img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf,
  num_boxes, boxes, features;
* 6 columns (original): image_id, image_w, image_h, num_boxes, boxes, features.

Mind the order of height and width. Files have tens of gigabytes, so opening one streams through it
once to note where each image's line is; nothing else is kept.
"""

import base64
import binascii
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from twelve_in_one.data.files import MAX_LINE_BYTES, shorten
from twelve_in_one.data.records import DataError, Regions
from twelve_in_one.data.regions.store import RegionStore, image_key, make_regions, missing_image

# Columns of width, height, number of boxes, boxes and features by the number of columns.
_COLUMNS = {10: (2, 1, 7, 8, 9), 6: (1, 2, 3, 4, 5)}


class TsvStore(RegionStore):
    """See the module. The id is the first column, after `image_key`.

    Args:
      path: the file.

    Raises:
      DataError: unreadable, a line of another number of columns (the last one, where the file is
        truncated), or two different lines of one image.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        try:
            self._stream = open(path, "rb", buffering=1 << 20)  # noqa: SIM115, see `close`
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        try:
            self._spans = self._index()
        except BaseException:
            self._stream.close()
            raise

    def _index(self) -> dict[str, tuple[int, int]]:
        """Where each image's line begins and how long it is."""
        spans: dict[str, tuple[int, int]] = {}
        number = begin = 0
        while line := self._stream.readline(MAX_LINE_BYTES):
            number += 1
            where = f"{self.name}: line {number}"
            if len(line) == MAX_LINE_BYTES:
                raise DataError(f"{where} exceeds {MAX_LINE_BYTES} bytes")
            if line.strip():
                columns = line.count(b"\t") + 1
                if columns not in _COLUMNS:
                    raise DataError(
                        f"{where} has {columns} columns; must have 10 (LXMERT) or 6 (bottom-up "
                        "attention); truncated if it is the last line"
                    )
                image_id = image_key(line[: line.index(b"\t")].decode("utf-8", "replace"))
                if image_id not in spans:
                    spans[image_id] = begin, len(line)
                elif self._read(*spans[image_id]).strip() != line.strip():
                    raise DataError(f"{where} gives image {image_id!r} anew, and differently")
            begin += len(line)
        return spans

    def _read(self, begin: int, size: int) -> bytes:
        return os.pread(self._stream.fileno(), size, begin)

    def ids(self) -> Iterator[str]:
        return iter(self._spans)

    def get(self, image_id: str) -> Regions:
        if image_id not in self._spans:
            raise missing_image(self, image_id)
        where = f"{self.name}: image {image_id!r}"
        cells = self._read(*self._spans[image_id]).rstrip(b"\r\n").split(b"\t")
        if len(cells) not in _COLUMNS:
            raise DataError(f"{where}: the file was changed while it was open")
        columns = _COLUMNS[len(cells)]
        width, height, count = (_whole(cells[column], where) for column in columns[:3])
        boxes, features = (_numbers(cells[column], where) for column in columns[3:])
        if len(boxes) != 4 * count or len(features) % max(count, 1):
            raise DataError(
                f"{where}: {len(boxes)} numbers of boxes and {len(features)} of features do not "
                f"make {count} regions"
            )
        feature_dim = len(features) // max(count, 1)
        return make_regions(
            where,
            boxes=boxes.reshape(count, 4),
            features=features[: count * feature_dim].reshape(count, feature_dim),
            width=width,
            height=height,
        )

    def close(self) -> None:
        self._stream.close()

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._spans

    def __len__(self) -> int:
        return len(self._spans)


def _whole(cell: bytes, where: str) -> int:
    if not cell.isdigit() or len(cell) > 9:
        raise DataError(f"{where}: {shorten(cell)} is no size or count")
    return int(cell)


def _numbers(cell: bytes, where: str) -> np.ndarray:
    try:
        return np.frombuffer(base64.b64decode(cell, validate=True), "<f4")
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: {shorten(cell)} is no base64 of float32: {error}") from error
