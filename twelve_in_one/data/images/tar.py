"""Webdataset archives: plain .tar files; an example's members share the name before the dot.

`0001.jpg` and `0001.txt` are a picture and its text, `0001.cls` is the number of its class.
"""

import dataclasses
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twelve_in_one.data.formats.files import PICTURE_SUFFIXES
from twelve_in_one.data.images.files_of import files_of
from twelve_in_one.data.images.image_set import ImageExample, ImageSet
from twelve_in_one.data.stored.records import DataError

_TEXTS, _LABEL = ("txt", "caption", "text"), "cls"


@dataclasses.dataclass(slots=True)
class _Member:
    """Positions of the parts of an example: (offset, bytes)."""

    key: str
    picture: tuple[int, int] | None = None
    text: tuple[int, int] | None = None
    label: tuple[int, int] | None = None


def open_tar(pattern: str, labels: Sequence[str] | None = None) -> ImageSet:
    """Opens webdataset archives. Examples are numbered in stored order, one shard per archive.

    Args:
      pattern: archives, see `files_of`.
      labels: names of the classes in the order of their numbers; () if None.

    Raises:
      DataError: an archive cannot be read, is compressed or cut off; or an example has no picture.
    """
    paths = files_of(pattern)
    shards = [_index(path) for path in paths]
    first = np.concatenate([[0], np.cumsum([len(shard) for shard in shards])])

    def read(number: int) -> ImageExample:
        shard = int(np.searchsorted(first, number, side="right")) - 1
        return _read(paths[shard], shards[shard][number - int(first[shard])])

    return ImageSet(pattern, tuple(map(len, shards)), read, tuple(labels or ()))


def _index(path: Path) -> list[_Member]:
    """The examples of an archive, from the headers of its members alone."""
    found: list[_Member] = []
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if not stem:  # a hidden file, as some systems add
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{path}: {member.name} is cut off: copy the archive again")
                key, place = folder + slash + stem, (member.offset_data, member.size)
                if not found or found[-1].key != key:
                    found.append(_Member(key))
                ending = ending.lower()
                if f".{ending}" in PICTURE_SUFFIXES:
                    found[-1].picture = found[-1].picture or place
                elif ending in _TEXTS:
                    found[-1].text = found[-1].text or place
                elif ending == _LABEL:
                    found[-1].label = place
    except tarfile.TarError as error:
        raise DataError(
            f"{path}: no plain tar archive ({error}); unpack a compressed one (gunzip), copy a "
            "damaged one again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for example in found:
        if example.picture is None:
            raise DataError(
                f"{path}: {example.key} has no picture ({', '.join(sorted(PICTURE_SUFFIXES))}) "
                "beside its other members: leave it out"
            )
    return found


def _read(path: Path, member: _Member) -> ImageExample:
    def part(place: tuple[int, int] | None) -> bytes:
        if place is None:
            return b""
        file.seek(place[0])
        return file.read(place[1])

    try:
        with path.open("rb") as file:
            picture, text, label = map(part, (member.picture, member.text, member.label))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    try:
        words = text.decode().strip()
        number = int(label) if member.label else -1
        return ImageExample(picture, member.key, number, texts=(words,) if words else ())
    except ValueError as error:
        raise DataError(
            f"{path}: {member.key}: text or class cannot be understood: {error}"
        ) from error
