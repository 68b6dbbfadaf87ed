"""VQA v2.0: questions on COCO photos, each answered by ten people.

Official files, from the download page of visualqa.org (annotations CC-BY-4.0; checksums unknown),
all in one folder, unpacked or compressed with gzip:

* v2_OpenEnded_mscoco_{train2014,val2014,test2015}_questions.json
* v2_mscoco_{train2014,val2014}_annotations.json

If an annotation file is missing, the released code's `cache/{train,val}_target.pkl` and
`cache/trainval_label2ans.pkl` are read instead; these hold only the answers in the vocabulary.
Image ids are COCO ids.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from twelve_in_one.data.annotations import question_answering
from twelve_in_one.data.formats import json_stream
from twelve_in_one.data.formats.files import RecordError, field, find, read_text, text_id
from twelve_in_one.data.official import Records
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    MissingFile,
    Skipped,
)
from twelve_in_one.tasks.metrics.vqa import NUM_PEOPLE, soft_score

# Questions at the end of val2014, by question id, that the released code validates on ("minval").
NUM_VAL = 3000

_TYPES = ("question_type", "answer_type")
FEW_ANSWERS = (
    f"have fewer than {NUM_PEOPLE} human answers, so that an answer's score is the share of people "
    "who gave it"
)
_CACHES = {"train2014": "cache/train_target.pkl", "val2014": "cache/val_target.pkl"}

# Distinct answers, the score of each, and how many people were asked.
_Answers = tuple[tuple[str, ...], tuple[float, ...], int]


class _Target(NamedTuple):
    image_id: str
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    num_people: int = NUM_PEOPLE


def read(folder: Path, split: str, num_val: int | None = None) -> AnnotationSet:
    """Reads the questions of one role.

    Args:
      folder: of the files above.
      split: "train" (train2014, then val2014 without its last `num_val` questions; "trainval" in
        the released code), "val" (those questions; "minval") or "test" (test2015).
      num_val: see `question_answering.hold_out`; the official number is 3,000.

    Returns:
      Questions in the order of their ids, train2014 before val2014, with their answers as in
      `read_split`.

    Raises:
      DataError: see `read_split`.
      ValueError: unknown split, or `num_val` is negative.
    """
    if split == "test":
        return read_split(folder, "test2015")
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train', 'val' or 'test', got {split!r}")
    rest, held_out = question_answering.hold_out(
        read_split(folder, "val2014"), NUM_VAL, num_val, folder
    )
    if split == "val":
        return held_out
    first = read_split(folder, "train2014")
    return question_answering.joined(first, rest, _question_file(folder, "val2014"))


def read_split(folder: Path, official_split: str) -> AnnotationSet:
    """Reads the questions of one official split, in the order of their ids.

    An example's answers are the distinct texts that people gave, not normalised, in the order of
    first mention; scores depend on how many of the ten gave each (`tasks.metrics.vqa.soft_score`).
    Questions that fewer than ten people answered are noted, see `FEW_ANSWERS`.

    Args:
      folder: of the files above.
      official_split: "train2014", "val2014" or "test2015"; the last has no answers.

    Raises:
      DataError: a file is missing, is not what it should be, or holds no usable question.
      ValueError: unknown split.
    """
    if official_split not in ("train2014", "val2014", "test2015"):
        raise ValueError(f"split must be train2014, val2014 or test2015, got {official_split!r}")
    target_file = None
    if official_split in _CACHES:
        target_file = find(folder, _annotation_name(official_split), _CACHES[official_split])
    return read_files(_question_file(folder, official_split), target_file)


def read_files(path: Path, target_file: Path | None) -> AnnotationSet:
    """Reads the questions of a file of the official form, in the order of their ids.

    Args:
      path: of the questions.
      target_file: of their annotations (or a cache of the released code); None if there are no
        answers.

    Raises:
      DataError: a file is missing, is not what it should be, or holds no usable question.
    """
    skipped: list[Skipped] = []
    targets = None if target_file is None else _targets(target_file, skipped)
    questions = _questions(path, targets, skipped)
    result = question_answering.collected(questions, path, skipped, _image)
    used = {annotation.example_id for annotation in result.annotations}
    left = tuple(
        Skipped(str(target_file), str(question_id), f"no usable question in {path}")
        for question_id in targets or ()
        if str(question_id) not in used
    )
    annotations = sorted(result.annotations, key=question_answering.by_number)
    known = targets or {}
    few = frozenset(i for i in used if int(i) in known and known[int(i)].num_people < NUM_PEOPLE)
    return AnnotationSet(
        tuple(annotations),
        result.images,
        skipped=result.skipped + left,
        notes={FEW_ANSWERS: few} if few else {},
    )


def annotation_records(folder: Path, official_split: str) -> Iterator[dict[str, Any]]:
    """Records of an official annotation file in file order, for `answers.vqa_vocabulary`.

    Args:
      folder: of the files above.
      official_split: "train2014" or "val2014".

    Raises:
      DataError: the file is missing or not what it should be.
    """
    path = find(folder, _annotation_name(official_split))
    yield from json_stream.elements(read_text(path), str(path), "annotations")


def official_records(folder: Path, split: str) -> Callable[[frozenset[str]], Records]:
    """For `official.OfficialFiles`.

    Raises:
      MissingFile: the annotations are missing, or not published.
    """
    parts = {"train": ("train2014", "val2014"), "val": ("val2014",)}.get(split)
    if parts is None:
        raise MissingFile(f"nobody published the answers of {split}")
    return partial(records_of_files, [find(folder, _annotation_name(part)) for part in parts])


def records_of_files(paths: Iterable[Path], example_ids: frozenset[str]) -> Records:
    """What the official program needs for some questions, from files of annotations."""
    records = {}
    for path in paths:
        for record in json_stream.elements(read_text(path), str(path), "annotations"):
            name = question_answering.record_name(record, "question_id", "")
            if name in example_ids:
                types = {key: record[key] for key in _TYPES if isinstance(record.get(key), str)}
                answers = [given["answer"] for given in record["answers"]]
                records[name] = types | {"answers": answers}
    return records


def _annotation_name(official_split: str) -> str:
    return f"v2_mscoco_{official_split}_annotations.json"


def _question_file(folder: Path, official_split: str) -> Path:
    return find(folder, f"v2_OpenEnded_mscoco_{official_split}_questions.json")


def _image(image_id: str) -> AnnotatedImage:
    return AnnotatedImage(image_id, coco_id=int(image_id))


def _questions(
    path: Path, targets: Mapping[int, _Target] | None, skipped: list[Skipped]
) -> Iterator[Annotation]:
    """Questions of an official file, in file order, with their targets if the split has any."""
    records = json_stream.elements(read_text(path), str(path), "questions")
    for position, record in enumerate(records, 1):
        try:
            question_id = question_answering.number_id(record, "question_id")
            image_id = sys.intern(str(question_answering.number_id(record, "image_id")))
            target = _Target(image_id, (), ())
            if targets is not None:
                if question_id not in targets:
                    raise RecordError("it has no usable annotation")
                target = targets[question_id]
            if target.image_id != image_id:
                raise RecordError(f"image {image_id}, but {target.image_id} in its annotation")
            text = field(record, "question", str)
            yield Annotation(str(question_id), image_id, text, target.answers, target.scores)
        except RecordError as error:
            name = question_answering.record_name(record, "question_id", f"record {position}")
            skipped.append(Skipped(str(path), name, str(error)))


def _targets(path: Path, skipped: list[Skipped]) -> dict[int, _Target]:
    """Targets by question id, from an official annotation file or a released cache."""
    if question_answering.is_cache(path):
        records, vocabulary = question_answering.read_cache(path)
        answers_of = partial(_cached_answers, vocabulary=vocabulary)
    else:
        records = json_stream.elements(read_text(path), str(path), "annotations")
        answers_of = _human_answers
    targets: dict[int, _Target] = {}
    for position, record in enumerate(records, 1):
        try:
            question_id = question_answering.number_id(record, "question_id")
            image_id = text_id(record, "image_id")
            answers, scores, num_people = answers_of(record)
            if question_id in targets:
                raise RecordError("its question id occurs twice")
        except RecordError as error:
            name = question_answering.record_name(record, "question_id", f"record {position}")
            skipped.append(Skipped(str(path), name, str(error)))
            continue
        targets[question_id] = _Target(image_id, answers, scores, num_people)
    return targets


def _cached_answers(record: Any, vocabulary: tuple[str, ...]) -> _Answers:
    return *question_answering.cached_answers(record, vocabulary), NUM_PEOPLE


def _human_answers(record: Any) -> _Answers:
    given = [field(answer, "answer", str) for answer in field(record, "answers", list)]
    if not given:
        raise RecordError("'answers' is empty")
    # A few thousand texts make up most of six million answers.
    counts = Counter(map(sys.intern, given))
    return tuple(counts), _scores(tuple(counts.values()), len(given)), len(given)


@lru_cache(maxsize=4096)
def _scores(counts: tuple[int, ...], num_people: int) -> tuple[float, ...]:
    return tuple(soft_score(counts, num_people).tolist())
