"""Plans against loops over rounds, and whole runs of plan and controllers by brute force."""

import collections
import math
from typing import get_args

import numpy as np
import pytest

from twelve_in_one.mixing import plan, stop_and_go
from twelve_in_one.mixing.plan import PlannedTask, Schedule
from twelve_in_one.mixing.stop_and_go import Controller, TaskState
from twelve_in_one.tasks.twelve import TWELVE

KINDS = get_args(plan.Kind)
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
    return plan.plan(settings, state or stop_and_go.init(NAMES), 0, settings.num_rounds)


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
    pieces = [plan.plan(settings, state, a, b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
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
    np.testing.assert_allclose(list(plan.draw_probabilities(settings).values()), probabilities)
    updates = plan.expected_updates(settings)
    np.testing.assert_allclose(list(updates.values()), expected, atol=0.5)


def test_temperature_one_is_proportional_and_extremes_are_finite():
    one = schedule("temperature", temperature=1.0)
    assert everything(one) == everything(schedule("proportional"))
    cold = plan.draw_probabilities(schedule("temperature", temperature=1e-3))
    hot = plan.draw_probabilities(schedule("temperature", temperature=1e9))
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
        assert plan.expected_updates(settings) == trained


def test_every_task_of_a_curriculum_trains_in_the_shortest_run():
    settings = schedule("curriculum", curriculum_share=1.0, num_rounds=5)
    assert [len(names) for names in everything(settings)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["round_robin", "stop_and_go"])
def test_expected_updates_if_nothing_stops(kind):
    trained = collections.Counter(n for names in everything(schedule(kind)) for n in names)
    assert plan.expected_updates(schedule(kind)) == trained


def test_plan_errors():
    settings = schedule()
    for start, count in ((-1, 2), (199, 2), (0, -1)):
        with pytest.raises(ValueError, match=r"the schedule has rounds 0 \.\. 199"):
            plan.plan(settings, stop_and_go.init(NAMES), start, count)
    with pytest.raises(ValueError, match="no stop-and-go state of b, e"):
        plan.plan(settings, stop_and_go.init(["a", "c", "d"]), 0, 1)


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
    assert [plan.validations(plans, number) for number in range(200)] == expected
    assert plan.validations(plans, 199) == NAMES
    for number in range(200):
        ends = (i for i in range(number, 200) if expected[i] or i in resets)
        assert plan.rounds_until_validation(plans, number) == next(ends) - number + 1
    for function in (plan.validations, plan.rounds_until_validation):
        with pytest.raises(ValueError, match="1 rounds from 200"):
            function(plans, 200)


@pytest.mark.parametrize("seed", range(4))
def test_run_is_that_of_a_loop_over_rounds(seed):
    """Plans between validations, as the module's docstring has it, against one decision a round."""
    rng = np.random.default_rng(seed)
    scores = {name: np.round(rng.uniform(0.5, 0.51, 300), 4) for name in NAMES}
    settings = schedule(num_rounds=300, gap=3, official_resets=(101, 200))
    controller = Controller()

    state, start, planned = stop_and_go.init(NAMES), 0, []
    while start < settings.num_rounds:
        count = plan.rounds_until_validation(settings, start)
        planned += plan.plan(settings, state, start, count)
        start += count
        for name in plan.validations(settings, start - 1):
            score = scores[name][start - 1]
            state = {**state, name: stop_and_go.update(controller, state[name], score)}
        if start - 1 in settings.official_resets:
            state = stop_and_go.reset(state)

    controllers, trained = {name: TaskState() for name in NAMES}, []
    for j in range(300):
        trained.append(tuple(n for n in NAMES if not controllers[n].stopped or j % 3 == 0))
        for task in TASKS:
            if (j != 0 and j % task.num_batches == 0) or j == 299:
                score = scores[task.name][j]
                controllers[task.name] = stop_and_go.update(
                    controller, controllers[task.name], score
                )
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
    assert plan.official_num_rounds(tasks) == (10112, 202_240, (60671, 80895))
    assert plan.official_num_rounds(tasks, num_train_epochs=7) == (28891, 202_237, (173_345,))
    per_epoch, total, resets = plan.official_num_rounds(tasks, multiplier=0.2)
    assert (per_epoch, total) == (2022, 40_440)
    Schedule(tuple(tasks), "stop_and_go", total, official_resets=resets)


# Settings and the table.


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
    state = stop_and_go.init(NAMES) | {"c": TaskState(stopped=True)}
    lines = plan.format_plan(schedule(gap=4), state, 8, 12).splitlines()
    assert lines[0] == "stop_and_go, rounds 8 .. 19 of 200"
    rows = {line.split()[0]: line.split() for line in lines[2:7]}
    assert rows["a"] == ["a", "4,000", "31", "31", "12", "200", "############"]
    assert rows["c"] == ["c", "(stopped)", "700", "11", "11", "3", "200", "#...#...#..."]
    lines = plan.format_plan(schedule(gap=3), state, 0, 180).splitlines()  # 3 rounds a column
    assert lines[4].split()[-1] == "3" * 60


@pytest.mark.parametrize("kind", KINDS)
def test_table_of_a_long_run_fits_a_terminal(kind):
    settings = schedule(kind, num_rounds=2000)
    state = stop_and_go.init(NAMES)
    table = plan.format_plan(settings, state, 0, 2000)
    assert max(map(len, table.splitlines())) <= 120
    counts = collections.Counter(name for names in everything(settings, state) for name in names)
    for line in table.splitlines()[2:7]:
        assert f" {counts[line.split()[0]]:,} " in line
