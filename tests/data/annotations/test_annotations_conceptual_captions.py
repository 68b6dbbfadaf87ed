import gzip
import itertools
import json

import pytest
from reference.spoiled_files import read_spoiled

from twelve_in_one.data.annotations import conceptual_captions
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    DataError,
    MissingFile,
    Skipped,
)

TABLES = {"train": "Train_GCC-training.tsv", "val": "Validation_GCC-1.1.0-Validation.tsv"}
LINES = [
    b"a very typical bus station\thttp://lh6.example.com/a.jpg",
    b"no address",
    "caf\u00e9 with\u2028a terrace\thttp://example.com/b c.jpg".encode(),
    b"bad bytes \xff\thttp://example.com/d.jpg",
    b"",
    b" \thttp://example.com/e.jpg",
    b"three\tcolumns\there",
    b"sierra looked stunning in this top \thttp://example.com/f.jpg",
]
EXPECTED = [
    ("0", "a very typical bus station"),
    ("2", "caf\u00e9 with\u2028a terrace"),
    ("7", "sierra looked stunning in this top "),
]


PREFIXES = {"train": "", "val": "val-"}


def _rows(items):
    return [(item.image_id, item.text) for item in items if isinstance(item, Annotation)]


def _expected(split):
    """Both files count from 0, but their images are different ones."""
    return [(PREFIXES[split] + key, text) for key, text in EXPECTED]


@pytest.mark.parametrize("split", TABLES)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_bad_lines_keep_their_numbers(tmp_path, split, end):
    path = tmp_path / TABLES[split]
    path.write_bytes(end.join(LINES) + end)
    found = conceptual_captions.read(tmp_path, split)
    ids = [PREFIXES[split] + number for number in ("0", "2", "7")]
    assert _rows(found.annotations) == _expected(split)
    assert [a.example_id for a in found.annotations] == ids
    assert found.images == {key: AnnotatedImage(key, f"{key}.jpg") for key in ids}
    assert [conceptual_captions.feature_key(key) for key in ids] == ["0", "2", "7"]
    assert [s.record for s in found.skipped] == [f"line {n}" for n in (1, 3, 4, 5, 6)]
    assert {s.file for s in found.skipped} == {str(path)}
    assert [s.reason.split(",")[0] for s in found.skipped] == [
        "must be 'caption<tab>url'",
        "not UTF-8 at byte 10",
        *["must be 'caption<tab>url'"] * 3,
    ]


@pytest.mark.parametrize("split", TABLES)
def test_compressed_and_without_last_line_end(tmp_path, split):
    (tmp_path / f"{TABLES[split]}.gz").write_bytes(gzip.compress(b"\n".join(LINES)))
    assert _rows(conceptual_captions.stream(tmp_path, split)) == _expected(split)


def test_streams(tmp_path):
    (tmp_path / TABLES["train"]).write_bytes(b"\n".join(LINES * 50_000))
    first = list(itertools.islice(conceptual_captions.stream(tmp_path, "train"), 16))
    assert [item.image_id for item in first if isinstance(item, Annotation)] == [
        "0", "2", "7", "8", "10", "15"
    ]  # fmt: skip
    assert sum(isinstance(item, Skipped) for item in first) == 10
    # The end of the file has not been looked at.
    (tmp_path / f"{TABLES['val']}.gz").write_bytes(gzip.compress(b"\n".join(LINES * 9999))[:-20])
    stream = conceptual_captions.stream(tmp_path, "val")
    assert next(stream).image_id == "val-0"
    with pytest.raises(DataError, match="Validation.*cannot be read after line"):
        list(stream)


