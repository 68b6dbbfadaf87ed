"""GuessWhat?! games, made by hand and real ones."""

import gzip
import json
import pickle
import shutil

import numpy as np
import pytest
from reference.spoiled_files import read_spoiled

from twelve_in_one.data.annotations import guesswhat
from twelve_in_one.data.stored.records import DataError, MissingFile

_PARTS = {"train": "train", "val": "valid", "test": "test"}


def _thing(object_id, x=None):
    return {"id": object_id, "bbox": [object_id if x is None else x, 10, 20, 5.5]}


def _game(game_id, object_id=2, things=(3, 1, 2), image_id=7, **changes):
    return {
        "id": game_id,
        "status": "incomplete",
        "image": {"id": image_id, "width": 640, "height": 480, "file_name": "a.jpg"},
        "object_id": object_id,
        "objects": [_thing(thing) if isinstance(thing, int) else thing for thing in things],
        "qas": [],
    } | changes


def _write(folder, part, *games):
    text = "".join(json.dumps(game) + "\n" for game in games)
    (folder / f"guesswhat.{part}.jsonl").write_text(text)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_real_games(samples_dir, tmp_path, split):
    for part in _PARTS.values():
        source = samples_dir / f"guesswhat/compguesswhat.{part}.jsonl.gz"
        shutil.copyfile(source, tmp_path / f"guesswhat.{part}.jsonl.gz")
    got = guesswhat.read(tmp_path, split)
    assert not got.skipped
    with gzip.open(tmp_path / f"guesswhat.{_PARTS[split]}.jsonl.gz", "rt") as file:
        games = [json.loads(line) for line in file]
    assert len(got.annotations) == len(games) > 0
    for annotation, game in zip(got.annotations, games, strict=True):
        assert annotation.example_id == str(game["id"])
        assert annotation.target_id == game["object_id"]
        things = {thing["id"]: thing["bbox"] for thing in game["objects"]}
        assert annotation.choice_ids == tuple(sorted(things))
        x, y, width, height = things[game["object_id"]]
        assert annotation.box == (x, y, x + width, y + height)
        image = got.images[annotation.image_id]
        assert (image.coco_id, image.width) == (game["image"]["id"], game["image"]["width"])
        assert image.file_name == game["image"]["file_name"]
        turns = annotation.text.removeprefix("start ").removesuffix(" stop").split(" stop start ")
        assert [turn.split(" answer ") for turn in turns] == [
            [turn["question"], turn["answer"]] for turn in game["qas"]
        ]


def test_every_split_sees_the_same_boxes(tmp_path):
    _write(tmp_path, "train", _game(1), _game(2, 9, (9, 2)), _game(3, 5, (5,), image_id=8))
    _write(tmp_path, "valid", _game(1, 4, (4, 2)))
    _write(tmp_path, "test", _game(5, 1, (1,)), _game(6, 78, (1, 77)))
    train, val, test = (guesswhat.read(tmp_path, split) for split in _PARTS)
    assert train.images["7"].box_ids == (1, 2, 3, 4, 9)  # not 77, of a game that cannot be used
    assert train.images["7"] == val.images["7"] == test.images["7"]
    assert set(val.images) == {"7"}
    assert train.images["7"].boxes[3] == (4.0, 10.0, 24.0, 15.5)
    assert [annotation.choice_ids for annotation in train.annotations] == [(1, 2, 3), (2, 9), (5,)]
    assert (len(train.skipped), len(val.skipped), len(test.skipped)) == (0, 0, 1)


def test_dialogue(tmp_path):
    turns = [("Is it red?", "No"), ("  Left ?", "N/A")]
    qas = [{"question": question, "answer": answer} for question, answer in turns]
    _write(tmp_path, "test", _game(1, qas=qas), _game(2))
    first, second = guesswhat.read(tmp_path, "test").annotations
    assert first.text == "start Is it red? answer No stop start   Left ? answer N/A stop"
    assert second.text == ""


def test_number_of_candidates(tmp_path):
    most = guesswhat.MAX_CANDIDATES
    _write(tmp_path, "test", _game(1, 5, range(most)), _game(2, 5, range(most + 1)))
    got = guesswhat.read(tmp_path, "test")
    assert [len(annotation.choice_ids) for annotation in got.annotations] == [most]
    (skipped,) = got.skipped
    assert (skipped.record, skipped.reason) == ("2", "205 objects, at most 204 can be candidates")


