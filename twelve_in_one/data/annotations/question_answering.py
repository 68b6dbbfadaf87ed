"""Code that the readers of VQA, Visual Genome QA and GQA share.

* The choice of questions to hold out for validation.
* The caches of the released training code (`cache/*_target.pkl`, lists of records with `labels`
  into `cache/trainval_label2ans.pkl`), turned back into answer texts.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.data.annotations.select import joined_notes, restricted
from twelve_in_one.data.builders.answers import read_vocabulary
from twelve_in_one.data.formats import safe_pickle
from twelve_in_one.data.formats.files import RecordError, field, read_json, shorten, text_id
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    Skipped,
    none_usable,
)

_LABELS = "trainval_label2ans.pkl"
# If a folder has it: a JSON list of the ids of the questions to hold out, instead of the last ones.
HELD_OUT = "val_question_ids.json"
# For a single right answer; shared by millions of annotations.
ONE = (1.0,)


def num_held_out(num_questions: int, official: int, num_val: int | None = None) -> int:
    """How many questions at the end of a file are held out for validation.

    Args:
      num_questions: in the file.
      official: how many the released code holds out: 3,000 of VQA and GQA, 5,000 of Visual Genome.
      num_val: how many the user wants; None for `official` if the file has at least four times
        as many questions, else (samples, generated data) a fifth of them, rounded down, at least 1.

    Returns:
      The number, at most `num_questions`.

    Raises:
      ValueError: `num_val` is negative.
    """
    if num_val is None:
        num_val = official if num_questions >= 4 * official else max(1, num_questions // 5)
    if num_val < 0:
        raise ValueError(f"num_val must not be negative, got {num_val}")
    return min(num_val, num_questions)


def hold_out(
    annotation_set: AnnotationSet, official: int, num_val: int | None, folder: Path
) -> tuple[AnnotationSet, AnnotationSet]:
    """Splits a set into its beginning and the `num_held_out` annotations at its end.

    Without a number, the questions of `HELD_OUT` are held out, if the folder has such a file. Both
    parts list all skipped records, which belong to neither.

    Raises:
      DataError: the file is not a list of ids, or has ids that no question has.
    """
    annotations = annotation_set.annotations
    if num_val is None and (path := folder / HELD_OUT).is_file():
        chosen = _held_out_ids(path)
        unknown = chosen - {a.example_id for a in annotations}
        skipped = {skip.record for skip in annotation_set.skipped}
        if unknown - skipped:
            raise DataError(
                f"{path}: no question has {len(unknown - skipped)} of the {len(chosen)} ids, first "
                f"{min(unknown - skipped)}"
            )
        return (
            restricted(annotation_set, (a for a in annotations if a.example_id not in chosen)),
            restricted(annotation_set, (a for a in annotations if a.example_id in chosen)),
        )
    first = len(annotations) - num_held_out(len(annotations), official, num_val)
    return (
        restricted(annotation_set, annotations[:first]),
        restricted(annotation_set, annotations[first:]),
    )


def _held_out_ids(path: Path) -> set[str]:
    ids = read_json(path, list)
    wrong = [value for value in ids if type(value) not in (int, str)]
    if wrong or not ids:
        found = shorten(wrong[0]) if wrong else "empty"
        raise DataError(f"{path}: must be a list of question ids, numbers or texts; found {found}")
    return set(map(str, ids))


def joined(first: AnnotationSet, second: AnnotationSet, second_file: Path) -> AnnotationSet:
    """Joins two sets without pairs, in that order.

    Questions of `second`, read from `second_file`, are skipped if `first` has their ids.
    """
    seen = {annotation.example_id for annotation in first.annotations}
    new, skipped = [], []
    for annotation in second.annotations:
        if annotation.example_id in seen:
            reason = "its question id occurs in the first file too"
            skipped.append(Skipped(str(second_file), annotation.example_id, reason))
        else:
            new.append(annotation)
    return AnnotationSet(
        (*first.annotations, *new),
        {**second.images, **first.images},
        skipped=(*first.skipped, *second.skipped, *skipped),
        notes=joined_notes((first, second)),
    )


def collected(
    questions: Iterable[Annotation],
    path: Path,
    skipped: list[Skipped],
    image_of: Callable[[str], AnnotatedImage] = AnnotatedImage,
) -> AnnotationSet:
    """Makes a set of the questions of one file, in their order.

    Args:
      questions: as read; the first question with an id counts.
      path: of the file, for messages.
      skipped: records left out so far; reading `questions` may add to it.
      image_of: image id -> known data on the image; a `RecordError` skips the question.

    Raises:
      DataError: no question can be used.
    """
    seen: set[str] = set()
    annotations: list[Annotation] = []
    images: dict[str, AnnotatedImage] = {}
    for annotation in questions:
        try:
            if annotation.example_id in seen:
                raise RecordError("its question id occurs twice")
            if annotation.image_id not in images:
                images[annotation.image_id] = image_of(annotation.image_id)
        except RecordError as error:
            skipped.append(Skipped(str(path), annotation.example_id, str(error)))
            continue
        seen.add(annotation.example_id)
        annotations.append(annotation)
    if not annotations:
        raise none_usable(path, "question", skipped)
    return AnnotationSet(tuple(annotations), images, skipped=tuple(skipped))


def is_cache(path: Path) -> bool:
    """Whether `path` names a cache of the released code, not an official file."""
    return ".pkl" in path.suffixes


def read_cache(path: Path) -> tuple[list[Any], tuple[str, ...]]:
    """Records of a `cache/*_target.pkl`, and the answers that their labels index.

    Raises:
      DataError: the file or the `trainval_label2ans.pkl` beside it is missing, not a pickle of
        plain data, or not a list.
    """
    records = safe_pickle.load(path)
    if not isinstance(records, list):
        raise DataError(f"{path}: must hold a list, holds a {type(records).__name__}")
    return records, read_vocabulary(path.with_name(_LABELS))


def cached_answers(
    record: Mapping[str, Any], vocabulary: Sequence[str]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Answers and scores of a cached record: answers outside the vocabulary are not in the caches.

    Raises:
      RecordError: `labels` and `scores` are not lists of one length, a label is repeated or is not
        an index into the vocabulary, or a score is not in [0, 1].
    """
    labels, scores = field(record, "labels", list), field(record, "scores", list)
    for label in labels:
        if type(label) is not int or not 0 <= label < len(vocabulary):
            raise RecordError(f"label {shorten(label)} is no index into {len(vocabulary)} answers")
    for score in scores:
        if type(score) not in (int, float) or not 0 <= score <= 1:
            raise RecordError(f"score {shorten(score)} does not lie in [0, 1]")
    if len(labels) != len(scores) or len(set(labels)) != len(labels):
        raise RecordError(f"labels {shorten(labels)} and scores {shorten(scores)} do not match")
    return tuple(vocabulary[label] for label in labels), tuple(map(float, scores))


