"""Where the time of a run goes."""

import time

import pytest

from twelve_in_one.logs.stopwatch import Stopwatch


def test_waiting_counts_only_where_devices_starve():
    stopwatch = Stopwatch(0, 0.0)
    with stopwatch.waiting(lambda: False):
        time.sleep(0.05)
    fed = stopwatch.lap(1)
    assert fed["data_wait"] == 0.0
    with stopwatch.waiting(lambda: True):
        time.sleep(0.05)
    time.sleep(0.05)
    starved = stopwatch.lap(2)
    assert 0 < starved["data_wait"] < 1  # one of two sleeps
    assert stopwatch.lap(3)["data_wait"] == 0.0, "a lap begins anew"


def test_starving_is_asked_after_the_wait():
    order = []
    stopwatch = Stopwatch(0, 0.0)
    with stopwatch.waiting(lambda: bool(order.append("asked"))):
        order.append("made")
    assert order == ["made", "asked"]


def test_pauses_are_not_training():
    stopwatch = Stopwatch(10, 100.0)
    with stopwatch.pause():
        time.sleep(0.2)
    with stopwatch.waiting(lambda: True):
        pass
    stopwatch.examples += 8
    lap = stopwatch.lap(12)
    assert lap["rounds_per_s"] > lap["rounds_per_s_overall"]  # which has the pause in it
    assert lap["rounds_per_s_overall"] < 2 / 0.2
    assert lap["updates_per_s"] * 8 == pytest.approx(lap["examples_per_s"])
    assert lap["elapsed_s"] > 100.2
