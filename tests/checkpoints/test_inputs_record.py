"""Inputs that weights depend on: noted, compared, and read from workdirs of earlier versions."""

import dataclasses
import json

import pytest

from twelve_in_one.checkpoints import inputs_record
from twelve_in_one.data import trained_on
from twelve_in_one.data.encode.text import SPECIALS, Tokenizer
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.preprocessing import Preprocessing, answers_sha256
from twelve_in_one.models.two_stream.config import named_size
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.twelve import TASKS

MODEL = Vilbert(named_size("tiny"))
ANSWERS = ("yes", "no", "red", "two")


def serving(answers=ANSWERS, words=("a", "b", "c"), tasks=("vqa", "refcoco"), **fields):
    tokenizer = Tokenizer((*SPECIALS, *words))
    known = tuple(TASKS[name] for name in tasks)
    values = dict(
        vocab_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        lower_case=True,
        max_tokens={task.name: task.max_tokens for task in known},
        max_regions={task.name: task.max_regions for task in known},
        region_feature_dim=8,
        region_source="pixels",
        image_descriptor="pixels-1",
        answers_sha256={"vqa": answers_sha256(answers)},
    )
    preprocessing = Preprocessing(**values | fields)
    return Serving(known, tokenizer, {"vqa": tuple(answers)}, preprocessing)


@pytest.fixture
def workdir(tmp_path):
    inputs_record.write(tmp_path, serving(), MODEL)
    return tmp_path


def check(workdir, offered):
    inputs_record.check(inputs_record.read(workdir), offered, workdir / "data")


def test_the_same_is_accepted(workdir):
    check(workdir, serving())
    check(workdir, serving(tasks=("vqa", "gqa")))  # of what both have
    record = inputs_record.read(workdir)
    assert (record.serving, record.system) == (serving(), MODEL)
    assert inputs_record.read(workdir / "elsewhere") is None


def test_answers_in_another_order(workdir):
    with pytest.raises(ValueError) as error:
        check(workdir, serving(("yes", "red", "no", "two")))
    message = str(error.value)
    assert "the first that differs is answer 1, 'no' in training and 'red' now" in message
    assert "the same in another order" in message and "sha256" not in message
    assert f"copy {workdir}/inputs/answers-vqa.json to {workdir}/data/answers-vqa.json" in message


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        (serving((*ANSWERS, "cat")), r"4 and 5\).*answer 4, none in training and 'cat' now"),
        (serving(ANSWERS[:2]), r"answer 2, 'red' in training and none now"),
        (serving(("yes", "no", "red", "too")), r"\(4\); .* answer 3, 'two' in .* 'too'"),
        (serving(words=("a", "c", "b")), r"vocab.txt: .*word piece 6, 'b' in training and 'c' now"),
        (serving(region_source="detected"), "region_source: trained with 'pixels'"),
        (serving(region_feature_dim=9), "region_feature_dim"),
        (serving(image_descriptor="pixels-2"), "image_descriptor"),
        (serving(max_tokens={"vqa": 9}), "max_tokens of vqa"),
        (serving(max_regions={"vqa": 9}), "max_regions of vqa"),
        (serving(lower_case=False), "lower_case"),
        (serving(boxes="x, y, w, h"), "boxes: trained with 'x1/W"),
    ],
)
def test_everything_that_weights_depend_on(workdir, offered, said):
    with pytest.raises(ValueError, match=said):
        check(workdir, offered)


@pytest.mark.parametrize("change", [{"task_id": 5}, {"head": "gqa"}, {"rows_per_example": 2}])
def test_tasks(workdir, change):
    offered = serving()
    first = dataclasses.replace(offered.tasks[0], **change)
    (key,) = change
    with pytest.raises(ValueError, match=f"{key} of task vqa"):
        check(workdir, dataclasses.replace(offered, tasks=(first,)))


def test_another_store_is_told(tmp_path, caplog):
    """Its name says little: one detector may have filled both."""
    known = serving(region_stores={"vqa": "a.lmdb", "refcoco": "b.lmdb"})
    inputs_record.write(tmp_path, known, MODEL)
    check(tmp_path, known)
    assert not caplog.messages
    check(tmp_path, serving(region_stores={"vqa": "c.lmdb", "gqa": "d.lmdb"}))
    (line,) = caplog.messages
    assert "regions of vqa come from c.lmdb, the weights learnt from a.lmdb" in line


def test_a_workdir_of_an_earlier_version(tmp_path):
    """It has preprocessing.json without what was added since; its answers cannot be checked."""
    raw = json.loads(serving().preprocessing.to_json())
    del raw["boxes"], raw["answers_sha256"], raw["region_stores"]
    (tmp_path / "preprocessing.json").write_text(json.dumps(raw))
    record = inputs_record.read(tmp_path)
    assert record.serving is None
    inputs_record.check(record, serving(ANSWERS[::-1]), tmp_path)
    with pytest.raises(ValueError, match="vocab_sha256"):
        inputs_record.check(record, serving(words=("a", "c", "b")), tmp_path)


def test_what_was_trained_on_goes_along(tmp_path):
    seen = trained_on.nothing("what came before")
    inputs_record.write(tmp_path, dataclasses.replace(serving(), trained_on=seen), MODEL)
    assert inputs_record.read(tmp_path).serving.trained_on.unknown == ("what came before",)
