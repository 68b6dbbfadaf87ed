"""OCR-VQA: one dataset.json about covers of books, with questions by the official templates."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twelve_in_one.world import covers
from twelve_in_one.world.collections import divide
from twelve_in_one.world.covers import Cover
from twelve_in_one.world.writers.output import (
    Count,
    Counts,
    Run,
    address_of,
    write_json,
    write_picture,
)

MIN_COVERS = 10
_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
_NUMBERS = {"train": 1, "val": 2, "test": 3}  # of "split"

_WHO = ("Who wrote this book?", "Who is the author of this book?")
_TITLE = "What is the title of this book?"
_KIND = ("What is the genre of this book?", "What type of book is this?")
_IS_IT = ("Is this a {} book?", "Is this book related to {}?")


class _Book(NamedTuple):
    book_id: str
    cover: Cover
    split: str


def write(
    folder: Path,
    images: Path,
    classes: Path,
    count: int,
    side: int,
    words: int,
    plan: np.random.Generator,
    run: Run,
) -> Counts:
    """Writes dataset.json and the covers.

    A split has titles and authors that no other has, of words that all splits share, and equally
    many books of every genre, give or take one. Each book is asked after its author, its title and
    its genre, and whether it is of two genres, of which one is right; as often as a genre is the
    right one it is asked for wrongly, on average.

    Args:
      folder: to write to.
      images: for the covers.
      classes: for the same covers in folders of their genres, SPLIT/GENRE/ID.jpg.
      count: of books, at least `MIN_COVERS`.
      side: of the pictures, pixels.
      words: of each list that titles and names are made of.
      plan: of the books.
      run: hands out the work.
    """
    books = _books(count, words, plan)
    items = []
    for book in books:
        places = [images, classes / book.split / book.cover.genre.lower()]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        items.append((book, [place / f"{book.book_id}.jpg" for place in places], side))
    records = run("ocr_vqa", _record, items)
    found = {book.book_id: record for book, record in zip(books, records, strict=True)}
    write_json(folder / "dataset.json", found)
    sizes = {split: [r for r in records if r["split"] == n] for split, n in _NUMBERS.items()}
    return {
        split: Count(sum(len(r["questions"]) for r in part), len(part))
        for split, part in sizes.items()
    }


def _books(count: int, words: int, rng: np.random.Generator) -> list[_Book]:
    sizes = divide(count, _SHARES, dict.fromkeys(_SHARES, 1))
    genres = list(covers.GENRES)
    parts = {}
    for what, texts in (("title", covers.titles(words)), ("author", covers.authors(words))):
        shares = divide(len(texts), _SHARES, dict.fromkeys(_SHARES, 1))
        ends = np.cumsum(list(shares.values()))[:-1]
        order = rng.permutation(np.array(texts))
        parts[what] = dict(zip(shares, np.split(order, ends), strict=True))
    books = []
    for split, size in sizes.items():
        kinds = rng.permutation(np.resize(rng.permutation(np.array(genres)), size))
        for kind in kinds.tolist():
            title, author = (str(rng.choice(parts[what][split])) for what in ("title", "author"))
            books.append((Cover(title, author, kind), split))
    numbers = 1_000_000 + np.cumsum(rng.integers(1, 9_000, count))
    return [
        _Book(f"{numbers[i]:010}", *books[j]) for i, j in enumerate(rng.permutation(count).tolist())
    ]


def _record(item: tuple[_Book, list[Path], int], rng: np.random.Generator) -> dict[str, Any]:
    book, files, side = item
    write_picture(covers.draw(book.cover, side, rng), files)
    cover = book.cover
    others = [genre for genre in covers.GENRES if genre != cover.genre]
    asked = [
        (_WHO[rng.integers(2)], cover.author),
        (_TITLE, cover.title),
        (_KIND[rng.integers(2)], cover.genre),
        (_IS_IT[rng.integers(2)].format(cover.genre.lower()), "Yes"),
        (_IS_IT[rng.integers(2)].format(others[rng.integers(len(others))].lower()), "No"),
    ]
    asked = [asked[i] for i in rng.permutation(len(asked))]
    return {
        "imageURL": address_of(f"ocr_vqa/{files[0].name}"),
        "authorName": cover.author,
        "title": cover.title,
        "genre": cover.genre,
        "split": _NUMBERS[book.split],
        "questions": [question for question, _ in asked],
        "answers": [answer for _, answer in asked],
    }
