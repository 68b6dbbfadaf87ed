"""Configs: those that ship are right, numbers are the specification's, every mistake is named."""

import copy
import dataclasses
import importlib.util
import json
import random
import re
from pathlib import Path

import flax.linen as nn
import ml_collections
import pytest

from twelve_in_one.checkpoints import state
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.config import defaults
from twelve_in_one.config.check import (
    ConfigError,
    check,
    loss_scales,
    task_runs,
    unknown_overrides,
)
from twelve_in_one.config.settings import OfficialOptions
from twelve_in_one.models.two_stream.config import from_dict, named_size, to_json
from twelve_in_one.models.two_stream.trunk import abstract_params
from twelve_in_one.systems import SYSTEMS
from twelve_in_one.systems.base import Facts
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.training import job

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = "vqa vgqa gqa coco flickr30k refcoco refcoco+ refcocog visual7w guesswhat nlvr2 snli_ve"
ARGUMENTS = {
    "world": ("", "small", "debug"),
    "twelve": ("", "official", "debug"),
    "group": ("G1", "G2", "G3", "G4", "G1,G3", "debug", "G2,G4,debug"),
    "single_task": (*NAMES.split(), "debug", "refcoco+,debug"),
    "finetune": (*NAMES.split(), "debug", "nlvr2,debug"),
    "real_samples": ("", "debug", "folder/of/others"),
    "pretrain_cc": ("", "world", "official", "debug"),
    "world_encoder": ("", "debug"),
    "world_grid": ("", "debug"),
    "lit_decoder": ("", "debug", "full"),
    "lit_decoder_photos": ("", "debug"),
    "mammut": ("", "debug", "full", "finetune"),
    "mammut_detection": ("", "closed", "debug", "full"),
    "mammut_video": ("", "debug", "full"),
}
WRONG = {
    "world": ("official", "debug,debug", "small,debug"),
    "twelve": ("Official", "world", "debug,official"),
    "group": ("G5", "G1,G1", "g1", "G1G2"),
    "single_task": ("VQA", "vqa,gqa", "vqa2", "refcoco_plus"),
    "finetune": ("VQA", "vqa,gqa", "official"),
    "real_samples": (),
    "pretrain_cc": ("vqa", "world,debug"),
    "world_encoder": ("small",),
    "world_grid": ("small",),
    "lit_decoder": ("small", "debug,words"),
    "lit_decoder_photos": ("small", "debug,words"),
    "mammut": ("small", "debug,full"),
    "mammut_detection": ("small", "debug,full"),
    "mammut_video": ("small", "debug,full"),
}
# The released task file (specification 3.3): id, text positions, regions, batch, learning rate.
RELEASED = {
    "vqa": (1, 23, 101, 128, 4e-5),
    "vgqa": (2, 26, 101, 128, 4e-5),
    "gqa": (15, 26, 101, 128, 4e-5),
    "coco": (7, 30, 101, 128, 2e-5),
    "flickr30k": (8, 30, 101, 128, 2e-5),
    "refcoco": (9, 20, 101, 256, 2e-5),
    "refcoco+": (10, 20, 101, 256, 2e-5),
    "refcocog": (11, 20, 101, 256, 2e-5),
    "visual7w": (4, 20, 200, 256, 2e-5),
    "guesswhat": (17, 256, 306, 64, 2e-5),
    "nlvr2": (12, 40, 101, 64, 2e-5),
    "snli_ve": (13, 56, 101, 256, 2e-5),
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def raw_world():
    """A valid config as plain dicts."""
    return copy.deepcopy(load("world")("debug").to_dict())


def put(raw, path, value):
    *parents, last = path.split(".")
    for name in parents:
        raw = raw[name]
    raw[last] = value


def errors_of(raw):
    with pytest.raises(ConfigError) as caught:
        check(raw)
    return caught.value.errors


def only_error(path, value):
    raw = raw_world()
    put(raw, path, value)
    errors = errors_of(raw)
    assert len(errors) == 1, errors
    return errors[0]


def test_every_config_is_listed_here():
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_shipped_configs(name):
    get_config = load(name)
    for arguments in [(), *((argument,) for argument in ARGUMENTS[name])]:
        config = get_config(*arguments)
        run = check(config)
        runs = task_runs(run)
        assert [r.task.name for r in runs] == list(run.tasks)
        for r in runs:
            assert r.task.batch_size == r.options.batch_size
            if not SYSTEMS[run.system.name].pixels:
                assert r.task.learning_rate == r.options.learning_rate
        # What a workdir stores is the same run.
        assert check(json.loads(json.dumps(config.to_dict()))) == run
        if arguments and "debug" in arguments[0]:
            assert run.schedule.num_rounds <= 4
            assert run.data.world_images <= 200
            assert not run.init_from.path or run.images.encoder  # which it is made of
    for argument in WRONG[name]:
        with pytest.raises(ValueError, match=re.escape(repr(argument))):
            get_config(argument)


def test_an_official_setting_of_another_optimizer_is_refused():
    raw = raw_world()
    put(raw, "optimizer.name", "sgd")
    put(raw, "system.official.uncorrected_eps", True)
    put(raw, "system.official.shared_step_size", True)
    assert errors_of(raw) == (
        "system.official.uncorrected_eps: is of adamw, and optimizer.name is 'sgd'",
        "system.official.shared_step_size: is of radam, and optimizer.name is 'sgd'",
    )


def test_arguments_choose_tasks():
    groups = load("group")
    assert check(groups("G1")).tasks == ("vqa", "vgqa", "gqa")
    assert check(groups("G2,debug")).tasks == ("coco", "flickr30k")
    assert check(groups("G4,G2")).tasks == ("coco", "flickr30k", "nlvr2", "snli_ve")
    assert len(check(groups("G3")).tasks) == 5
    assert check(load("single_task")("refcoco+,debug")).tasks == ("refcoco+",)
    assert check(load("finetune")("guesswhat")).tasks == ("guesswhat",)
    assert sorted(check(load("world")()).tasks) == sorted(NAMES.split())


def test_the_papers_run():
    run = check(load("twelve")())
    for r in task_runs(run):
        task = r.task
        found = task.task_id, task.max_tokens, task.max_regions, task.batch_size, task.learning_rate
        assert found == RELEASED[task.name], task.name
    assert set(run.tasks) == set(RELEASED)
    choices = {r.task.name: (r.task.num_choices, r.task.detected_slots) for r in task_runs(run)}
    assert (choices["visual7w"], choices["guesswhat"]) == ((4, 101), (204, 101))
    # Section 5.3, and the controllers of 5.2.
    optimizer, schedule = run.optimizer, run.schedule
    assert (optimizer.name, optimizer.learning_rate, optimizer.schedule) == (
        "adamw",
        2e-5,
        "linear",
    )
    assert optimizer.learning_rate * optimizer.head_learning_rate == pytest.approx(1e-4)
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-6)
    assert (optimizer.weight_decay, optimizer.warmup_share, optimizer.clip_norm) == (0.01, 0.1, 0)
    assert (schedule.kind, schedule.gap, schedule.patience) == ("stop_and_go", 4, 1)
    assert (schedule.threshold, schedule.continue_threshold) == (0.001, 0.005)
    assert (schedule.cooldown, schedule.num_rounds) == (1, 20 * 10_112)
    assert from_dict(run.model) == named_size("base_6l")
    # The paper's rules, unless the released code's are asked for.
    assert run.system.official == OfficialOptions()


