import copy
import gzip
import json

import pytest

from twelve_in_one.data.annotations import ocr_vqa
from twelve_in_one.data.stored.records import AnnotatedImage, Annotation, DataError, MissingFile

_BOOKS = {
    "0761183272": {
        "imageURL": "http://ecx.images-amazon.com/images/I/61Y5cOdHJbL.gif",
        "authorName": "Sandra Boynton",
        "title": "Mom's Family Wall Calendar 2016",
        "genre": "Calendars",
        "split": 1,
        "questions": ["Who wrote this book?", "Is this a sociopolitical book?"],
        "answers": ["Sandra Boynton", "No"],
    },
    "1623439671": {
        "imageURL": "http://ecx.images-amazon.com/images/I/61ffnz8eMUL.jpg",
        "authorName": "Doug the Pug",
        "title": "Doug the Pug 2016 Wall Calendar",
        "genre": "Calendars",
        "split": 3,
        "questions": ["What type of book is this?"],
        "answers": ["Calendars"],
    },
}


@pytest.fixture
def write(tmp_path):
    """Writes the two books with changes: `write({"id": {"split": 2}})`; returns the folder."""

    def write(changes=None, text=None):
        books = copy.deepcopy(_BOOKS)
        for book_id, change in (changes or {}).items():
            books[book_id] = books.get(book_id, {}) | change if change is not None else None
        text = json.dumps(books) if text is None else text
        (tmp_path / "dataset.json").write_text(text)
        return tmp_path

    return write


def _skips(found):
    return {skip.record: skip.reason for skip in found.skipped}


def test_official_layout(write):
    train = ocr_vqa.read(write(), "train")
    assert train.annotations == (
        Annotation(
            "0761183272-0", "0761183272", "Who wrote this book?", ("Sandra Boynton",), (1.0,)
        ),
        Annotation("0761183272-1", "0761183272", "Is this a sociopolitical book?", ("No",), (1.0,)),
    )
    assert train.images == {"0761183272": AnnotatedImage("0761183272", "0761183272.gif")}
    assert not train.skipped
    (question,) = ocr_vqa.read(write(), "test").annotations
    assert (question.example_id, question.answers) == ("1623439671-0", ("Calendars",))
    val = ocr_vqa.read(write(), "val")
    assert not val.annotations and not val.skipped
    folder = write()
    (folder / "dataset.json.gz").write_bytes(gzip.compress((folder / "dataset.json").read_bytes()))
    (folder / "dataset.json").unlink()
    assert ocr_vqa.read(folder, "train") == train


def test_unusable_records_are_counted(write):
    changes = {
        "a": {"split": 1, "questions": ["Who wrote this book?"], "answers": []},
        "b": {"split": "train", "questions": ["Who?"], "answers": ["I"]},
        "c": {"split": 4, "questions": ["Who?"], "answers": ["I"]},
        "d": None,
        "e": {
            "split": 1,
            "questions": ["Who?", " ", 7, "What?", "When?", "Where?"],
            "answers": [1984, "x", "x", "", None, "here"],
        },
        "f": {"split": 1, "answers": ["I"]},
        "g": {"split": 1, "questions": [], "answers": []},
        "": {"split": 1, "questions": ["Who?"], "answers": ["I"]},
        "h": {"split": 2, "questions": "Who?", "answers": ["I"]},
    }
    found = ocr_vqa.read(write(changes), "train")
    assert [a.example_id for a in found.annotations] == ["0761183272-0", "0761183272-1", "e-5"]
    assert set(found.images) == {"0761183272", "e"}
    assert found.images["e"].file_name == "", "without an address"
    skips = _skips(found)
    assert skips.pop("f").startswith("no 'questions'")
    assert skips == {
        "a": "1 questions, but 0 answers",
        "b": "'split' must be a whole number, is 'train'",
        "c": "'split' must be one of 1 (train), 2 (val), 3 (test), is 4",
        "d": "must be an object, is a NoneType",
        "e-0": "'answer' must be a text, is 1984",
        "e-1": "'question' is empty",
        "e-2": "'question' must be a text, is 7",
        "e-3": "'answer' is empty",
        "e-4": "'answer' must be a text, is None",
        "g": "'questions' is empty",
        "record 10": "'book id' is empty or out of range",
    }
    assert set(_skips(ocr_vqa.read(write(changes), "test"))) == {"b", "c", "d", "record 10"}
    with pytest.raises(DataError, match=r"no question that can be used, 5 skipped"):
        ocr_vqa.read(write(changes), "val")


def test_repeated_books(write):
    one = json.dumps(_BOOKS["0761183272"])
    found = ocr_vqa.read(write(text=f'{{"x": {one}, "x": {one}}}'), "train")
    assert len(found.annotations) == 2
    assert set(_skips(found).values()) == {"its question id occurs twice"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "top level must be an object"),
        ("{", "not JSON"),
        ('{"x": {"split": "train"}}', "no question that can be used, 1 skipped: x: 'split' must"),
    ],
)
def test_unusable_files(write, text, message):
    with pytest.raises(DataError, match=message):
        ocr_vqa.read(write(text=text), "train")


def test_arguments(tmp_path):
    with pytest.raises(MissingFile, match=r"no dataset\.json"):
        ocr_vqa.read(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be 'train', 'val' or 'test', got 'dev'"):
        ocr_vqa.read(tmp_path, "dev")
