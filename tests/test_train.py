"""The trainer end to end on a small world, with few tasks: files, plan, resuming, bad input."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from twelve_in_one import dsg, loop, metrics_writer, model_folder, state, train
from twelve_in_one.convert.names import flatten

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "world.py"
TASKS = ("vqa", "refcoco", "flickr30k")


def load_config(name, argument):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def small_config(world, *, rounds=6, tasks=TASKS, devices=1):
    """The debug run on the tests' own world, with so few rounds that it validates thrice."""
    config = load_config("world", "debug")
    config.tasks = tasks
    config.data.dir, config.data.raw_dir = str(world.data), str(world.raw)
    config.data.world_images = 0
    config.compilation_cache = ""  # that of all tests
    config.parallel.devices = devices
    config.schedule.num_rounds = rounds
    config.evaluation.max_validation_examples = 16
    config.evaluation.max_test_examples = 8
    config.evaluation.pictures = 1
    # So that a hair's breadth stops a task, and another starts it again.
    config.schedule.patience, config.schedule.threshold, config.schedule.gap = 0, 0.5, 3
    return config


@pytest.fixture(scope="module")
def finished(small_world, tmp_path_factory):
    """A run that nobody disturbed: its workdir and results."""
    workdir = tmp_path_factory.mktemp("run") / "new" / "workdir"
    results = train.train(small_config(small_world), workdir)
    return workdir, results


def deterministic(workdir):
    """The lines of the log without times."""
    lines = metrics_writer.read(workdir / metrics_writer.FILE)
    return [{k: v for k, v in line.items() if k != "timing"} for line in lines]


def params_of(workdir):
    return flatten(model_folder.load(workdir / "model")[0])


def test_files_of_a_run(finished):
    workdir, results = finished
    found = set(os.listdir(workdir))
    expected = {"checkpoints", "config.json", "events", "examples", "metrics.jsonl", "model"}
    assert found == expected | {
        ".lock",
        "plots",
        "preprocessing.json",
        "report.html",
        "results.json",
    }
    assert json.loads((workdir / "results.json").read_text()) == results
    assert list(results["tasks"]) == list(TASKS)
    assert results["round"] == 6
    assert results["split"] == (
        "val (also validated on) of vqa; testA+testB of refcoco; test of flickr30k"
    )
    assert state.all_rounds(workdir)[-1] == 6
    assert (workdir / "report.html").read_text().count("<img") >= 4
    assert len(list((workdir / "examples").glob("*.png"))) == len(TASKS)


def test_the_log_holds_what_the_plan_says(finished, small_world):
    """The plan is replayed from the logged validation scores alone."""
    workdir, results = finished
    lines = deterministic(workdir)
    assert lines[0]["event"] == "start" and lines[0]["parameters"] == results["parameters"]
    validations = [line for line in lines if line["event"] == "validation"]
    trained = {line["round"]: line["updates_of"] for line in lines if line["event"] == "train"}
    controller = dsg.Controller(patience=0, threshold=0.5)
    states = dsg.init(TASKS)
    stopped_at_all = False
    for number in range(6):
        going = [n for n in TASKS if not states[n].stopped or number % 3 == 0]
        assert trained[number + 1] == dict.fromkeys(going, 1), number
        for line in validations:
            if line["round"] == number + 1:
                name = line["task"]
                states = {**states, name: dsg.update(controller, states[name], line["score"])}
                assert line["stopped"] == states[name].stopped
                stopped_at_all |= line["stopped"]
    assert stopped_at_all
    # After rounds 2 and 4 (a multiple of the interval, from 0), and after the last.
    assert [line["round"] for line in validations[:: len(TASKS)]] == [3, 5, 6]
    assert results["updates"] == sum(sum(updates.values()) for updates in trained.values())


def test_a_stopped_run_resumes_to_the_bit(finished, small_world, tmp_path, monkeypatch):
    """Stopped in a round without a checkpoint or a line of the log, and killed after another."""
    workdir, results = finished
    config = small_config(small_world)
    config.log.every_rounds = 4  # a window that is open when the run stops
    uninterrupted = tmp_path / "uninterrupted"
    train.train(config, uninterrupted)
    again = tmp_path / "again"
    validate = loop.validate
    calls = []

    def stop_in_round_three(*args):
        calls.append(args[-1])
        if len(calls) == len(TASKS):  # the last validation after round 3
            os.kill(os.getpid(), 15)
        return validate(*args)

    monkeypatch.setattr(loop, "validate", stop_in_round_three)
    assert train.train(config, again) is None
    monkeypatch.undo()
    assert state.all_rounds(again)[-1] in (3, 4)
    # Killed after it had gone on, without a checkpoint of its own: the log is too long.
    with (again / metrics_writer.FILE).open("a") as file:
        file.write('{"event": "train", "round": 5, "loss": {}}\n{"event": "tra')
    train.train(config, again)
    assert deterministic(again) == deterministic(uninterrupted)
    ours = params_of(again)
    for path, value in params_of(uninterrupted).items():
        np.testing.assert_array_equal(ours[path], value)
    last = [state.read_progress(folder, 6) for folder in (again, uninterrupted)]
    assert last[0].controllers == last[1].controllers
    assert last[0].positions == last[1].positions
    # The log's interval changes the log, and nothing else.
    for path, value in params_of(workdir).items():
        np.testing.assert_array_equal(ours[path], value)


