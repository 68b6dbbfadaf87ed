"""Grids, resuming, the command line, and a run of real trainings of the whole way."""

import json

import pytest
from absl import app
from reference.small_model import SMALL_MODEL

from twelve_in_one import train
from twelve_in_one.config import check, defaults
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.builders.splits import read_clean_split
from twelve_in_one.data.stored.reader import open_split
from twelve_in_one.experiments import __main__ as command
from twelve_in_one.experiments import clean, consistency, grid, main, runner

TASKS = ("vqa", "refcoco+")


def test_trainings_share_all_settings_but_their_own(base):
    whole = grid.all_tasks(base, 3)
    single = grid.single_task(base, "refcoco+", 3, updates=17, rate_factor=2.0)
    assert whole.config.tasks == base.tasks and whole.config.seed == single.config.seed == 3
    assert single.config.tasks == ("refcoco+",)
    assert set(single.config.task) == {"refcoco_plus"}
    assert single.config.task.refcoco_plus.to_dict() == base.task.refcoco_plus.to_dict()
    assert single.config.model.to_dict() == whole.config.model.to_dict()
    assert single.config.schedule.num_rounds == 17
    assert single.config.schedule.kind == "round_robin"
    assert single.config.optimizer.learning_rate == 2 * base.optimizer.learning_rate
    leaky = grid.leaky(base, 3).config
    assert whole.config.data.clean and not leaky.data.clean
    assert leaky.schedule.to_dict() == whole.config.schedule.to_dict()
    assert base.seed == 0 and len(base.tasks) == 12  # the base is left alone


def test_tasks_keep_their_rates_in_smaller_models():
    """At the paper's settings: task rate = base rate x loss scale, whoever else trains."""
    paper = defaults.get_config()
    for config in (
        grid.all_tasks(paper, 0).config,
        grid.group(paper, "G1", 0).config,
        grid.pair(paper, ("vqa", "nlvr2"), 0).config,
        grid.single_task(paper, "vqa", 0, updates=5).config,
    ):
        run = check.check(config)
        scales = check.loss_scales(check.task_runs(run))
        for name, options in run.task.items():
            assert run.optimizer.learning_rate * scales[name] == options.learning_rate
        heads = run.optimizer.learning_rate * run.optimizer.head_learning_rate
        assert heads == pytest.approx(1e-4)


def test_fine_tuning_takes_all_weights(base, tmp_path):
    base.init_from.path, base.init_from.exclude = "captions", ("heads/.*",)
    base.init_from.allow_missing = ("heads/.*",)
    whole = grid.all_tasks(base, 0)
    assert whole.config.init_from.path == "captions"
    tuned = grid.fine_tuned(base, "vqa", 0, whole, tmp_path).config.init_from
    assert (tuned.exclude, tuned.allow_missing) == ((), ())


def test_groups_hold_every_task_once():
    assert sorted(sum(grid.GROUPS.values(), ())) == sorted(defaults.world_config().tasks)


def test_folders_keep_their_names(base, tmp_path):
    """Workdirs of trainings that were made before are found again."""
    whole = grid.all_tasks(base, 0)
    tuned = grid.fine_tuned(base, "refcoco+", 0, whole, tmp_path)
    found = {
        "all/seed-2": grid.all_tasks(base, 2),
        "group-G1/seed-0": grid.group(base, "G1", 0),
        "single-refcoco_plus/seed-0": grid.single_task(base, "refcoco+", 0, updates=3),
        "single-vqa-rate-0.5/seed-1": grid.single_task(base, "vqa", 1, updates=3, rate_factor=0.5),
        "tuned-all-refcoco_plus/seed-0": tuned,
    }
    for folder, training in found.items():
        assert training.folder(tmp_path) == tmp_path / folder
    assert tuned.config.init_from.path == str(tmp_path / "all" / "seed-0")


