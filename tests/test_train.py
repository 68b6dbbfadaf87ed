"""The trainer end to end on a small world, with few tasks: files, plan, resuming, bad input."""

import dataclasses
import json
import logging
import os
import re
import shutil
import sys
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from reference.small_model import SMALL_MODEL

from twelve_in_one import configs, evaluate, export, train
from twelve_in_one.checkpoints import frozen, model_folder, state
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.checkpoints.weights import restore_tree, stored_arrays
from twelve_in_one.data import streams
from twelve_in_one.data.cut_texts import count_cut
from twelve_in_one.data.serving import load_serving
from twelve_in_one.data.streams import open_folder, open_stream
from twelve_in_one.logs import metrics_writer
from twelve_in_one.mixing import stop_and_go
from twelve_in_one.tasks.twelve import TASKS as ALL_TASKS
from twelve_in_one.training import loop

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "world.py"
TASKS = ("vqa", "refcoco", "flickr30k")
RESET = 4  # the round after whose validations the controllers begin anew
pytestmark = pytest.mark.usefixtures("share_programs")


def small_config(world, *, rounds=6, tasks=TASKS, devices=1):
    """The debug run on the tests' own world, with so few rounds that it validates thrice."""
    config = configs.get("world:debug")
    config.update_from_flattened_dict(SMALL_MODEL)
    # Of all that are trained here, so that one program serves trainings of other tasks.
    config.model.heads = ("vqa", "region_score", "image_text_match")
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
    if rounds > RESET:
        config.system.official.resets = (RESET,)
    return config


@pytest.fixture(scope="module")
def finished(small_world, tmp_path_factory, share_programs):
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
        "inputs",
        "plots",
        "report.html",
        "results.json",
    }
    assert json.loads((workdir / "results.json").read_text()) == results
    table = str(results)
    assert str(workdir / "report.html") in table and len(table.splitlines()) > len(TASKS) + 4
    for entry in results["tasks"].values():
        assert entry["title"] in table and f"<td>{entry['examples']}</td>" in results._repr_html_()
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
    controller = stop_and_go.Controller(patience=0, threshold=0.5)
    states = stop_and_go.init(TASKS)
    for number in range(6):
        going = [n for n in TASKS if not states[n].stopped or number % 3 == 0]
        assert trained[number + 1] == dict.fromkeys(going, 1), number
        for line in validations:
            if line["round"] == number + 1:
                name = line["task"]
                states = {
                    **states,
                    name: stop_and_go.update(controller, states[name], line["score"]),
                }
                assert line["stopped"] == states[name].stopped
        if number == RESET:
            assert any(one.stopped for one in states.values())
            states = stop_and_go.reset(states)
    # After rounds 2 and 4 (a multiple of the interval, from 0), and after the last.
    assert [line["round"] for line in validations[:: len(TASKS)]] == [3, 5, 6]
    assert results["updates"] == sum(sum(updates.values()) for updates in trained.values())


def test_a_stopped_run_resumes_to_the_bit(finished, small_world, tmp_path, monkeypatch):
    """Stopped in a round without a checkpoint or a line of the log, and killed after another."""
    workdir, results = finished
    config = small_config(small_world)
    config.log.every_rounds = 4  # a window that is open when the run stops
    config.evaluation.pictures = 0
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
    config.schedule.patience = 3  # which no validation sees any more
    with caplog.at_level(logging.WARNING):
        again = train.train(config, copy)
    assert "another setting: schedule.patience is 0 there and 3 here" in caplog.text
    assert caplog.text.count("another setting") == 1
    assert again["tasks"] == results["tasks"]
    assert deterministic(copy) == deterministic(workdir)


