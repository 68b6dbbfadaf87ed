"""A folder with one folder of pictures per class, as ImageNet is unpacked."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twelve_in_one.data.formats.files import PICTURE_SUFFIXES, walk_files
from twelve_in_one.data.images.image_set import ImageExample, ImageSet, even_shards
from twelve_in_one.data.images.load import read_file
from twelve_in_one.data.stored.records import DataError

_ORDER_SEED = 1912
_SHARD_SIZE = 1024


@dataclasses.dataclass(frozen=True)
class _Files:
    folder: Path
    names: tuple[str, ...]  # relative to the folder
    label_of: np.ndarray  # int32[n]

    def read(self, number: int) -> ImageExample:
        name = self.names[number]
        return ImageExample(read_file(self.folder / name), name, int(self.label_of[number]))


def open_class_folders(folder: Path, labels: Sequence[str] | None = None) -> ImageSet:
    """Opens a folder of class folders; pictures may be in folders below these.

    Classes are numbered in the sorted order of their folders' names. Examples are numbered in a
    fixed order that mixes the classes, so any part of the set resembles the whole;
    their ids are their paths below `folder`.

    Args:
      folder: of the class folders.
      labels: names of the classes in the order of their numbers, such as a model's; None
        for those of the folder.

    Raises:
      DataError: no such folder, pictures outside class folders, an empty class, fewer than two
        classes, or a class not in `labels`.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    loose = [path for path in sorted(folder.iterdir()) if _is_picture(path) and path.is_file()]
    if loose:
        raise DataError(
            f"{loose[0]}: in no class folder, like {len(loose) - 1} more; move each picture into a "
            f"folder of its class below {folder}"
        )
    hidden = (".", "__")
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(hidden)
    )
    if len(classes) < 2:
        found = f"only {classes[0].name!r}" if classes else "none"
        raise DataError(
            f"{folder}: one folder for each class is needed, two at least; there is {found}: is "
            "another folder meant?"
        )
    labels = tuple(place.name for place in classes) if labels is None else tuple(labels)
    unknown = [place for place in classes if place.name not in labels]
    if unknown:
        raise DataError(
            f"{unknown[0]}: none of the {len(labels)} classes that are known, like "
            f"{len(unknown) - 1} more; the first known one is {labels[0]!r}"
        )
    names: list[str] = []
    counts = []
    for place in classes:
        pictures = [
            str(path.relative_to(folder)) for path in walk_files(place) if _is_picture(path)
        ]
        if not pictures:
            raise DataError(
                f"{place}: a class without a picture ({', '.join(sorted(PICTURE_SUFFIXES))}); "
                "remove the folder or fill it"
            )
        names += pictures
        counts.append(len(pictures))
    order = np.random.default_rng(_ORDER_SEED).permutation(len(names))
    numbers = np.array([labels.index(place.name) for place in classes], np.int32)
    label_of = np.repeat(numbers, counts)[order]
    files = _Files(folder, tuple(names[i] for i in order), label_of)
    return ImageSet(
        str(folder),
        even_shards(len(names), _SHARD_SIZE),
        files.read,
        labels,
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