def test_the_released_codes_run():
    run = check(load("twelve")("official"))
    official = run.system.official
    assert official.no_bias_correction and official.decay_after_update
    assert official.decayed_norms and official.schedule
    assert official.unreached == "skip_until_touched"
    # After the last of the sixth and of the eighth 10,112 rounds, which count from 0.
    assert official.resets == (6 * 10_112 - 1, 8 * 10_112 - 1)


@pytest.mark.parametrize(
    "optimizer, chosen",
    [
        ("adamw", dict(no_bias_correction=True, resets=(), unreached="skip", epoch_rounds=10)),
        ("radam", dict(shared_step_size=True, resets=(), unreached="step", epoch_rounds=10)),
    ],
)
def test_one_switch_for_all_of_the_released_code(optimizer, chosen):
    """As flags set them: those that are given override the one for all."""
    config = load("world")("")
    values = {"optimizer.name": optimizer, "optimizer.schedule": "step", "schedule.num_rounds": 200}
    config.update_from_flattened_dict({**values, "optimizer.step_rounds": (50,)})
    off = {"resets": (), "decayed_norms": False}
    off |= {"unreached": "skip"} if optimizer == "adamw" else {}
    config.system.official.update(all=True, **off)
    official = check(config).system.official
    assert official.schedule and official.all and not official.decayed_norms
    assert {name: getattr(official, name) for name in chosen} == chosen
    assert check(ml_collections.ConfigDict(config.to_dict())).system.official == official
    # What a run of before says: each by itself.
    single = dataclasses.asdict(official) | {"all": False}
    put(raw := config.to_dict(), "system.official", single)
    assert dataclasses.asdict(check(raw).system.official) == single


