import gzip
import json
import shutil

import pytest

from twelve_in_one.data.annotations import gqa
from twelve_in_one.data.builders import answers as answer_lists
from twelve_in_one.data.stored.records import DataError, MissingFile


def test_test_questions_of_fixture(shared_dir):
    test = gqa.read(shared_dir / "fixtures/loaders/gqa", "test")
    assert [(a.example_id, a.image_id, a.answers) for a in test.annotations] == [
        ("07001", "n500", ()),
        ("07000", "4105", ()),
    ]
    train = gqa.read(shared_dir / "fixtures/loaders/gqa", "train", num_val=gqa.NUM_VAL)
    assert (train.annotations, train.images) == ((), {})


@pytest.fixture(scope="module")
def official(samples_dir, tmp_path_factory):
    """Real records under the official names: those of a language as val, testdev as train, too."""
    folder = tmp_path_factory.mktemp("gqa")
    source = samples_dir / "gqa"
    shutil.copyfile(source / "xgqa_en_train_48.json.gz", folder / "val_balanced_questions.json.gz")
    name = "testdev_balanced_questions.json"
    shutil.copyfile(source / name, folder / name)
    (folder / "train_balanced_questions.json").write_text((source / name).read_text())
    return folder


def test_real_records(official, samples_dir):
    raw = {
        "testdev_balanced": json.loads((official / "testdev_balanced_questions.json").read_text()),
        "val_balanced": json.loads(
            gzip.decompress((official / "val_balanced_questions.json.gz").read_bytes())
        ),
    }
    vocabulary = answer_lists.read_vocabulary(samples_dir / "gqa/trainval_label2ans.json")
    assert vocabulary == answer_lists.read_vocabulary(samples_dir / "gqa/trainval_ans2label.json")
    assert list(vocabulary) == json.loads((samples_dir / "gqa/trainval_label2ans.json").read_text())
    index = {answer: label for label, answer in enumerate(vocabulary)}
    for split in raw:
        result = gqa.read_split(official, split)
        order = list(raw[split]) if split == "testdev_balanced" else sorted(raw[split])
        assert [a.example_id for a in result.annotations] == order
        assert order and result.skipped == ()
        for annotation in result.annotations:
            record = raw[split][annotation.example_id]
            assert annotation.text == record["question"]
            assert annotation.image_id == record["imageId"]
            assert (annotation.answers, annotation.scores) == ((record["answer"],), (1.0,))
        assert set(result.images) == {record["imageId"] for record in raw[split].values()}
        assert answer_lists.coverage(result.annotations, index) == (len(order), len(order))


def test_train_and_val_are_held_out_together(official):
    train_file = json.loads((official / "train_balanced_questions.json").read_text())
    val_file = json.loads(
        gzip.decompress((official / "val_balanced_questions.json.gz").read_bytes())
    )
    train, val = gqa.read(official, "train"), gqa.read(official, "val")
    ids = [a.example_id for a in train.annotations + val.annotations]
    both = gqa.read_trainval(official)
    assert ids == [a.example_id for a in both.annotations] == sorted(set(ids))
    assert len(val.annotations) == len(ids) // 5
    assert len(ids) + len(both.skipped) == len(train_file) + len(val_file)
    vocabulary = answer_lists.gqa_vocabulary([train, val])
    counts = {answer: 0 for answer in vocabulary}
    for annotation in both.annotations:
        counts[annotation.answers[0]] += 1
    assert sorted(vocabulary, key=lambda answer: (-counts[answer], answer)) == list(vocabulary)
    assert answer_lists.gqa_vocabulary([both], num=100) == vocabulary[:100]


def _write(folder, split, text):
    (folder / f"{split}_balanced_questions.json").write_text(text)


def _record(**fields):
    return json.dumps(dict(imageId="5", question="Q?", answer="yes") | fields)


