"""Stop-and-go against recorded traces of the released controller; plans against loops over rounds.

Every file `fixtures/dsg_traces*.json` of the shared folder is tried, each of its cases one test.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from twelve_in_one import dsg
from twelve_in_one.dsg import Controller, PlannedTask, Schedule, TaskState
from twelve_in_one.tasks.twelve import TWELVE

KINDS = get_args(dsg.Kind)
DRAWN = ("proportional", "temperature")
# Batches an epoch are spread as the real ones are; "b" and "e" are equally long.
TASKS = tuple(
    PlannedTask(name, examples, batches)
    for name, examples, batches in [
        ("a", 4000, 31),
        ("b", 90, 4),
        ("c", 700, 11),
        ("d", 1500, 23),
        ("e", 90, 4),
    ]
)
NAMES = tuple(task.name for task in TASKS)


def schedule(kind="stop_and_go", **settings):
    return Schedule(**dict(tasks=TASKS, kind=kind, num_rounds=200) | settings)


def states(seed):
    """A random state of every task."""
    rng = np.random.default_rng(seed)
    return {
        name: TaskState(
            rng.choice([None, float(rng.normal())]),
            int(rng.integers(3)),
            int(rng.integers(2)),
            bool(rng.integers(2)),
        )
        for name in NAMES
    }


def everything(settings, state=None):
    return dsg.plan(settings, state or dsg.init(NAMES), 0, settings.num_rounds)


# The controller.


@functools.cache
def traces():
    """Name -> (class defaults, case) of every recorded case; empty without the shared folder."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("TWELVE_IN_ONE_SHARED", default)) / "fixtures"
    cases = {}
    for path in sorted(folder.glob("dsg_traces*.json")):
        raw = json.loads(path.read_text())
        for case in raw["cases"]:
            cases[f"{path.stem}-{case['name']}"] = raw["class_defaults"], case
    return cases


@pytest.mark.parametrize("name", traces() or ["none"])
def test_trace_is_that_of_the_released_controller(shared_dir, name):
    defaults, case = traces()[name]
    controller = Controller(**defaults | case["constructor"])
    state = dsg.init(["task"])
    seen = collections.defaultdict(list)
    for epoch, score in enumerate(case["scores"]):
        state = {"task": dsg.update(controller, state["task"], score)}
        seen["in_stop"].append(state["task"].stopped)
        seen["best"].append(state["task"].best)
        seen["num_bad_epochs"].append(state["task"].bad)
        seen["cooldown_counter"].append(state["task"].cooldown)
        if epoch in case["reset_after_epochs"]:
            state = dsg.reset(state)
    assert seen == {key: case[key] for key in seen}


def test_defaults_are_those_of_the_training_script(shared_dir):
    raw = json.loads((shared_dir / "fixtures/dsg_traces.json").read_text())
    assert Controller(**raw["training_script_arguments"]) == Controller()


@pytest.mark.parametrize(
    ("continue_threshold", "scores", "stopped"),
    [
        (
            0.01,
            "10 20 30 40 50 50 50 50 49 48 50 51 52 52 52 52 52",
            "F F F F F F T T F F F F F F T T T",
        ),
        (
            0.005,
            "60 61 61.01 61.02 61 61 60.9 60.6 60.6 60.6 60.6 62 62 62 62",
            "F F F T T T T F F F T T T T T",
        ),
    ],
)
def test_trace_of_the_documented_runs(continue_threshold, scores, stopped):
    controller = Controller(continue_threshold=continue_threshold)
    state, seen = TaskState(), []
    for score in scores.split():
        state = dsg.update(controller, state, float(score))
        seen.append("FT"[state.stopped])
    assert seen == stopped.split()