def test_a_switch_that_cannot_be_followed():
    raw = raw_world()
    raw["system"]["official"]["all"] = True
    raw["optimizer"]["name"] = "sgd"
    (error,) = errors_of(raw)
    assert error.startswith("system.official.all: the released code trains with adamw or radam")
    config = load("lit_decoder")("full")
    for switch in ("all", "schedule"):
        put(raw := config.to_dict(), f"system.official.{switch}", True)
        (error,) = errors_of(raw)
        assert "and system.name is 'lit_decoder'" in error
    (error,) = unknown_overrides(["--config.system.official=True"], config)
    assert error.startswith("--config.system.official: a section, got 'True'; set one of")
    assert "system.official.all, " in error


def test_the_released_pretraining():
    """Numbers of the specification, section 4."""
    run = check(load("pretrain_cc")())
    (task,) = task_runs(run)
    assert (task.task.max_tokens, task.task.max_regions, task.task.batch_size) == (36, 37, 512)
    optimizer = run.optimizer
    found = [getattr(optimizer, x) for x in ("learning_rate", "b1", "b2", "eps", "weight_decay")]
    assert found == [1e-4, 0.9, 0.98, 1e-8, 0.01]
    assert (optimizer.schedule, optimizer.warmup_share, optimizer.clip_norm) == ("linear", 0.1, 0.0)
    assert run.system.official == OfficialOptions()
    assert run.schedule.num_rounds == 60_920  # 3,119,449 pairs in whole batches, ten times
    assert run.pretraining.objective == 1 and run.pretraining.overlap_iou == 0.4
    assert run.model["num_tasks"] == 0 and run.model["num_region_classes"] == 1601
    official = check(load("pretrain_cc")("official"))
    chosen = official.system.official
    assert chosen.overlap and chosen.validation
    assert chosen.decay_after_update and chosen.uncorrected_eps
    assert chosen.decayed_norms and not chosen.no_bias_correction
    # Its scheduler goes before the optimizer; that of the tasks goes within a round.
    assert chosen.schedule and not job.advances_within_round(official)
    assert job.advances_within_round(check(load("twelve")("official")))
    assert not job.advances_within_round(check(load("twelve")()))


def test_pretraining_needs_all_of_its_heads():
    raw = load("pretrain_cc")().to_dict()
    raw["model"]["heads"] = ("alignment", "masked_language")
    assert errors_of(raw) == (
        "model.heads: lacks 'masked_region', which conceptual_captions reads",
    )


def test_what_a_pretrained_model_lacks():
    run = check(load("twelve")())
    names = ["/".join(path) for path in flatten(nn.unbox(abstract_params(named_size("tiny"))))]
    matched = [
        {name for name in names if re.fullmatch(pattern, name)}
        for pattern in run.init_from.allow_missing
    ]
    assert all(matched)
    assert set.union(*matched) == {
        name for name in names if name.startswith("heads/") or name.endswith("task/embedding")
    }


