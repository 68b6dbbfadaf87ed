"""Windows of the log against sums in NumPy; a saved window goes on to the bit."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.logs.window import LogWindow
from twelve_in_one.tasks.losses import Sums

TASKS = ("vqa", "coco", "nlvr2")
PARTS = {task: () for task in TASKS}


def draw(count, seed=0):
    """(task, step, metrics) of some updates, in float32 as devices report them."""
    rng = np.random.default_rng(seed)
    for step in range(count):
        loss, score, norm = rng.normal(1e3, 1e2, 3).astype(np.float32)
        sums = Sums(jnp.float32(loss), jnp.float32(score), jnp.float32(rng.integers(1, 99)))
        yield str(rng.choice(TASKS[:2])), step, sums, jnp.float32(norm)


def fill(window, updates):
    for update in updates:
        window.add(*update)
    return window


def test_means():
    updates = list(draw(20))
    window = fill(LogWindow(PARTS), updates)
    assert window.settle() == []
    means = window.means()
    assert set(means) == {"loss", "score", "grad_norm"}
    for task in TASKS[:2]:
        own = [numbers for name, _, *numbers in updates if name == task]
        loss, score, count = np.array([m for m, _ in own], np.float64).T
        np.testing.assert_allclose(means["loss"][task], loss.sum() / count.sum(), rtol=1e-12)
        np.testing.assert_allclose(means["score"][task], score.sum() / count.sum(), rtol=1e-12)
        norms = [float(norm) for _, norm in own]
        np.testing.assert_allclose(means["grad_norm"][task], np.mean(norms), rtol=1e-12)
        assert window.updates[task] == len(own)
    # A task that was not trained has no line.
    assert all("nlvr2" not in of_task for of_task in (*means.values(), window.updates))


def test_nothing_and_clear():
    window = LogWindow(PARTS)
    assert window.settle() == []
    empty = {"loss": {}, "score": {}, "grad_norm": {}}
    assert (window.means(), window.updates, window.to_json()) == (empty, {}, {})
    fill(window, draw(5)).settle()
    window.clear()
    assert (window.means(), window.updates, window.to_json()) == (empty, {}, {})
    # Two windows on the same tasks do not share their sums.
    fill(window, draw(5)).settle()
    assert LogWindow(PARTS).updates == {}


@pytest.mark.parametrize("stops", [(), (1,), (7,), (3, 3, 11, 19), tuple(range(20))])
def test_saved_windows_go_on_to_the_bit(stops):
    updates = list(draw(20, seed=1))
    whole = fill(LogWindow(PARTS), updates)
    whole.settle()
    window, start = LogWindow(PARTS), 0
    for stop in stops:
        fill(window, updates[start:stop])
        window.settle()
        window, start = LogWindow(PARTS, json.loads(json.dumps(window.to_json()))), stop
    fill(window, updates[start:])
    window.settle()
    assert (window.means(), window.updates) == (whole.means(), whole.updates)
    assert window.to_json() == whole.to_json()


def test_a_restored_window_does_not_change_what_was_saved():
    window = fill(LogWindow(PARTS), draw(4))
    window.settle()
    saved = window.to_json()
    before = json.dumps(saved)
    fill(LogWindow(PARTS, saved), draw(4)).settle()
    fill(window, draw(4)).settle()
    assert json.dumps(saved) == before


def test_what_is_not_finite_is_reported_and_left_out():
    def metrics(loss, norm):
        sums = Sums(jnp.float32(loss), jnp.float32(3), jnp.float32(4))
        return sums, jnp.float32(norm)

    window = LogWindow(PARTS)
    window.add("vqa", 7, *metrics(8, 2))
    window.add("coco", 8, *metrics(math.nan, 1))
    window.add("vqa", 9, *metrics(12, math.inf))
    window.add("vqa", 10, *metrics(4, 4))
    coco, vqa = window.settle()
    assert coco == "coco, update 8: loss nan, gradient norm 1.0"
    assert vqa == "vqa, update 9: loss 3.0, gradient norm inf"
    assert window.settle() == []  # said once
    assert window.updates == {"vqa": 3, "coco": 1}
    means = {"loss": {"vqa": 1.5}, "score": {"vqa": 0.75}, "grad_norm": {"vqa": 3.0}}
    assert window.means() == means
    again = LogWindow(PARTS, json.loads(json.dumps(window.to_json())))
    assert (again.means(), again.updates) == (means, window.updates)
