"""A run that is killed ends as one that was left alone, to the bit."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from reference.small_model import SMALL_MODEL

from twelve_in_one import configs, train
from twelve_in_one.checkpoints import model_folder, state
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.logs import metrics_writer

KILLS = int(os.environ.get("TWELVE_IN_ONE_KILLS", "1"))
ROUNDS = 24
TASKS = ("vqa", "refcoco+")


@pytest.fixture
def settings(small_world):
    """Changes of the config, of the command and of this process."""
    return SMALL_MODEL | {
        "tasks": TASKS,
        "model.heads": ("vqa", "region_score"),
        "compilation_cache": "",  # that of all tests
        "data.dir": str(small_world.data),
        "data.world_images": 0,
        "parallel.devices": 1,
        "schedule.num_rounds": ROUNDS,
        "schedule.min_validation_rounds": 4,
        "schedule.max_validation_rounds": 4,
        "schedule.patience": 0,
        "schedule.threshold": 0.3,
        "checkpoint.every_rounds": 2,
        "checkpoint.keep_best": 2,
        "log.every_rounds": 5,
        "log.tensorboard": False,
        "evaluation.pictures": 0,
    }


def train_here(settings, workdir):
    config = configs.get("world:debug")
    config.update_from_flattened_dict(settings)
    train.train(config, workdir)


def start(settings, workdir):
    """Starts the command on a workdir, with as many threads as this process has."""
    command = [
        sys.executable,
        "-m",
        "twelve_in_one.train",
        "--config=world:debug",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]
    devices = str(jax.config.jax_num_cpu_devices)
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_NUM_CPU_DEVICES": devices}
    with (workdir.parent / "output").open("a") as output:
        return subprocess.Popen(command, env=env, stdout=output, stderr=output)


def lines_of(workdir):
    lines = metrics_writer.read(workdir / metrics_writer.FILE)
    return [{k: v for k, v in line.items() if k != "timing"} for line in lines]


def is_writing(workdir):
    """Whether a checkpoint is being written, under a name that is not its own yet."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(not p.name.isdecimal() for p in folder.iterdir())


def kill_at_random(process, workdir, rng, *, in_a_write):
    """Waits for some progress, or for a checkpoint that is being written, and kills."""
    begun = state.all_rounds(workdir)[-1:]
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if in_a_write and state.all_rounds(workdir)[-1:] != begun and is_writing(workdir):
            break
        if not in_a_write and state.all_rounds(workdir)[-1:] != begun:
            time.sleep(rng.uniform(0, 1.0))
            break
        time.sleep(0.002)
    writing = is_writing(workdir)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return writing


@pytest.mark.usefixtures("share_programs")
def test_kills_make_no_difference(settings, tmp_path):
    """A process is killed; the run that is left alone, and the end of the other, need none."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    train_here(settings, alone)
    rng, in_a_write = random.Random(0), 0
    for number in range(KILLS):
        process = start(settings, killed)
        # Of a run that has come to its end there is nothing left to kill.
        in_a_write += kill_at_random(process, killed, rng, in_a_write=number % 2 == 0)
        if state.all_rounds(killed)[-1:] == [ROUNDS]:
            break
    print(f"{number + 1} kills, {in_a_write} of them inside a checkpoint")
    assert in_a_write, (tmp_path / "output").read_text()[-3000:]
    train_here(settings, killed)

    assert lines_of(killed) == lines_of(alone)
    params = [flatten(model_folder.load(folder / "model")[0]) for folder in (killed, alone)]
    assert params[0].keys() == params[1].keys()
    for path, value in params[1].items():
        np.testing.assert_array_equal(params[0][path], value)
    ends = [state.read_progress(folder, ROUNDS) for folder in (killed, alone)]
    for name in ("controllers", "positions", "scores", "window"):
        assert getattr(ends[0], name) == getattr(ends[1], name)
    assert state.all_rounds(killed) == state.all_rounds(alone)
