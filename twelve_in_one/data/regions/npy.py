"""Region features as the released extraction script writes them, one .npy file an image.

Each holds a dict in a 0-d object array: bbox (N, 4), features (N, F), image_width, image_height,
cls_prob (N, C) and others that are not needed. `num_boxes` counts the boxes of non-zero confidence
only and is ignored.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from twelve_in_one.data import safe_pickle
from twelve_in_one.data.records import DataError, Regions
from twelve_in_one.data.regions.store import (
    RegionStore,
    entry,
    image_key,
    make_regions,
    missing_image,
)

SUFFIX = ".npy"


class NpyStore(RegionStore):
    """See the module. The id is the file's stem, after `image_key`.

    Args:
      path: the folder.

    Raises:
      DataError: no folder, or two files of one image.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        self._files: dict[str, str] = {}
        try:
            names = sorted(entry.name for entry in os.scandir(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        for name in names:
            if name.endswith(SUFFIX):
                image_id = image_key(name.removesuffix(SUFFIX))
                if image_id in self._files:
                    first = self._files[image_id]
                    raise DataError(f"{path}: both {first} and {name} are of image {image_id!r}")
                self._files[image_id] = name

    def ids(self) -> Iterator[str]:
        return iter(self._files)

    def get(self, image_id: str) -> Regions:
        if image_id not in self._files:
            raise missing_image(self, image_id)
        path = Path(self.name, self._files[image_id])
        content = safe_pickle.load_npy(path)
        if content.shape != () or not content.dtype.hasobject:
            raise DataError(f"{path}: must hold one dict, holds {content.dtype}{content.shape}")
        record, where = content.item(), f"{path}: image {image_id!r}"
        return make_regions(
            where,
            boxes=entry(record, "bbox", where),
            features=entry(record, "features", where),
            width=entry(record, "image_width", where),
            height=entry(record, "image_height", where),
            class_probs=record.get("cls_prob"),
        )

    def close(self) -> None:
        """Files are open only while they are read."""

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._files

    def __len__(self) -> int:
        return len(self._files)
