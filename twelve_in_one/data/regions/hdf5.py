"""Region features in HDF5 files, in two layouts (needs h5py).

* A group per image, named by its id: datasets `boxes` [N, 4] and `features` [N, F], perhaps
  `class_probs` [N, C]; `image_w` and `image_h` as datasets or attributes of the group.
* Flat, as written by converters of bottom-up attention: `image_features` [n, N, F] and `image_bb`
  [n, N, 4] over n images; or, with `pos_boxes` [n, 2] (first row and the row after the last of each
  image), `image_features` [rows, F] and `image_bb` [rows, 4]. Also `image_id` [n], whole numbers
  or text of fixed length (dtype "S"), `image_w` [n] and `image_h` [n]; converters that keep ids in
  a pickle beside the file must be changed to add them.

References to other files (external links, external storage, virtual datasets) are refused, and so
is text of variable length: on a damaged heap the C library never returns.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data.formats.files import shorten
from twelve_in_one.data.regions.store import (
    RegionStore,
    image_key,
    make_regions,
    missing_image,
    unique_places,
)
from twelve_in_one.data.stored.records import DataError, Regions

# For one array: a compressed file may claim any size.
_MAX_BYTES = 1 << 28
# Numbers, and text of fixed length.
_KINDS = "fiuS"
_FLAT = ("image_features", "image_bb", "image_id", "image_w", "image_h")
# Errors of h5py for damaged files.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, MemoryError)


class Hdf5Store(RegionStore):
    """See the module. The id is the group's name or the entry of `image_id`, after `image_key`.

    Images with two entries are `damaged`.

    Args:
      path: the file.

    Raises:
      DataError: unreadable, or of another layout.
      ImportError: h5py is not installed.
    """

    def __init__(self, path: Path):
        try:
            import h5py
        except ImportError as error:
            raise ImportError("HDF5 files need h5py: pip install h5py") from error
        self._h5py = h5py
        self.name = str(path)
        try:
            self._file = h5py.File(path, "r", locking=False)
        except _DAMAGE as error:
            raise DataError(f"{path}: truncated or no HDF5 file: {error}") from error
        try:
            self._flat = self._has(self._file, "image_features")
            self._places, self.damaged = unique_places(self.name, self._index())
        except BaseException:
            self._file.close()
            raise

    def _index(self) -> list[tuple[str, Any]]:
        """Image ids, each with its row (flat layout) or the name of its group."""
        if self._flat:
            for name in _FLAT:
                self._dataset(self._file, name, self.name)
            ids = self._read(self._file, "image_id", self.name)
            if ids.ndim != 1:
                raise DataError(f"{self.name}: image_id has shape {ids.shape}, must have one axis")
            return [(image_key(self._text(value)), row) for row, value in enumerate(ids.tolist())]
        names = self._guard(self.name, lambda: list(self._file))
        return [(image_key(self._text(name)), name) for name in names]

    def _text(self, value: Any) -> str:
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise DataError(f"{self.name}: image_id {shorten(value)} is no id")
        return str(value)

    def ids(self) -> Iterator[str]:
        return iter(self._places)

    def get(self, image_id: str) -> Regions:
        if image_id not in self._places:
            raise missing_image(self, image_id)
        where, place = f"{self.name}: image {image_id!r}", self._places[image_id]
        return self._flat_regions(place, where) if self._flat else self._group(place, where)

    def _group(self, name: str, where: str) -> Regions:
        if not self._has(self._file, name):
            raise DataError(f"{where}: is a link to somewhere else")
        group = self._guard(where, lambda: self._file[name])
        if not isinstance(group, self._h5py.Group):
            raise DataError(f"{where}: must be a group of boxes and features, is {group}")
        sizes = {}
        for key in ("image_w", "image_h"):
            if self._has(group, key):
                sizes[key] = self._read(group, key, where)
            else:
                sizes[key] = self._guard(where, functools.partial(_attribute, group, key))
        if any(size is None for size in sizes.values()):
            raise DataError(f"{where}: no image_w and image_h, neither datasets nor attributes")
        probs = None
        if self._has(group, "class_probs"):
            probs = self._read(group, "class_probs", where)
        return make_regions(
            where,
            boxes=self._read(group, "boxes", where),
            features=self._read(group, "features", where),
            width=sizes["image_w"],
            height=sizes["image_h"],
            class_probs=probs,
        )

    def _flat_regions(self, row: int, where: str) -> Regions:
        place: Any = row
        if self._has(self._file, "pos_boxes"):
            bounds = self._read(self._file, "pos_boxes", where, row)
            if bounds.shape != (2,) or bounds.dtype.kind not in "iu" or bounds[0] > bounds[1]:
                raise DataError(f"{where}: pos_boxes {shorten(bounds.tolist())} bound no rows")
            place = slice(int(bounds[0]), int(bounds[1]))
        values = {
            name: self._read(self._file, name, where, place if name in _FLAT[:2] else row)
            for name in _FLAT
        }
        return make_regions(
            where,
            boxes=values["image_bb"],
            features=values["image_features"],
            width=values["image_w"],
            height=values["image_h"],
        )

    def close(self) -> None:
        self._file.close()

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _has(self, group: Any, name: str) -> bool:
        """Returns whether `name` is in the group itself, not behind a link to another place."""
        link = self._guard(self.name, lambda: group.get(name, getlink=True))
        return isinstance(link, self._h5py.HardLink)

    def _dataset(self, group: Any, name: str, where: str) -> Any:
        if not self._has(group, name):
            raise DataError(f"{where}: no dataset {name!r}")
        dataset = self._guard(where, lambda: group[name])
        if not isinstance(dataset, self._h5py.Dataset):
            raise DataError(f"{where}: {name} must be a dataset, is {dataset}")
        if self._guard(where, lambda: dataset.is_virtual or dataset.external is not None):
            raise DataError(f"{where}: {name} lies in another file: refused")
        return dataset

    def _read(self, group: Any, name: str, where: str, place: Any = ()) -> np.ndarray:
        dataset = self._dataset(group, name, where)

        def read() -> np.ndarray:
            if dataset.dtype.kind not in _KINDS:
                raise ValueError(f"{name} is of the type {dataset.dtype}, which is not plain")
            if place == ():
                rows, axes = 1, dataset.shape
            else:
                size = dataset.shape[0]
                rows = len(range(size)[place]) if isinstance(place, slice) else 1
                axes = dataset.shape[1:]
            size = rows * int(np.prod(axes, dtype=object)) * dataset.dtype.itemsize
            if size > _MAX_BYTES:
                raise ValueError(f"{name} has {size} bytes, more than regions can have")
            return np.asarray(dataset[place])

        return self._guard(where, read)

    def _guard(self, where: str, read: Any) -> Any:
        try:
            return read()
        except _DAMAGE as error:
            text = f"{type(error).__name__}: {error}"
            raise DataError(f"{where}: cannot be read: {text}") from error


def _attribute(group: Any, name: str) -> Any:
    if name not in group.attrs:
        return None
    stored = group.attrs.get_id(name)
    if stored.dtype.kind not in _KINDS or stored.shape not in ((), (1,)):
        raise ValueError(f"{name} is {stored.dtype}{stored.shape}, not a number")
    return group.attrs[name]