@pytest.fixture(scope="module")
def options():
    """The command's options, among which those of other modules may be."""
    if "workdir" not in flags.FLAGS:
        train.define_flags()
    return flags.FLAGS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/wrld.py"], "there is no file configs/wrld.py"),
        (
            ["--config", "wrld:debug"],
            "--config=wrld:debug: there is no config 'wrld'; did you mean w",
        ),
        (
            ["--config=world:debugg"],
            "--config=world:debugg: world takes no argument, :small or :deb",
        ),
        ([f"--config={CONFIG}:debugg"], "takes no argument, :small or :debug, got 'debugg'"),
        (["--config", f"{CONFIG}", "--config.optimizer.learning_rate=abc"], "learning_rate=abc"),
        ([f"--config={CONFIG}", "--dryrun"], "Did you mean: dry_run"),
        (["--config.seed=1"], "--config.seed=1: say which config this changes"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_slips_of_the_command_line_get_a_line(arguments, message, options, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])  # where overrides are looked for
    with pytest.raises(SystemExit) as ended:
        train.parse_flags(["train", *arguments])
    assert message in str(ended.value) and "Traceback" not in str(ended.value)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_a_config_by_name_takes_overrides(options, monkeypatch):
    arguments = ["train", "--config", "group:G4,debug", "--config.seed=7", "--workdir=x"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert train.parse_flags(arguments) == ["train"]
    assert (options.config.tasks, options.config.seed) == (("nlvr2", "snli_ve"), 7)
    options.unparse_flags()
    assert re.search(r"^group +The tasks of one", options["config"].help, re.M)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_misspelt_settings_are_all_named(options, monkeypatch):
    wrong = ("--config.schedul.gap=2", "--config.task.vqaa.batch_size=3")
    arguments = ["train", "--config=world:debug", *wrong]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        train.parse_flags(arguments)
    assert "did you mean schedule?" in str(ended.value) and "did you mean vqa" in str(ended.value)


def test_missing_data_is_named(small_world, tmp_path):
    """`test_the_home_folder_of_a_run` holds what the command makes of errors."""
    config = small_config(small_world)
    config.data.regions = "detected"
    with pytest.raises(ValueError, match="not built with region features 'detected'"):
        train.train(config, tmp_path / "workdir")
    assert not (tmp_path / "workdir").exists()


def test_a_gradient_that_is_not_finite_ends_the_run_or_is_counted(small_world, tmp_path):
    config = small_config(small_world, rounds=3, tasks=("refcoco",))
    config.optimizer.learning_rate = 1e30  # parameters overflow in the first round that moves them
    config.optimizer.schedule, config.optimizer.warmup_share = "constant", 0.0
    with pytest.raises(FloatingPointError, match=r"refcoco, update \d: loss .*gradient norm"):
        train.train(config, tmp_path / "raise")


@pytest.fixture(scope="module")
def other_order(small_world, tmp_path_factory):
    """The data with as many answers in another order."""
    data = shutil.copytree(small_world.data, tmp_path_factory.mktemp("other") / "data")
    path = data / "answers-vqa.json"
    answers = json.loads(path.read_text())
    path.write_text(json.dumps([answers[1], answers[0], *answers[2:]]))
    return data, f"first that differs is answer 0, {answers[0]!r} in training and {answers[1]!r}"


@pytest.mark.parametrize("only_describe", [False, True])
def test_answers_in_another_order_are_refused(finished, small_world, other_order, only_describe):
    data, difference = other_order
    config = small_config(small_world)
    config.data.dir = str(data)
    with pytest.raises(ValueError, match=difference) as error:
        train.train(config, finished[0], only_describe=only_describe)
    fix = f"copy {finished[0]}/inputs/answers-vqa.json to {data}/answers-vqa.json"
    assert fix in str(error.value)


def test_answers_in_another_order_are_not_evaluated(finished, other_order, capsys, tmp_path):
    data, difference = other_order
    assert evaluate.main(["--workdir", str(finished[0]), "--data_dir", str(data)]) == 1
    assert difference in capsys.readouterr().err


def test_a_run_is_exported_with_the_answers_that_it_noted(finished, tmp_path):
    """Also before it ends, whatever has become of the data."""
    workdir = shutil.copytree(finished[0], tmp_path / "workdir")
    whole = export.open_model(workdir)
    shutil.rmtree(workdir / "model")
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "gone")
    (workdir / "config.json").write_text(json.dumps(config))
    found = export.open_model(workdir)
    assert found.serving == whole.serving and found.system == whole.system
    answers = workdir / "inputs/answers-vqa.json"
    answers.write_text(json.dumps(json.loads(answers.read_text())[::-1]))
    with pytest.raises(ValueError, match="answers-vqa.json does not hold the answers"):
        export.open_model(workdir)