@pytest.mark.parametrize("split", TABLES)
def test_reference_json(tmp_path, split):
    captions = {
        "00012": "a dog",
        "web_7": "caf\u00e9",
        "3": "",
        "5": None,
        "6": "x\udc00",
        " ": "a",
    }
    text = json.dumps(captions)[:-1] + ', "web_7": "again"}'
    path = tmp_path / f"caption_{split}.json"
    path.write_text(text)
    found = conceptual_captions.read(tmp_path, split)
    assert _rows(found.annotations) == [("00012", "a dog"), ("web_7", "caf\u00e9")]
    assert found.images["web_7"].file_name == "web_7.jpg"
    assert [(s.record, s.reason.split(": ")[0]) for s in found.skipped] == [
        ("record 2", "'caption' is empty"),
        ("record 3", "'caption' must be a text, is None"),
        ("record 4", "'caption' is not valid Unicode"),
        ("record 5", "'image id' is empty"),
        ("record 6", "image 'web_7' has a caption already"),
    ]
    # The official table comes first.
    (tmp_path / TABLES[split]).write_bytes(LINES[0])
    assert _rows(conceptual_captions.stream(tmp_path, split)) == _expected(split)[:1]


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split must be one of train, val, got 'test'"):
        conceptual_captions.stream(tmp_path, "test")
    with pytest.raises(MissingFile, match=r"no Train_GCC-training.tsv or caption_train.json"):
        conceptual_captions.stream(tmp_path, "train")
    (tmp_path / "caption_val.json").write_text("[]")
    with pytest.raises(DataError, match="top level must be an object"):
        conceptual_captions.read(tmp_path, "val")
    monkeypatch.setattr("twelve_in_one.data.formats.files.MAX_LINE_BYTES", 100)
    (tmp_path / TABLES["train"]).write_bytes(LINES[0] + b"\n" + b"x" * 100)
    with pytest.raises(DataError, match="line 2 exceeds 100 bytes"):
        conceptual_captions.read(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "good"),
    [
        (TABLES["val"], b"\n".join(LINES)),
        (f"{TABLES['val']}.gz", gzip.compress(b"\n".join(LINES), mtime=0)),
        ("caption_val.json", json.dumps(dict(EXPECTED)).encode()),
    ],
)
def test_spoiled_files(tmp_path, name, good):
    (tmp_path / name).write_bytes(good)
    found = read_spoiled(
        lambda folder: conceptual_captions.read(folder, "val"), tmp_path, blank_texts=False
    )
    assert 0 < found["error"] < (50 if name == TABLES["val"] else 150)


def _write_table(folder, *lines, end=b"\n"):
    (folder / TABLES["train"]).write_bytes(end.join(line.encode() for line in lines))


RECORDS = [("a dog", "http://example.com/0.jpg"), ("two cats", "https://example.com/1.jpg")]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    "header", [None, ("caption", "url"), ("Title", " image_url "), ("TEXT", "URL")]
)
def test_columns_are_known_by_what_they_hold(tmp_path, header, bom, swapped):
    rows = [*([header] if header else []), *RECORDS]
    lines = ["\t".join(reversed(row) if swapped else row) for row in rows]
    _write_table(tmp_path, bom + lines[0], *lines[1:])
    found = conceptual_captions.read(tmp_path, "train")
    assert _rows(found.annotations) == [("0", "a dog"), ("1", "two cats")]
    assert not found.skipped
    assert found.notes == ({conceptual_captions.HEADER: frozenset()} if header else {})
    assert found.next_image_id == "2"


def test_first_line_that_may_be_a_header_or_a_record(tmp_path):
    _write_table(tmp_path, "a dog\texample.com", *("\t".join(row) for row in RECORDS))
    with pytest.raises(DataError, match="first line is neither .*'a dog', .*remove it"):
        conceptual_captions.read(tmp_path, "train")


def test_no_caption_without_an_address(tmp_path):
    lines = ["\t".join(RECORDS[0]), "a cat\t1.jpg", "http://a.org\thttp://b.org"]
    _write_table(tmp_path, *lines)
    found = conceptual_captions.read(tmp_path, "train")
    assert _rows(found.annotations) == [("0", "a dog")]
    assert [(s.record, s.reason.split(":")[0]) for s in found.skipped] == [
        ("line 1", "has no address"),
        ("line 2", "has no caption, but two addresses"),
    ]
    assert found.next_image_id == "3"
