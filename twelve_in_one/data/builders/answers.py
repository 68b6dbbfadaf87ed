"""Answer vocabularies: the answers that a classification head knows, and its targets.

VQA and Visual Genome QA share one vocabulary, GQA has its own. A vocabulary is a tuple of texts,
the position of a text is its class. To start from a checkpoint, read the exact file that
belongs to it (the released code's `trainval_label2ans.pkl`): the order of the answers is part of
the weights, and lists of other origin may have another order.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one import atomic
from twelve_in_one.data.formats import files, safe_pickle
from twelve_in_one.data.stored.records import Annotation, AnnotationSet, DataError
from twelve_in_one.tasks.metrics.vqa import normalise_answer

# From the common recipe; leaves 3,129 answers of VQA v2 train and val.
MIN_QUESTIONS = 9


def vqa_vocabulary(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Builds the vocabulary of VQA from the annotations of train and val.

    The common recipe: normalise each question's `multiple_choice_answer` as the official evaluation
    does and keep texts that occur in at least 9 questions. (The recipe also strips commas, but
    normalisation leaves none.) An answer of articles only, such as "the", becomes the empty text,
    which the released vocabulary contains too.

    Args:
      records: official annotation records; only `question_id` and `multiple_choice_answer` are
        read, see `annotations.vqa.annotation_records`. A question counts once however often listed.

    Returns:
      The answers, most frequent first, ties in the order of the text. (The order of the released
      vocabulary follows no rule.)

    Raises:
      DataError: a record lacks a key or holds something other than a number and a text, or no
        answer occurs often enough.
    """
    answer_of: dict[tuple[int, str], None] = {}
    for position, record in enumerate(records, 1):
        try:
            answer = normalise_answer(files.field(record, "multiple_choice_answer", str))
            answer_of[files.field(record, "question_id", int), answer] = None
        except files.RecordError as error:
            raise DataError(f"annotation {position}: {error}; remove or repair it") from error
    counts = Counter(answer for _, answer in answer_of)
    vocabulary = _by_count((a, n) for a, n in counts.items() if n >= MIN_QUESTIONS)
    if not vocabulary:
        raise DataError(
            f"no answer occurs in {MIN_QUESTIONS} of the {len(answer_of)} questions; read a "
            "published vocabulary instead (read_vocabulary)"
        )
    return vocabulary


def gqa_vocabulary(sets: Iterable[AnnotationSet], num: int | None = None) -> tuple[str, ...]:
    """Builds the vocabulary of GQA from the annotations of train and val.

    The released head has 1,533 answers, chosen by an unknown rule (LXMERT lists 1,842). This rule
    takes the most frequent ones.

    Args:
      sets: annotation sets; each example has one answer or none.
      num: how many answers to keep; None for all.

    Returns:
      The answers, most frequent first, ties in the order of the text.

    Raises:
      DataError: there are no answers, or fewer than `num`.
      ValueError: `num` is not positive.
    """
    if num is not None and num < 1:
        raise ValueError(f"num must be positive, got {num}")
    counts = Counter(
        answer
        for annotation_set in sets
        for annotation in annotation_set.annotations
        for answer in annotation.answers
    )
    if not counts or (num is not None and num > len(counts)):
        raise DataError(f"{num or 'no'} answers wanted, the annotations have {len(counts)}")
    return _by_count(counts.items())[:num]


def common_answers(annotations: AnnotationSet, min_count: int) -> tuple[str, ...]:
    """The answers of at least `min_count` questions, most frequent first, ties in text order.

    Raises:
      DataError: there is none.
    """
    counts = Counter(answer for a in annotations.annotations for answer in a.answers)
    found = _by_count((answer, n) for answer, n in counts.items() if n >= min_count)
    if not found:
        raise DataError(
            f"none of {len(counts)} answers occurs in {min_count} training questions; lower "
            "min_answer_count, or name a file of answers"
        )
    return found


