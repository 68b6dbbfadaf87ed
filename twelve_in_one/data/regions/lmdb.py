"""Region features in the released code's LMDB layout.

Key: the image id as text. Value: a pickled dict with image_id, image_h, image_w, num_boxes, boxes
(N, 4) and features (N, F). The key "keys" holds a pickled list of the ids, which may be missing or
wrong and is not read: the tree knows its keys. `num_boxes` is ignored as in the released reader;
only an earlier release, which wrote boxes and features as base64 of float32, needs it.
"""

from collections.abc import Iterator
from pathlib import Path

from twelve_in_one.data.formats import safe_pickle
from twelve_in_one.data.formats.files import shorten
from twelve_in_one.data.formats.lmdb_file import LmdbFile
from twelve_in_one.data.regions.store import (
    RegionStore,
    base64_arrays,
    entry,
    make_regions,
    missing_image,
)
from twelve_in_one.data.stored.records import DataError, Regions

_LIST_KEY = b"keys"
TENSORPACK_KEY = b"__keys__"


class LmdbStore(RegionStore):
    """See the module; nothing is written beside the file, not even a lock.

    Args:
      path: folder with data.mdb, or the file itself.

    Raises:
      DataError: see `LmdbFile`; or written by tensorpack.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        self._file = LmdbFile(path)
        if self._file.find(TENSORPACK_KEY):
            raise DataError(f"{path}: written by tensorpack; open it as 'concap:{path}'")

    def ids(self) -> Iterator[str]:
        with self._file.sparse():
            for key, _ in self._file.items():
                if key != _LIST_KEY:
                    try:
                        yield key.decode("utf-8")
                    except UnicodeDecodeError as error:
                        raise DataError(f"{self.name}: key {key!r} is no image id") from error

    def get(self, image_id: str) -> Regions:
        if image_id not in self:
            raise missing_image(self, image_id)
        where = f"{self.name}: image {image_id!r}"
        record = safe_pickle.loads(self._file.get(image_id.encode()) or b"", where)
        boxes, features = entry(record, "boxes", where), entry(record, "features", where)
        if isinstance(boxes, bytes | str) and isinstance(features, bytes | str):
            count = entry(record, "num_boxes", where)
            if type(count) is not int:
                raise DataError(f"{where}: num_boxes {shorten(count)} is no count")
            boxes, features = base64_arrays(boxes, features, count, where)
        return make_regions(
            where,
            boxes=boxes,
            features=features,
            width=entry(record, "image_w", where),
            height=entry(record, "image_h", where),
        )

    def close(self) -> None:
        self._file.close()

    def __contains__(self, image_id: str) -> bool:
        key = image_id.encode("utf-8", "surrogatepass")
        return key != _LIST_KEY and self._file.find(key) is not None

    def __len__(self) -> int:
        listed = self._file.find(_LIST_KEY) is not None
        return max(self._file.num_entries - listed, 0)