def test_loss_scales():
    answers = {"vqa", "vgqa", "gqa"}
    for argument in ("", "official"):
        scales = loss_scales(task_runs(check(load("twelve")(argument))))
        assert scales == {name: pytest.approx(2.0 if name in answers else 1.0) for name in RELEASED}
    # Of a group, over the lowest rate of its own tasks.
    alone = defaults.get_config(("vqa", "gqa"))
    assert loss_scales(task_runs(check(alone))) == {"vqa": 1.0, "gqa": 1.0}
    config = defaults.get_config(("vqa", "coco", "nlvr2", "snli_ve"))
    config.task.vqa.loss_scale = 0.25
    config.task.coco.learning_rate = 5e-6
    config.task.snli_ve.learning_rate = 0.0  # a task that is watched and not trained
    scales = loss_scales(task_runs(check(config)))
    assert scales == {"vqa": 0.25, "coco": 1.0, "nlvr2": pytest.approx(4.0), "snli_ve": 0.0}


def test_task_runs_have_the_shapes_of_the_config():
    config = defaults.get_config(("guesswhat", "vqa"))
    config.task.guesswhat.update(
        max_tokens=80, max_regions=40, num_choices=8, detected_slots=17, batch_size=4
    )
    first, second = task_runs(check(config))
    task = first.task
    assert (task.name, task.task_id, second.task.name) == ("guesswhat", 17, "vqa")
    assert (task.max_tokens, task.max_regions, task.batch_size) == (80, 40, 4)
    assert (task.num_choices, task.detected_slots) == (8, 17)


def test_tasks_may_share_a_task_token():
    config = defaults.get_config(("vqa", "vgqa", "gqa"))
    config.task.vgqa.task_token = 1
    assert [run.task.task_id for run in task_runs(check(config))] == [1, 1, 15]


