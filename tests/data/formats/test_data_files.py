"""Byte-order marks, which some editors and spreadsheets put before a text, are no part of it."""

import codecs
import gzip
import json

import pytest

from twelve_in_one.data.annotations import gqa, retrieval, snli_ve, vqa
from twelve_in_one.data.builders import answers
from twelve_in_one.data.encode import text
from twelve_in_one.data.formats import files
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.predict.request_file import read_requests

BOM = codecs.BOM_UTF8


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_and_lines_without_a_mark(tmp_path, name):
    path = tmp_path / name
    pack = gzip.compress if name.endswith(".gz") else bytes
    # Two files that were joined have a second mark.
    path.write_bytes(pack(BOM + b"\xc3\xa9\n" + BOM + b"b\n"))
    assert files.read_text(path) == "é\n\ufeffb\n"
    assert list(files.read_lines(path)) == [(1, b"\xc3\xa9\n"), (2, b"b\n")]


def test_utf16_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("[PAD]".encode("utf-16"))
    with pytest.raises(DataError, match=r"a.txt: not UTF-8 at byte 0; it seems to be UTF-16: save"):
        files.read_text(path)


_SNLI = {"Flikr30kID": "7.jpg", "pairID": "1", "sentence2": "A dog.", "gold_label": "neutral"}
_QUESTION = {"question_id": 3, "image_id": 7, "question": "what?"}
READERS = {
    "JSON lines": (json.dumps(_SNLI), "a.jsonl", snli_ve.read_file),
    "table": (
        "pairID,Flickr30kID,hypothesis,gold_label\n1,7.jpg,A dog.,neutral\n",
        "a.csv",
        snli_ve.read_file,
    ),
    "JSON list in an object": (
        json.dumps({"questions": [_QUESTION]}),
        "a.json",
        lambda path: vqa.read_files(path, None),
    ),
    "JSON object": (
        json.dumps({"5": {"question": "what?", "imageId": "7", "answer": "dog"}}),
        "a.json",
        lambda path: gqa.read_file(path, answers_needed=True),
    ),
    "captions": (
        json.dumps({"id": 1, "img_path": "7.jpg", "sentences": ["A dog."]}),
        "train_ann.jsonl",
        lambda path: retrieval.read_flickr30k(path.parent, "train"),
    ),
    "answers as text": ("yes\nno\n", "a.txt", answers.read_vocabulary),
    "answers as JSON": ('["yes", "no"]', "a.json", answers.read_vocabulary),
    "words": ("\n".join([*text.SPECIALS, "dog"]), "vocab.txt", text.load_tokenizer),
    "requests": (
        json.dumps({"image": "a.jpg", "text": "what?"}),
        "a.jsonl",
        lambda path: read_requests(path, "answer"),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_passes_over_a_mark(tmp_path, name):
    content, file_name, read = READERS[name]
    path = tmp_path / file_name
    found = []
    for mark in (b"", BOM):
        path.write_bytes(mark + content.encode())
        found.append(read(path))
    assert found[0] == found[1]
    assert not getattr(found[0], "skipped", ())
