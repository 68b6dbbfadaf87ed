"""Conceptual Captions for pretraining: the LMDB of MessagePack records that tensorpack writes.

The value of each key but "__keys__" is a list: features (N, F), class probabilities (N, C), boxes
(N, 4), num_boxes, image_h, image_w, image_id, caption. Keys are running numbers, so finding an
image by its id takes one pass over all records (which does not read their arrays);
`records` and `captions` do without.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twelve_in_one.data.formats import msgpack
from twelve_in_one.data.formats.files import shorten
from twelve_in_one.data.formats.lmdb_file import LmdbFile
from twelve_in_one.data.regions.lmdb import TENSORPACK_KEY
from twelve_in_one.data.regions.store import (
    RegionStore,
    make_regions,
    missing_image,
    unique_places,
)
from twelve_in_one.data.stored.records import DataError, Regions, Skipped

_NUM_FIELDS = 8


class ConcapStore(RegionStore):
    """See the module. All regions have class probabilities; images with two records are `damaged`.

    Args:
      path: the file (training_feat_all.lmdb), or the folder with data.mdb.

    Raises:
      DataError: see `LmdbFile`.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        self._file = LmdbFile(path)

    def captions(self) -> Iterator[tuple[str, str]]:
        """(image id, caption) of all records in the order of the file; arrays are not read.

        Raises:
          DataError: a damaged record.
        """
        with self._file.sparse():
            for key, span in self._items():
                fields = self._fields(key, span)
                yield fields[6], fields[7]

    def records(self) -> Iterator[tuple[str, str, Regions]]:
        """(image id, caption, regions) of all records in the order of the file.

        Raises:
          DataError: a damaged record.
        """
        for key, span in self._items():
            fields = self._fields(key, span)
            yield fields[6], fields[7], self._regions(key, fields)

    def ids(self) -> Iterator[str]:
        return iter(self._key_of)

    def get(self, image_id: str) -> Regions:
        if image_id not in self._key_of:
            raise missing_image(self, image_id)
        key = self._key_of[image_id]
        span = self._file.find(key)
        if span is None:
            raise DataError(f"{self.name}: record {key!r} is listed but cannot be found")
        return self._regions(key, self._fields(key, span))

    def close(self) -> None:
        self._file.close()

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._key_of

    def __len__(self) -> int:
        listed = self._file.find(TENSORPACK_KEY) is not None
        return max(self._file.num_entries - listed, 0)

    @property
    def damaged(self) -> tuple[Skipped, ...]:
        return self._places[1]

    @property
    def _key_of(self) -> dict[str, bytes]:
        return self._places[0]

    @functools.cached_property
    def _places(self) -> tuple[dict[str, bytes], tuple[Skipped, ...]]:
        with self._file.sparse():
            return unique_places(
                self.name, ((self._fields(key, span)[6], key) for key, span in self._items())
            )

    def _items(self) -> Iterator[tuple[bytes, tuple[int, int]]]:
        return ((key, span) for key, span in self._file.items() if key != TENSORPACK_KEY)

    def _where(self, key: bytes) -> str:
        return f"{self.name}: record {key.decode('utf-8', 'backslashreplace')}"

    def _fields(self, key: bytes, span: tuple[int, int]) -> list[Any]:
        """The fields of a record, with arrays not yet read, and image id and caption as text."""
        try:
            fields = msgpack.unpack(self._file, *span)
        except ValueError as error:
            raise DataError(f"{self._where(key)}: no plain MessagePack: {error}") from error
        if not isinstance(fields, list) or len(fields) != _NUM_FIELDS:
            raise DataError(f"{self._where(key)}: must be a list of {_NUM_FIELDS}")
        image_id, caption = fields[6:]
        if isinstance(image_id, int) and not isinstance(image_id, bool):
            image_id = str(image_id)
        if not isinstance(image_id, str) or not isinstance(caption, str) or not image_id:
            raise DataError(
                f"{self._where(key)}: image id {shorten(image_id)} and caption "
                f"{shorten(caption)} must be text"
            )
        return [*fields[:6], image_id, caption]

    def _regions(self, key: bytes, fields: list[Any]) -> Regions:
        where = f"{self._where(key)}: image {fields[6]!r}"
        try:
            arrays = [msgpack.array(self._file, value) for value in fields[:6]]
            features, class_probs, boxes, num_boxes, height, width = arrays
            count = int(num_boxes.item())
        except (ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{where}: {error}") from error
        for name, rows in (("features", features), ("boxes", boxes), ("class_probs", class_probs)):
            if rows.ndim != 2 or not 0 <= count <= len(rows):
                raise DataError(f"{where}: {name}{list(rows.shape)} for {count} regions")
        # Rows beyond `num_boxes` are padding, as in the released loader.
        return make_regions(
            where,
            boxes=boxes[:count],
            features=features[:count],
            width=width,
            height=height,
            class_probs=class_probs[:count],
        )