def _by_count(counted: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(answer for answer, _ in sorted(counted, key=lambda pair: (-pair[1], pair[0])))


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Reads a vocabulary.

    The ending decides: `.json` (also `.json.gz`) and `.pkl` hold a list of answers or a mapping
    answer -> class, `.txt` one answer per line. The empty text is an answer like any other (see
    `vqa_vocabulary`); in a text file it is an empty line.

    Returns:
      The answers in the order of their classes.

    Raises:
      DataError: the file cannot be read, is of another kind or form, holds no answer, holds
        something that is not a text, or an answer twice, or its classes are not 0, 1, 2, ...
    """
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".gzip") else path.suffix
    if suffix == ".json":
        value = files.parse_json(files.read_text(path), str(path))
    elif suffix == ".txt":
        value = files.read_text(path).removesuffix("\n").split("\n")
        value = [line.removesuffix("\r") for line in value]
        for number, line in enumerate(value, 1):
            if "\t" in line:
                raise DataError(
                    f"{path}: line {number} must be an answer and nothing else, is "
                    f"{files.shorten(line)}; keep the column of the answers only"
                )
    elif suffix == ".pkl":
        value = safe_pickle.load(path)
    else:
        raise DataError(f"{path}: a vocabulary must end in .json, .txt or .pkl")
    if isinstance(value, Mapping):
        return _checked(_ordered(value, path), path)
    if isinstance(value, list):
        return _checked(value, path)
    raise DataError(f"{path}: must hold a list or a mapping, holds a {type(value).__name__}")


def _ordered(class_of: Mapping[Any, Any], path: Path) -> list[Any]:
    """The keys of a mapping answer -> class, ordered by class."""
    answers: dict[int, Any] = {}
    for answer, label in class_of.items():
        if type(label) is not int or not 0 <= label < len(class_of) or label in answers:
            raise DataError(
                f"{path}: class {files.shorten(label)} of answer {files.shorten(answer)} is "
                f"repeated or not one of 0 to {len(class_of) - 1}"
            )
        answers[label] = answer
    return [answers[label] for label in range(len(answers))]


def _checked(answers: Sequence[Any], where: Path | str) -> tuple[str, ...]:
    if not answers:
        raise DataError(f"{where}: the vocabulary is empty")
    positions: dict[str, int] = {}
    for position, answer in enumerate(answers):
        try:
            files.field({"answer": answer}, "answer", str)
        except files.RecordError as error:
            raise DataError(f"{where}: entry {position}: {error}") from error
        if answer in positions:
            raise DataError(
                f"{where}: {files.shorten(answer)} is answer {positions[answer]} and {position}"
            )
        positions[answer] = position
    return tuple(positions)


def write_vocabulary(path: Path, answers: Sequence[str]) -> None:
    """Writes a vocabulary as a JSON list, one answer per line; `path` must end in .json.

    Raises:
      DataError: `answers` is empty, holds something that is not a text, or an answer twice.
      ValueError: `path` does not end in .json.
    """
    if path.suffix != ".json":
        raise ValueError(f"{path} must end in .json")
    atomic.write(path, json.dumps(_checked(answers, path), indent=0) + "\n")


def soft_targets(
    answers: Sequence[str], scores: Sequence[float], index: Mapping[str, int], num_labels: int
) -> np.ndarray:
    """Target vector of one question; L answers in the vocabulary.

    Args:
      answers: distinct answers, inside or outside the vocabulary.
      scores: of each answer.
      index: answer -> class.
      num_labels: L.

    Returns:
      float32[L], the score of each answer at its class; answers outside the vocabulary are left
      out, so a question may have zeros only.

    Raises:
      ValueError: answers and scores differ in number, or a class is not below L.
    """
    target = np.zeros(num_labels, np.float32)
    for answer, score in zip(answers, scores, strict=True):
        label = index.get(answer)
        if label is None:
            continue
        if not 0 <= label < num_labels:
            raise ValueError(f"class {label} of answer {answer!r} must be in [0, {num_labels})")
        target[label] = score
    return target


def coverage(annotations: Iterable[Annotation], index: Mapping[str, int]) -> tuple[int, int]:
    """Counts questions with at least one answer in the vocabulary.

    Args:
      annotations: questions; those without any answer (test splits) count as not covered.
      index: answer -> class.

    Returns:
      (number of covered questions, number of questions).
    """
    covered = total = 0
    for annotation in annotations:
        covered += any(answer in index for answer in annotation.answers)
        total += 1
    return covered, total
