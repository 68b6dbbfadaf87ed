"""The interface of all stores of region features, and code that their readers share.

A store gives the `Regions` of an image by its id. It returns arrays of the right types and ranks;
`regions.checks` decides whether their values are valid.
"""

import base64
import binascii
import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from twelve_in_one.data.formats.files import shorten
from twelve_in_one.data.stored.records import AnnotatedImage, DataError, Regions, Skipped

_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})")
_PICTURE_SUFFIX = re.compile(r"\.(?:jpe?g|png)$", re.IGNORECASE)


class RegionStore(Protocol):
    """Regions of images by image id; closes itself at the end of a `with` block.

    Ids are the decimal COCO id without zeros (VQA, COCO, RefCOCO, GuessWhat), the file's stem
    (Flickr30k), the Visual Genome id (also of GQA's images), "v7w_<id>" (Visual7W) and
    "<split>-<a>-<b>-img0" (NLVR2); see `image_key` for other spellings.

    Attributes:
      name: of the store in messages, usually its path.
      extractor: name of the detector that filled it; "" if the store does not say.
      damaged: entries that cannot be used, by the image id that they have or seem to have; such
        images count as missing, unless another entry has them.
    """

    name: str
    extractor: str = ""
    damaged: tuple[Skipped, ...] = ()

    @property
    def parts(self) -> tuple["RegionStore", ...]:
        """The stores that this one searches, in order; itself if it is only one."""
        return (self,)

    def ids(self) -> Iterator[str]:
        """Ids of all images."""
        ...

    def get(self, image_id: str) -> Regions:
        """The regions of an image.

        Raises:
          DataError: there is no such image, or its entry is damaged; names store and id.
        """
        ...

    def close(self) -> None:
        """Closes files; nothing can be read afterwards."""
        ...

    def __contains__(self, image_id: str) -> bool: ...

    def __len__(self) -> int: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NoRegions(RegionStore):
    """Has every image, without any regions: to work with text and given boxes alone.

    Sizes are 0, too; the code that joins regions with annotations sets the annotated size.
    """

    name = "none"

    def ids(self) -> Iterator[str]:
        return iter(())

    def get(self, image_id: str) -> Regions:
        return Regions(np.zeros((0, 4), np.float32), np.zeros((0, 0), np.float32), 0, 0)

    def close(self) -> None:
        """There is nothing to close."""

    def __contains__(self, image_id: str) -> bool:
        return True

    def __len__(self) -> int:
        return 0


def file_names(folder: Path) -> list[str]:
    """Names of what a folder holds, ascending.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error}") from error


class FilesStore(RegionStore):
    """A folder with a file for each image; what is in them is up to the subclass."""

    _files: dict[str, str]  # their names by image id

    def path_of(self, image_id: str) -> Path:
        """The file of an image; DataError if there is none."""
        if image_id not in self._files:
            raise missing_image(self, image_id)
        return Path(self.name, self._files[image_id])

    def ids(self) -> Iterator[str]:
        return iter(self._files)

    def close(self) -> None:
        """Files are open only while they are read."""

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._files

    def __len__(self) -> int:
        return len(self._files)


def image_key(text: str) -> str:
    """The annotations' id of an image that a store calls `text`.

    "COCO_train2014_000000318556" and "000000318556.jpg" become "318556"; other names only lose the
    suffix of a picture. Readers of TSV, npy and HDF5 apply this; LMDB keys are ids already.
    """
    stem = _PICTURE_SUFFIX.sub("", text)
    coco = _COCO_NAME.fullmatch(stem)
    return str(int(coco[1])) if coco else stem


def missing_image(store: RegionStore, image_id: str) -> DataError:
    """The error that `get` raises for a missing image, with the reason or existing ids."""
    for skip in store.damaged:
        if skip.record == image_id:
            return DataError(f"{store.name}: no image {image_id!r}: {skip.reason}")
    digits = _digits(image_id)
    alike = (other for other in store.ids() if digits and _digits(other) == digits)
    hint = list(itertools.islice(alike, 3))
    if hint:
        hint_text = f"there is {', '.join(map(repr, hint))}"
    else:
        first = ", ".join(map(repr, itertools.islice(store.ids(), 3)))
        hint_text = f"its {len(store)} images begin with {first}" if first else "it is empty"
    return DataError(f"{store.name}: no image {image_id!r}; {hint_text}")


def _digits(image_id: str) -> str:
    return re.sub(r"\D", "", image_id).lstrip("0")


def unique_places(
    store: str, found: Iterable[tuple[str, Any]]
) -> tuple[dict[str, Any], tuple[Skipped, ...]]:
    """The place of each image's entry; images with several are left out.

    Args:
      store: its name.
      found: image id and place of all entries.

    Returns:
      Place by image id, and the images left out.
    """
    places: dict[str, Any] = {}
    several: dict[str, list[Any]] = {}
    for image_id, place in found:
        if image_id in several:
            several[image_id].append(place)
        elif image_id in places:
            several[image_id] = [places.pop(image_id), place]
        else:
            places[image_id] = place
    return places, tuple(
        Skipped(store, image_id, f"{' and '.join(map(_name, named))} are both of it")
        for image_id, named in several.items()
    )


def _name(place: Any) -> str:
    text = place.decode("utf-8", "replace") if isinstance(place, bytes) else str(place)
    return text if isinstance(place, str) else f"record {text}"


def entry(record: Any, key: str, where: str) -> Any:
    """`record[key]`.

    Raises:
      DataError: `record` is not a mapping or lacks the key.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: must be a dict, is a {type(record).__name__}")
    if key not in record:
        keys = ", ".join(shorten(key) for key in itertools.islice(record, 12))
        raise DataError(f"{where}: no {key!r}; keys: {keys}")
    return record[key]