def test_what_was_tested_and_trained_on(finished, small_world):
    """Test images are nobody's to train on, but VQA is validated on pictures of its training."""
    workdir, results = finished
    serving = load_serving(workdir / "model")
    assert serving.trained_on.examples.keys() == set(TASKS) and not serving.trained_on.unknown
    for name in ("refcoco", "flickr30k"):
        for seen in results["tasks"][name]["trained_on"].values():
            assert (seen["records"], seen["images"]) == (0, 0)
    folder = streams.open_folder(small_world.data, "pixels")

    def images(name, split):
        training = split == "train"
        task = serving.task(name)
        stream = streams.open_stream(folder, task, split, batch_size=8, training=training)
        return set(stream.selection.reader.index.image_ids[stream.selection.records, 0])

    tested = images("vqa", "val")
    both = tested & (images("vqa", "train") | images("refcoco", "train"))
    seen = results["tasks"]["vqa"]["trained_on"]["val"]
    assert (seen["images"], seen["of_images"]) == (len(both), len(tested))
    assert both and seen["records"] == 0 and not seen["left_out"]


def test_a_checkpoint_of_another_size_is_refused(finished, small_world, monkeypatch):
    """In seconds: before anything is compiled."""
    workdir, _ = finished
    monkeypatch.setattr(train, "compile_job", lambda *_: pytest.fail("compiled"))
    config = small_config(small_world)
    config.model.text.mlp_dim = 96
    before = sorted(os.listdir(workdir / "checkpoints"))
    with pytest.raises(ValueError, match=r"does not fit the run.*mlp|has shape"):
        train.train(config, workdir)
    assert sorted(os.listdir(workdir / "checkpoints")) == before


def test_tasks_whose_training_texts_are_cut_are_told(small_world, caplog):
    folder = open_folder(small_world.data, "pixels")
    streams = {
        name: open_stream(
            folder,
            dataclasses.replace(ALL_TASKS[name], max_tokens=max_tokens),
            "train",
            batch_size=1,
            training=True,
        )
        for name, max_tokens in (("vqa", 5), ("snli_ve", 200), ("flickr30k", 3))
    }
    with caplog.at_level(logging.WARNING, "twelve_in_one"):
        found = map(count_cut, streams.values())
        inputs = types.SimpleNamespace(cut_texts=lambda streams: found)
        train._tell_cut_texts(types.SimpleNamespace(train_streams=streams, inputs=inputs))
    vqa, flickr30k = (record.getMessage() for record in caplog.records)
    assert re.match(r"vqa/train: \d+ of \d+ texts have more than max_tokens 5 tokens, and", vqa)
    count = streams["flickr30k"].selection.num_examples
    assert flickr30k.startswith(f"flickr30k/train: {count} of {count} texts have more than max_t")


def test_dry_run_says_everything_and_leaves_nothing(small_world, tmp_path, capsys):
    config = small_config(small_world, tasks=("refcoco",))
    assert train.train(config, tmp_path / "workdir", only_describe=True) is None
    printed = capsys.readouterr().out
    for section in ("plan", "batches", "texts", "parameters", "programs", "memory", "time"):
        assert f"== {section}" in printed
    assert re.search(r"^refcoco/train: 0 of \d+ texts have more than max_tokens \d+", printed, re.M)
    assert not (tmp_path / "workdir").exists()