@pytest.mark.parametrize(
    ("game", "name", "reason"),
    [
        (_game(1), "1", "line 2: the same id occurred before"),
        (_game(2, object_id=4), "2", "'object_id' 4 is not among the objects"),
        (_game(2, things=(1, 2, 2)), "2", "object 2 is listed twice"),
        (_game(2, things=(1, _thing(2, x=3.5))), "2", "object 2 has corners (3.5, 10.0"),
        (_game(2, things=(2, {"id": 1, "bbox": [1, 2, 3]})), "2", "'bbox' must be [x, y"),
        (_game(2, things=(2, {"id": 1, "bbox": [1, 2, 3, 0]})), "2", "no positive width"),
        (_game(2, image={"id": 7, "width": 0, "height": 3}), "2", "size 0 x 3 is out of range"),
        (_game(2, qas=[{"question": "Is it?"}]), "2", "no 'answer'"),
        (_game([]), "line 2", "'id' must be a whole number, is []"),
        ([], "line 2", "must be an object"),
    ],
)
def test_unusable_games_are_reported(tmp_path, game, name, reason):
    _write(tmp_path, "valid", _game(1), game, _game(3, things=(_thing(2, x=2.5),)))
    got = guesswhat.read(tmp_path, "val")
    assert [annotation.example_id for annotation in got.annotations] == ["1", "3"]
    # A difference of half a pixel is rounding; the box is the one that came first.
    assert got.annotations[1].box == (2.0, 10.0, 22.0, 15.5)
    (skipped,) = got.skipped
    assert skipped.record == name
    assert reason in skipped.reason


def test_pickles_decide(tmp_path):
    corners = {1: [1, 10, 21, 15], 2: np.array([2, 10, 22, 16]), 3: (3, 10, 20, 5), 4: [0, 0, 9, 9]}
    (tmp_path / "cache").mkdir()
    _write(tmp_path, "train", _game(1, 2, (1, 2)), _game(2))
    (tmp_path / "cache/bboxes_dict.pkl").write_bytes(pickle.dumps(corners))
    with pytest.raises(DataError, match=r"only bboxes_dict\.pkl; .* are a pair"):
        guesswhat.read(tmp_path, "train")
    lists = tmp_path / "cache/image_bbox_list.pkl"
    lists.write_bytes(pickle.dumps({7: {"bboxes": [4, 2, 1, 3, 2]}}))
    got = guesswhat.read(tmp_path, "train")
    (annotation,) = got.annotations
    assert annotation.box == (2.0, 10.0, 22.0, 16.0)
    assert got.images["7"].box_ids == (1, 2, 3, 4)
    # Its third box is stored as x, y, width, height.
    assert got.skipped[0].reason.startswith("object 3 has corners (3.0, 10.0, 23.0, 15.5), elsewh")

    lists.write_bytes(pickle.dumps({7: {"bboxes": [5]}}))
    with pytest.raises(DataError, match="image 7: corners of object 5 are None"):
        guesswhat.read(tmp_path, "train")
    lists.write_bytes(pickle.dumps([7]))
    with pytest.raises(DataError, match="must hold a dict, holds a list"):
        guesswhat.read(tmp_path, "train")


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'valid'"):
        guesswhat.read(tmp_path, "valid")
    _write(tmp_path, "train", _game(1))
    with pytest.raises(MissingFile, match=r"no guesswhat\.valid\.jsonl"):
        guesswhat.read(tmp_path, "val")


@pytest.mark.parametrize(
    "name",
    [
        "guesswhat.train.jsonl",
        "guesswhat.train.jsonl.gz",
        "cache/image_bbox_list.pkl",
        "cache/bboxes_dict.pkl",
    ],
)
def test_spoiled_files(shared_dir, tmp_path, name):
    source = shared_dir / "fixtures/loaders/guesswhat"
    if name.startswith("cache"):
        shutil.copytree(source / "cache", tmp_path / "cache")
    games = (source / "guesswhat.train.jsonl").read_bytes()
    zipped = name.endswith(".gz")
    path = tmp_path / ("guesswhat.train.jsonl" + ".gz" * zipped)
    path.write_bytes(gzip.compress(games, mtime=0) if zipped else games)
    found = read_spoiled(lambda folder: guesswhat.read(folder, "train"), tmp_path, name, num=200)
    assert found["skipped" if name.endswith("jsonl") else "error"] > 50