@pytest.mark.parametrize("seed", range(10))
def test_min_mirrors_max_where_it_is_not_official(seed):
    rng = np.random.default_rng(seed)
    settings = dict(
        patience=int(rng.integers(3)),
        cooldown=int(rng.integers(3)),
        threshold=0.05,
        continue_threshold=float(rng.choice([0.02, 0.3])),
        threshold_mode="abs",
    )
    up, down = TaskState(), TaskState()
    switches = 0
    for score in np.round(rng.normal(size=300).cumsum() / 10, 3):
        before = up.stopped
        up = dsg.update(Controller("max", **settings), up, score)
        down = dsg.update(Controller("min", **settings, official_restart=False), down, -score)
        assert down == dataclasses.replace(up, best=-up.best)
        switches += up.stopped != before
    assert switches > 3


def test_official_min_mode_does_not_restart_on_a_worse_score():
    stopped = TaskState(best=2.0, stopped=True)
    official, mirrored = Controller("min"), Controller("min", official_restart=False)
    assert dsg.update(official, stopped, 3.0).stopped
    assert not dsg.update(mirrored, stopped, 3.0).stopped


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_score_that_is_not_finite_is_an_error(score):
    with pytest.raises(ValueError, match=rf"score {float(score)} is not finite"):
        dsg.update(Controller(), TaskState(), score)


@pytest.mark.parametrize("seed", range(20))
def test_json_restores_every_bit(seed):
    rng = np.random.default_rng(seed)
    state = dsg.init(NAMES)
    controller = Controller(threshold_mode="abs")
    for _ in range(seed):
        name = str(rng.choice(NAMES))
        score = rng.normal() * 10.0 ** rng.integers(-300, 300)
        state = {**state, name: dsg.update(controller, state[name], score)}
    text = json.dumps(dsg.to_json(state), allow_nan=False)
    shuffled = dict(reversed(json.loads(text).items()))
    restored = dsg.from_json(shuffled, NAMES)
    assert restored == state
    assert tuple(restored) == NAMES
    assert json.dumps(dsg.to_json(restored)) == text


GOOD = dict(best=0.5, bad=0, cooldown=0, stopped=False)


@pytest.mark.parametrize(
    ("raw", "messages"),
    [
        ([], ["must be an object, got list"]),
        ({"x": GOOD}, ["task y is missing"]),
        ({"x": GOOD, "y": GOOD, "z": GOOD}, ["unknown task z"]),
        ({"x": GOOD, "y": 3}, ["y: must be an object, got 3"]),
        ({"x": {}, "y": GOOD}, ["x: field best is missing", "x: field stopped is missing"]),
        ({"x": GOOD | {"in_stop": True}, "y": GOOD}, ["x: unknown field in_stop"]),
        (
            {
                "x": GOOD | {"best": math.inf, "bad": -1},
                "y": GOOD | {"stopped": 0, "cooldown": 1.0},
            },
            ["best=inf", "bad=-1 must be an int >= 0", "stopped=0", "y: ", "cooldown=1.0"],
        ),
        ({"x": GOOD | {"best": "0.5", "bad": True}, "y": GOOD}, ["best='0.5'", "bad=True"]),
    ],
)
def test_json_that_no_controller_wrote_is_an_error(raw, messages):
    with pytest.raises(ValueError) as error:
        dsg.from_json(raw, ("x", "y"))
    for message in messages:
        assert message in str(error.value)


def test_a_task_twice_is_an_error():
    with pytest.raises(ValueError, match="task x occurs 2 times"):
        dsg.init(["x", "y", "x"])