def test_main_trains_every_kind_of_model(base, pretend, forget, tmp_path):
    total = main.count(base, [0, 1], main.MODELS)
    good = {"single-vqa-rate-2": 0.3, "single-gqa-rate-0.5": 0.4}  # on validation data
    pretended, trainer = pretend(lambda name, task, seed: good.get(name, 0.6), total)
    outcomes = main.run(pretended, base, [0, 1], main.MODELS)
    assert len(trainer.configs) == total == 3 * 12 + 12 + 2 * (1 + 4 + 2 * 12)
    # The learning rate of a single-task model is that which validated best with the first seed.
    assert outcomes[1].results["single"]["vqa"]["score"] == 0.3
    assert "single-gqa-rate-0.5/seed-1" in trainer.configs
    assert "single-nlvr2-rate-0.5/seed-1" in trainer.configs, "the first of equals"
    for name in base.tasks:
        updates = {model: outcomes[0].results[model][name]["updates"] for model in main.MODELS}
        assert updates["single"] == updates["all"]
        assert updates["tuned"] == updates["group-tuned"] == 10  # half of the rounds
    tuned = trainer.configs["tuned-group-G4-nlvr2/seed-1"]
    assert tuned.init_from.path == str(tmp_path / "group-G4" / "seed-1")
    assert outcomes[0].parameters == {
        "single": 1200, "group": 1200, "all": 1200, "group-tuned": 1200, "tuned": 1200,
    }  # fmt: skip
    report = main.report(outcomes)
    assert report.count("| VQAv2 |") == 1 and "(unverified)" in report

    # Nothing is trained again, not even where a setting was not known yet.
    forget("task_token")
    again, trainer = pretend(None)
    assert main.run(again, base, [0, 1], main.MODELS) == outcomes
    assert not trainer.configs
    base.task.vqa.task_token = 2
    with pytest.raises(ValueError, match=r"task.vqa.task_token is 0 there and 2 here"):
        main.run(again, base, [0, 1], main.MODELS)


@pytest.mark.parametrize("models", [("all",), ("group", "all"), ("all", "group-tuned")])
def test_a_choice_of_models_trains_no_others(base, pretend, models):
    pretended, trainer = pretend()
    outcomes = main.run(pretended, base, [5], models)
    assert len(trainer.configs) == main.count(base, [5], models)
    assert set(outcomes[0].results) == set(models)


