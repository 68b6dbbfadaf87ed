"""Where the time of a run goes."""

import time

import pytest

from twelve_in_one.logs.stopwatch import Clock


def test_waiting_counts_only_where_devices_starve():
    clock = Clock(0, 0.0)
    with clock.waiting(lambda: False):
        time.sleep(0.05)
    fed = clock.lap(1)
    assert fed["data_wait"] == 0.0
    with clock.waiting(lambda: True):
        time.sleep(0.05)
    time.sleep(0.05)
    starved = clock.lap(2)
    assert 0 < starved["data_wait"] < 1  # one of two sleeps
    assert clock.lap(3)["data_wait"] == 0.0, "a lap begins anew"


def test_starving_is_asked_after_the_wait():
    order = []
    clock = Clock(0, 0.0)
    with clock.waiting(lambda: bool(order.append("asked"))):
        order.append("made")
    assert order == ["made", "asked"]


def test_pauses_are_not_training():
    clock = Clock(10, 100.0)
    with clock.pause():
        time.sleep(0.2)
    with clock.waiting(lambda: True):
        pass
    clock.examples += 8
    lap = clock.lap(12)
    assert lap["rounds_per_s"] > lap["rounds_per_s_overall"]  # which has the pause in it
    assert lap["rounds_per_s_overall"] < 2 / 0.2
    assert lap["updates_per_s"] * 8 == pytest.approx(lap["examples_per_s"])
    assert lap["elapsed_s"] > 100.2