# The plan.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_plan_is_the_same_however_it_is_split(kind, seed):
    rng = np.random.default_rng(seed)
    settings = schedule(kind, seed=seed, gap=int(rng.integers(0, 6)))
    state = states(seed)
    whole = everything(settings, state)
    assert len(whole) == settings.num_rounds
    cuts = [0, *sorted(rng.integers(0, settings.num_rounds, 12).tolist()), settings.num_rounds]
    pieces = [dsg.plan(settings, state, a, b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert sum(pieces, ()) == whole


@pytest.mark.parametrize("gap", [0, 1, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_stopped_tasks_train_every_gap_rounds(gap, seed):
    state = states(seed)
    for number, names in enumerate(everything(schedule(gap=gap), state)):
        gapped = gap != 0 and number % gap == 0
        assert names == tuple(n for n in NAMES if gapped or not state[n].stopped)


def test_no_task_goes_and_none_may():
    stopped = {name: TaskState(stopped=True) for name in NAMES}
    assert set(everything(schedule(gap=0), stopped)) == {()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stop_and_go"])
def test_only_stop_and_go_looks_at_the_controllers(kind):
    stopped = {name: TaskState(stopped=True) for name in NAMES}
    assert everything(schedule(kind), stopped) == everything(schedule(kind))


def test_round_robin_visits_all_in_order():
    assert set(everything(schedule("round_robin"))) == {NAMES}


@pytest.mark.parametrize(
    ("kind", "temperature"), [("proportional", 2.0), ("temperature", 2.0), ("temperature", 5.0)]
)
def test_draws_follow_the_examples(kind, temperature):
    settings = schedule(kind, temperature=temperature, num_rounds=4000, seed=3)
    weights = np.array([t.num_examples for t in TASKS], float)
    weights **= 1.0 if kind == "proportional" else 1 / temperature
    probabilities = weights / weights.sum()
    draws = np.array([[NAMES.index(n) for n in names] for names in everything(settings)])
    assert draws.shape == (4000, 5)
    expected = draws.size * probabilities
    statistic = np.sum((np.bincount(draws.ravel(), minlength=5) - expected) ** 2 / expected)
    assert statistic < 18.47  # 0.1 % of the chi-square distribution with 4 degrees of freedom
    # Draws of a round, and of neighbouring rounds, are independent.
    pairs = np.mean(draws[:, 0] == draws[:, 1]), np.mean(draws[:-1, 0] == draws[1:, 0])
    np.testing.assert_allclose(pairs, np.sum(probabilities**2), atol=0.03)
    np.testing.assert_allclose(list(dsg.draw_probabilities(settings).values()), probabilities)
    updates = dsg.expected_updates(settings)
    np.testing.assert_allclose(list(updates.values()), expected, atol=0.5)


def test_temperature_one_is_proportional_and_extremes_are_finite():
    one = schedule("temperature", temperature=1.0)
    assert everything(one) == everything(schedule("proportional"))
    cold = dsg.draw_probabilities(schedule("temperature", temperature=1e-3))
    hot = dsg.draw_probabilities(schedule("temperature", temperature=1e9))
    assert cold == {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 0.0}
    np.testing.assert_allclose(list(hot.values()), 0.2, rtol=1e-6)


@pytest.mark.parametrize("kind", DRAWN)
def test_seeds_draw_differently(kind):
    assert everything(schedule(kind, seed=0)) != everything(schedule(kind, seed=1))


@pytest.mark.parametrize("order", [(), ("d", "a", "e", "b", "c")])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_curriculum_brings_tasks_in_one_after_another(order, share):
    easy = order or ("b", "e", "c", "d", "a")
    for kind, expected in (("curriculum", easy), ("anti_curriculum", easy[::-1])):
        settings = schedule(kind, order=order, curriculum_share=share)
        rounds = everything(settings)
        stage = 200 * share / 5
        for number, names in enumerate(rounds):
            count = 5 if share == 0 else min(int(number // stage) + 1, 5)
            assert names == tuple(n for n in NAMES if n in expected[:count])
        trained = collections.Counter(name for names in rounds for name in names)
        assert dsg.expected_updates(settings) == trained


def test_every_task_of_a_curriculum_trains_in_the_shortest_run():
    settings = schedule("curriculum", curriculum_share=1.0, num_rounds=5)
    assert [len(names) for names in everything(settings)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["round_robin", "stop_and_go"])
def test_expected_updates_if_nothing_stops(kind):
    trained = collections.Counter(n for names in everything(schedule(kind)) for n in names)
    assert dsg.expected_updates(schedule(kind)) == trained


def test_plan_errors():
    settings = schedule()
    for start, count in ((-1, 2), (199, 2), (0, -1)):
        with pytest.raises(ValueError, match=r"the schedule has rounds 0 \.\. 199"):
            dsg.plan(settings, dsg.init(NAMES), start, count)
    with pytest.raises(ValueError, match="no stop-and-go state of b, e"):
        dsg.plan(settings, dsg.init(["a", "c", "d"]), 0, 1)


# Validations.

INTERVALS = [
    (dict(), (31, 4, 11, 23, 4)),
    (dict(validate_epochs=2.0), (62, 8, 22, 46, 8)),
    (dict(validate_epochs=0.1), (3, 1, 1, 2, 1)),
    (dict(min_validation_rounds=10), (31, 10, 11, 23, 10)),
    (dict(min_validation_rounds=5, max_validation_rounds=20), (20, 5, 11, 20, 5)),
    (dict(validate_epochs=0.01), (1, 1, 1, 1, 1)),
    (dict(validate_epochs=100), (3100, 400, 1100, 2300, 400)),
]


@pytest.mark.parametrize("resets", [(), (5, 17, 199)])
@pytest.mark.parametrize(("settings", "intervals"), INTERVALS)
def test_validations_by_brute_force(settings, intervals, resets):
    plans = schedule(**settings, official_resets=resets)
    expected = [
        tuple(
            name
            for name, interval in zip(NAMES, intervals, strict=True)
            if (number != 0 and number % interval == 0) or number == 199
        )
        for number in range(200)
    ]
    assert [dsg.validations(plans, number) for number in range(200)] == expected
    assert dsg.validations(plans, 199) == NAMES
    for number in range(200):
        ends = (i for i in range(number, 200) if expected[i] or i in resets)
        assert dsg.rounds_until_validation(plans, number) == next(ends) - number + 1
    for function in (dsg.validations, dsg.rounds_until_validation):
        with pytest.raises(ValueError, match="1 rounds from 200"):
            function(plans, 200)


@pytest.mark.parametrize("seed", range(4))
def test_run_is_that_of_a_loop_over_rounds(seed):
    """Plans between validations, as the module's docstring has it, against one decision a round."""
    rng = np.random.default_rng(seed)
    scores = {name: np.round(rng.uniform(0.5, 0.51, 300), 4) for name in NAMES}
    settings = schedule(num_rounds=300, gap=3, official_resets=(101, 200))
    controller = Controller()

    state, start, planned = dsg.init(NAMES), 0, []
    while start < settings.num_rounds:
        count = dsg.rounds_until_validation(settings, start)
        planned += dsg.plan(settings, state, start, count)
        start += count
        for name in dsg.validations(settings, start - 1):
            score = scores[name][start - 1]
            state = {**state, name: dsg.update(controller, state[name], score)}
        if start - 1 in settings.official_resets:
            state = dsg.reset(state)

    controllers, trained = {name: TaskState() for name in NAMES}, []
    for j in range(300):
        trained.append(tuple(n for n in NAMES if not controllers[n].stopped or j % 3 == 0))
        for task in TASKS:
            if (j != 0 and j % task.num_batches == 0) or j == 299:
                score = scores[task.name][j]
                controllers[task.name] = dsg.update(controller, controllers[task.name], score)
        if j in (101, 200):
            controllers = {name: TaskState() for name in NAMES}

    assert planned == trained
    assert state == controllers
    assert len(set(trained)) > 2


CLEAN_EXAMPLES = dict(
    vqa=542_104,
    vgqa=1_294_255,
    gqa=962_928,
    coco=487_600,
    flickr30k=140_485,
    refcoco=96_221,
    visual7w=93_813,
    guesswhat=100_398,
    nlvr2=86_373,
    snli_ve=512_396,
) | {"refcoco+": 95_852, "refcocog": 65_514}


def test_length_of_the_released_run():
    tasks = []
    for task in TWELVE:
        examples = CLEAN_EXAMPLES[task.name]
        tasks.append(PlannedTask(task.name, examples, math.ceil(examples / task.batch_size)))
    batches = [4236, 10112, 7523, 3810, 1098, 376, 375, 256, 367, 1569, 1350, 2002]
    assert [task.num_batches for task in tasks] == batches
    assert dsg.official_num_rounds(tasks) == (10112, 202_240, (60671, 80895))
    assert dsg.official_num_rounds(tasks, num_train_epochs=7) == (28891, 202_237, (173_345,))
    per_epoch, total, resets = dsg.official_num_rounds(tasks, multiplier=0.2)
    assert (per_epoch, total) == (2022, 40_440)
    Schedule(tuple(tasks), "stop_and_go", total, official_resets=resets)


# Settings and the table.


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        (dict(mode="up", patience=-1), ["mode='up' must be one of max, min", "patience=-1"]),
        (dict(threshold=math.nan, cooldown=1.0), ["threshold=nan", "cooldown=1.0 must be an int"]),
        (dict(threshold_mode="x", continue_threshold=-1), ["rel, abs", "continue_threshold=-1"]),
    ],
)
def test_controller_reports_all_its_errors(settings, messages):
    with pytest.raises(ValueError) as error:
        Controller(**settings)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        (dict(kind="random", num_rounds=0), ["kind='random' must be one of stop", "num_rounds=0"]),
        (dict(gap=-1, seed=-1), ["gap=-1 must be an int >= 0, where 0 is never", "seed=-1"]),
        (dict(tasks=()), ["tasks=() must be at least one task"]),
        (dict(tasks=TASKS + TASKS[:1]), ["task a occurs 2 times"]),
        (dict(order=("a", "b", "c", "c", "f")), ["c occurs 2", "d is missing", "unknown task f"]),
        (dict(validate_epochs=0, temperature=0), ["validate_epochs=0", "temperature=0"]),
        (dict(curriculum_share=1.5), ["curriculum_share=1.5 must be a finite number in [0, 1]"]),
        (dict(min_validation_rounds=9, max_validation_rounds=8), ["max_validation_rounds=8 is"]),
        (dict(official_resets=(3, 200)), ["no round 200 in range(0, 200)"]),
    ],
)
def test_schedule_reports_all_its_errors(settings, messages):
    with pytest.raises(ValueError) as error:
        schedule(**settings)
    for message in messages:
        assert message in str(error.value)


def test_planned_task_reports_all_its_errors():
    with pytest.raises(ValueError, match=r"task x: num_examples=0 .*; num_batches=2\.5 must"):
        PlannedTask("x", 0, 2.5)


def test_table_shows_the_plan():
    state = dsg.init(NAMES) | {"c": TaskState(stopped=True)}
    lines = dsg.format_plan(schedule(gap=4), state, 8, 12).splitlines()
    assert lines[0] == "stop_and_go, rounds 8 .. 19 of 200"
    rows = {line.split()[0]: line.split() for line in lines[2:7]}
    assert rows["a"] == ["a", "4,000", "31", "31", "12", "200", "############"]
    assert rows["c"] == ["c", "(stopped)", "700", "11", "11", "3", "200", "#...#...#..."]
    lines = dsg.format_plan(schedule(gap=3), state, 0, 180).splitlines()  # 3 rounds a column
    assert lines[4].split()[-1] == "3" * 60


@pytest.mark.parametrize("kind", KINDS)
def test_table_of_a_long_run_fits_a_terminal(kind):
    settings = schedule(kind, num_rounds=2000)
    state = dsg.init(NAMES)
    table = dsg.format_plan(settings, state, 0, 2000)
    assert max(map(len, table.splitlines())) <= 120
    counts = collections.Counter(name for names in everything(settings, state) for name in names)
    for line in table.splitlines()[2:7]:
        assert f" {counts[line.split()[0]]:,} " in line


def test_module_needs_neither_jax_nor_tensorflow():
    code = (
        "import sys, twelve_in_one.dsg; "
        "sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'tensorflow', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
