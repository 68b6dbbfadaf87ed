"""GQA: compositional questions made from scene graphs, one answer each.

Official files, from the GQA download page (annotations CC-BY-4.0; checksums unknown), in one
folder, unpacked or compressed with gzip: {train,val,testdev}_balanced_questions.json, each an
object question id -> {"imageId", "question", "answer"}.

If a file is missing, the released code's `cache/{train,val,trainval}_target.pkl` and
`cache/trainval_label2ans.pkl` are read instead; these hold only the answers in the vocabulary.
Image ids are Visual Genome ids; some images of testdev are not in Visual Genome ("n161313").
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from twelve_in_one.data.annotations import question_answering
from twelve_in_one.data.formats import json_stream
from twelve_in_one.data.formats.files import RecordError, field, find, read_text, text_id
from twelve_in_one.data.official import Records
from twelve_in_one.data.stored.records import Annotation, AnnotationSet, MissingFile, Skipped
from twelve_in_one.tasks.metrics.gqa import QUESTION_FIELDS

# Questions at the end of train and val, by question id as text, that the released code validates
# on ("minval").
NUM_VAL = 3000

_CACHES = {"train_balanced": "cache/train_target.pkl", "val_balanced": "cache/val_target.pkl"}


def read(folder: Path, split: str, num_val: int | None = None) -> AnnotationSet:
    """Reads the questions of one role.

    Args:
      folder: of the files above.
      split: "train" (train and val without the last `num_val` questions; "trainval" in the released
        code), "val" (those questions; "minval") or "test" (testdev).
      num_val: see `question_answering.hold_out`; the official number is 3,000.

    Returns:
      Questions in the order of `read_trainval`, those of the test in the order of their file.

    Raises:
      DataError: see `read_split`.
      ValueError: unknown split, or `num_val` is negative.
    """
    if split == "test":
        return read_split(folder, "testdev_balanced")
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train', 'val' or 'test', got {split!r}")
    rest, held_out = question_answering.hold_out(read_trainval(folder), NUM_VAL, num_val, folder)
    return rest if split == "train" else held_out


def read_trainval(folder: Path) -> AnnotationSet:
    """Reads train and val as one, in the order of the question ids as text ("10" before "9").

    Without the official train file, `cache/trainval_target.pkl` is read.

    Raises:
      DataError: see `read_split`.
    """
    path = find(folder, _question_name("train_balanced"), "cache/trainval_target.pkl")
    if question_answering.is_cache(path):
        return _sorted(read_file(path, answers_needed=True))
    second = find(folder, _question_name("val_balanced"))
    both = question_answering.joined(
        read_file(path, answers_needed=True), read_file(second, answers_needed=True), second
    )
    return _sorted(both)


def read_split(folder: Path, official_split: str) -> AnnotationSet:
    """Reads the questions of one official split.

    An example has its answer with score 1 (from a cache: no answer if it is not in the
    vocabulary). Questions of testdev may have no answer.

    Args:
      folder: of the files above.
      official_split: "train_balanced" or "val_balanced", in the order of the question ids as text,
        or "testdev_balanced", in the order of the file.

    Raises:
      DataError: a file is missing, is not what it should be, or holds no usable question.
      ValueError: unknown split.
    """
    if official_split == "testdev_balanced":
        return read_file(find(folder, _question_name(official_split)), answers_needed=False)
    if official_split not in _CACHES:
        raise ValueError(
            "split must be train_balanced, val_balanced or testdev_balanced, "
            f"got {official_split!r}"
        )
    path = find(folder, _question_name(official_split), _CACHES[official_split])
    return _sorted(read_file(path, answers_needed=True))


def official_records(folder: Path, split: str) -> Callable[[frozenset[str]], Records]:
    """For `official.OfficialFiles`; with the choices of {train,val,testdev}_choices.json if there.

    Raises:
      MissingFile: the questions are not there.
    """
    parts = ("testdev",) if split == "test" else ("train", "val")
    paths = [find(folder, _question_name(f"{part}_balanced")) for part in parts]
    choices = []
    for part in parts:
        with contextlib.suppress(MissingFile):
            choices.append(find(folder, f"{part}_choices.json"))
    return functools.partial(records_of_files, paths, choices)


def records_of_files(
    paths: Iterable[Path], choices: Iterable[Path], example_ids: frozenset[str]
) -> Records:
    """What the official program needs for some questions, from files of questions and choices."""
    records: dict[str, dict[str, Any]] = {}
    for path in paths:
        for key, record in json_stream.members(read_text(path), str(path)):
            if key in example_ids and isinstance(record, dict):
                records[key] = {name: record[name] for name in QUESTION_FIELDS if name in record}
    for path in choices:
        for key, record in json_stream.members(read_text(path), str(path)):
            if key in records:
                records[key]["choices"] = record
    return records


def _question_name(official_split: str) -> str:
    return f"{official_split}_questions.json"


def _sorted(annotation_set: AnnotationSet) -> AnnotationSet:
    annotations = sorted(annotation_set.annotations, key=lambda annotation: annotation.example_id)
    return dataclasses.replace(annotation_set, annotations=tuple(annotations))


def read_file(path: Path, answers_needed: bool) -> AnnotationSet:
    """Questions of an official file or of a cache, in file order.

    Args:
      path: of the file.
      answers_needed: skip questions without an answer.

    Raises:
      DataError: the file is missing, is not what it should be, or holds no usable question.
    """
    skipped: list[Skipped] = []
    if question_answering.is_cache(path):
        questions = question_answering.cached_questions(path, skipped, text_id)
    else:
        questions = _questions(path, answers_needed, skipped)
    return question_answering.collected(questions, path, skipped)


def _questions(path: Path, answers_needed: bool, skipped: list[Skipped]) -> Iterator[Annotation]:
    members = json_stream.members(read_text(path), str(path))
    for position, (key, record) in enumerate(members, 1):
        named = {"question id": key}
        try:
            question_id = text_id(named, "question id")
            image_id, text = text_id(record, "imageId"), field(record, "question", str)
            answers = _answer(record, answers_needed)
            scores = question_answering.ONE if answers else ()
            yield Annotation(question_id, sys.intern(image_id), text, answers, scores)
        except RecordError as error:
            name = question_answering.record_name(named, "question id", f"record {position}")
            skipped.append(Skipped(str(path), name, str(error)))


def _answer(record: Any, needed: bool) -> tuple[str, ...]:
    if not needed and "answer" not in record:
        return ()
    answer = field(record, "answer", str)
    if not answer:
        raise RecordError("'answer' is empty")
    return (sys.intern(answer),)
