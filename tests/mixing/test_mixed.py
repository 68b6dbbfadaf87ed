"""Rows of mixed streams: shares, order by arithmetic, stages."""

import dataclasses

import numpy as np
import pytest

from twelve_in_one.mixing import stop_and_go
from twelve_in_one.mixing.mixed import MixedOrder, Size, Stage, weights_now, weights_of

SIZES = {"a": Size(800, 100), "b": Size(200, 200), "c": Size(8, 8)}


def _in_order(weights: tuple[float, ...], count: int) -> list[int]:
    """The same order by sorting the times of all rows of all tasks."""
    due = [
        ((k + 0.5) / weight, task)
        for task, weight in enumerate(weights)
        if weight
        for k in range(count + 1)
    ]
    return [task for _, task in sorted(due)[:count]]


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (1 / 3, 1 / 3, 1 / 3), (0.999, 0.0, 0.001)])
def test_rows_are_those_of_the_sorted_times(weights):
    order = MixedOrder(7, (Stage(0, weights),))
    tasks = np.concatenate([order.rows(batch)[0] for batch in range(30)])
    visits = np.concatenate([order.rows(batch)[1] for batch in range(30)])
    assert tasks.tolist() == _in_order(weights, 210)
    for task in range(3):
        assert visits[tasks == task].tolist() == list(range((tasks == task).sum()))
    assert order.counts(30) == tuple(np.bincount(tasks, minlength=3).tolist())


def test_far_batches_take_no_history():
    order = MixedOrder(64, (Stage(0, (0.55, 0.3, 0.15)),))
    tasks, visits = order.rows(10**9)
    first = 64 * 10**9
    assert abs(visits[tasks == 0][0] - 0.55 * first) < 2
    assert abs(np.bincount(tasks)[2] - 0.15 * 64) < 2


def test_a_later_stage_leaves_earlier_batches_and_skips_no_visit():
    early = (Stage(0, (0.5, 0.5)),)
    late = (*early, Stage(5, (0.9, 0.1)))
    before, after = MixedOrder(8, early), MixedOrder(8, late)
    for batch in range(5):
        assert all(map(np.array_equal, before.rows(batch), after.rows(batch)))
    tasks, visits = map(
        np.concatenate, zip(*(after.rows(batch) for batch in range(12)), strict=True)
    )
    for task in range(2):
        assert visits[tasks == task].tolist() == list(range((tasks == task).sum()))
    assert np.bincount(tasks[40:])[1] == pytest.approx(0.1 * 56, abs=1)


@pytest.mark.parametrize(
    ("stages", "named"),
    [((), "begin"), ((Stage(1, (1.0,)),), "begin"), ((Stage(0, (1.0,)),) * 2, "begin")],
)
def test_wrong_stages(stages, named):
    with pytest.raises(ValueError, match=named):
        MixedOrder(4, stages)


def test_weights():
    assert weights_of("pairs", SIZES)["a"] == pytest.approx(800 / 1008)
    assert weights_of("images", SIZES)["b"] == pytest.approx(200 / 308)
    assert set(weights_of("equal", SIZES).values()) == {1 / 3}
    warm = weights_of("temperature", SIZES, temperature=2)
    assert warm["a"] / warm["c"] == pytest.approx((800 / 8) ** 0.5)
    assert weights_of("explicit", SIZES, explicit={"a": 3, "b": 1, "c": 0}) == {
        "a": 0.75,
        "b": 0.25,
        "c": 0.0,
    }
    with pytest.raises(ValueError, match="wrong of b, c"):
        weights_of("explicit", SIZES, explicit={"a": 3, "b": -1})


def test_stopped_tasks_keep_the_share_of_their_gap():
    state = stop_and_go.init(("a", "b"))
    stopped = {**state, "a": dataclasses.replace(state["a"], stopped=True)}
    weights = {"a": 0.5, "b": 0.5}
    assert weights_now(weights, state, 4) == weights
    assert weights_now(weights, stopped, 4) == {"a": pytest.approx(0.2), "b": pytest.approx(0.8)}
    assert weights_now(weights, stopped, 0) == {"a": 0.0, "b": 1.0}
    both = {name: dataclasses.replace(one, stopped=True) for name, one in state.items()}
    assert weights_now(weights, both, 0) is None
