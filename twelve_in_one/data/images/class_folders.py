"""A folder with one folder of pictures per class, as ImageNet is unpacked, or one picture each."""

import dataclasses
import os
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


def open_class_folders(
    folder: Path, labels: Sequence[str] | None = None, more: Sequence[Path] = ()
) -> ImageSet:
    """Opens a folder of class folders; pictures may be in folders below these.

    A folder of pictures without class folders holds one picture of each class, called by the
    file's name without its ending. Classes are numbered in the sorted order of their names.
    Examples are numbered in a fixed order that mixes the classes, so any part of the set resembles
    the whole; their ids are their paths below `folder`, or below the folder that all are in.

    Args:
      folder: of the class folders.
      more: folders like it, with pictures of the same classes or of others.
      labels: names of the classes in the order of their numbers, such as a model's; None
        for those of the folder.

    Raises:
      DataError: no such folder, pictures beside class folders, an empty class, fewer than two
        classes, two pictures of one name, or a class not in `labels`.
    """
    root = Path(os.path.commonpath([folder, *more])) if more else folder
    found: dict[str, list[str]] = {}
    for place in (folder, *more):
        for name, pictures in _pictures_of(place).items():
            found.setdefault(name, []).extend(str(path.relative_to(root)) for path in pictures)
    title = ", ".join(map(str, (folder, *more)))
    if len(found) < 2:
        there = f"only {next(iter(found))!r}" if found else "none"
        raise DataError(
            f"{title}: one folder for each class is needed, two at least; there is {there}: is "
            "another folder meant?"
        )
    classes = sorted(found)
    labels = tuple(classes) if labels is None else tuple(labels)
    known = frozenset(labels)
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise DataError(
            f"{folder / unknown[0]}: none of the {len(labels)} classes that are known, like "
            f"{len(unknown) - 1} more; the first known one is {labels[0]!r}"
        )
    names = [picture for name in classes for picture in found[name]]
    order = np.random.default_rng(_ORDER_SEED).permutation(len(names))
    number_of = {label: number for number, label in enumerate(labels)}
    numbers = np.array([number_of[name] for name in classes], np.int32)
    label_of = np.repeat(numbers, [len(found[name]) for name in classes])[order]
    files = _Files(root, tuple(names[i] for i in order), label_of)
    return ImageSet(title, even_shards(len(names), _SHARD_SIZE), files.read, labels)


def _pictures_of(folder: Path) -> dict[str, list[Path]]:
    """Class -> its pictures."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    hidden = (".", "__")
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(hidden)
    )
    loose = [path for path in sorted(folder.iterdir()) if _is_picture(path) and path.is_file()]
    if loose and classes:
        raise DataError(
            f"{loose[0]}: in no class folder, like {len(loose) - 1} more; move each picture into a "
            f"folder of its class below {folder}"
        )
    found: dict[str, list[Path]] = {}
    for path in loose:
        if path.stem in found:
            raise DataError(f"{path}: {found[path.stem][0].name} has the same name: rename one")
        found[path.stem] = [path]
    for place in classes:
        found[place.name] = [path for path in walk_files(place) if _is_picture(path)]
        if not found[place.name]:
            raise DataError(
                f"{place}: a class without a picture ({', '.join(sorted(PICTURE_SUFFIXES))}); "
                "remove the folder or fill it"
            )
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
