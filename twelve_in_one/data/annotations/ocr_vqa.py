"""OCR-VQA: questions about the covers of books, with one answer each.

Official file, from the site of the dataset (Mishra et al., 2019; licence and checksums unknown):
dataset.json, unpacked or compressed with gzip, an object id -> {"imageURL", "authorName", "title",
"genre", "split", "questions", "answers"}; "split" is 1 (train), 2 (validation) or 3 (test), and the
n-th answer belongs to the n-th question. The covers, ID.jpg, ID.gif or ID.png like the ends of
their addresses, are fetched by a script of the release; addresses that no longer work leave gaps.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from twelve_in_one.data.annotations import question_answering
from twelve_in_one.data.formats import json_stream
from twelve_in_one.data.formats.files import (
    RecordError,
    field,
    find,
    read_text,
    shorten,
    text_id,
)
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    Skipped,
)

FILE = "dataset.json"
_SPLITS = {"train": 1, "val": 2, "test": 3}


def read(folder: Path, split: str) -> AnnotationSet:
    """Reads the questions of one split, in the order of the file.

    A question's id is its book's id and its place among the book's questions, from 0:
    "1234567890-0". A book is skipped if its questions cannot be told apart or paired with answers,
    a question if it or its answer is no text or is empty. Books of an unknown split are listed with
    every split that has books.

    Args:
      folder: of the file above.
      split: "train", "val" or "test".

    Returns:
      The questions, each answer with score 1; none if the file has no book of the split.

    Raises:
      DataError: the file is missing, is not what it should be, or holds no usable question of the
        split.
      ValueError: unknown split.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be 'train', 'val' or 'test', got {split!r}")
    path = find(folder, FILE)
    skipped: list[Skipped] = []
    images: dict[str, AnnotatedImage] = {}
    books: Counter[int] = Counter()
    questions = list(_questions(path, _SPLITS[split], images, books, skipped))
    if not books[_SPLITS[split]] and (books or not skipped):
        return AnnotationSet((), {})
    return question_answering.collected(questions, path, skipped, images.__getitem__)


def _questions(
    path: Path,
    number: int,
    images: dict[str, AnnotatedImage],
    books: Counter[int],
    skipped: list[Skipped],
) -> Iterator[Annotation]:
    """Questions about the books of one split.

    Adds the image of each of these books to `images`, and every book's split to `books`.
    """
    members = json_stream.members(read_text(path), str(path))
    for position, (key, record) in enumerate(members, 1):
        named = {"book id": key}
        name = question_answering.record_name(named, "book id", f"record {position}")
        try:
            book_id = sys.intern(text_id(named, "book id"))
            split = _split_of(record)
            books[split] += 1
            if split != number:
                continue
            asked, answers = field(record, "questions", list), field(record, "answers", list)
            if len(asked) != len(answers):
                raise RecordError(f"{len(asked)} questions, but {len(answers)} answers")
            if not asked:
                raise RecordError("'questions' is empty")
        except RecordError as error:
            skipped.append(Skipped(str(path), name, str(error)))
            continue
        images[book_id] = AnnotatedImage(book_id, _file_name(book_id, record))
        for place, (question, answer) in enumerate(zip(asked, answers, strict=True)):
            question_id = f"{book_id}-{place}"
            try:
                pair = {"question": question, "answer": answer}
                text, right = (_filled(pair, key) for key in pair)
            except RecordError as error:
                skipped.append(Skipped(str(path), question_id, str(error)))
                continue
            yield Annotation(
                question_id, book_id, text, (sys.intern(right),), question_answering.ONE
            )


def _split_of(record: Any) -> int:
    number = field(record, "split", int)
    if number not in _SPLITS.values():
        known = ", ".join(f"{number} ({split})" for split, number in _SPLITS.items())
        raise RecordError(f"'split' must be one of {known}, is {shorten(number)}")
    return number


def _filled(record: dict[str, Any], key: str) -> str:
    text = field(record, key, str)
    if not text.strip():
        raise RecordError(f"{key!r} is empty")
    return text


def _file_name(book_id: str, record: Any) -> str:
    """As the script of the release saves the cover; "" if there is no address."""
    address = record.get("imageURL")
    return book_id + PurePosixPath(address).suffix if isinstance(address, str) else ""
