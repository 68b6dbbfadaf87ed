"""A run that is killed again and again ends as one that was left alone, to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from twelve_in_one import metrics_writer, model_folder, state
from twelve_in_one.convert.names import flatten

ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("TWELVE_IN_ONE_KILLS", "2"))
ROUNDS = 24
TASKS = ("vqa", "refcoco+")


@pytest.fixture
def start(small_world, compiled_programs, tmp_path):
    """Starts the command on a workdir; every start after the first loads its programs."""

    def run(workdir):
        command = [
            sys.executable,
            "-m",
            "twelve_in_one.train",
            f"--config={ROOT / 'configs' / 'world.py'}:debug",
            f"--workdir={workdir}",
            f"--config.tasks={TASKS}",
            f"--config.compilation_cache={compiled_programs}",
            f"--config.data.dir={small_world.data}",
            "--config.data.world_images=0",
            f"--config.schedule.num_rounds={ROUNDS}",
            "--config.schedule.patience=0",
            "--config.schedule.threshold=0.3",
            "--config.checkpoint.every_rounds=2",
            "--config.checkpoint.keep_best=2",
            "--config.log.every_rounds=5",
            "--config.log.tensorboard=False",
            "--config.evaluation.pictures=0",
        ]
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        with (tmp_path / "output").open("a") as output:
            return subprocess.Popen(command, env=env, stdout=output, stderr=output, cwd=tmp_path)

    return run


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


def test_kills_make_no_difference(start, tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert start(alone).wait(timeout=600) == 0, (tmp_path / "output").read_text()[-3000:]
    rng, in_a_write = random.Random(0), 0
    for number in range(KILLS):
        process = start(killed)
        # Of a run that has come to its end there is nothing left to kill.
        in_a_write += kill_at_random(process, killed, rng, in_a_write=number % 2 == 0)
        if state.all_rounds(killed)[-1:] == [ROUNDS]:
            break
    assert start(killed).wait(timeout=600) == 0, (tmp_path / "output").read_text()[-3000:]
    print(f"{number + 1} kills, {in_a_write} of them inside a checkpoint")
    assert in_a_write

    assert lines_of(killed) == lines_of(alone)
    params = [flatten(model_folder.load(folder / "model")[0]) for folder in (killed, alone)]
    assert params[0].keys() == params[1].keys()
    for path, value in params[1].items():
        np.testing.assert_array_equal(params[0][path], value)
    ends = [state.read_progress(folder, ROUNDS) for folder in (killed, alone)]
    for name in ("controllers", "positions", "scores", "window"):
        assert getattr(ends[0], name) == getattr(ends[1], name)
    assert state.all_rounds(killed) == state.all_rounds(alone)
