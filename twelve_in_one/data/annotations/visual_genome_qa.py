"""Visual Genome question answering: free-form questions, one answer each.

Official files, from the Visual Genome download page (CC-BY-4.0; checksums unknown), in one folder,
unpacked or compressed with gzip:

* question_answers.json: a list of {"id", "qas": [{"qa_id", "image_id", "question", "answer"}]}
* image_data.json: a list of {"image_id", "width", "height", "coco_id"}

If the first is missing, the released code's `cache/trainval_target.pkl` and
`cache/trainval_label2ans.pkl` are read instead (and image_data.json if there is one); these
hold only the answers in the vocabulary.

Answers are written as sentences ("Green.", "A red shirt."), whereas the vocabulary, VQA's,
holds normalised texts. As in the common recipe, each answer is therefore stored normalised by the
rules of the official VQA evaluation, which drop the final period, capitals and articles ("green",
"red shirt").
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from twelve_in_one.data.annotations import question_answering
from twelve_in_one.data.formats import json_stream
from twelve_in_one.data.formats.files import RecordError, field, find, read_text
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    Skipped,
    none_usable,
)
from twelve_in_one.tasks.metrics.vqa import normalise_answer

# Questions at the end, by question id, that the released code validates on.
NUM_VAL = 5000

_IMAGES = "image_data.json"


def read(folder: Path, split: str, num_val: int | None = None) -> AnnotationSet:
    """Reads the questions of one role, in the order of their ids.

    Args:
      folder: of the files above.
      split: "train" (all but the last `num_val` questions) or "val" (those). There are no test
        questions: the paper reports results on "val".
      num_val: see `question_answering.hold_out`; the official number is 5,000.

    Raises:
      DataError: see `read_all`.
      ValueError: another split, or `num_val` is negative.
    """
    if split not in ("train", "val"):
        raise ValueError(
            f"split must be 'train' or 'val', got {split!r}: Visual Genome has no test questions, "
            "results are reported on 'val'"
        )
    rest, held_out = question_answering.hold_out(read_all(folder), NUM_VAL, num_val, folder)
    return rest if split == "train" else held_out


def read_all(folder: Path) -> AnnotationSet:
    """Reads all questions, in the order of their ids.

    An example has its normalised answer with score 1 (from a cache: no answer if it is not in the
    vocabulary). Images have size and COCO id if image_data.json was read; questions on images
    missing from it are skipped.

    Raises:
      DataError: a file is missing, is not what it should be, or holds no usable question.
    """
    path = find(folder, "question_answers.json", "cache/trainval_target.pkl")
    skipped: list[Skipped] = []
    image_of: Callable[[str], AnnotatedImage] = AnnotatedImage
    if question_answering.is_cache(path):
        number_id = question_answering.number_id
        questions = question_answering.cached_questions(path, skipped, number_id)
        has_images = any((folder / name).is_file() for name in (_IMAGES, f"{_IMAGES}.gz"))
    else:
        questions = _questions(path, skipped)
        has_images = True
    if has_images:
        image_of = partial(_known_image, _read_images(find(folder, _IMAGES), skipped))
    result = question_answering.collected(questions, path, skipped, image_of)
    annotations = sorted(result.annotations, key=question_answering.by_number)
    return dataclasses.replace(result, annotations=tuple(annotations))


def _questions(path: Path, skipped: list[Skipped]) -> Iterator[Annotation]:
    """Questions of the official file, in file order."""
    records = json_stream.elements(read_text(path), str(path))
    for position, image in enumerate(records, 1):
        try:
            pairs = field(image, "qas", list)
        except RecordError as error:
            skipped.append(Skipped(str(path), f"record {position}", str(error)))
            continue
        for number, pair in enumerate(pairs, 1):
            try:
                yield Annotation(
                    str(question_answering.number_id(pair, "qa_id")),
                    str(question_answering.number_id(pair, "image_id")),
                    field(pair, "question", str),
                    _normalised(field(pair, "answer", str)),
                    question_answering.ONE,
                )
            except RecordError as error:
                otherwise = f"record {position}, question {number}"
                name = question_answering.record_name(pair, "qa_id", otherwise)
                skipped.append(Skipped(str(path), name, str(error)))


# Far fewer answers than questions: they share tuples.
@lru_cache(maxsize=1 << 16)
def _normalised(answer: str) -> tuple[str, ...]:
    if not answer.strip():
        raise RecordError("'answer' is blank")
    return (normalise_answer(answer),)


def _read_images(path: Path, skipped: list[Skipped]) -> dict[str, AnnotatedImage]:
    images: dict[str, AnnotatedImage] = {}
    for position, record in enumerate(json_stream.elements(read_text(path), str(path)), 1):
        try:
            image = _image(record)
            if image.image_id in images:
                raise RecordError("its image id occurs twice")
        except RecordError as error:
            name = question_answering.record_name(record, "image_id", f"record {position}")
            skipped.append(Skipped(str(path), name, str(error)))
            continue
        images[image.image_id] = image
    if not images:
        raise none_usable(path, "image", skipped)
    return images


def _known_image(images: Mapping[str, AnnotatedImage], image_id: str) -> AnnotatedImage:
    if image_id not in images:
        raise RecordError(f"image {image_id} is not in {_IMAGES}, or cannot be used")
    return images[image_id]


def _image(record: Any) -> AnnotatedImage:
    image_id = str(question_answering.number_id(record, "image_id"))
    width, height = field(record, "width", int), field(record, "height", int)
    if width <= 0 or height <= 0:
        raise RecordError(f"size {width} x {height} is not positive")
    in_coco = record.get("coco_id") is not None
    coco_id = question_answering.number_id(record, "coco_id") if in_coco else -1
    return AnnotatedImage(image_id, width=width, height=height, coco_id=coco_id)