def test_clean_says_what_datasets_lose(base, pretend, small_world, tmp_path):
    base.data.dir, base.tasks = str(small_world.data), ("vqa", "vgqa", "snli_ve")
    pretended, trainer = pretend()
    outcomes = clean.run(pretended, base, [0], ())
    # Cleaning takes from what Visual Genome QA is tested on.
    for entries in outcomes[0].results.values():
        assert list(entries) == ["vqa", "snli_ve"]
    assert len(trainer.configs) == clean.count(base, [0], ()) == 2
    photos = read_clean_split(small_world.data / "clean_split.json").images
    lines = clean.report(outcomes).splitlines()
    for name in ("vqa", "snli_ve"):
        index = open_split(small_world.built(name), "train").index
        banned = photos[SOURCES[name].domain]
        lost = sum(
            int(count)
            for images, count in zip(index.image_ids, index.counts, strict=True)
            if banned & set(images.tolist())
        )
        entry = outcomes[0].results["clean"][name]
        assert entry["left_out"] == lost > 0
        assert entry["train_examples"] == index.num_examples
        assert any(f"| {index.num_examples:,} | {lost:,} (" in line for line in lines)
    clean.plot(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    base.data.clean = False
    with pytest.raises(ValueError, match="config.data.clean=True, it is False"):
        clean.count(base, [0], ())


def test_a_task_without_a_built_test_split_is_named_before_training(base, small_world):
    base.data.dir = str(small_world.data)
    grid.check_tested(base)
    base.task.gqa.test_splits = ("challenge",)
    with pytest.raises(ValueError, match=r"gqa is tested on challenge, which was not built: .*gqa"):
        grid.check_tested(base)
    base.data.dir = str(small_world.data / "nowhere")  # to be made
    grid.check_tested(base)


def test_command_line_names_models_and_seeds():
    names = "main pairs ablations pretraining clean consistency lit mammut stop-and-go systems"
    assert list(command.EXPERIMENTS) == [*names.split(), "video", "photos"]
    for name in command.EXPERIMENTS:
        assert f"\n{name}: " in command.__doc__
    assert command.chosen_models(main, None) == main.MODELS
    assert command.chosen_models(main, ["tuned", "single"]) == ("single", "all", "tuned")
    with pytest.raises(app.UsageError, match="takes single, group, .*; got twelve"):
        command.chosen_models(main, ["single", "twelve"])
    with pytest.raises(app.UsageError, match="there is no choice; got all"):
        command.chosen_models(clean, ["all"])
    assert command.chosen_seeds(["0", "12"]) == [0, 12]
    for wrong in ([], ["-1"], ["a"], ["1", "1"]):
        with pytest.raises(app.UsageError, match="--seeds takes"):
            command.chosen_seeds(wrong)


@pytest.fixture(scope="module")
def small(small_world):
    """A config of two tasks that trains for two rounds."""
    config = defaults.world_config()
    defaults.shorten(config)
    config.update_from_flattened_dict(SMALL_MODEL)
    config.model.heads = ("vqa", "region_score")
    config.data.dir, config.data.raw_dir = str(small_world.data), str(small_world.raw)
    config.data.world_images = 0
    config.compilation_cache = ""  # that of all tests
    config.schedule.num_rounds = 2
    config.evaluation.max_validation_examples = config.evaluation.max_test_examples = 8
    config.evaluation.pictures = 0
    config.parallel.devices = 1
    config.log.tensorboard = False
    return grid.with_tasks(config, TASKS, 0)


@pytest.mark.usefixtures("share_programs")
def test_whole_comparison_and_again(small, small_world, tmp_path, monkeypatch):
    """Which of several learning rates is taken, `test_main_trains_every_kind_of_model` holds."""
    monkeypatch.setattr(grid, "RATE_FACTORS", (1.0,))
    asked = []

    def counting(config, workdir):
        asked.append(workdir.relative_to(tmp_path))
        # Two of the models, cut short once: the third training asks to stop.
        return None if len(asked) == 3 else train.train(config, workdir)

    def run():
        return main.run(runner.Runner(tmp_path, counting, 0), small, [0], ("single", "all"))

    with pytest.raises(runner.Stopped):
        run()
    outcomes = run()
    assert asked[2] == asked[3], "goes on with the training that was cut short"
    assert len(asked) == 4, "1 of all tasks, 2 of one, and the one that was stopped"
    results = json.loads((tmp_path / "all" / "seed-0" / "results.json").read_text())
    found = outcomes[0].results
    assert found["all"]["vqa"]["score"] == results["tasks"]["vqa"]["score"]
    for name in TASKS:
        assert found["single"][name]["updates"] == found["all"][name]["updates"] == 2
    assert outcomes[0].parameters["single"] > outcomes[0].parameters["all"]
    judged, judge = {}, consistency.judge
    monkeypatch.setattr(
        consistency, "judge", lambda *given: judged.setdefault(given[1], judge(*given))
    )
    whole = runner.Runner(tmp_path, counting, 0)
    (outcome,) = consistency.run(whole, small, [0], ("all",))
    assert len(asked) == 4, "all that is judged was trained"
    questions, expressions = judged["vqa"], judged["refcoco+"]
    _check_nobody_trained_on(small_world, questions, expressions)
    score = consistency.consistency(questions, expressions).score
    assert outcome.results["all"]["refcoco+"]["score"] == score

    changed = grid.with_tasks(small, TASKS, 0)
    changed.schedule.num_rounds = 3
    with pytest.raises(ValueError, match=r"schedule.num_rounds is 2 there and 3 here"):
        main.run(runner.Runner(tmp_path, counting, 0), changed, [0], ("single", "all"))


def _check_nobody_trained_on(small_world, questions, expressions):
    """Questions are of photos that cleaning takes out, expressions of test photos."""
    banned = read_clean_split(small_world.data / "clean_split.json").images["coco"]
    asked = [
        (str(question["image_id"]), question["question"])
        for path in (small_world.raw / "vqa").glob("*_questions.json")
        for question in json.loads(path.read_text())["questions"]
    ]
    ours = [(question.image, question.text) for question in questions]
    assert ours and set(ours) <= {(image, text) for image, text in asked if image in banned}
    assert expressions and {expression.image for expression in expressions} <= banned
