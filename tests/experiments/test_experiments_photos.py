"""The data and the trainings of the comparison on real photos, and its table."""

import json

import pytest

from twelve_in_one import configs
from twelve_in_one.checkpoints import state
from twelve_in_one.config import check
from twelve_in_one.data.builders import photo_sets
from twelve_in_one.experiments import photos
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.training.finish import RESULTS

TASKS = ("coco", "vqa", "refcocog")


def test_what_is_said_about_the_photos(samples_dir):
    """Every photo is in one part; as many yes as no; names and boxes are those of COCO's labels."""
    files = photo_sets.photo_files(samples_dir)
    assert len(files) == 94
    parts = [photo_sets.held_out(files, part, 5) for part in range(5)]
    assert set.union(*parts) == set(files) and sum(map(len, parts)) == 94
    sets = photo_sets.read(samples_dir, 1, 5)
    assert tuple(sets) == TASKS
    for found in sets.values():
        train, val = found.splits["train"], found.splits["val"]
        assert set(val.images) <= parts[1] and not set(train.images) & parts[1]
        assert not train.skipped and train.images and val.images
    counts = [sum(len(x.annotations) for x in one.splits.values()) for one in sets.values()]
    assert counts[0] == 415 and sets["vqa"].made > 500 and sets["refcocog"].made > 100
    for annotations in sets["vqa"].splits.values():
        made = [a for a in annotations.annotations if "-" in a.example_id]
        assert sum(a.answers == ("yes",) for a in made) * 2 == len(made)
    labels = json.loads((samples_dir / "coco/annotations/instances_subset.json").read_text())
    names = {one["id"]: one["name"] for one in labels["categories"]}
    boxes = {(str(a["image_id"]), names[a["category_id"]]): a for a in labels["annotations"]}
    seen = 0
    for a in sets["refcocog"].splits["train"].annotations:
        if (a.image_id, a.text.removeprefix("the ")) in boxes and "-" in a.example_id:
            x, y, width, height = boxes[a.image_id, a.text.removeprefix("the ")]["bbox"]
            assert a.box == pytest.approx((x, y, x + width, y + height))
            assert a.box in sets["refcocog"].splits["train"].images[a.image_id].boxes
            seen += 1
    assert seen > 5


def test_trainings_and_table(monkeypatch, tmp_path):
    commands, trained = [], {}

    def build(arguments):
        commands.append(dict(zip(arguments[::2], arguments[1::2], strict=True)))
        return 0

    def train(config, folder):
        folder.mkdir(parents=True)
        state.write_config(folder, config)
        check.check(config)
        trained[folder.parent.name, config.seed] = config
        gain = {"photos-none": 0.0, "photos-pixels": 0.1, "photos-small": 0.3}[folder.parent.name]
        score = 0.2 + gain + 0.01 * config.seed
        entry = {"title": "T", "metric": "m", "updates": 1, "examples": 10, "score": score}
        results = {"tasks": {n: entry | {"chance": 0.1} for n in TASKS}, "parameters": 9}
        (folder / RESULTS).write_text(json.dumps(results))
        return results

    monkeypatch.setattr(photos.real_samples, "main", build)
    base = configs.get("real_samples")
    base.data.samples_dir = str(tmp_path)
    outcomes = photos.run(Runner(tmp_path, train, 6), base, [0, 6], photos.MODELS)
    assert len(trained) == photos.count(base, [0, 6], photos.MODELS) == 6
    assert [c["--photos"] for c in commands] == ["0/5"] * 3 + ["1/5"] * 3
    assert {c["--features"] for c in commands} == {"none", "pixels", "small"}
    config = trained["photos-small", 6]
    assert config.data.dir == str(tmp_path / "data" / "small-1") and not config.data.samples_dir
    assert config.tasks == TASKS and config.task.refcocog.candidates == "annotated"
    table = photos.report(outcomes)
    assert "captions: finding the photo" in table and "| 20 |" in table
    assert "**+30.0 ± 0.0**" in table and "**+20.0 ± 0.0**" in table
    photos.plot(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()
    base.data.samples_dir = ""
    with pytest.raises(ValueError, match="TWELVE_IN_ONE_SAMPLES"):
        photos.count(base, [0], photos.MODELS)


def test_data_that_cannot_be_built(monkeypatch, tmp_path):
    monkeypatch.setattr(photos.real_samples, "main", lambda arguments: 1)
    with pytest.raises(ValueError, match="none-2: the data could not be built"):
        photos._build(tmp_path, "samples", "none", 2)
