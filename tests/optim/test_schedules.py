"""Learning-rate schedules against recorded runs, PyTorch's schedulers, optax and formulae."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from twelve_in_one.optim import schedules

T, WARM = 60, 7.5
KINDS = {
    "constant": dict(),
    "linear": dict(),
    "cosine": dict(),
    "step": dict(boundaries=(20, 41)),
    "rewritten": dict(boundaries=(20, 41), official_epoch_rounds=4),
}


def make(name, total=T, warmup=WARM, **options):
    kind = "step" if name == "rewritten" else name
    return schedules.make(kind, total, warmup, **KINDS[name] | options)


def test_recorded_rates(recorded_dir):
    """Every entry, with what distinguishes it read from its keys."""
    traces = json.loads((recorded_dir / "optim_traces.json").read_text())["lr"]
    assert traces
    for name, trace in traces.items():
        expected = np.array(trace["lr"])
        warmup, base, total = trace["warmup_steps"], trace["base_lr"], len(expected)
        if "steps_per_epoch" in trace:
            epoch = trace["steps_per_epoch"]
            assert total == epoch * trace["epochs"]
            boundaries = (5 * epoch, 7 * epoch)
            options = dict(boundaries=boundaries, official_epoch_rounds=epoch)
            factor = schedules.make("step", total, warmup, **options)
            within = schedules.make(
                "step", total, warmup, official_advance_within_round=True, **options
            )
        else:
            assert total == trace["t_total"]
            before = name.endswith("step_before")
            factor = schedules.make("linear", total, warmup, official_advance_before_update=before)
            within = schedules.make("linear", total, warmup, official_advance_within_round=True)
        ours = [base * factor(i) for i in range(total)]
        np.testing.assert_allclose(ours, expected, rtol=1e-15, err_msg=name)
        traced = jax.jit(factor)(jnp.arange(total))
        assert traced.dtype == jnp.float32
        np.testing.assert_allclose(base * traced, expected, rtol=2e-7, err_msg=name)
        if not name.endswith("step_before"):  # these are the rates of a round's first update
            clock = schedules.update_clock(np.arange(total), official_advance_within_round=True)
            np.testing.assert_allclose(base * within(clock), expected, rtol=1e-15, err_msg=name)


def released(kind, *, epochs, epoch_rounds, warmup, decay_epochs, updates):
    """(round, is later in it, factor) of every update, by PyTorch's schedulers on one optimizer."""
    torch = pytest.importorskip("torch")
    total = epochs * epoch_rounds

    def warm_up(s):
        if s < warmup:
            return s / max(1.0, warmup)
        return 1.0 if kind != "linear" else max(0.0, (total - s) / max(1.0, total - warmup))

    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR
    warming = schedule(optimizer, warm_up)
    decaying = None
    if kind == "step":
        decaying = schedule(optimizer, lambda e: 0.2 ** sum(d <= e for d in decay_epochs))
    history = []
    for rounds in range(total):
        for i in range(updates[rounds % len(updates)]):
            history.append((rounds, i > 0, optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if i == 0 and (rounds < warmup or kind == "linear"):
                warming.step()
        if decaying and (rounds + 1) % epoch_rounds == 0:
            decaying.step()
    return history


@pytest.mark.parametrize(
    ("epochs", "epoch_rounds", "warmup", "decay_epochs"),
    [
        (8, 6, 4.8, (5, 7)),  # the warm-up ends within the first epoch
        (8, 6, 12, (5, 7)),  # at the end of one
        (9, 5, 22.5, (2, 4)),  # after both boundaries, within an epoch
        (3, 4, 0, (1, 2)),
        (3, 4, 0.3, (1, 2)),
        (4, 1, 2, (1, 3)),
    ],
)
@pytest.mark.parametrize("kind", ["constant", "linear", "step"])
def test_official_options_are_two_schedulers_on_one_optimizer(
    kind, epochs, epoch_rounds, warmup, decay_epochs
):
    history = released(
        kind,
        epochs=epochs,
        epoch_rounds=epoch_rounds,
        warmup=warmup,
        decay_epochs=decay_epochs,
        updates=(3, 1, 2),
    )
    options = {}
    if kind == "step":
        boundaries = [e * epoch_rounds for e in decay_epochs]
        options = dict(boundaries=boundaries, official_epoch_rounds=epoch_rounds)
    factor = schedules.make(
        kind, epochs * epoch_rounds, warmup, official_advance_within_round=True, **options
    )
    for rounds, later, expected in history:
        clock = schedules.update_clock(rounds, later, official_advance_within_round=True)
        assert factor(clock) == pytest.approx(expected, abs=1e-15), (rounds, later)


def test_update_clock():
    rounds, later = np.array([0, 0, 7, 7]), np.array([False, True, False, True])
    np.testing.assert_array_equal(schedules.update_clock(rounds, later), rounds)
    doubled = schedules.update_clock(rounds, later, official_advance_within_round=True)
    np.testing.assert_array_equal(doubled, [0, 1, 14, 15])
    traced = jax.jit(schedules.update_clock, static_argnames="official_advance_within_round")(
        jnp.int32(7), jnp.bool_(True), official_advance_within_round=True
    )
    assert traced.dtype == jnp.int32
    assert traced == 15


@pytest.mark.parametrize("warmup", [0, 0.25, 1, 7.5, 20, T])
def test_formulae(warmup):
    for s in range(T + 3):
        up = 1.0 if s >= warmup else s / max(1.0, warmup)
        down = max(0.0, (T - s) / max(1.0, T - warmup))
        progress = min(1.0, max(0.0, s - warmup) / max(1.0, T - warmup))
        expected = {
            "constant": up,
            "linear": up if s < warmup else down,
            "cosine": up * (1 + math.cos(math.pi * progress)) / 2,
            "step": up * (1.0 if s < 20 else 0.2 if s < 41 else 0.04),
        }
        for kind, value in expected.items():
            assert make(kind, warmup=warmup)(s) == pytest.approx(value, abs=1e-12), (kind, s)


def test_are_those_of_optax():
    theirs = {
        "cosine": optax.warmup_cosine_decay_schedule(0.0, 1.0, 8, T),
        "linear": optax.join_schedules(
            [optax.linear_schedule(0.0, 1.0, 8), optax.linear_schedule(1.0, 0.0, T - 8)], [8]
        ),
        "constant": optax.warmup_constant_schedule(0.0, 1.0, 8),
    }
    for kind, schedule in theirs.items():
        ours = make(kind, warmup=8)(np.arange(T + 1))
        np.testing.assert_allclose(ours, [schedule(s) for s in range(T + 1)], atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "options",
    [{}, dict(official_advance_before_update=True), dict(official_advance_within_round=True)],
)
@pytest.mark.parametrize("warmup", [0, WARM])
def test_clocks_of_every_type(name, options, warmup):
    factor, clocks = make(name, warmup=warmup, **options), np.arange(2 * T + 4, dtype=np.int32)
    one_by_one = [factor(int(clock)) for clock in clocks]
    assert all(isinstance(value, float) for value in one_by_one)  # no device needed, fit for JSON
    assert min(one_by_one) >= 0 and 0.95 < max(one_by_one) <= 1
    np.testing.assert_array_equal(factor(clocks), one_by_one)
    traced = jax.jit(factor)(clocks)
    assert traced.shape == clocks.shape and traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, one_by_one, atol=3e-7)
    scalar = jax.jit(factor)(jnp.int32(3))
    assert scalar.shape == () and scalar.dtype == jnp.float32
    np.testing.assert_allclose(scalar, one_by_one[3], atol=3e-7)


def test_pretraining_ends_at_zero():
    factor = make("linear", official_advance_before_update=True)
    assert factor(0) > 0
    assert factor(T - 2) > 0
    assert factor(T - 1) == 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("lineer", 10), {}, "schedule 'lineer': known are constant, linear, cosine, step"),
        (("linear", 0), {}, "total=0"),
        (("linear", 10, 11), {}, "warmup=11 is not within the 10 rounds"),
        (("linear", 10, -1), {}, "warmup=-1"),
        (("linear", 10, math.nan), {}, "warmup=nan"),
        (("linear", 10), dict(boundaries=(5,)), "are for schedule 'step', not 'linear'"),
        (("cosine", 10), dict(official_epoch_rounds=5), "are for schedule 'step', not 'cosine'"),
        (("step", 10), {}, "needs boundaries"),
        (("step", 10), dict(boundaries=(5, 3)), r"boundaries=\(5, 3\) must be positive and incr"),
        (("step", 10), dict(boundaries=(5, 5)), "increasing"),
        (("step", 10), dict(boundaries=(0, 5)), "positive"),
        (("step", 10), dict(boundaries=(5,), decay=0), "decay=0"),
        (("step", 10), dict(boundaries=(5,), decay=1.5), "decay=1.5"),
        (("step", 10), dict(boundaries=(5,), official_epoch_rounds=0), "official_epoch_rounds=0"),
        (
            ("linear", 10),
            dict(official_advance_before_update=True, official_advance_within_round=True),
            "set one of them",
        ),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        schedules.make(*arguments, **options)


def test_options_differ():
    """Or else the comparisons above could not tell them apart."""
    clocks = np.arange(T)
    runs = [
        make("step")(clocks),
        make("rewritten")(clocks),
        make("rewritten", official_advance_before_update=True)(clocks),
        make("rewritten", official_advance_within_round=True)(2 * clocks + 1),
    ]
    for one, other in itertools.combinations(runs, 2):
        assert np.abs(one - other).max() > 0.1
