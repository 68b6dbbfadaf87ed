"""SNLI-VE hypotheses against files in official formats."""

import csv
import gzip
import json
import shutil

import pytest
from reference.spoiled_files import read_spoiled

from twelve_in_one.data.annotations import snli_ve
from twelve_in_one.data.stored.records import DataError, MissingFile

_HEADER = ",pairID,Flickr30kID,hypothesis,gold_label,explanation\n"


def _line(**changes):
    record = {
        "Flikr30kID": "0036979.jpg",
        "sentence1": "not read",
        "sentence2": "Two dogs.",
        "gold_label": "neutral",
        "pairID": "36979.jpg#0r1n",
    }
    return json.dumps(record | changes) + "\n"


def test_table_of_esnlive(samples_dir):
    got = snli_ve.read(samples_dir / "snli_ve", "val")
    with gzip.open(samples_dir / "snli_ve/esnlive_dev.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows and not got.skipped
    labels = ["contradiction", "neutral", "entailment"]
    assert [(a.example_id, f"{a.image_id}.jpg", a.text, a.label) for a in got.annotations] == [
        (row["pairID"], row["Flickr30kID"], row["hypothesis"], labels.index(row["gold_label"]))
        for row in rows
    ]
    assert len({a.example_id for a in got.annotations}) == len(rows)
    assert {image.file_name for image in got.images.values()} == {r["Flickr30kID"] for r in rows}


def test_beginning_of_table(samples_dir, tmp_path):
    shutil.copy(samples_dir / "snli_ve/esnlive_dev_first200.csv", tmp_path / "esnlive_dev.csv")
    whole = snli_ve.read(samples_dir / "snli_ve", "val").annotations
    beginning = snli_ve.read(tmp_path, "val").annotations
    assert beginning and beginning == whole[: len(beginning)]


def test_jsonl_of_xvnli(samples_dir, tmp_path):
    source = samples_dir / "snli_ve/xvnli_en_test.jsonl"
    shutil.copy(source, tmp_path / "snli_ve_test.jsonl")
    got = snli_ve.read(tmp_path, "test")
    records = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    assert records and not got.skipped
    names = {-1: "-", 0: "contradiction", 1: "neutral", 2: "entailment"}
    assert [(a.example_id, a.image_id, a.text, names[a.label]) for a in got.annotations] == [
        (r["pairID"], r["Flikr30kID"], r["sentence2"], r["gold_label"]) for r in records
    ]


def test_example_ids_are_unique_and_stable(tmp_path):
    lines = [_line(pairID=pair_id) for pair_id in ("x", "y", "x", "x", "y@7", "x", "y")]
    (tmp_path / "snli_ve_dev.jsonl").write_text("".join(lines))
    got = snli_ve.read(tmp_path, "val")
    assert [annotation.example_id for annotation in got.annotations] == [
        *("x", "y", "x@3", "x@4", "y@7", "x@6")
    ]
    assert [skipped.record for skipped in got.skipped] == ["y"]  # "y@7" is taken


@pytest.mark.parametrize("key", ["Flikr30kID", "Flickr30kID", "Flickr30K_ID"])
@pytest.mark.parametrize("value", ["0036979.jpg", "36979", 36979])
def test_spellings_of_the_image(tmp_path, key, value):
    record = json.loads(_line())
    del record["Flikr30kID"]
    (tmp_path / "snli_ve_dev.jsonl").write_text(json.dumps(record | {key: value}))
    (annotation,) = snli_ve.read(tmp_path, "val").annotations
    assert annotation.image_id == "36979"


def test_text_in_quotes_is_kept_as_it_is(tmp_path):
    text = '0,a,1.jpg,"He says ""no"",\r\nthen goes",entailment,\n1,b,1.jpg,Hm,-,\n'
    (tmp_path / "esnlive_test.csv").write_text(_HEADER + text, newline="")
    got = snli_ve.read(tmp_path, "test").annotations
    assert [(a.text, a.label) for a in got] == [('He says "no",\r\nthen goes', 2), ("Hm", -1)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (_line(gold_label="maybe"), "'gold_label' must be one of contradiction"),
        (_line(gold_label=1), "'gold_label' must be a text, is 1"),
        (_line(Flikr30kID="cat.jpg"), "'Flikr30kID' must begin with a number, is 'cat.jpg'"),
        (_line(Flikr30kID="٣.jpg"), "'Flikr30kID' must begin with a number"),
        (_line(sentence2=None), "'sentence2' must be a text, is None"),
        (_line(pairID=""), "'pairID' is empty"),
        ("null\n", "must be an object"),
    ],
)
def test_unusable_records_are_reported(tmp_path, line, reason):
    (tmp_path / "snli_ve_dev.jsonl").write_text(_line(pairID="a") + line + _line(pairID="b"))
    got = snli_ve.read(tmp_path, "val")
    assert [annotation.example_id for annotation in got.annotations] == ["a", "b"]
    (skipped,) = got.skipped
    assert reason in skipped.reason


def test_unusable_rows_are_reported(tmp_path):
    rows = "0,a,1.jpg,Hm,neutral,\n1,b,1.jpg\n2,c,1.jpg,Hm,neutral,,,\n"
    (tmp_path / "esnlive_dev.csv").write_text(_HEADER + rows)
    got = snli_ve.read(tmp_path, "val")
    assert [annotation.example_id for annotation in got.annotations] == ["a"]
    assert [skipped.record for skipped in got.skipped] == ["b", "row 3"]
    assert "more cells than the header" in got.skipped[1].reason


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        snli_ve.read(tmp_path, "dev")
    with pytest.raises(MissingFile, match=r"no snli_ve_dev\.jsonl or esnlive_dev\.csv"):
        snli_ve.read(tmp_path, "val")
    (tmp_path / "esnlive_dev.csv").write_text("pairID,text\n")
    with pytest.raises(DataError, match="no column Flickr30kID, hypothesis, gold_label"):
        snli_ve.read(tmp_path, "val")
    (tmp_path / "esnlive_dev.csv").write_text(_HEADER + f'0,a,1.jpg,"{"x" * 200_000}"')
    with pytest.raises(DataError, match="not a table after row 0"):
        snli_ve.read(tmp_path, "val")


@pytest.mark.parametrize(
    "name", ["snli_ve_train.jsonl", "esnlive_train.csv", "esnlive_train.csv.gz"]
)
def test_spoiled_files(shared_dir, tmp_path, name):
    if name.endswith(".jsonl"):
        data = (shared_dir / "fixtures/loaders/snli_ve" / name).read_bytes()
    else:
        rows = (
            f'{i},p{i},{i}.jpg,"Fine, {i}",{label},\n' for i, label in enumerate(snli_ve.LABELS)
        )
        data = (_HEADER + "".join(rows)).encode()
    if name.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    (tmp_path / name).write_bytes(data)
    found = read_spoiled(lambda folder: snli_ve.read(folder, "train"), tmp_path, num=400)
    assert found["fine"] > 5
    assert found["skipped" if name.endswith("l") else "error"] > 50
