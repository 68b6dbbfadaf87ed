"""The default job in its debug size: what it writes, what it reports, what it refuses."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from twelve_in_one import checkpoint, train
from twelve_in_one.convert.names import flatten
from twelve_in_one.models.config import named_size
from twelve_in_one.models.two_stream import TwoStreamModel, count_parameters
from twelve_in_one.tasks.base import trunk_inputs
from twelve_in_one.tasks.twelve import TWELVE

ROOT = Path(__file__).resolve().parents[1]
NAMES = [task.name for task in TWELVE]


def get_config(mode="debug"):
    spec = importlib.util.spec_from_file_location("scenes_config", ROOT / "configs" / "scenes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(mode)


# ------------------------------------------------------------------------------------ one run


class Job:
    """The debug job on four of its tasks: compiling is what takes long, and pairs share a step."""

    tasks = ("vqa", "vgqa", "refcoco", "refcoco+")

    def __init__(self, workdir):
        self.config, self.workdir = get_config(), workdir
        self.config.tasks = self.tasks
        self.results = train.train(self.config, workdir)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return Job(tmp_path_factory.mktemp("job") / "new" / "workdir")


@pytest.fixture(scope="module")
def trained(job):
    """The parameters that the job saved, read back."""
    params, config, unused = checkpoint.load_params(job.workdir / "model")
    assert config == named_size("tiny")
    assert unused == {}
    return params


def test_files_of_a_run(job):
    assert sorted(os.listdir(job.workdir)) == ["metrics.jsonl", "model", "results.json"]
    lines = [json.loads(line) for line in (job.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    for line in lines:
        assert list(line["loss"]) == list(job.tasks)
        assert all(0 < loss < 100 for loss in line["loss"].values())
    assert json.loads((job.workdir / "results.json").read_text()) == job.results


def test_results_of_all_tasks(job):
    assert list(job.results) == list(job.tasks)
    for name, result in job.results.items():
        assert set(result) == {"score", "chance", "loss"}
        assert 0 <= result["score"] <= 1 and np.isfinite(result["loss"]), name
        share = result["score"] * job.config.num_eval_examples
        assert share == pytest.approx(round(share), abs=1e-3), name  # all examples, each 0 or 1
    chances = {name: result["chance"] for name, result in job.results.items()}
    assert chances["vqa"] == chances["vgqa"] == pytest.approx(1 / 6)  # six colours
    assert 1 / 6 < chances["refcoco"] < 1 / 4  # 3 to 5 objects and the whole image


def test_saved_parameters_are_the_trained_ones(job, trained):
    """They give the reported score on examples of another seed, by an argmax of our own."""
    model = named_size(job.config.model)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == count_parameters(model)
    (task,) = [task for task in TWELVE if task.name == "refcoco"]
    apply = jax.jit(
        lambda inputs: TwoStreamModel(model).apply(
            {"params": trained}, **inputs, heads=("region_score",)
        )[0]["region_score"]
    )
    right = []
    for i in range(job.config.num_eval_examples // job.config.batch_size):
        batch = train.draw(task, model, (1, job.config.seed, i), job.config.batch_size)
        scores = np.where(batch["region_mask"], apply(trunk_inputs(task, batch)), -np.inf)
        right += list(scores.argmax(axis=1) == batch["targets"].argmax(axis=1))
    assert np.mean(right) == pytest.approx(job.results["refcoco"]["score"])


def test_only_the_heads_of_the_tasks_were_trained(job, trained):
    """Biases start at 0 and do not decay, so they say whether a head was ever updated."""
    nonzero = {
        path[1]
        for path, leaf in flatten(trained).items()
        if path[0] == "heads" and path[-1] == "bias" and np.any(leaf)
    }
    heads = {task.head for task in TWELVE if task.name in job.tasks}
    assert nonzero == heads == {"vqa", "region_score"}


@pytest.mark.parametrize("task", TWELVE, ids=lambda task: task.name)
def test_chance_is_what_guessing_scores(task):
    """Uniform guesses among what may be answered, drawn at random."""
    rng, size = np.random.default_rng(0), 20_000
    batch = train.draw(task, named_size("tiny"), (1, 0, 0), 500)
    pick, targets = rng.integers(0, 500, size), batch["targets"]
    if task.kind == "match":
        right = rng.integers(0, 4, size) == targets[pick]
    else:
        allowed = dict(region="region_mask", choice="choice_mask").get(task.kind)
        occurring = np.broadcast_to(targets.any(axis=0), targets.shape)
        weights = (occurring if allowed is None else batch[allowed])[pick]
        guess = np.where(weights, rng.random(weights.shape), -1).argmax(axis=1)
        right = targets[pick, guess] == 1
    deviation = 0.5 / size**0.5
    assert train.chance(batch, task) == pytest.approx(right.mean(), abs=4 * deviation)


def test_table():
    """A row a task, whatever was run."""
    results = {name: dict(score=i / 12, chance=0.25, loss=float(i)) for i, name in enumerate(NAMES)}
    header, *rows = train.results_table(TWELVE, results).splitlines()
    assert header.split() == ["group", "task", "score", "chance", "loss"]
    assert len(rows) == 12
    for i, (row, task) in enumerate(zip(rows, TWELVE, strict=True)):
        group, title, *numbers = re.split("  +", row)
        assert (group, title) == (task.group, task.title)
        assert numbers == [f"{i / 12:.3f}", "0.250", f"{i:.4f}"]


# -------------------------------------------------------------------------------- no run needed


@pytest.mark.parametrize("mode", ["", "debug"])
def test_the_config_is_valid_and_names_all_twelve(mode):
    assert [task.name for task in train.check_config(get_config(mode))] == NAMES


def test_config_modes():
    assert get_config().num_rounds == 2 < get_config("").num_rounds
    with pytest.raises(ValueError, match="takes no argument or :debug, got 'fast'"):
        get_config("fast")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(tasks=("vqa", "vqa2")), r"tasks: \['vqa2'\]; known: vqa, vgqa, gqa"),
        (dict(tasks=()), "tasks: none given"),
        (dict(tasks=("vqa", "vqa")), "tasks: each may be named once, got vqa, vqa"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(num_rounds=0, warmup_rounds=0), "num_rounds must be at least 1"),
        (dict(num_eval_examples=100), "num_eval_examples 100 must be a multiple of batch_size 64"),
        (dict(warmup_rounds=3), "warmup_rounds 3 must be less than num_rounds 2"),
        (dict(warmup_rounds=2), "warmup_rounds 2 must be less than num_rounds 2"),
        (dict(learning_rate=-1.0), "learning_rate must be a number from 0 up, got -1.0"),
        (dict(learning_rate=float("nan")), "learning_rate must be a number from 0 up, got nan"),
        (dict(seed=-1), "seed must not be negative"),
        (dict(model="tinny"), "did you mean tiny"),
        (dict(weight_decay=-1.0, log_every_rounds=0), "log_every_rounds must .*; weight_decay"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(fields, message, tmp_path):
    config = get_config()
    config.update(fields)
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path / "workdir")
    assert os.listdir(tmp_path) == []


def test_the_command_names_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "twelve_in_one.train", f"--workdir={tmp_path / 'new'}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "--config must have a value" in done.stderr
    assert os.listdir(tmp_path) == []
