"""Region features in a folder of NumPy files, one per image, as written by three kinds of scripts.

* `ID.npy` from the released extraction script: a dict in a 0-d object array, with bbox (N, 4),
  features (N, F), image_width, image_height, cls_prob (N, C) and others that are not needed.
* `ID.npy` with `ID_info.npy` beside it, from MMF: features (N, F), and such a dict for the rest.
  Its cls_prob is not read: it may lack the background class, and is then no distribution.
* `ID.npz` from bottom-up-attention.pytorch and OpenVQA: x (N, F) or (F, N), bbox (N, 4), image_w
  and image_h; the names of the other two are accepted as well.

`num_boxes` counts only the boxes of non-zero confidence and is ignored.
"""

import os
from pathlib import Path
from typing import Any

from twelve_in_one.data.formats import safe_pickle
from twelve_in_one.data.regions.store import (
    FilesStore,
    entry,
    file_names,
    image_key,
    make_regions,
    unique_places,
)
from twelve_in_one.data.stored.records import DataError, Regions, Skipped

SUFFIXES = (".npy", ".npz")
_INFO = "_info.npy"
# For .npz files: our name of an array, then the names in other formats.
_NAMES = {
    "features": ("x", "features"),
    "boxes": ("bbox", "boxes"),
    "width": ("image_w", "image_width"),
    "height": ("image_h", "image_height"),
}


class NpyStore(FilesStore):
    """See the module. The id is the file's stem, after `image_key`.

    Images with two files, and an info without features, are `damaged`.

    Args:
      path: the folder.

    Raises:
      DataError: no folder.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        names = file_names(path)
        self._infos = {name for name in names if name.endswith(_INFO)}
        parts = ((name, *os.path.splitext(name)) for name in names if name not in self._infos)
        self._files, several = unique_places(
            self.name, ((image_key(stem), name) for name, stem, end in parts if end in SUFFIXES)
        )
        alone = []
        for info in sorted(self._infos):
            if (name := info.removesuffix(_INFO) + ".npy") not in names:
                image_id = image_key(info.removesuffix(_INFO))
                alone.append(Skipped(self.name, image_id, f"{info} is there, {name} is not"))
        self.damaged = (*several, *alone)

    def get(self, image_id: str) -> Regions:
        path = self.path_of(image_id)
        name = path.name
        where = f"{path}: image {image_id!r}"
        if name.endswith(".npz"):
            return _of_npz(path, where)
        content = safe_pickle.load_npy(path)
        info = f"{name.removesuffix('.npy')}{_INFO}"
        if info in self._infos:
            record = _dict(safe_pickle.load_npy(path.with_name(info)), path.with_name(info))
            return _regions(record, where, features=content, class_probs=None)
        if content.dtype.kind == "f" and content.ndim == 2:
            raise DataError(
                f"{where}: holds features only, and {info}, which would say the boxes and the "
                "picture's size, is not beside it"
            )
        record = _dict(content, path)
        features = entry(record, "features", where)
        return _regions(record, where, features=features, class_probs=record.get("cls_prob"))


def _dict(content: Any, path: Path) -> Any:
    if content.shape != () or not content.dtype.hasobject:
        raise DataError(f"{path}: must hold one dict, holds {content.dtype}{content.shape}")
    return content.item()


def _regions(record: Any, where: str, *, features: Any, class_probs: Any) -> Regions:
    return make_regions(
        where,
        boxes=entry(record, "bbox", where),
        features=features,
        width=entry(record, "image_width", where),
        height=entry(record, "image_height", where),
        class_probs=class_probs,
    )


def _of_npz(path: Path, where: str) -> Regions:
    arrays = safe_pickle.load_npz(path, [name for names in _NAMES.values() for name in names])
    found = {}
    for part, names in _NAMES.items():
        there = [name for name in names if name in arrays]
        if not there:
            raise DataError(f"{where}: no array {' or '.join(names)}; has {', '.join(arrays)}")
        found[part] = arrays[there[0]]
    features, count = found["features"], len(found["boxes"]) if found["boxes"].ndim else -1
    if features.ndim == 2 and features.shape[0] != count == features.shape[1]:
        found["features"] = features.T
    return make_regions(where, **found)
