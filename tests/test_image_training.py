"""Mixed streams over pixels train a classifier through the same loop: killed, spread, or alone."""

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from twelve_in_one import configs, train
from twelve_in_one.checkpoints import model_folder, state
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.config.settings import ConfigError
from twelve_in_one.logs import metrics_writer
from twelve_in_one.mixing.mixed import MixedOrder, Stage, weights_now
from twelve_in_one.mixing.stop_and_go import TaskState

KILLS = int(os.environ.get("TWELVE_IN_ONE_KILLS", "1"))
ROUNDS = 24
SIZES = {"colour": (40, 3), "side": (24, 2), "height": (15, 2)}  # pictures, classes
CONFIG = """
from twelve_in_one.config import image_defaults
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.image_classifier import SYSTEM, ImageClassifierConfig

def get_config():
    encoder = ViTConfig(24, 1, 2, 48, image_size=(16, 16), patch_size=8, dropout_rate=0.1)
    tasks = {{
        name: dict(source=f"folder:{folder}/{{name}}/{{{{split}}}}", random_crop=False)
        for name in {names}
    }}
    config = image_defaults.get_config(SYSTEM, ImageClassifierConfig(encoder), tasks)
    config.mixture.weighting, config.mixture.batch_size = "pairs", 8
    config.compilation_cache = ""
    config.schedule.kind = "stop_and_go"
    config.schedule.num_rounds = {rounds}
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 6
    config.schedule.patience, config.schedule.threshold = 0, 0.3
    config.optimizer.learning_rate = 3e-3
    config.evaluation.batch_size, config.evaluation.pictures = 8, 1
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 2, 0
    config.log.every_rounds, config.log.tensorboard = 3, False
    config.parallel.devices = 1
    return config
"""


def _picture(task, label, rng):
    pixels = rng.integers(0, 60, (16, 16, 3))
    if task == "colour":
        pixels[..., label] += 150
    elif task == "side":
        pixels[:, slice(8, None) if label else slice(0, 8)] += 150
    else:
        pixels[slice(8, None) if label else slice(0, 8)] += 150
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """A config of three tasks on class folders of different sizes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for task, (count, classes) in SIZES.items():
        for split, number in (("train", count), ("val", 11), ("test", 13)):
            for i in range(number):
                place = folder / task / split / f"class_{i % classes}"
                place.mkdir(parents=True, exist_ok=True)
                _picture(task, i % classes, rng).save(place / f"{i}.png")
    path = folder / "config.py"
    path.write_text(CONFIG.format(folder=folder, names=tuple(SIZES), rounds=ROUNDS))
    return path


@pytest.fixture(scope="module")
def alone(config_file, tmp_path_factory, share_programs):
    """Workdir of a run on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    train.train(configs.get(str(config_file)), workdir)
    return workdir


def _lines(workdir):
    lines = metrics_writer.read(workdir / metrics_writer.FILE)
    return [{k: v for k, v in line.items() if k != "timing"} for line in lines]


def test_every_task_is_learnt_and_logged(alone):
    results = json.loads((alone / "results.json").read_text())["tasks"]
    assert results.keys() == SIZES.keys()
    for name, (_, classes) in SIZES.items():
        assert results[name]["score"] > 1.3 / classes, results[name]
        assert results[name]["chance"] == 1 / classes and results[name]["examples"] == 13
    # A line of rounds without an update, as all tasks had stopped, has no rows.
    lines = [line for line in _lines(alone) if line["event"] == "train" and line["updates_of"]]
    for line in lines:
        assert sum(line["rows"].values()) == 8 * line["updates_of"]["mixture"]
        learnt = {name for name, count in line["rows"].items() if count}
        assert line["loss"].keys() == line["score"].keys() == learnt
        assert line["grad_norm"].keys() == line["updates_of"].keys() == {"mixture"}
    assert lines[0]["rows"] == {"colour": 12, "side": 7, "height": 5}  # 40 : 24 : 15
    assert (alone / "report.html").stat().st_size > 10_000


