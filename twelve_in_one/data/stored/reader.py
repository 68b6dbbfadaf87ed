"""Random access to the records of a built dataset, with a bounded cache."""

import collections
import dataclasses
import functools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data import official
from twelve_in_one.data.official import OfficialRecords
from twelve_in_one.data.stored.image_rows import LoadedRecord, load
from twelve_in_one.data.stored.index import SplitIndex, index_path, read_index
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.stored.schema import record_of

# Memory of a block of `order` at the paper's sizes, see there.
DEFAULT_CACHE_BYTES = 512 << 20
BUILD_INFO = "build.json"
# Versions are numbers; TFDS builds in a folder next to them, named "incomplete...".
_COMPLETE = "[0-9]*/dataset_info.json"


class RecordCache:
    """Keeps the most recently used records, up to a number of bytes. Threads may share it."""

    def __init__(self, read: Callable[[int], LoadedRecord], max_bytes: int):
        self._read = read
        self._max_bytes = max_bytes
        self._bytes = 0
        self._records: collections.OrderedDict[int, LoadedRecord] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, position: int) -> LoadedRecord:
        with self._lock:
            if position in self._records:
                self._records.move_to_end(position)
                return self._records[position]
        # Read outside the lock: two threads may read the same record, which only costs time.
        record = self._read(position)
        with self._lock:
            if position not in self._records:
                self._records[position] = record
                self._bytes += record.num_bytes
            while self._bytes > self._max_bytes and len(self._records) > 1:
                _, oldest = self._records.popitem(last=False)
                self._bytes -= oldest.num_bytes
        return record


@dataclasses.dataclass(frozen=True)
class SplitReader:
    """One built split.

    Attributes:
      name: "dataset/split", for messages.
      index: data known without reading records.
      record: position in stored order -> record; cached.
      official: gives the examples' inputs of the official evaluation program, None if unknown.
    """

    name: str
    index: SplitIndex
    record: Callable[[int], LoadedRecord]
    official: Callable[[], OfficialRecords | None] = lambda: None

    @functools.cached_property
    def first_example(self) -> np.ndarray:
        """int64[n + 1], number of each record's first example, and the end."""
        return np.concatenate([[0], np.cumsum(self.index.counts)])


def built_folder(data_dir: Path, dataset: str, regions: str) -> Path:
    """Folder of a built dataset.

    Args:
      data_dir: of all built datasets.
      dataset: name as in `sources.SOURCES`.
      regions: name of the region features that it was built with.

    Raises:
      DataError: it does not exist; lists the existing ones.
    """
    versions = sorted((data_dir / dataset_folder(dataset) / regions).glob(_COMPLETE))
    if not versions:
        all_built = data_dir.glob(f"*/*/{_COMPLETE}")
        built = sorted(str(path.parent.relative_to(data_dir)) for path in all_built)
        raise DataError(
            f"{data_dir}: {dataset} with region features {regions!r} has not been built; there is "
            f"{', '.join(built) or 'nothing'}. "
            f"Run: python -m twelve_in_one.data.build {dataset} --data_dir {data_dir} ..."
        )
    return versions[-1].parent


def region_names(data_dir: Path, dataset: str) -> tuple[str, ...]:
    """Names of all region features with which a dataset is built."""
    found = (data_dir / dataset_folder(dataset)).glob(f"*/{_COMPLETE}")
    return tuple(sorted({path.parent.parent.name for path in found}))


def is_built(data_dir: Path, dataset: str, regions: str) -> bool:
    """Returns whether a dataset is completely built with region features of that name."""
    return regions in region_names(data_dir, dataset)


def dataset_folder(dataset: str) -> str:
    """TFDS names have only letters, digits and underscores."""
    return dataset.replace("+", "_plus")


def has_split(folder: Path, split: str) -> bool:
    """Returns whether a built dataset has the split (a user may lack its files)."""
    return index_path(folder, split).is_file()


def open_split(folder: Path, split: str, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> SplitReader:
    """Opens a split of a built dataset.

    Args:
      folder: from `built_folder`.
      split: "train", "val", ...
      cache_bytes: memory for records, per split.

    Raises:
      DataError: there is no such split, or records and index disagree.
    """
    import tensorflow_datasets as tfds

    name = f"{folder.parent.parent.name}/{split}"
    if not has_split(folder, split):
        known = sorted(p.stem.removeprefix("index-") for p in folder.glob("index-*.npz"))
        raise DataError(f"{folder}: no split {split!r}; there is {', '.join(known) or 'none'}")
    index = read_index(folder, split)
    records = f"{folder}/*-{split}.array_record*"
    source: Any = ()
    try:
        if len(index.counts):
            source = tfds.builder_from_directory(str(folder)).as_data_source(split=split)
        count = len(source)
    except Exception as error:  # of TFDS, protobuf, JSON or array_record
        raise DataError(
            f"{records}: cannot be opened ({error}); build the dataset again"
        ) from error
    if count != len(index.counts):
        raise DataError(
            f"{folder}: split {split} has {count} records, its index {len(index.counts)}; "
            "build the dataset again"
        )

    def read(position: int) -> LoadedRecord:
        try:
            example = source[position]
        except Exception as error:  # array_record and TFDS have none of their own for damaged files
            raise DataError(
                f"{records}: record {position} cannot be read ({error}); build the dataset again"
            ) from error
        return load(record_of(example, name), name)

    known = functools.partial(official.read, folder, split)
    return SplitReader(name, index, RecordCache(read, cache_bytes), known)


def read_build_info(folder: Path) -> dict[str, Any]:
    """The builder's notes: region features, counts, skipped records."""
    path = folder / BUILD_INFO
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); build the dataset again") from error
