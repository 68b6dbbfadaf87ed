"""SNLI-VE (visual entailment): does a picture entail a sentence, contradict it, or neither?

Official files (SNLI-VE repository, BSD-2; the sentences are SNLI's, CC-BY-SA-4.0), one JSON object
per line: `snli_ve_train.jsonl`, `snli_ve_dev.jsonl`, `snli_ve_test.jsonl`. Without these, the
tables of e-SNLI-VE (e-ViL repository, no licence stated) are read: `esnlive_train.csv`,
`esnlive_dev.csv`, `esnlive_test.csv`. Their labels were corrected, so accuracies on the two are not
comparable. All may be gzipped. Checksums: unknown. The pictures are those of Flickr30k.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.data.annotations.question_answering import record_name
from twelve_in_one.data.formats import files
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    Skipped,
)

# Class of each gold label in the released code; an entry without a majority ("-") is kept, and
# trained on with an all-zero target.
LABELS = {"contradiction": 0, "neutral": 1, "entailment": 2, "-": -1}

_FILES = {
    "train": ("snli_ve_train.jsonl", "esnlive_train.csv"),
    "val": ("snli_ve_dev.jsonl", "esnlive_dev.csv"),
    "test": ("snli_ve_test.jsonl", "esnlive_test.csv"),
}
# Spellings of the picture's key, the official one (with its typo) first.
_IMAGE_KEYS = ("Flikr30kID", "Flickr30kID", "Flickr30K_ID")
_COLUMNS = ("pairID", "Flickr30kID", "hypothesis", "gold_label")


def read(folder: Path, split: str) -> AnnotationSet:
    """Sentences (hypotheses) of a split in file order.

    The image id is the number before the dot of the picture's name, without leading zeros. The
    example id is `pairID`; if that occurred before in the file, "@" and the line number
    (in a table: the row number below the header) are appended.

    Args:
      folder: where the files are.
      split: "train", "val" (official dev) or "test".

    Raises:
      MissingFile: no such file.
      DataError: it cannot be read, or a table lacks a column.
      ValueError: unknown split.
    """
    if split not in _FILES:
        raise ValueError(f"split must be one of {', '.join(_FILES)}, got {split!r}")
    return read_file(files.find(folder, *_FILES[split]))


def read_file(path: Path) -> AnnotationSet:
    """Sentences of one file, in its order; see `read`.

    Args:
      path: of JSON lines, or of a table if its name contains ".csv".

    Raises:
      DataError: it cannot be read, or a table lacks a column.
    """
    is_table = ".csv" in path.suffixes
    records = _read_table(path) if is_table else files.read_json_lines(path)
    text_key, unit = ("hypothesis", "row") if is_table else ("sentence2", "line")

    annotations: dict[str, Annotation] = {}
    images: dict[str, AnnotatedImage] = {}
    skipped = []
    for number, record in records:
        try:
            if isinstance(record, RecordError):
                raise record
            image = _image(record)
            example_id = files.text_id(record, "pairID")
            if example_id in annotations:
                example_id = f"{example_id}@{number}"
            if example_id in annotations:
                raise RecordError(f"'pairID' {example_id!r} is the name of an earlier record")
            annotation = Annotation(
                example_id, image.image_id, files.field(record, text_key, str), label=_label(record)
            )
        except RecordError as error:
            name = record_name(record, "pairID", f"{unit} {number}")
            skipped.append(Skipped(str(path), name, str(error)))
            continue
        annotations[example_id] = annotation
        images.setdefault(image.image_id, image)
    return AnnotationSet(tuple(annotations.values()), images, skipped=tuple(skipped))


def _read_table(path: Path) -> Iterator[tuple[int, dict[str, Any] | RecordError]]:
    """Yields (row number from 1, record) of a table with a header, like `files.read_json_lines`."""
    table = csv.DictReader(io.StringIO(files.read_text(path), newline=""))
    number = 0
    try:
        missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: no column {', '.join(missing)} in the header")
        for number, row in enumerate(table, 1):
            if None in row:
                yield number, RecordError(f"more cells than the header: {files.shorten(row[None])}")
            else:
                yield number, row
    except csv.Error as error:
        raise DataError(f"{path}: not a table after row {number}: {error}") from error


def _image(record: Mapping[str, Any]) -> AnnotatedImage:
    key = next((key for key in _IMAGE_KEYS if key in record), _IMAGE_KEYS[0])
    name = files.text_id(record, key)
    stem, dot, _ = name.partition(".")
    if not re.fullmatch("[0-9]{1,18}", stem):
        raise RecordError(f"{key!r} must begin with a number, is {files.shorten(name)}")
    return AnnotatedImage(str(int(stem)), file_name=name if dot else "")


def _label(record: Mapping[str, Any]) -> int:
    label = files.field(record, "gold_label", str)
    if label not in LABELS:
        raise RecordError(
            f"'gold_label' must be one of {', '.join(LABELS)}, is {files.shorten(label)}"
        )
    return LABELS[label]