def make_regions(
    where: str, *, boxes: Any, features: Any, width: Any, height: Any, class_probs: Any = None
) -> Regions:
    """Makes regions from the contents of a file.

    Args:
      where: store and image, for messages.
      boxes: real[N, 4].
      features: real[N, F]; float16 stays so, the rest becomes float32.
      width: a whole number.
      height: a whole number.
      class_probs: real[N, C] or None.

    Raises:
      DataError: not matrices of numbers and whole sizes.
    """
    boxes = _float32(_matrix(where, "boxes", boxes))
    if boxes.shape[1] != 4:
        raise DataError(f"{where}: boxes must have 4 columns, have shape {boxes.shape}")
    features = _matrix(where, "features", features)
    if features.dtype != np.float16:
        features = _float32(features)
    if class_probs is not None:
        class_probs = _float32(_matrix(where, "class probabilities", class_probs))
    size = _pixels(where, "width", width), _pixels(where, "height", height)
    return Regions(boxes, features, *size, class_probs)


def in_pixels(regions: Regions, image: AnnotatedImage, where: str) -> Regions:
    """Regions whose boxes are in pixels of a picture.

    Stores that do not say how large their pictures are give boxes as shares of it, and sizes of 0.
    If annotations do not say it either, the picture counts as one pixel, which changes nothing of
    what a model sees.

    Raises:
      DataError: the size is unknown, and there are annotated boxes in pixels beside these.
    """
    if regions.width or not len(regions.boxes):
        return regions
    if not image.width and image.boxes:
        raise DataError(
            f"{where}: boxes are shares of a picture whose size neither the store nor the "
            "annotations say, and there are annotated boxes in pixels"
        )
    width, height = (image.width, image.height) if image.width else (1, 1)
    boxes = regions.boxes * np.array([width, height] * 2, np.float32)
    return dataclasses.replace(regions, boxes=boxes, width=width, height=height)


def base64_array(cell: bytes | str, count: int, where: str) -> np.ndarray:
    """float32[N, F] of `count` rows in base64.

    Raises:
      DataError: not base64, or no numbers for so many rows.
    """
    data = _base64(cell, where)
    if count < 0 or len(data) % (4 * max(count, 1)) or (count == 0 and data):
        raise DataError(f"{where}: {len(data)} bytes are no float32 of {count} regions")
    return np.frombuffer(data, "<f4").reshape(count, -1 if count else 0)


def base64_arrays(
    boxes: bytes | str, features: bytes | str, count: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and features from base64 of little-endian float32, or float64.

    Args:
      boxes: of `count` boxes; its length shows the type of the numbers.
      features: of as many regions.
      count: N.
      where: store and image, for messages.

    Returns:
      float[N, 4] and float[N, F].

    Raises:
      DataError: not base64, or not as many numbers as N regions need.
    """
    cells = [_base64(cell, where) for cell in (boxes, features)]
    dtype = np.dtype("<f8" if count and len(cells[0]) == 32 * count else "<f4")
    if count < 0 or any(len(cell) % dtype.itemsize for cell in cells):
        raise DataError(
            f"{where}: no base64 of float32: {len(cells[0])} bytes of boxes, {len(cells[1])} of "
            "features"
        )
    flat = [np.frombuffer(cell, dtype) for cell in cells]
    if len(flat[0]) != 4 * count or len(flat[1]) % max(count, 1):
        raise DataError(
            f"{where}: {len(flat[0])} numbers of boxes and {len(flat[1])} of features do not make "
            f"{count} regions"
        )
    dim = len(flat[1]) // max(count, 1)
    return flat[0].reshape(count, 4), flat[1][: count * dim].reshape(count, dim)


def _base64(cell: bytes | str, where: str) -> bytes:
    data = cell.encode("utf-8", "surrogatepass") if isinstance(cell, str) else cell
    if data[:2] in (b"b'", b'b"'):
        raise DataError(
            f"{where}: {shorten(data.decode('latin-1'))} is how Python 3 prints bytes: write the "
            "file again with base64.b64encode(array).decode(), or without b and quotes"
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: {shorten(cell)} is no base64 of float32: {error}") from error


def _matrix(where: str, name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: {name} are no matrix: {error}") from error
    if array.dtype.kind not in "fiu" or array.ndim != 2:
        raise DataError(
            f"{where}: {name} must be a matrix of numbers, are {array.dtype}{list(array.shape)}"
        )
    return array


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinities are reported by the checks
        return array.astype(np.float32, copy=False)


def _pixels(where: str, name: str, value: Any) -> int:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise DataError(f"{where}: {name} must be a number of pixels, is {shorten(value)}")
    number = float(array.item())
    if not number.is_integer() or abs(number) > 1e9:
        raise DataError(f"{where}: {name} must be a whole number of pixels, is {number}")
    return int(number)
