"""NLVR2: is a sentence true of two pictures?

Official files (NLVR repository, folder `nlvr2/data`; one JSON object per line, possibly gzipped):
`train.json`, `dev.json` and `test1.json` (public test, "test-P"; `test.json` if it was renamed
for the released 12-in-1 code). Dev and test also have a `balanced` and an `unbalanced` part,
`balanced_dev.json` and so on. Sentences and labels: CC-BY-4.0; the pictures belong to others.
Checksums: unknown.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from twelve_in_one.data.annotations.question_answering import record_name
from twelve_in_one.data.formats import files
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import AnnotatedImage, Annotation, AnnotationSet, Skipped

_FILES = {"train": ("train.json",), "val": ("dev.json",), "test": ("test1.json", "test.json")}


def read(
    folder: Path, split: str, part: Literal["all", "balanced", "unbalanced"] = "all"
) -> AnnotationSet:
    """Sentences of a split in file order, each about a pair of pictures.

    A pair's key is the identifier without its last part ("dev-850-0-0" -> "dev-850-0"). The
    pictures' ids, also the keys of their features, are that key plus "-img0" (left) or "-img1"
    (right). The label is 0 (False), 1 (True), or -1 if a record has none, as in a hidden test.

    Args:
      folder: where the files are; parts may also be in `folder/<part>`.
      split: "train", "val" (official dev) or "test" (official test1).
      part: "balanced": only pairs of pictures with one true and one false sentence;
        "unbalanced": only pairs whose two sentences are both true or both false. The two parts
        together are not "all".

    Raises:
      MissingFile: no such file.
      DataError: it cannot be read.
      ValueError: unknown split or part.
    """
    if split not in _FILES:
        raise ValueError(f"split must be one of {', '.join(_FILES)}, got {split!r}")
    if part not in ("all", "balanced", "unbalanced"):
        raise ValueError(f"part must be all, balanced or unbalanced, got {part!r}")
    names = _FILES[split]
    if part != "all":
        names = tuple(f"{where}{part}_{name}" for name in names for where in ("", f"{part}/"))
    path = files.find(folder, *names)

    annotations: dict[str, Annotation] = {}
    images: dict[str, AnnotatedImage] = {}
    pairs: dict[str, tuple[str, str]] = {}
    skipped = []
    for line, record in files.read_json_lines(path):
        try:
            annotation = _annotation(record)
            if annotation.example_id in annotations:
                raise RecordError(f"line {line}: the same identifier occurred before")
        except RecordError as error:
            name = record_name(record, "identifier", f"line {line}")
            skipped.append(Skipped(str(path), name, str(error)))
            continue
        annotations[annotation.example_id] = annotation
        pair = annotation.image_id
        pairs[pair] = (f"{pair}-img0", f"{pair}-img1")
        images |= {image_id: AnnotatedImage(image_id) for image_id in pairs[pair]}
    return AnnotationSet(tuple(annotations.values()), images, pairs, tuple(skipped))


def _annotation(record: Mapping[str, Any] | RecordError) -> Annotation:
    if isinstance(record, RecordError):
        raise record
    identifier = files.field(record, "identifier", str)
    pair, _, sentence_number = identifier.rpartition("-")
    if not pair or not sentence_number:
        raise RecordError(
            f"'identifier' must end in the number of a sentence, is {files.shorten(identifier)}"
        )
    text = files.field(record, "sentence", str)
    return Annotation(identifier, pair, text, label=_label(record))


def _label(record: Mapping[str, Any]) -> int:
    if "label" not in record:
        return -1
    label = record["label"]
    if label is True or label == "True":
        return 1
    if label is False or label == "False":
        return 0
    raise RecordError(f"'label' must be True or False, is {files.shorten(label)}")