def test_a_finished_run_is_only_evaluated_again(finished, small_world, tmp_path, caplog):
    workdir, results = finished
    copy = shutil.copytree(workdir, tmp_path / "copy")
    config = small_config(small_world)
    config.optimizer.clip_norm = 2.5  # which no update sees any more
    with caplog.at_level(logging.WARNING):
        again = train.train(config, copy)
    assert "another setting: optimizer.clip_norm is 0.0 there and 2.5 here" in caplog.text
    assert caplog.text.count("another setting") == 1
    assert again["tasks"] == results["tasks"]
    assert deterministic(copy) == deterministic(workdir)


@pytest.fixture
def command(small_world, tmp_path):
    """Runs the trainer's command with overrides; what it prints to stderr and its exit code."""

    def run(*overrides, config="world.py:debug"):
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "twelve_in_one.train",
                f"--config={ROOT / 'configs' / config}",
                f"--workdir={tmp_path / 'workdir'}",
                f"--config.data.dir={small_world.data}",
                "--config.data.world_images=0",
                *overrides,
            ],
            capture_output=True,
            text=True,
            env=env,
            timeout=300,
            cwd=tmp_path,
        )
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/wrld.py"], "there is no file configs/wrld.py"),
        ([f"--config={CONFIG}:debugg"], "takes no argument, :small or :debug, got 'debugg'"),
        (["--config", f"{CONFIG}", "--config.optimizer.learning_rate=abc"], "learning_rate=abc"),
        ([f"--config={CONFIG}", "--dryrun"], "Did you mean: dry_run"),
        (["--config.seed=1"], "--config.seed=1: say which config this changes"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_slips_of_the_command_line_get_a_line(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])  # where overrides are looked for
    with pytest.raises(SystemExit) as ended:
        train.parse_flags(["train", *arguments])
    assert message in str(ended.value) and "Traceback" not in str(ended.value)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_misspelt_settings_are_all_named(monkeypatch):
    wrong = ("--config.schedul.gap=2", "--config.task.vqaa.batch_size=3")
    arguments = ["train", f"--config={CONFIG}:debug", *wrong]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        train.parse_flags(arguments)
    assert "did you mean schedule?" in str(ended.value) and "did you mean vqa" in str(ended.value)


def test_missing_data_is_named(command, tmp_path):
    code, error = command("--config.data.regions=detected")
    assert code == 1
    assert "not built with region features 'detected'" in error and "Traceback" not in error
    assert not (tmp_path / "workdir").exists()


# ------------------------------------------------------------ within this process


def test_a_gradient_that_is_not_finite_ends_the_run_or_is_counted(small_world, tmp_path):
    config = small_config(small_world, rounds=3, tasks=("refcoco",))
    config.optimizer.learning_rate = 1e30  # parameters overflow in the first round that moves them
    config.optimizer.schedule, config.optimizer.warmup_share = "constant", 0.0
    with pytest.raises(FloatingPointError, match=r"refcoco, update \d: loss .*gradient norm"):
        train.train(config, tmp_path / "raise")


def test_a_checkpoint_of_another_size_is_refused(finished, small_world):
    workdir, _ = finished
    config = small_config(small_world)
    config.model.text.mlp_dim = 96
    before = sorted(os.listdir(workdir / "checkpoints"))
    with pytest.raises(ValueError, match=r"does not fit the run.*mlp|has shape"):
        train.train(config, workdir)
    assert sorted(os.listdir(workdir / "checkpoints")) == before


def test_dry_run_says_everything_and_leaves_nothing(small_world, tmp_path, capsys):
    config = small_config(small_world, tasks=("refcoco",))
    assert train.train(config, tmp_path / "workdir", only_describe=True) is None
    printed = capsys.readouterr().out
    for section in ("plan", "batches", "parameters", "programs", "memory", "time"):
        assert f"== {section}" in printed
    assert not (tmp_path / "workdir").exists()


@pytest.fixture(scope="module")
def on_devices(small_world, tmp_path_factory):
    """Runs two tasks that share their programs; the log and the parameters."""

    def run(devices, optimizer_update="in_turn", layout="dp", model=1):
        config = small_config(small_world, rounds=2, tasks=("refcoco", "refcoco+"), devices=devices)
        config.evaluation.pictures = 0
        config.optimizer.update = optimizer_update
        config.optimizer.clip_norm = 1.0
        config.parallel.layout, config.parallel.model = layout, model
        workdir = tmp_path_factory.mktemp("devices")
        train.train(config, workdir)
        return deterministic(workdir), params_of(workdir)

    return run


def assert_same_run(run, other, *, atol):
    (lines, params), (other_lines, other_params) = run, other
    for line, other_line in zip(lines, other_lines, strict=True):
        assert line["event"] == other_line["event"]
        if line["event"] == "train":
            assert line["updates_of"] == other_line["updates_of"]
            for key in ("loss", "score", "grad_norm"):
                assert line[key] == pytest.approx(other_line[key], rel=1e-3), line["round"]
        if line["event"] == "validation":
            for key in ("task", "score", "stopped", "best", "examples"):
                assert line[key] == other_line[key]
    for path, value in params.items():
        np.testing.assert_allclose(other_params[path], value, rtol=0, atol=atol)


def test_devices_make_no_difference(on_devices):
    """One device, and eight with split parameters: the same losses, scores and decisions."""
    assert jax.device_count() == 8
    # Adam divides by the gradient's size: rounding shows where a gradient is next to nothing.
    assert_same_run(on_devices(1), on_devices(8, layout="fsdp_tp", model=2), atol=2e-3)


def test_a_fused_round_is_one_update_of_the_summed_gradients(on_devices):
    lines, params = on_devices(1, "fused")
    trained = [line for line in lines if line["event"] == "train"]
    assert [line["updates_of"] for line in trained] == [{"refcoco": 1, "refcoco+": 1}] * 2
    assert_same_run((lines, params), on_devices(8, "fused"), atol=2e-3)
