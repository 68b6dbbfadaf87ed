"""Two processes train, validate, rank and decide as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference.small_model import SMALL_MODEL

from twelve_in_one import configs, train
from twelve_in_one.checkpoints import model_folder
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.logs import metrics_writer

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("coco", "refcoco")


OVERRIDES = SMALL_MODEL | {
    "tasks": TASKS,
    "model.heads": ("image_text_match", "region_score"),
    "data.world_images": 0,
    "compilation_cache": "",
    "schedule.patience": 0,
    "schedule.threshold": 0.3,
    # Of data whose sizes are no multiples of anything, so that last batches are partial.
    "evaluation.max_validation_examples": 0,
    "evaluation.max_test_examples": 0,
    "evaluation.retrieval_captions": 6,
    "evaluation.retrieval_images": 4,
    "evaluation.pictures": 1,
}


def of_world(world):
    return OVERRIDES | {"data.dir": str(world.data), "data.raw_dir": str(world.raw)}


def start(world, workdir, *flags):
    """Starts the command in a process that has one device."""
    command = [
        sys.executable,
        "-m",
        "twelve_in_one.train",
        f"--config={ROOT / 'configs' / 'world.py'}:debug",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in of_world(world).items()),
        *flags,
    ]
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=workdir
    )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def runs(small_world, tmp_path_factory):
    """Workdirs of a run in this process on one device, and of one of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "two").mkdir()
    alone = configs.get("world:debug")
    alone.update_from_flattened_dict(of_world(small_world))
    alone.parallel.devices = 1
    train.train(alone, folder / "one")
    port = free_port()
    pair = [
        start(
            small_world,
            folder / "two",
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)[-5000:]
    return folder / "one", folder / "two"


def test_losses_and_decisions_are_the_same(runs):
    one, two = (metrics_writer.read(workdir / metrics_writer.FILE) for workdir in runs)
    assert [line["event"] for line in one] == [line["event"] for line in two]
    for line, other in zip(one, two, strict=True):
        if line["event"] == "train":
            assert line["updates_of"] == other["updates_of"]
            for name, loss in line["loss"].items():
                assert loss == pytest.approx(other["loss"][name], rel=1e-4)
        elif line["event"] == "validation":
            for key in ("task", "score", "stopped", "best", "examples"):
                assert line[key] == other[key], line
    assert any(line["event"] == "validation" and line["stopped"] for line in one)


def test_scores_and_ranks_are_the_same(runs):
    one, two = (json.loads((workdir / "results.json").read_text())["tasks"] for workdir in runs)
    for name in TASKS:
        assert one[name]["score"] == two[name]["score"], name
        assert one[name]["metrics"] == two[name]["metrics"], name
    assert any(one[name]["examples"] % 8 for name in TASKS), "no partial batch"


def test_parameters_are_the_same(runs):
    one, two = (flatten(model_folder.load(workdir / "model")[0]) for workdir in runs)
    for path, value in one.items():
        np.testing.assert_allclose(two[path], value, rtol=0, atol=1e-4)
