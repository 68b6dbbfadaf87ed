"""Conceptual Captions: pictures of the web with their cleaned alternative texts, for pretraining.

Official files (Google's Conceptual Captions page; licence and checksums are unknown here), lines
"caption<tab>url" without a header: `Train_GCC-training.tsv` and
`Validation_GCC-1.1.0-Validation.tsv`, 3.3 million lines and some 15,000. Where there are none,
`caption_train.json` and `caption_val.json` of the reference are read: {image id: caption}. All may
be gzipped.

An image of the official files is known by the number of its line, from 0, with "val-" before it
where the file is that of validation, which counts from 0 as well. The pictures have to be fetched
from their addresses, many of which are dead; the one of image "val-17" is expected as "val-17.jpg"
in the folder of images, which is also what `AnnotatedImage.file_name` says.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from twelve_in_one.data import files
from twelve_in_one.data.annotations import json_stream
from twelve_in_one.data.annotations.retrieval import text_of
from twelve_in_one.data.files import RecordError
from twelve_in_one.data.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    Skipped,
)

_VALIDATION = "val-"
_FILES = {
    "train": ("Train_GCC-training.tsv", "caption_train.json"),
    "val": ("Validation_GCC-1.1.0-Validation.tsv", "caption_val.json"),
}


def read(folder: Path, split: str) -> AnnotationSet:
    """All captions of a split in file order; the 3.3 million of training take some 1.7 GB.

    Args:
      folder: where the files are.
      split: "train" or "val".

    Returns:
      An annotation a caption; its example id is the image's id. Lines without caption or address
      are skipped, and keep their numbers.

    Raises:
      MissingFile: no such file.
      DataError: it cannot be read.
      ValueError: unknown split.
    """
    annotations, images, skipped = [], {}, []
    for item in stream(folder, split):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            annotations.append(item)
            images[item.image_id] = AnnotatedImage(item.image_id, f"{item.image_id}.jpg")
    return AnnotationSet(tuple(annotations), images, skipped=tuple(skipped))


def stream(folder: Path, split: str) -> Iterator[Annotation | Skipped]:
    """What `read` gathers, one at a time and without the images.

    Raises:
      MissingFile, ValueError: as `read`, at once.
      DataError: as `read`, perhaps only after some captions.
    """
    if split not in _FILES:
        raise ValueError(f"split must be one of {', '.join(_FILES)}, got {split!r}")
    path = files.find(folder, *_FILES[split])
    if ".json" in path.suffixes:
        return _read_json(path)
    return _read_table(path, "" if split == "train" else _VALIDATION)


def feature_key(image_id: str) -> str:
    """The id by which stores of region features, one a file, know an image."""
    return image_id.removeprefix(_VALIDATION)


def _read_table(path: Path, prefix: str) -> Iterator[Annotation | Skipped]:
    opened = gzip.open if path.suffix == ".gz" else open
    number = -1
    try:
        with opened(path, "rb") as lines:
            while line := lines.readline(files.MAX_LINE_BYTES):
                number += 1
                if len(line) == files.MAX_LINE_BYTES:
                    raise DataError(f"{path}: line {number} exceeds {files.MAX_LINE_BYTES} bytes")
                image_id = f"{prefix}{number}"
                try:
                    text = _caption(line)
                except RecordError as error:
                    yield Skipped(str(path), f"line {number}", str(error))
                    continue
                yield Annotation(image_id, image_id, text)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read after line {number}: {error}") from error


def _caption(line: bytes) -> str:
    try:
        text = line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 at byte {error.start}") from error
    columns = text.split("\t")
    if len(columns) != 2 or not all(column.strip() for column in columns):
        raise RecordError(f"must be 'caption<tab>url', is {files.shorten(text)}")
    return columns[0]


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