def test_stop_and_go_changes_the_weights(alone):
    """The rows that were trained on are those of the stages in the checkpoint, from the start."""
    progress = state.read_progress(alone, ROUNDS)
    stages = tuple(Stage(first, tuple(weights)) for first, weights in progress.stages)
    flags, wanted = dict.fromkeys(SIZES, False), [stages[0].weights]
    weights = dict(zip(SIZES, stages[0].weights, strict=True))
    by_round = itertools.groupby(
        (line for line in _lines(alone) if line["event"] == "validation"),
        key=lambda line: line["round"],
    )
    for _, lines in by_round:
        flags |= {line["task"]: line["stopped"] for line in lines}
        state_now = {name: TaskState(stopped=flag) for name, flag in flags.items()}
        now = tuple(weights_now(weights, state_now, 4).values())
        wanted += [] if np.allclose(now, wanted[-1]) else [now]
    assert len(stages) == len(wanted) > 1
    np.testing.assert_allclose([stage.weights for stage in stages], wanted)
    order, counted = MixedOrder(8, stages), np.zeros(3, int)
    for line in _lines(alone):
        if line.get("rows"):
            counted += list(line["rows"].values())
    assert tuple(counted) == order.counts(progress.positions["mixture"])


def test_eight_devices_learn_the_same(config_file, alone, tmp_path):
    config = configs.get(str(config_file))
    config.parallel.devices, config.parallel.layout = 8, "fsdp"
    train.train(config, tmp_path)
    _same(alone, tmp_path)


def _same(workdir, other):
    for line, theirs in zip(_lines(workdir), _lines(other), strict=True):
        assert line["event"] == theirs["event"]
        if line["event"] == "train":
            assert line.get("rows") == theirs.get("rows")
            for name, loss in line["loss"].items():
                assert theirs["loss"][name] == pytest.approx(loss, rel=1e-4, abs=1e-5)
        elif line["event"] == "validation":
            assert all(line[key] == theirs[key] for key in ("task", "score", "stopped", "examples"))
    params = [flatten(model_folder.load(folder / "model")[0]) for folder in (workdir, other)]
    for path, value in params[0].items():
        np.testing.assert_allclose(params[1][path], value, rtol=0, atol=1e-4)


def _start(config_file, workdir, *flags, devices=None):
    command = [sys.executable, "-m", "twelve_in_one.train", f"--config={config_file}"]
    env = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_NUM_CPU_DEVICES": str(devices or jax.config.jax_num_cpu_devices),
    }
    with (workdir.parent / "output").open("a") as output:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *flags], env=env, stdout=output, stderr=output
        )


def test_two_processes_learn_the_same(config_file, alone, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--config.parallel.devices=0"]
    workdir = tmp_path / "two"
    pair = [_start(config_file, workdir, *flags, f"--process_id={i}", devices=1) for i in range(2)]
    codes = [process.wait(timeout=600) for process in pair]
    assert codes == [0, 0], (tmp_path / "output").read_text()[-5000:]
    _same(alone, workdir)


def test_kills_make_no_difference(config_file, alone, tmp_path):
    killed, rng = tmp_path / "killed", random.Random(1)
    for _ in range(KILLS):
        process, begun = _start(config_file, killed), state.all_rounds(killed)[-1:]
        while process.poll() is None and state.all_rounds(killed)[-1:] == begun:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert state.all_rounds(killed), (tmp_path / "output").read_text()[-3000:]
    train.train(configs.get(str(config_file)), killed)
    assert _lines(killed) == _lines(alone)
    params = [flatten(model_folder.load(folder / "model")[0]) for folder in (killed, alone)]
    for path, value in params[1].items():
        np.testing.assert_array_equal(params[0][path], value)
    ends = [state.read_progress(folder, ROUNDS) for folder in (killed, alone)]
    assert ends[0].stages == ends[1].stages and ends[0].controllers == ends[1].controllers


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task.side.source": ""}, "task.side.source: says where"),
        ({"mixture.accumulate": 3}, "mixture.accumulate: 3 does not divide the batch size 8"),
        ({"schedule.kind": "proportional"}, "schedule.kind: 'proportional' orders batches"),
        (
            {"task.side.group": "vqa"},
            "task.side.group: 'vqa': the groups of image_classifier are classify",
        ),
        ({"tasks": ("side", "hight")}, "no task 'hight'; did you mean height"),
        ({"model.encoder.image_size": (16, 8)}, "image_size .* should be a square"),
    ],
)
def test_settings_that_do_not_fit(config_file, tmp_path, changes, named):
    config = configs.get(str(config_file))
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=named):
        train.train(config, tmp_path)


def test_another_mixture_is_refused(config_file, alone):
    config = configs.get(str(config_file))
    config.tasks = ("colour", "side")
    with pytest.raises(ValueError, match="does not fit the run: .* unknown .*head_height"):
        train.train(config, alone)