@pytest.fixture(scope="module")
def on_devices(small_world, tmp_path_factory, share_programs):
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
    assert_same_run((lines, params), on_devices(8, "fused", "fsdp_tp", model=2), atol=2e-3)


def test_parameters_that_are_not_trained(small_world, tmp_path):
    """They stay as drawn, have no moments, and are on disk once; a resumed run needs them."""
    workdir, config = tmp_path / "run", small_config(small_world, rounds=2, tasks=("vqa",))
    config.optimizer.frozen = ("trunk/.*",)
    config.evaluation.text_baselines = False
    train.train(config, workdir)
    (drawn,) = (workdir / "frozen").glob("params")
    stored = stored_arrays(workdir / "checkpoints" / "2" / "state")
    assert set(stored["params"]) == {"heads"}
    moments = {"/".join(path) for path in leaf_paths(stored["opt_state"])}
    assert any("heads" in name for name in moments) and not any("trunk" in n for n in moments)
    ended = params_of(workdir)
    kept = flatten(restore_tree(drawn, stored_arrays(drawn)))
    assert {path for path in ended if path[0] == "trunk"} == set(kept)
    for path, array in kept.items():
        np.testing.assert_array_equal(ended[path], array)
    # The checkpoint alone gives the same model.
    again = flatten(export.open_model(workdir, "2").params)
    for path, array in ended.items():
        np.testing.assert_array_equal(again[path], array)

    config.schedule.num_rounds = 3
    other = shutil.copytree(workdir, tmp_path / "other")
    shutil.rmtree(other / "frozen")
    with pytest.raises(ValueError, match="other/frozen is missing: it holds the parameters that"):
        train.train(config, other)
    changed = restore_tree(drawn, stored_arrays(drawn))
    first = next(iter(flatten(changed)))
    flatten(changed)[first][...] += 1
    frozen.write(other, changed)
    with pytest.raises(ValueError, match="holds other parameters than the run was trained with"):
        train.train(config, other)
    train.train(config, workdir)
    assert state.all_rounds(workdir)[-1] == 3


def leaf_paths(tree):
    return [
        [str(getattr(key, "key", getattr(key, "idx", ""))) for key in path]
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def test_a_pattern_that_freezes_nothing(small_world, tmp_path):
    config = small_config(small_world, rounds=2, tasks=("vqa",))
    config.optimizer.frozen = ("trunc/.*",)
    with pytest.raises(ValueError, match=r"optimizer.frozen: 'trunc/.\*' matches no parameter"):
        train.train(config, tmp_path)


def test_a_run_of_an_earlier_version_goes_on(small_world, tmp_path):
    """Written by the commit before folders and systems were, of two rounds on this world."""
    with zipfile.ZipFile(ROOT / "tests" / "reference" / "earlier_run.zip") as packed:
        packed.extractall(tmp_path)
    before = model_folder.load(tmp_path / "model")
    assert "system" not in json.loads((tmp_path / "model" / "config.json").read_text())
    config = small_config(small_world, rounds=3, tasks=("vqa",))
    config.model.heads = ("vqa",)
    for stream in (config.model.text, config.model.visual):
        stream.hidden_dim, stream.num_heads, stream.mlp_dim = 8, 2, 16
    config.model.coattention_dim, config.model.coattention_heads = 8, 2
    config.evaluation.text_baselines, config.evaluation.pictures = False, 0
    found = flatten(export.open_model(tmp_path, "2").params)
    for path, array in flatten(before[0]).items():
        np.testing.assert_array_equal(found[path], array)
    logged = deterministic(tmp_path)
    results = train.train(config, tmp_path)
    assert results["round"] == results["updates"] == 3
    # What was logged stays, but for the results of the end that was not the end.
    kept = [line for line in logged if line["event"] != "result"]
    assert deterministic(tmp_path)[: len(kept)] == kept
    assert json.loads((tmp_path / "model" / "config.json").read_text())["system"] == "vilbert"
    assert model_folder.load(tmp_path / "model")[1] == before[1]
