"""Stop-and-go against recorded traces of the released controller.

Every file `fixtures/dsg_traces*.json` of the shared folder is tried, each of its cases one test.
"""

import collections
import dataclasses
import functools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from reference.recorded import recorded_folder

from twelve_in_one.mixing import stop_and_go
from twelve_in_one.mixing.stop_and_go import Controller, TaskState

NAMES = ("a", "b", "c", "d", "e")


@functools.cache
def traces():
    """Name -> (class defaults, case) of every recorded case."""
    cases = {}
    for path in sorted(recorded_folder().glob("dsg_traces*.json")):
        raw = json.loads(path.read_text())
        for case in raw["cases"]:
            cases[f"{path.stem}-{case['name']}"] = raw["class_defaults"], case
    return cases


@pytest.mark.parametrize("name", traces())
def test_trace_is_that_of_the_released_controller(recorded_dir, name):
    defaults, case = traces()[name]
    controller = Controller(**defaults | case["constructor"])
    state = stop_and_go.init(["task"])
    seen = collections.defaultdict(list)
    for epoch, score in enumerate(case["scores"]):
        state = {"task": stop_and_go.update(controller, state["task"], score)}
        seen["in_stop"].append(state["task"].stopped)
        seen["best"].append(state["task"].best)
        seen["num_bad_epochs"].append(state["task"].bad)
        seen["cooldown_counter"].append(state["task"].cooldown)
        if epoch in case["reset_after_epochs"]:
            state = stop_and_go.reset(state)
    assert seen == {key: case[key] for key in seen}


def test_defaults_are_those_of_the_training_script(recorded_dir):
    raw = json.loads((recorded_dir / "dsg_traces.json").read_text())
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
        state = stop_and_go.update(controller, state, float(score))
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
        up = stop_and_go.update(Controller("max", **settings), up, score)
        down = stop_and_go.update(
            Controller("min", **settings, official_restart=False), down, -score
        )
        assert down == dataclasses.replace(up, best=-up.best)
        switches += up.stopped != before
    assert switches > 3


def test_official_min_mode_does_not_restart_on_a_worse_score():
    stopped = TaskState(best=2.0, stopped=True)
    official, mirrored = Controller("min"), Controller("min", official_restart=False)
    assert stop_and_go.update(official, stopped, 3.0).stopped
    assert not stop_and_go.update(mirrored, stopped, 3.0).stopped


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_score_that_is_not_finite_is_an_error(score):
    with pytest.raises(ValueError, match=rf"score {float(score)} is not finite"):
        stop_and_go.update(Controller(), TaskState(), score)


@pytest.mark.parametrize("seed", range(20))
def test_json_restores_every_bit(seed):
    rng = np.random.default_rng(seed)
    state = stop_and_go.init(NAMES)
    controller = Controller(threshold_mode="abs")
    for _ in range(seed):
        name = str(rng.choice(NAMES))
        score = rng.normal() * 10.0 ** rng.integers(-300, 300)
        state = {**state, name: stop_and_go.update(controller, state[name], score)}
    text = json.dumps(stop_and_go.to_json(state), allow_nan=False)
    shuffled = dict(reversed(json.loads(text).items()))
    restored = stop_and_go.from_json(shuffled, NAMES)
    assert restored == state
    assert tuple(restored) == NAMES
    assert json.dumps(stop_and_go.to_json(restored)) == text


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
        stop_and_go.from_json(raw, ("x", "y"))
    for message in messages:
        assert message in str(error.value)


def test_a_task_twice_is_an_error():
    with pytest.raises(ValueError, match="task x occurs 2 times"):
        stop_and_go.init(["x", "y", "x"])


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


def test_modules_need_neither_jax_nor_tensorflow():
    code = (
        "import sys, twelve_in_one.mixing.stop_and_go, twelve_in_one.mixing.plan; "
        "sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'tensorflow', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
