"""NLVR2 sentences against the official dev file."""

import collections
import gzip
import json
import shutil

import pytest
from reference.spoiled_files import read_spoiled

from twelve_in_one.data.annotations import nlvr2
from twelve_in_one.data.annotations.select import without_images
from twelve_in_one.data.stored.records import MissingFile


def _lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def _record(identifier="dev-7-0-0", label="True", **other):
    return {"identifier": identifier, "sentence": "Two dogs.", "label": label, **other}


def test_removing_an_image_removes_its_pairs(shared_dir):
    dev = nlvr2.read(shared_dir / "fixtures/loaders/nlvr2", "val")
    first = dev.annotations[0].image_id
    left = [a for a in dev.annotations if a.image_id != first]
    assert 0 < len(left) < len(dev.annotations)
    for image_id in dev.pairs[first]:
        assert list(without_images(dev, {image_id}).annotations) == left


def test_official_dev(samples_dir):
    got = nlvr2.read(samples_dir / "nlvr2", "val")
    with gzip.open(samples_dir / "nlvr2/dev.json.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    assert records and not got.skipped
    assert [(a.example_id, a.text, str(bool(a.label))) for a in got.annotations] == [
        (r["identifier"], r["sentence"], r["label"]) for r in records
    ]
    assert len(got.images) == 2 * len(got.pairs)
    for annotation in got.annotations:
        key = annotation.image_id
        assert annotation.example_id.startswith(f"{key}-")
        assert got.pairs[key] == (f"{key}-img0", f"{key}-img1")
    assert sum(len(group) for _, group in got.by_image()) == len(records)


def test_official_parts(samples_dir):
    folder = samples_dir / "nlvr2"
    whole, balanced, unbalanced = (
        {
            annotation.example_id: annotation
            for annotation in nlvr2.read(folder, "val", part).annotations
        }
        for part in ("all", "balanced", "unbalanced")
    )
    assert balanced and unbalanced
    assert not balanced.keys() & unbalanced.keys()
    assert (balanced | unbalanced).items() <= whole.items()
    for part, allowed in ((balanced, {(0, 1)}), (unbalanced, {(0, 0), (1, 1)})):
        labels = collections.defaultdict(list)
        for annotation in part.values():
            labels[annotation.image_id].append(annotation.label)
        assert {tuple(sorted(pair)) for pair in labels.values()} == allowed


@pytest.mark.parametrize("name", ["test1.json", "test.json", "test.json.gz"])
def test_names_of_the_test_file(tmp_path, name):
    record = {"identifier": "test1-0-1-0", "sentence": "Two dogs."}
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt") as file:
        file.write(_lines(record))
    (annotation,) = nlvr2.read(tmp_path, "test").annotations
    assert (annotation.image_id, annotation.label) == ("test1-0-1", -1)


def test_part_in_a_folder_of_its_own(shared_dir, tmp_path):
    (tmp_path / "balanced").mkdir()
    source = shared_dir / "fixtures/loaders/nlvr2/dev.json"
    shutil.copy(source, tmp_path / "balanced/balanced_dev.json")
    assert len(nlvr2.read(tmp_path, "val", "balanced").annotations) == 3
    with pytest.raises(MissingFile, match=r"no unbalanced_dev\.json"):
        nlvr2.read(tmp_path, "val", "unbalanced")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (_lines(_record()), "line 2: the same identifier"),
        (_lines(_record("dev-7-0-1", label="true")), "'label' must be True or False, is 'true'"),
        (_lines(_record("dev-7-0-1", label=1)), "'label' must be True or False, is 1"),
        (_lines(_record("dev")), "must end in the number of a sentence, is 'dev'"),
        (_lines({"identifier": "dev-7-0-1"}), "no 'sentence'"),
        ("[1]\n", "must be an object"),
        ("{\n", "not JSON"),
    ],
)
def test_unusable_records_are_reported(tmp_path, line, reason):
    text = _lines(_record(label=True)) + line + _lines(_record("dev-7-0-9", label=False))
    (tmp_path / "dev.json").write_text(text)
    got = nlvr2.read(tmp_path, "val")
    assert [annotation.label for annotation in got.annotations] == [1, 0]
    (skipped,) = got.skipped
    assert skipped.file.endswith("dev.json")
    assert reason in skipped.reason


def test_arguments(tmp_path):
    with pytest.raises(MissingFile, match=r"no test1\.json or test\.json"):
        nlvr2.read(tmp_path, "test")
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        nlvr2.read(tmp_path, "dev")
    with pytest.raises(ValueError, match="part must be all, balanced or unbalanced, got 'half'"):
        nlvr2.read(tmp_path, "val", "half")


def test_spoiled_files(shared_dir, tmp_path):
    data = (shared_dir / "fixtures/loaders/nlvr2/dev.json").read_bytes()
    (tmp_path / "dev.json").write_bytes(data)
    found = read_spoiled(lambda folder: nlvr2.read(folder, "val"), tmp_path, num=400)
    assert found["skipped"] > 100 and not found["error"]
    (tmp_path / "dev.json").unlink()
    (tmp_path / "dev.json.gz").write_bytes(gzip.compress(data, mtime=0))
    assert read_spoiled(lambda folder: nlvr2.read(folder, "val"), tmp_path)["error"] > 75
