"""Conceptual Captions: pictures of the web with their cleaned alternative texts, for pretraining.

Official files (Google's Conceptual Captions page; licence and checksums are unknown here), lines
"caption<tab>url" without a header: `Train_GCC-training.tsv` and
`Validation_GCC-1.1.0-Validation.tsv`, 3.3 million lines and some 15,000. The columns may also come
in the other order, as in Conceptual 12M: the caption is the cell that is not an address. A header
is skipped and not counted. Without these files, `caption_train.json` and `caption_val.json` of the
reference are read: {image id: caption}. All may be gzipped.

An image of the official files is identified by its line number, from 0; ids of the validation file,
which also counts from 0, start with "val-". The pictures have to be fetched from their addresses,
many of which are dead; the picture of image "val-17" is expected as "val-17.jpg" in the folder of
images, and `AnnotatedImage.file_name` has the same name.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from twelve_in_one.data.annotations.retrieval import text_of
from twelve_in_one.data.formats import files, json_stream
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    Skipped,
)

HEADER = "the first line is a header, which is left out and not counted"
_PREFIXES = {"train": "", "val": "val-"}
_FILES = {
    "train": ("Train_GCC-training.tsv", "caption_train.json"),
    "val": ("Validation_GCC-1.1.0-Validation.tsv", "caption_val.json"),
}
_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://\S")
_CAPTION_NAMES = ("caption", "captions", "text", "title", "description", "alt", "alt_text")
_ADDRESS_NAMES = ("url", "urls", "image", "image_url", "url_image", "link", "address")
_COLUMN_NAMES = frozenset((*_CAPTION_NAMES, *_ADDRESS_NAMES))


def read(folder: Path, split: str) -> AnnotationSet:
    """All captions of a split in file order; the 3.3 million for training take some 1.7 GB.

    Args:
      folder: where the files are.
      split: "train" or "val".

    Returns:
      One annotation per caption; its example id is the image's id. Lines without caption or address
      are skipped, and keep their numbers; a header is noted.

    Raises:
      MissingFile: no such file.
      DataError: it cannot be read, or its first line is neither a record nor a header.
      ValueError: unknown split.
    """
    annotations, images, skipped = [], {}, []
    for item in stream(folder, split):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            annotations.append(item)
            images[item.image_id] = AnnotatedImage(item.image_id, f"{item.image_id}.jpg")
    path = files.find(folder, *_FILES[split])
    if _is_json(path):
        return AnnotationSet(tuple(annotations), images, skipped=tuple(skipped))
    return AnnotationSet(
        tuple(annotations),
        images,
        skipped=tuple(skipped),
        notes={HEADER: frozenset()} if _has_header(path) else {},
        next_image_id=f"{_PREFIXES[split]}{len(annotations) + len(skipped)}",
    )


def stream(folder: Path, split: str) -> Iterator[Annotation | Skipped]:
    """Yields the annotations of `read` one at a time, without the images.

    Raises:
      MissingFile, ValueError: as `read`, at once.
      DataError: as `read`, perhaps only after some captions.
    """
    if split not in _FILES:
        raise ValueError(f"split must be one of {', '.join(_FILES)}, got {split!r}")
    path = files.find(folder, *_FILES[split])
    if _is_json(path):
        return _read_json(path)
    return _read_table(path, _PREFIXES[split])


def feature_key(image_id: str) -> str:
    """The id of an image in stores of region features with one file per image."""
    return image_id.removeprefix(_PREFIXES["val"])


def _is_json(path: Path) -> bool:
    return ".json" in path.suffixes


def _read_table(path: Path, prefix: str) -> Iterator[Annotation | Skipped]:
    number = 0
    for line_number, line in files.read_lines(path):
        if line_number == 1 and _is_header(path, line):
            continue
        image_id = f"{prefix}{number}"
        try:
            yield Annotation(image_id, image_id, _caption(line))
        except RecordError as error:
            yield Skipped(str(path), f"line {number}", str(error))
        number += 1


def _has_header(path: Path) -> bool:
    number, line = next(files.read_lines(path), (0, b""))
    return number == 1 and _is_header(path, line)


def _is_header(path: Path, line: bytes) -> bool:
    """Returns whether a first line names the columns.

    Raises:
      DataError: it could be either a header or a record without an address; an error of one line
        would give every caption to another image.
    """
    try:
        cells = _cells(line)
    except RecordError:
        return False
    if any(map(_is_address, cells)):
        return False
    if all(cell.strip().lower() in _COLUMN_NAMES for cell in cells):
        return True
    raise DataError(
        f"{path}: the first line is neither a caption with an address nor a header as "
        f"'caption<tab>url': {files.shorten(cells)}; if it is a header, remove it, if not, repair "
        "its address"
    )


def _caption(line: bytes) -> str:
    """The cell that is not an address, in either column."""
    cells = _cells(line)
    captions = [cell for cell in cells if not _is_address(cell)]
    if len(captions) != 1:
        fault = "has no address" if captions else "has no caption, but two addresses"
        raise RecordError(f"{fault}: {files.shorten(cells)}")
    return captions[0]


def _cells(line: bytes) -> list[str]:
    try:
        text = line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 at byte {error.start}") from error
    cells = text.split("\t")
    if len(cells) != 2 or not all(cell.strip() for cell in cells):
        raise RecordError(f"must be 'caption<tab>url', is {files.shorten(text)}")
    return cells


def _is_address(cell: str) -> bool:
    return _ADDRESS.match(cell) is not None


def _read_json(path: Path) -> Iterator[Annotation | Skipped]:
    seen = set()
    for place, (key, caption) in enumerate(json_stream.members(files.read_text(path), str(path))):
        try:
            image_id = text_of({"image id": key}, "image id")
            if image_id in seen:
                raise RecordError(f"image {files.shorten(image_id)} has a caption already")
            text = text_of({"caption": caption}, "caption")
        except RecordError as error:
            yield Skipped(str(path), f"record {place}", str(error))
            continue
        seen.add(image_id)
        yield Annotation(image_id, image_id, text)
