"""What a model's `config.json` says of its system, and what a system refuses."""

import json

import pytest

from twelve_in_one import systems
from twelve_in_one.models.two_stream import config as two_stream
from twelve_in_one.models.two_stream.config import named_size
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.twelve import TASKS, TWELVE

TINY = Vilbert(named_size("tiny"))


def test_what_is_written_is_read():
    text = TINY.to_json()
    assert json.loads(text)["system"] == "vilbert" and json.loads(text)["version"] == 1
    assert systems.from_json(text) == TINY
    # The model alone reads it as well, and systems read what was written before there were any.
    assert two_stream.from_json(text) == TINY.config
    assert systems.from_json(two_stream.to_json(TINY.config)) == TINY


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"system": "mammoth"}, "system 'mammoth' is none of vilbert"),
        ({"version": 2}, "version 2 of vilbert, this package knows 1: use a newer one"),
        ({"version": "1"}, "version '1' of vilbert"),
        ({"hidden": 3}, r"unknown fields \['hidden'\]"),
    ],
)
def test_what_cannot_be_read(changes, message):
    raw = json.loads(TINY.to_json()) | changes
    with pytest.raises(ValueError, match=message):
        systems.from_json(json.dumps(raw))


def test_no_object_and_another_model():
    with pytest.raises(ValueError, match="a model config is a JSON object, got list"):
        systems.from_json("[]")
    raw = json.loads(TINY.to_json()) | {"system": "mammut"}
    with pytest.raises(ValueError, match="the config is of a model of 'mammut', not of 'vilbert'"):
        two_stream.from_json(json.dumps(raw))


def test_tasks_that_differ_in_shape_are_not_mixed():
    with pytest.raises(ValueError, match="vqa, gqa: tasks of vilbert differ in shape"):
        TINY.objective([TASKS["vqa"], TASKS["gqa"]])


def test_tasks_that_differ_in_name_alone_share_a_program():
    keys = {task.name: TINY.objective([task]).key for task in TWELVE}
    assert keys["refcoco"] == keys["refcoco+"] == keys["refcocog"]
    assert keys["coco"] == keys["flickr30k"] and keys["vqa"] == keys["vgqa"]
    assert len(set(keys.values())) == 7
    assert TINY.objective([TASKS["conceptual_captions"]]).parts == KINDS["pretraining"].heads


def test_layouts():
    scanned = TINY.with_layout(True)
    assert scanned.scanned and not TINY.scanned and scanned.with_layout(False) == TINY
    assert scanned.num_parameters == TINY.num_parameters
    assert not scanned.for_inference().scanned
