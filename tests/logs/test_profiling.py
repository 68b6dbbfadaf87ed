"""When a trace is made, what is in it, and how much memory a program is said to need."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from twelve_in_one.logs import profiling
from twelve_in_one.logs.profiling import ProfileWindow, annotate, format_bytes, memory_of


@pytest.fixture
def calls(monkeypatch):
    """Takes down the profiler's calls instead of making them."""
    made = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: made.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append("stop"))
    return made


def traced_rounds(calls, window, rounds):
    """Rounds that began while a trace was running."""
    traced = []
    for round in rounds:
        window.step(round)
        if calls.count("start") > calls.count("stop"):
            traced.append(round)
    window.close()
    assert calls.count("start") == calls.count("stop") <= 1
    return traced


@pytest.mark.parametrize(
    ("start", "rounds", "run", "expected"),
    [
        (2, 3, range(10), [2, 3, 4]),
        (0, 1, range(10), [0]),
        (2, 0, range(10), []),
        (2, 3, range(3, 10), [3, 4]),  # resumed within
        (2, 3, range(5, 10), []),  # resumed after
        (2, 30, range(4), [2, 3]),  # the run ends first
        (20, 3, range(4), []),
    ],
)
def test_window(tmp_path, calls, start, rounds, run, expected):
    assert traced_rounds(calls, ProfileWindow(start, rounds, tmp_path), run) == expected


def test_other_processes_trace_nothing(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert traced_rounds(calls, ProfileWindow(0, 3, tmp_path), range(5)) == []


@pytest.mark.parametrize(("start", "rounds"), [(-1, 2), (0, -1)])
def test_negative_numbers(tmp_path, start, rounds):
    with pytest.raises(ValueError, match="must not be negative"):
        ProfileWindow(start, rounds, tmp_path)


def test_trace_shows_the_steps_of_the_window(tmp_path):
    step = jax.jit(lambda x: jnp.sin(x) @ x)
    x = jnp.ones((8, 8))
    window = ProfileWindow(1, 2, tmp_path / "events")
    for round in range(4):
        window.step(round, wait_for=x)
        with annotate("my_train_step", round):
            x = step(x)
    window.close()
    (trace,) = (tmp_path / "events" / "plugins" / "profile").glob("*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {e["args"]["step_num"] for e in events if "my_train_step" in e.get("name", "")}
    assert steps == {"1", "2"}


def test_memory():
    shape = jax.ShapeDtypeStruct((256, 64), jnp.float32)
    size = 256 * 64 * 4

    def add(x, y):
        return x + y, y * 2

    plain = memory_of(jax.jit(add).lower(shape, shape).compile())
    assert (plain["arguments"], plain["aliased"]) == (2 * size, 0)
    assert 2 * size <= plain["outputs"] < 2 * size + 100  # and the tuple's pointers
    assert plain["total"] == sum(plain[k] for k in ("arguments", "outputs", "temporaries", "code"))
    donated = memory_of(jax.jit(add, donate_argnums=0).lower(shape, shape).compile())
    assert donated["aliased"] == size
    assert donated["total"] == plain["total"] - size


def test_memory_of_a_backend_that_cannot_say():
    class Silent:
        def memory_analysis(self):
            return None

    assert memory_of(Silent()) == {}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (640, "640 B"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (10 * 1024, "10.0 KiB"),
        (10_239, "10.0 KiB"),
        (999 * 1024, "999 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (int(23.44 * 1024**2), "23.4 MiB"),
        (3 * 1024**3, "3.00 GiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_format_bytes(size, text):
    assert format_bytes(size) == text


def test_units_do_not_skip_a_number():
    """Every size up to 2 MiB, in steps, is written within half a per cent, in three digits."""
    for size in range(1, 2 * 1024**2, 997):
        number, unit = format_bytes(size).split()
        assert abs(float(number) * 1024 ** profiling._UNITS.index(unit) / size - 1) < 0.0052
        assert len(number.replace(".", "")) <= 3