def test_ids_are_ordered_as_text(tmp_path):
    _write(tmp_path, "train", f'{{"9": {_record()}, "010": {_record()}, "10": {_record()}}}')
    _write(tmp_path, "val", f'{{"1": {_record()}, "9": {_record(answer="no")}}}')
    both = gqa.read_trainval(tmp_path)
    assert [a.example_id for a in both.annotations] == ["010", "1", "10", "9"]
    assert both.annotations[-1].answers == ("yes",)
    assert [(s.record, s.reason) for s in both.skipped] == [
        ("9", "its question id occurs in the first file too")
    ]
    assert [a.example_id for a in gqa.read(tmp_path, "val").annotations] == ["9"]
    assert [a.example_id for a in gqa.read(tmp_path, "val", num_val=2).annotations] == ["10", "9"]


def test_unusable_records_are_reported(tmp_path):
    records = [
        ("1", _record()),
        ("1", _record(answer="no")),
        ("2", _record(answer="")),
        ("3", '{"imageId": "5", "question": "Q?"}'),
        ("4", _record(imageId=None)),
        ("5", "[]"),
        ("", _record()),
        ("\\ud800", _record()),
    ]
    text = ", ".join(f'"{key}": {record}' for key, record in records)
    _write(tmp_path, "train", f"{{{text}}}")
    result = gqa.read_split(tmp_path, "train_balanced")
    assert [(a.example_id, a.answers) for a in result.annotations] == [("1", ("yes",))]
    assert sorted((s.record, s.reason.split(";")[0]) for s in result.skipped) == [
        ("1", "its question id occurs twice"),
        ("2", "'answer' is empty"),
        ("3", "no 'answer'"),
        ("4", "'imageId' must be a whole number, is None"),
        ("5", "must be an object, is a list"),
        ("record 7", "'question id' is empty or out of range"),
        ("record 8", "'question id' is not valid Unicode: \"'\\\\ud800'\""),
    ]
    _write(tmp_path, "testdev", f"{{{text}}}")
    test = gqa.read(tmp_path, "test")
    assert [(a.example_id, a.answers) for a in test.annotations] == [("1", ("yes",)), ("3", ())]


def test_unusable_files(tmp_path):
    with pytest.raises(
        DataError, match="no train_balanced_questions.json or cache/trainval_target"
    ):
        gqa.read(tmp_path, "train")
    with pytest.raises(DataError, match="no testdev_balanced_questions.json"):
        gqa.read(tmp_path, "test")
    _write(tmp_path, "testdev", "[]")
    with pytest.raises(DataError, match="top level must be an object, begins with"):
        gqa.read(tmp_path, "test")
    _write(tmp_path, "testdev", "{}")
    with pytest.raises(DataError, match="no question that can be used, 0 skipped"):
        gqa.read(tmp_path, "test")
    _write(tmp_path, "train", f'{{"1": {_record()}}}')
    with pytest.raises(DataError, match="no val_balanced_questions.json"):
        gqa.read(tmp_path, "train")
    with pytest.raises(ValueError, match="got 'trainval'"):
        gqa.read(tmp_path, "trainval")
    with pytest.raises(ValueError, match="got 'train'"):
        gqa.read_split(tmp_path, "train")


def test_official_records(tmp_path):
    """What the evaluation script reads, of the questions that were built, with their choices."""
    question = {"imageId": "1", "question": "is it?", "answer": "no", "isBalanced": True}
    rest = {"types": {}, "groups": {}, "semantic": [], "entailed": [], "fullAnswer": "No."}
    for part, ids in (("train", "12"), ("val", "34"), ("testdev", "56")):
        questions = {i: question | rest for i in ids}
        (tmp_path / f"{part}_balanced_questions.json").write_text(json.dumps(questions))
    choices = {i: {"valid": ["no", "yes"], "plausible": ["no"]} for i in "567"}
    (tmp_path / "testdev_choices.json").write_text(json.dumps(choices))
    found = gqa.official_records(tmp_path, "test")(frozenset("69"))
    official = {k: v for k, v in (question | rest).items() if k not in ("imageId", "fullAnswer")}
    assert found == {"6": official | {"choices": choices["6"]}}
    assert gqa.official_records(tmp_path, "val")(frozenset("25")) == {"2": official}
    (tmp_path / "val_balanced_questions.json").unlink()
    with pytest.raises(MissingFile, match="val_balanced_questions.json"):
        gqa.official_records(tmp_path, "val")