def cached_questions(
    path: Path, skipped: list[Skipped], question_id_of: Callable[[Any, str], int | str]
) -> Iterator[Annotation]:
    """Questions of a cache whose records also hold `question`, in file order.

    Args:
      path: of a `cache/*_target.pkl`.
      skipped: gets the records that cannot be used.
      question_id_of: takes an id out of a record, `number_id` or `files.text_id`.

    Raises:
      DataError: see `read_cache`.
    """
    records, vocabulary = read_cache(path)
    for position, record in enumerate(records, 1):
        try:
            answers, scores = cached_answers(record, vocabulary)
            yield Annotation(
                str(question_id_of(record, "question_id")),
                sys.intern(text_id(record, "image_id")),
                field(record, "question", str),
                answers,
                scores,
            )
        except RecordError as error:
            name = record_name(record, "question_id", f"record {position}")
            skipped.append(Skipped(str(path), name, str(error)))


def number_id(record: Any, key: str) -> int:
    """An id under `key` that is a number.

    Raises:
      RecordError: missing, not an integer, negative, or beyond 63 bits.
    """
    number = field(record, key, int)
    if not 0 <= number < 1 << 63:
        raise RecordError(f"{key!r} is negative or out of range")
    return number


def record_name(record: Any, key: str, otherwise: str) -> str:
    """Names a skipped record: by the id under `key`, if it has one."""
    try:
        return text_id(record, key)
    except RecordError:
        return otherwise


def by_number(annotation: Annotation) -> int:
    """Sort key: the question id as a number."""
    return int(annotation.example_id)
