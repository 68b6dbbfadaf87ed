"""Our own store of region features: a folder of safetensors shards.

`regions-00002-of-00008.safetensors` holds for each image "<id>/boxes" float32[N, 4],
"<id>/features" float16 or float32[N, F], "<id>/size" int32[2] (width, height) and, if known,
"<id>/class_probs" [N, C] of the features' type. Shards are written completely or not at all, so
extraction resumes where it was interrupted. Reading maps the files: any image, any order.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from twelve_in_one import atomic
from twelve_in_one.data.formats.files import read_json, shorten
from twelve_in_one.data.regions.store import RegionStore, make_regions, missing_image
from twelve_in_one.data.stored.records import DataError, Regions

MAX_SHARDS = 99_999
PARAMETERS = "extraction.json"  # beside shards that `extraction` wrote: by which detector, and how
_NAME = re.compile(r"regions-(\d{5})-of-(\d{5})\.safetensors")
# One entry, since the library writes several in random order, which would make equal shards differ.
_FORMAT = "twelve_in_one regions, version 1"
_NEEDED = frozenset({"boxes", "features", "size"})
_OPTIONAL = frozenset({"class_probs"})


def shard_path(folder: Path, index: int, count: int) -> Path:
    """File of a shard.

    Raises:
      ValueError: not one of `count` shards, or more shards than the name has digits for.
    """
    if not 0 <= index < count <= MAX_SHARDS:
        raise ValueError(f"shard {index} of {count}")
    return folder / f"regions-{index:05d}-of-{count:05d}.safetensors"


def write_shard(
    folder: Path,
    index: int,
    count: int,
    items: Mapping[str, Regions],
    *,
    dtype: type[np.floating[Any]] = np.float16,
) -> Path:
    """Writes one shard; it is on disk when this returns, and does not exist before.

    Args:
      folder: created if missing. An existing shard is replaced.
      index: of the shard.
      count: of all shards; choose it so that a shard fits in memory.
      items: regions by image id.
      dtype: np.float16 or np.float32, of features and class probabilities.

    Returns:
      Path of the file.

    Raises:
      ValueError: an id is empty or contains "/", a value is not finite in `dtype`, or the rows of
        an image disagree in number.
      OSError: it cannot be written.
    """
    path = shard_path(folder, index, count)
    tensors: dict[str, np.ndarray] = {}
    for image_id, regions in items.items():
        tensors.update(_tensors(image_id, regions, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.replacing(path, alone=False) as temporary:
            save_file(tensors, temporary, metadata={"format": _FORMAT})
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    return path


def missing_shards(folder: Path, count: int) -> list[int]:
    """Indices of the shards still to write, ascending.

    Raises:
      DataError: the folder holds shards of another count.
    """
    there = {index for index, total in _shards(folder) if total == count}
    others = {total for _, total in _shards(folder)} - {count}
    if others:
        raise DataError(
            f"{folder}: holds shards of {min(others)}, not of {count}; use another folder or number"
        )
    return sorted(set(range(count)) - there)


def _shards(folder: Path) -> list[tuple[int, int]]:
    """Index and count of the shards in a folder, by their names."""
    if not folder.is_dir():
        return []
    names = (_NAME.fullmatch(entry.name) for entry in os.scandir(folder))
    return sorted((int(name[1]), int(name[2])) for name in names if name)


def is_shard_name(name: str) -> bool:
    """Returns whether a file with this name is a shard."""
    return _NAME.fullmatch(name) is not None


def _tensors(image_id: str, regions: Regions, dtype: Any) -> dict[str, np.ndarray]:
    if not image_id or "/" in image_id:
        raise ValueError(f"image id {image_id!r} must not be empty or contain '/'")
    size = np.array([regions.width, regions.height], np.int32)
    tensors = {"boxes": regions.boxes.astype(np.float32), "size": size}
    with np.errstate(over="ignore"):  # the check looks for it
        tensors["features"] = regions.features.astype(dtype)
        if regions.class_probs is not None:
            tensors["class_probs"] = regions.class_probs.astype(dtype)
    for name, tensor in tensors.items():
        if name != "size" and len(tensor) != len(regions.boxes):
            raise ValueError(f"{image_id!r}: {len(tensor)} {name}, {len(regions.boxes)} boxes")
        if not np.isfinite(tensor).all():
            raise ValueError(f"{image_id!r}: {name} are not finite as {tensor.dtype}")
    # A transposed array would be written in the order of its memory.
    return {f"{image_id}/{name}": np.ascontiguousarray(x) for name, x in tensors.items()}


class RecordStore(RegionStore):
    """See the module.

    Args:
      path: the folder.
      only: index of the shard to read; all if None.

    Raises:
      DataError: no shards, not all of them, shards of several counts, a damaged one, another
        version, or an image in two shards.
    """

    def __init__(self, path: Path, *, only: int | None = None):
        self.name = str(path)
        if (path / PARAMETERS).is_file():
            self.extractor = str(read_json(path / PARAMETERS, dict).get("extractor", ""))
        shards = _shards(path)
        if not shards:
            raise DataError(f"{path}: no shards named regions-00000-of-00008.safetensors")
        count = shards[0][1]
        missing = missing_shards(path, count)
        if only is not None:
            shards, missing = [(only, count)], [index for index in missing if index == only]
        if missing:
            listed = ", ".join(map(str, missing[:10]))
            raise DataError(f"{path}: {len(missing)} of {count} shards are missing: {listed}")
        self._close = contextlib.ExitStack()
        self._shard_of: dict[str, tuple[Any, tuple[str, ...]]] = {}
        try:
            for index, _ in shards:
                self._open(shard_path(path, index, count))
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            shard = self._close.enter_context(safe_open(path, framework="np"))
            metadata, names = shard.metadata() or {}, shard.keys()
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"{path}: truncated or no safetensors file: {error}") from error
        if metadata.get("format") != _FORMAT:
            raise DataError(f"{path}: not '{_FORMAT}', but {metadata}")
        fields: dict[str, set[str]] = {}
        for name in names:
            image_id, _, field = name.rpartition("/")
            fields.setdefault(image_id, set()).add(field)
        for image_id, found in fields.items():
            if not _NEEDED <= found <= _NEEDED | _OPTIONAL:
                raise DataError(f"{path}: image {shorten(image_id)} has {', '.join(sorted(found))}")
            if image_id in self._shard_of:
                raise DataError(f"{path}: image {shorten(image_id)} is in another shard, too")
            self._shard_of[image_id] = shard, tuple(sorted(found))

    def ids(self) -> Iterator[str]:
        return iter(self._shard_of)

    def get(self, image_id: str) -> Regions:
        if image_id not in self._shard_of:
            raise missing_image(self, image_id)
        where = f"{self.name}: image {image_id!r}"
        shard, names = self._shard_of[image_id]
        try:
            tensors = {name: shard.get_tensor(f"{image_id}/{name}") for name in names}
        except (SafetensorError, TypeError, ValueError) as error:
            raise DataError(f"{where}: cannot be read: {error}") from error
        size = tensors["size"]
        if size.shape != (2,):
            raise DataError(f"{where}: size must be width and height, has shape {size.shape}")
        return make_regions(
            where,
            boxes=tensors["boxes"],
            features=tensors["features"],
            width=size[0],
            height=size[1],
            class_probs=tensors.get("class_probs"),
        )

    def close(self) -> None:
        self._shard_of = {}
        self._close.close()

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._shard_of

    def __len__(self) -> int:
        return len(self._shard_of)