@pytest.mark.parametrize(
    "path, value, words",
    [
        # Unknown names, at every depth.
        ("sed", 1, "sed: no such setting; did you mean seed?"),
        ("schedule.num_round", 5, "schedule.num_round: no such setting; did you mean num_rounds"),
        ("task.vqa.batchsize", 5, "task.vqa.batchsize: no such setting; did you mean batch_size"),
        ("task.vqaa", {}, "task.vqaa: no such task; did you mean vqa, vgqa"),
        ("model.dtpye", "float32", "model.dtpye: no such setting; did you mean dtype"),
        ("model.text.hiden_dim", 8, "model.text.hiden_dim: no such setting; did you mean hidden"),
        ("log.x", 1, "log.x: no such setting; known: every_rounds, "),
        # Types.
        ("seed", 1.0, "seed: should be int, got 1.0"),
        ("seed", True, "seed: should be int, got True"),
        ("seed", -1, "seed: should be at least 0, got -1"),
        ("data.clean", 1, "data.clean: should be bool, got 1"),
        ("data.dir", None, "data.dir: should be str, got None"),
        ("optimizer.eps", True, "optimizer.eps: should be float, got True"),
        ("optimizer.eps", "1e-6", "optimizer.eps: should be float, got '1e-6'"),
        ("optimizer.step_rounds", (5, "6"), "optimizer.step_rounds: should hold int only"),
        ("optimizer.step_rounds", (5, True), "optimizer.step_rounds: should hold int only"),
        ("task.vqa.test_splits", "val", "task.vqa.test_splits: should be tuple, got 'val'"),
        ("task.vqa", 3, "task.vqa: should be a section, got 3"),
        ("log", None, "log: should be a section, got None"),
        ("model", "tiny", "model: should be a section, got 'tiny'"),
        ("model.visual", 3, "model.visual: should be a section, got 3"),
        ("model.text.num_layers", "3", "model.text.num_layers: should be int, got '3'"),
        ("model.heads", "vqa", "model.heads: should be tuple, got 'vqa'"),
        # Ranges.
        ("task.vqa.batch_size", 0, "task.vqa.batch_size: should be at least 1, got 0"),
        ("optimizer.learning_rate", -1e-3, "optimizer.learning_rate: should be at least 0.0"),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate: should be finite"),
        ("optimizer.learning_rate", float("inf"), "optimizer.learning_rate: should be finite"),
        ("optimizer.learning_rate", 10**400, "optimizer.learning_rate: should be float"),
        ("optimizer.b2", 1, "optimizer.b2: should be below 1, got 1.0"),
        ("optimizer.warmup_share", 1.5, "optimizer.warmup_share: a share up to 1, got 1.5"),
        ("model.text.num_heads", 0, "model.text.num_heads: should be at least 1, got 0"),
        ("model.max_positions", -5, "model.max_positions: should be at least 1, got -5"),
        ("model.vocab_size", -1, "model.vocab_size: should be at least 0, got -1"),
        ("model.text.dropout_rate", 1.0, "model: TwoStreamConfig: text.dropout_rate 1.0"),
        ("model.text.num_heads", 7, "model: TwoStreamConfig: text.hidden_dim 64 is not a multiple"),
        # Choices.
        ("schedule.kind", "stop", "schedule.kind: 'stop' is not one of stop_and_go, round_robin"),
        ("task.vqa.candidates", "all", "task.vqa.candidates: 'all' is not one of detected, anno"),
        ("model.fusion", "add", "model.fusion: 'add' is not one of mul, sum"),
        ("model.visual_target", 3, "model.visual_target: 3 is not one of 0, 1, 2"),
        ("tasks", ("vqa", "nlvr"), "tasks: no task 'nlvr'; did you mean nlvr2"),
        ("tasks", ("vqa", ["vqa"]), "tasks: no task ['vqa']"),
        ("tasks", ("vqa", "vqa"), "tasks: each may be named once, got vqa, vqa"),
        ("tasks", "vqa", "tasks: 'vqa'; should name some of vqa, vgqa"),
        ("tasks", (), "tasks: (); should name some of vqa, vgqa"),
        # Patterns.
        ("init_from.include", ("(",), "init_from.include: '(' is no regular expression: missing )"),
        ("optimizer.frozen", ("(",), "optimizer.frozen: '(' is no regular expression: missing )"),
        ("optimizer.frozen", (3,), "optimizer.frozen: should hold str only, got (3,)"),
        ("init_from.exclude", ("a{99999999999}",), "init_from.exclude: 'a{99999999999}' is no reg"),
        ("init_from.allow_missing", (3,), "init_from.allow_missing: should hold str only"),
        ("optimizer.groups", (("[", 1.0, 0.0),), "optimizer.groups[0]: '[' is no regular expres"),
        ("optimizer.groups", (("a", 1.0),), "optimizer.groups[0]: should be (pattern, learning"),
        ("optimizer.groups", ((1, 1.0, 0.0),), "optimizer.groups[0]: should be (pattern, learn"),
        ("optimizer.groups", (("a", 1, 0), ("b", -1.0, 0.0)), "optimizer.groups[1]: needs two num"),
        ("optimizer.groups", 5, "optimizer.groups: should be tuple, got 5"),
        # What does not fit together.
        ("schedule.order", ("vqa", "vcr"), "schedule.order: ('vqa', 'vcr') should name tasks of"),
        ("schedule.order", ("vqa", "vqa"), "schedule.order: ('vqa', 'vqa') should name tasks of"),
        ("task.vqa.accumulate", 3, "task.vqa.accumulate: 3 does not divide the batch size 8"),
        ("task.guesswhat.max_tokens", 129, "task.guesswhat.max_tokens: 129, the model has 128"),
        ("model.position_offset", 60, "task.guesswhat.max_tokens: 80, the model has 68"),
        ("model.heads", ("vqa", "gqa", "image_pair", "image_text_match", "region_score"),
         "model.heads: lacks 'three_way', which snli_ve reads"),
        ("model.num_tasks", 17, "model.num_tasks: 17 rows, guesswhat is number 17"),
        ("task.vqa.task_token", 20, "task.vqa.task_token: 20, model.num_tasks has 20 rows"),
        ("task.visual7w.detected_slots", 25, "task.visual7w.detected_slots: 25 leaves no room"),
        ("task.visual7w.detected_slots", 0, "task.visual7w.detected_slots: 0 leaves no room"),
        ("task.visual7w.num_choices", 0, "task.visual7w.num_choices: 0, but visual7w chooses amo"),
        ("task.vqa.num_choices", 4, "task.vqa.num_choices: 4, but vqa chooses among no boxes"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(path, value, words):
    assert only_error(path, value).startswith(words)


def test_stacked_layers_cannot_be_left_out():
    config = load("twelve")("official")
    config.model.scan_layers = True
    (error,) = errors_of(config.to_dict())
    assert error.startswith("system.official.unreached: ")
    config.system.official.unreached = "step"
    check(config)


def test_temperature_must_be_positive():
    raw = raw_world()
    raw["schedule"].update(kind="temperature", temperature=0.0)
    assert errors_of(raw) == ("schedule.temperature: should be above 0, got 0.0",)


@pytest.mark.parametrize(
    "path",
    ["seed", "tasks", "task", "task.vqa", "task.vqa.batch_size", "model", "model.text",
     "model.text.num_layers", "schedule", "schedule.kind", "optimizer.update", "parallel"],
)  # fmt: skip
def test_missing_settings(path):
    raw = raw_world()
    *parents, last = path.split(".")
    section = raw
    for name in parents:
        section = section[name]
    del section[last]
    (error,) = errors_of(raw)
    assert error.startswith(f"{path}: ")


def test_settings_of_tasks_that_do_not_run_are_checked():
    raw = raw_world()
    raw["tasks"] = ("vqa",)
    assert check(raw).tasks == ("vqa",)
    raw["task"]["gqa"]["batch_size"] = -1
    assert errors_of(raw) == ("task.gqa.batch_size: should be at least 1, got -1",)


def test_all_mistakes_at_once():
    raw = raw_world()
    wrong = {
        "tasks": ("vqa", "nope"),
        "task.vqa.batch_size": 0,
        "task.coco.max_token": 3,
        "model.text.num_heads": 0,
        "model.colour": "red",
        "schedule.kind": "never",
        "optimizer.groups": (("(", 1.0, 0.0),),
        "optimizer.eps": None,
        "init_from.include": (")",),
        "log.every_rounds": False,
    }
    for path, value in wrong.items():
        put(raw, path, value)
    with pytest.raises(ConfigError, match="^10 errors in the config:\n") as caught:
        check(raw)
    assert len(caught.value.errors) == len(wrong)
    for path in wrong:
        assert any(error.startswith(path) for error in caught.value.errors), path
        assert path in str(caught.value)


@pytest.mark.parametrize("config", [None, 5, "config", [("seed", 1)]])
def test_what_is_no_config(config):
    with pytest.raises(ConfigError, match="a config is a dict"):
        check(config)


RUBBISH = (
    None, True, 0, -1, 3, 10**400, 2.5, -0.5, float("nan"), float("inf"), "", "x", "(", b"x",
    (), ("x",), [["(", 1.0, 0.0]], ((),), ({},), {}, {"x": 1}, {3: 4}, {"vqa": {}}, {1, 2}, object,
)  # fmt: skip


def sections_of(raw, path=()):
    yield path, raw
    for name, value in raw.items():
        if isinstance(value, dict):
            yield from sections_of(value, (*path, name))


@pytest.mark.parametrize("seed", range(8))
def test_any_corruption_is_named(seed):
    """One setting is removed, added or replaced: it still checks, or the error names its place."""
    rng = random.Random(seed)
    raw = raw_world()
    for _ in range(150):
        corrupt = copy.deepcopy(raw)
        path, section = rng.choice(list(sections_of(corrupt)))
        name = rng.choice(list(section))
        kind = rng.choice(("remove", "add", "replace", "replace", "replace"))
        if kind == "remove":
            del section[name]
        elif kind == "add":
            name = rng.choice(("x", f"{name}_", f"{name}s", 7))
            section[name] = rng.choice(RUBBISH)
        else:
            section[name] = rng.choice(RUBBISH)
        try:
            run = check(corrupt)
        except ConfigError as error:
            # Of settings that only do not fit each other, another may be the one that is named.
            fits_not = path[:1] == ("model",) and "model: " in str(error)
            assert fits_not or str(name) in str(error), (kind, path, name)
        else:
            assert kind != "add", (path, name)
            from_dict({**run.model, **dict.fromkeys(("vocab_size", "region_feature_dim"), 5)})
            loss_scales(task_runs(run))


def resolve(fields, **facts):
    return Vilbert.resolve(fields, Facts(**facts)).config


def test_sizes_that_the_data_decides():
    fields = check(load("world")()).model
    sizes = dict(vocab_size=100, answers={"vqa": 7, "gqa": 5}, feature_dim=32)
    model = resolve(fields, **sizes)
    assert (model.vocab_size, model.region_feature_dim) == (100, 32)
    assert (model.num_vqa_answers, model.num_gqa_answers) == (7, 5)
    assert (model.text.hidden_dim, model.max_positions) == (64, 128)
    # Nothing to be decided: sizes of at least one.
    bare = resolve(fields, vocab_size=100, answers={}, feature_dim=0)
    assert (bare.num_vqa_answers, bare.num_gqa_answers, bare.region_feature_dim) == (1, 1, 1)
    # Tables may be larger than the data needs, as those of pretrained weights.
    larger = resolve({**fields, "vocab_size": 30522, "num_vqa_answers": 3129}, **sizes)
    assert (larger.vocab_size, larger.num_vqa_answers, larger.num_gqa_answers) == (30522, 3129, 5)
    wrong = {"vocab_size": 99, "num_vqa_answers": 6, "num_gqa_answers": 5, "region_feature_dim": 40}
    with pytest.raises(ConfigError) as caught:
        resolve({**fields, **wrong}, **sizes)
    assert [error.split(",")[0] for error in caught.value.errors] == [
        "model.vocab_size is 99",
        "model.num_vqa_answers is 6",
        "model.region_feature_dim is 40",
    ]


def test_a_model_may_leave_out_what_has_a_default():
    raw = raw_world()
    for name in ("heads", "max_positions", "vocab_size", "fusion"):
        del raw["model"][name]
    fields = check(raw).model
    assert (fields["max_positions"], fields["fusion"]) == (512, "mul")
    sizes = dict(vocab_size=100, answers={"vqa": 7, "gqa": 5}, feature_dim=32)
    assert resolve(fields, **sizes).heads == named_size("tiny").heads


def test_written_configs_read_back(tmp_path):
    config = load("finetune")("refcoco+")
    config.optimizer.groups = (("heads/.*", 2.0, 0.0), ("trunk/.*", 1, 0.1))
    state.write_config(tmp_path, config)
    assert state.read_config(tmp_path) == check(config)
    (tmp_path / "config.json").write_text('{"seed": 1}')
    with pytest.raises(ValueError, match=r"config\.json: .*\n(.*\n)*  schedule: missing"):
        state.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: "):
        state.read_config(tmp_path)
    with pytest.raises(ValueError, match=r"is .*other the workdir of a run\?"):
        state.read_config(tmp_path / "other")


def test_unknown_overrides():
    config = load("world")()
    fine = [
        "--config=world",
        "--config.seed=3",
        "-config.task.refcoco_plus.batch_size=4",
        "--config.model.text.num_layers=3",
        "--config.data.dir=a.b/c=d",
        "--config.log.tensorboard",
        "--workdir=x",
    ]
    assert unknown_overrides(fine, config) == []
    wrong = {
        "--config.sched.gap=1": "--config.sched: no such setting; did you mean schedule",
        "--config.task.vqa.batch=1": "--config.task.vqa.batch: no such setting; did you mean bat",
        "-config.task.refcoco+.batch_size=1": "--config.task.refcoco+: no such setting; did you m",
        "--config.seed.x=1": "--config.seed.x: seed is no section",
        "--config.model.text.layers=1": "--config.model.text.layers: no such setting; did you me",
    }
    found = unknown_overrides([*fine, *wrong], config)
    assert len(found) == len(wrong)
    for line, words in zip(found, wrong.values(), strict=True):
        assert line.startswith(words)
    assert unknown_overrides(["--config.a.b=1"], ml_collections.ConfigDict({"a": {"c": 1}})) == [
        "--config.a.b: no such setting; known: c"
    ]


# ------------------------------------------------------------------ data sets of a user's own


def own_config(name="mine", **options):
    config = load("world")("")
    defaults.add_own_task(config, name, **{"like": "vqa", "jsonl": "a.jsonl", **options})
    config.tasks = (name,)
    return config


def test_a_task_of_ones_own_is_like_another():
    (run,) = task_runs(check(own_config(like="snli_ve", labels=("a", "b"), title="Mine")))
    assert (run.task.title, run.task.group, run.task.head) == ("Mine", "G4", "mine")
    (like,) = [r for r in task_runs(check(load("world")(""))) if r.task.name == "snli_ve"]
    shapes = ("kind", "max_tokens", "max_regions", "batch_size", "rows_per_example")
    assert all(getattr(run.task, field) == getattr(like.task, field) for field in shapes)
    assert check(json.loads(own_config().to_json())) == check(own_config())


def test_more_than_twelve_tasks_have_a_token_each():
    config = load("twelve")("")
    assert config.model.num_tasks == 20
    names = [f"mine{i}" for i in range(12)]
    for name in names:
        defaults.add_own_task(config, name, like="coco", jsonl="a.jsonl")
    config.tasks = (*config.tasks, *names)
    tokens = [run.task.task_id for run in task_runs(check(config))]
    assert len(set(tokens)) == 24 and max(tokens) == config.model.num_tasks - 1 > 20
    assert tokens[12:14] == [19, 18]  # no row that released weights use


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(like="visual7w"), "task.mine.like: 'visual7w' is none of vqa, "),
        (dict(jsonl=""), "task.mine.jsonl: name a file of records, or a Hugging Face"),
        (dict(hf="x"), "task.mine.jsonl: name a file of records, or a Hugging Face"),
        (dict(hf="x", jsonl="", val_jsonl="v"), "task.mine.val_jsonl, test_jsonl: go with jsonl"),
        (
            dict(val_share=0.6, test_share=0.4),
            "val_share: with test_share leaves nothing",
        ),
        (dict(labels=("a", "b")), "task.mine.labels: vqa has none"),
        (dict(like="snli_ve", labels=("A", "a")), "two at least, all different"),
        (dict(like="coco", answers="a.txt"), "task.mine.answers: coco has none"),
        (dict(box_format="yxyx"), "task.mine.box_format: 'yxyx' is not one of xyxy, xywh"),
        (dict(collection="cocoa"), "task.mine.collection: 'cocoa' is not one of"),
    ],
)
def test_wrong_settings_of_a_task_of_ones_own(options, message):
    config = own_config()
    config.task.mine.update(options)
    with pytest.raises(ConfigError) as error:
        check(config)
    assert message in str(error.value)


