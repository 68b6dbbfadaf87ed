"""TFRecord files of pictures with texts or labels, and random access to any TFRecord file."""

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data.images.files_of import files_of
from twelve_in_one.data.images.image_set import ImageExample, ImageSet
from twelve_in_one.data.stored.records import DataError

# Names of features in other people's files; the first that exists counts.
IMAGES = ("image/encoded", "image", "image_bytes", "jpeg", "jpg", "png")
TEXTS = ("image/caption", "caption", "text", "txt", "title")
LABELS = ("image/class/label", "label", "class", "cls")
IDS = ("image/id", "image_id", "id", "key", "image/filename", "filename", "__key__")
_LENGTH, _CHECK = 8, 4  # bytes: the length of a record, and each of its two checksums


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """Records of one file, by number.

    Attributes:
      path: of the file.
      starts: int64[n], where each record's content begins.
      sizes: int64[n], bytes of each.
    """

    path: Path
    starts: np.ndarray
    sizes: np.ndarray

    def read(self, number: int) -> bytes:
        """The content of a record.

        Raises:
          DataError: the file cannot be read, or has become shorter.
        """
        size = int(self.sizes[number])
        try:
            with self.path.open("rb") as file:
                file.seek(int(self.starts[number]))
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from error
        if len(data) < size:
            raise DataError(f"{self.path}: record {number} is cut off: copy the file again")
        return data


def index_records(path: Path) -> RecordFile:
    """Finds the records of a TFRecord file by their lengths alone.

    Raises:
      DataError: it cannot be read, is compressed, not such a file, or cut off.
    """
    starts, sizes, place = [], [], 0
    try:
        end = path.stat().st_size
        with path.open("rb") as file:
            while place < end:
                file.seek(place)
                head = file.read(_LENGTH)
                size = struct.unpack("<Q", head)[0] if len(head) == _LENGTH else end
                start = place + _LENGTH + _CHECK
                if start + size + _CHECK > end:
                    packed = ", or compressed: unpack it" if not starts else ""
                    raise DataError(
                        f"{path}: record {len(starts)} reaches beyond the end of the file: it is "
                        f"cut off: copy it again; or it is no TFRecord file{packed}"
                    )
                starts.append(start)
                sizes.append(size)
                place = start + size + _CHECK
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return RecordFile(path, np.array(starts, np.int64), np.array(sizes, np.int64))


def open_tfrecord(pattern: str, labels: Sequence[str] | None = None) -> ImageSet:
    """Opens TFRecord files of `tf.train.Example`s with a picture and a text or a label each.

    Labels are the numbers of classes, which the files do not name.

    Args:
      pattern: files, see `files_of`.
      labels: names of the classes in the order of their numbers; () if None.

    Raises:
      DataError: a file cannot be read, or its first record has no picture.
    """
    files = [index_records(path) for path in files_of(pattern)]
    sizes = tuple(len(file.starts) for file in files)
    first = np.concatenate([[0], np.cumsum(sizes)])

    def read(number: int) -> ImageExample:
        shard = int(np.searchsorted(first, number, side="right")) - 1
        file, index = files[shard], number - int(first[shard])
        return _example(file.read(index), f"{file.path.name}:{index}", str(file.path))

    images = ImageSet(pattern, sizes, read, tuple(labels or ()))
    images.read(0)
    return images


def _example(data: bytes, where: str, path: str) -> ImageExample:
    import tensorflow as tf

    try:
        features = tf.train.Example.FromString(data).features.feature
    except Exception as error:  # of protobuf, which has no error of its own for damage
        raise DataError(f"{path}: {where} is no tf.train.Example: {error}") from error
    picture = _first(features, IMAGES)
    if not isinstance(picture, bytes):
        raise DataError(
            f"{path}: {where} has no picture under {', '.join(IMAGES)}; it has "
            f"{', '.join(sorted(features)) or 'nothing'}: write it under one of these names"
        )
    text, label, name = (_first(features, names) for names in (TEXTS, LABELS, IDS))
    return ImageExample(
        picture,
        where if name is None else _as_text(name),
        label if isinstance(label, int) else -1,
        texts=() if text is None else (_as_text(text),),
    )


def _first(features: Mapping[str, Any], names: Sequence[str]) -> bytes | int | None:
    """The value of the first of several features that has one."""
    for name in names:
        if name in features:
            feature = features[name]
            values = feature.bytes_list.value or feature.int64_list.value
            if values:
                return values[0]
    return None


def _as_text(value: bytes | int) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
