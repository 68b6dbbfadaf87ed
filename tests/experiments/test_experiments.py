"""The comparison of one model with twelve: grid, statistics, resuming, and a run of all of it."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from twelve_in_one import default_config, train
from twelve_in_one.experiments import grid, main, runner, statistics, summary

TASKS = ("vqa", "refcoco+")


@pytest.fixture
def base():
    config = default_config.world_config()
    default_config.shorten(config)
    return config


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
    assert base.seed == 0 and len(base.tasks) == 12  # the base is left alone


def test_groups_hold_every_task_once():
    assert sorted(sum(grid.GROUPS.values(), ())) == sorted(default_config.world_config().tasks)


def test_names_of_trainings_differ(base, tmp_path):
    whole = grid.all_tasks(base, 0)
    trainings = [
        whole,
        *(grid.group(base, name, 0) for name in grid.GROUPS),
        *(
            grid.single_task(base, name, 0, updates=3, rate_factor=factor)
            for name in base.tasks
            for factor in grid.RATE_FACTORS
        ),
        *(grid.fine_tuned(base, name, 0, whole, tmp_path) for name in base.tasks),
        *(grid.all_tasks(base, seed) for seed in (1, 2)),
    ]
    assert len({t.folder(tmp_path) for t in trainings}) == len(trainings)


def test_fine_tuning_begins_with_the_other_model(base, tmp_path):
    whole = grid.all_tasks(base, 1)
    tuned = grid.fine_tuned(base, "vqa", 1, whole, tmp_path)
    assert tuned.config.init_from.path == str(tmp_path / "all" / "seed-1")


@pytest.mark.parametrize("count", [2, 3, 10])
def test_interval_is_students(count):
    values = np.random.default_rng(count).normal(0.3, 0.1, count).tolist()
    found = statistics.estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(
        [found.mean - found.half_width, found.mean + found.half_width], [low, high], rtol=1e-12
    )
    assert found.excludes_zero == (stats.ttest_1samp(values, 0).pvalue < 0.05)


def test_one_seed_has_no_interval():
    assert statistics.estimate([0.25]) == statistics.Estimate(0.25, None, 1)
    assert not statistics.estimate([0.25]).excludes_zero
    assert statistics.show(statistics.estimate([0.25]), signed=True) == "+25.0"
    with pytest.raises(ValueError, match="no values"):
        statistics.estimate([])


def outcome(single, whole):
    def entries(scores):
        return {
            name: {"score": score, "title": name.upper(), "metric": "accuracy", "chance": 0.1}
            for name, score in scores.items()
        }

    return main.Outcome(
        {"single": entries(single), "all": entries(whole)}, {"single": 24, "all": 12}
    )


def test_gains_are_paired_by_seed(tmp_path):
    outcomes = [
        outcome({"vqa": 0.2, "gqa": 0.5}, {"vqa": 0.3, "gqa": 0.4}),
        outcome({"vqa": 0.6, "gqa": 0.7}, {"vqa": 0.72, "gqa": 0.6}),
    ]
    gains = summary.differences(outcomes, "all", "single")
    np.testing.assert_allclose(gains["vqa"].mean, 0.11)
    # Student's t of one degree of freedom; deviation of (0.10, 0.12) over the root of two.
    half = math.tan(math.pi * 0.475) * 0.01
    np.testing.assert_allclose(gains["vqa"].half_width, half, rtol=1e-9)
    np.testing.assert_allclose(gains["average"].mean, 0.005)
    lines = summary.table(outcomes).splitlines()
    assert lines[0].startswith("| task | metric | chance | words | single-task | all tasks |")
    assert "| +11.0 ± 12.7 |" in lines[2]
    assert "**-10.0 ± 0.0**" in lines[3]  # the interval does not hold 0
    assert lines[4].startswith("| **average** |")
    assert "| 24 | 12 |" in lines[5]
    summary.plot(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_whole_comparison_and_again(small_world, tmp_path, base):
    base.data.dir, base.data.raw_dir = str(small_world.data), str(small_world.raw)
    base.data.world_images = 0
    base.compilation_cache = str(small_world.data.parent / "programs")
    base.schedule.num_rounds = 2
    base.evaluation.max_validation_examples = base.evaluation.max_test_examples = 8
    base.log.tensorboard = False
    base = grid.all_tasks(base, 0).config
    with base.unlocked():
        base.tasks = TASKS
    asked = []

    def counting(config, workdir):
        asked.append(workdir.relative_to(tmp_path))
        # Two of the four models, cut short once: the third training asks to stop.
        return None if len(asked) == 3 else train.train(config, workdir)

    models = ("single", "all")
    with pytest.raises(runner.Stopped):
        main.run(runner.Runner(tmp_path, counting, 0), base, [0], models)
    outcomes = main.run(runner.Runner(tmp_path, counting, 0), base, [0], models)
    assert asked[2] == asked[3], "goes on with the training that was cut short"
    assert len(asked) == 8, "1 of all tasks, 2 x 3 learning rates, and the one that was stopped"
    results = json.loads((tmp_path / "all" / "seed-0" / "results.json").read_text())
    found = outcomes[0].results
    assert found["all"]["vqa"]["score"] == results["tasks"]["vqa"]["score"]
    for name in TASKS:
        assert found["single"][name]["updates"] == found["all"][name]["updates"] == 2
    assert outcomes[0].parameters["single"] > outcomes[0].parameters["all"]
    # The best on validation data is what is compared.
    best = max(
        (
            json.loads((folder / "seed-0" / "results.json").read_text())["tasks"]["vqa"]
            for folder in tmp_path.glob("single-vqa*")
        ),
        key=lambda entry: entry["validation"],
    )
    assert found["single"]["vqa"]["validation"] == best["validation"]

    base.schedule.num_rounds = 3
    with pytest.raises(ValueError, match=r"schedule.num_rounds is 2 there and 3 here"):
        main.run(runner.Runner(tmp_path, counting, 0), base, [0], models)