def test_names_of_tasks_of_ones_own():
    for name in ("Mine", "refcoco_mine+", "alignment"):
        with pytest.raises(ConfigError, match="a name takes small letters"):
            check(own_config(name))
    config = own_config()
    config.tasks = ("vqa",)
    with pytest.raises(ConfigError, match="task.mine: config.tasks does not name it"):
        check(config)
    config.tasks = ("vqa", "mien")
    with pytest.raises(ConfigError, match="did you mean mine.*needs task.mien.like"):
        check(config)
    with pytest.raises(ValueError, match="'vqaa' is none of vqa"):
        own_config(like="vqaa")


def test_misspelt_settings_of_a_task_of_ones_own_are_named():
    config = own_config()
    (error,) = unknown_overrides(["--config.task.mine.jsnol=a"], config)
    assert "task.mine.jsnol: no such setting; did you mean jsonl" in error
    (error,) = unknown_overrides(["--config.task.yours.jsonl=a"], config)
    assert "task.yours: no such setting" in error and "needs task.yours.like" in error


def test_models_with_heads_of_ones_own():
    fields = json.loads(to_json(named_size("tiny")))
    config = from_dict({**fields, "own_heads": [["mine", 5, 1], ["two", 3, 2]]})
    assert from_dict(json.loads(to_json(config))) == config
    assert config.num_answers["mine"] == 5 and config.all_heads[-2:] == ("mine", "two")
    shapes = {"/".join(k): v.shape for k, v in flatten(nn.unbox(abstract_params(config))).items()}
    width = config.coattention_dim
    assert shapes["heads/mine/hidden/kernel"] == (width, 2 * width)
    assert shapes["heads/two/hidden/kernel"] == (2 * width, 2 * width)
    assert shapes["heads/two/logits/kernel"] == (2 * width, 3)
    for wrong in (("vqa", 5, 1), ("mine", 0, 1), ("mine", 5, 3), ("masked_language_bias", 5, 1)):
        with pytest.raises(ValueError, match="own head"):
            from_dict({**fields, "own_heads": [wrong]})
