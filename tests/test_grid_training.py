"""12-in-1 trains on the pixels of a small world, resumes, reports, and answers about pictures."""

import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from reference.small_model import SMALL_MODEL

from twelve_in_one import configs, predict, train
from twelve_in_one.checkpoints import model_folder, state
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.data.stored.records import DataError, Regions
from twelve_in_one.logs import metrics_writer
from twelve_in_one.training import loop

TASKS = ("vqa", "refcoco")
GRID = {
    "rows": 2,
    "columns": 3,
    "letterbox": True,
    "encoder.hidden_dim": 16,
    "encoder.mlp_dim": 16,
    "encoder.num_layers": 1,
    "encoder.num_heads": 2,
    "encoder.image_size": (16, 16),
    "encoder.stem": "patches",
}
pytestmark = pytest.mark.usefixtures("share_programs")


@pytest.fixture(scope="module")
def data(small_world, run_build, tmp_path_factory):
    """Folder of the tasks' datasets with their pictures."""
    folder = tmp_path_factory.mktemp("pictures") / "data"
    shutil.copytree(small_world.data / "regions", folder / "regions")
    for name in TASKS:
        outcome = run_build(name, small_world.raw, folder, "--images", "keep")
        assert outcome.code == 0, outcome.err
    return folder


def small_config(world, data):
    config = configs.get("world_grid:debug")
    config.update_from_flattened_dict(SMALL_MODEL)
    config.update_from_flattened_dict({f"model.grid.{name}": x for name, x in GRID.items()})
    config.model.heads = ("vqa", "region_score")
    config.tasks = TASKS
    config.data.dir, config.data.raw_dir = str(data), str(world.raw)
    config.data.world_images, config.data.clean = 0, False
    config.compilation_cache = ""  # that of all tests
    config.parallel.devices = 1
    config.checkpoint.every_rounds = 1
    config.schedule.num_rounds = 4
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 1
    config.evaluation.max_validation_examples = config.evaluation.max_test_examples = 8
    config.evaluation.pictures = 1
    return config


@pytest.fixture(scope="module")
def finished(small_world, data, tmp_path_factory, share_programs):
    """A run that nobody disturbed: its workdir and results."""
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    return workdir, train.train(small_config(small_world, data), workdir)


def params_of(workdir):
    return flatten(model_folder.load(workdir / "model")[0])


def test_a_stopped_run_resumes_to_the_bit(finished, small_world, data, tmp_path, monkeypatch):
    workdir, results = finished
    assert set(results["tasks"]) == set(TASKS)
    config, again, validate = small_config(small_world, data), tmp_path / "again", loop.validate

    def stop(*args):
        monkeypatch.setattr(loop, "validate", validate)
        os.kill(os.getpid(), 15)
        return validate(*args)

    monkeypatch.setattr(loop, "validate", stop)
    assert train.train(config, again) is None
    assert state.all_rounds(again)[-1] == 3
    train.train(config, again)
    lines = [
        [{k: v for k, v in line.items() if k != "timing"} for line in metrics_writer.read(path)]
        for path in (workdir / metrics_writer.FILE, again / metrics_writer.FILE)
    ]
    assert lines[0] == lines[1]
    ours = params_of(again)
    assert any(path[0] == "encoder" for path in ours)
    for path, value in params_of(workdir).items():
        np.testing.assert_array_equal(ours[path], value)


def test_pictures_are_read_and_their_absence_is_an_error(small_world, data, tmp_path):
    config = small_config(small_world, small_world.data)
    with pytest.raises(DataError, match="without its pictures.*build vqa with --images keep"):
        train.train(config, tmp_path / "run")


def test_questions_need_no_detector_and_pointing_takes_boxes(finished, small_world, monkeypatch):
    workdir, _ = finished
    model = predict.load(workdir, devices=jax.devices()[:1])

    def refuse(*args):
        raise AssertionError("a detector was asked for")

    files = sorted((small_world.raw / "images" / "coco").rglob("*.*"))[:1]
    assert files
    with monkeypatch.context() as patch:
        patch.setattr(model._engine.reader, "_pixel_extractor", refuse)
        path = model.answer(str(files[0]), "is there a cat ?", attention=True)
        pixels = np.asarray(Image.open(files[0]).convert("RGB"))
        array = model.answer(pixels, "is there a cat ?")
        assert dict(array.top) == pytest.approx(dict(path.top), abs=1e-6)
        # The whole picture, then the cells that show some of it.
        (attention,) = path.attention
        height, width = pixels.shape[:2]
        np.testing.assert_allclose(attention.boxes[0], [0, 0, width, height])
        assert attention.boxes.shape[0] > 1 and attention.boxes[:, 2].max() <= width
        weights = attention.maps["visual_layer_0"]
        assert weights.shape[-1] == len(attention.boxes)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        boxes = [(1.0, 2.0, 20.0, 18.0), (10.0, 5.0, 30.0, 25.0)]
        found = model.ground(str(files[0]), "the red one", boxes=boxes)
        np.testing.assert_allclose(found.candidates, [(0, 0, width, height), *boxes])
    # Without them, among boxes that are found as in training.
    found = model.ground(str(files[0]), "the red one")
    assert len(found.candidates) > 1
    regions = Regions(np.array(boxes, np.float32), np.zeros((2, 3), np.float32), width, height)
    with pytest.raises(ValueError, match="the model reads pixels: pass the picture"):
        model.answer(regions, "is there a cat ?")
