"""The optimizers against recorded runs, PyTorch, optax and loops in NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from twelve_in_one.optim.adamw import adamw, clip_by_global_norm, radam
from twelve_in_one.optim.param_groups import ParamGroup

SHAPES = {"a": (3, 2), "b": (4,), "c": (2, 2)}
GROUPS = (ParamGroup("a", 5.0, 0.0), ParamGroup("b", 1.0, 0.1), ParamGroup(".*", 0.5, 0.01))
RATE = 1e-2


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def run(optimizer, gradients):
    params = jax.tree.map(jnp.asarray, draw(0))
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def loop(gradients, *, correct=True, decay_after=False, unreached="step", rate=lambda t: RATE):
    """The update rule, one parameter at a time, in float64."""
    params = {name: value.astype(np.float64) for name, value in draw(0).items()}
    moments = {name: [np.zeros_like(p), np.zeros_like(p)] for name, p in params.items()}
    touched = set()
    for t, grads in enumerate(gradients):
        for name, param in params.items():
            group = next(g for g in GROUPS if g.pattern in (name, ".*"))
            grad = grads[name].astype(np.float64)
            reached = bool(grad.any())
            if unreached == "skip" and not reached:
                continue
            if unreached == "skip_until_touched" and not reached and name not in touched:
                continue
            touched.add(name)
            m, v = moments[name]
            m[...] = 0.9 * m + 0.1 * grad
            v[...] = 0.999 * v + 0.001 * grad**2
            scale = (1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)) if correct else (1, 1)
            lr = rate(t) * group.learning_rate
            step = lr * (m / scale[0]) / (np.sqrt(v / scale[1]) + 1e-6)
            if decay_after:
                param -= step
                param -= lr * group.weight_decay * param
            else:
                param -= step + lr * group.weight_decay * param
    return params


def assert_close(ours, theirs, rtol=1e-5):
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=rtol, atol=1e-6, err_msg=name)


GRADIENTS = [draw(seed) for seed in range(1, 7)]
# Parameter b is reached in the second and fourth update, c never.
SPARSE = [
    grads | {"c": np.zeros((2, 2), np.float32)} | ({} if t in (1, 3) else {"b": np.zeros(4, "f")})
    for t, grads in enumerate(GRADIENTS)
]


def test_is_that_of_optax():
    """With one group; optax has no groups of its own."""
    ours, _ = run(adamw(RATE, [ParamGroup(".*", 1.0, 0.1)], eps=1e-6), GRADIENTS)
    theirs, _ = run(optax.adamw(RATE, eps=1e-6, weight_decay=0.1), GRADIENTS)
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(official_no_bias_correction=True),
        dict(official_decay_after_update=True),
        dict(official_no_bias_correction=True, official_decay_after_update=True),
    ],
)
def test_groups_and_options(options):
    ours, _ = run(adamw(RATE, GROUPS, **options), GRADIENTS)
    expected = loop(
        GRADIENTS,
        correct="official_no_bias_correction" not in options,
        decay_after="official_decay_after_update" in options,
    )
    assert_close(ours, expected)


@pytest.mark.parametrize("unreached", ["step", "skip", "skip_until_touched"])
def test_unreached_parameters(unreached):
    ours, state = run(adamw(RATE, GROUPS, official_unreached=unreached), SPARSE)
    assert_close(ours, loop(SPARSE, unreached=unreached))
    start = draw(0)
    never_moved = np.array_equal(ours["c"], start["c"])
    assert never_moved == (unreached != "step")  # it decays where it is not skipped
    if unreached == "skip":
        before, _ = run(adamw(RATE, GROUPS, official_unreached=unreached), SPARSE[:4])
        np.testing.assert_array_equal(ours["b"], before["b"])  # not reached in the last two
        np.testing.assert_array_equal(state.mu["c"], 0)


def test_the_three_ways_differ():
    """Or else the comparison above could not tell them apart."""
    ends = [
        run(adamw(RATE, GROUPS, official_unreached=way), SPARSE)[0]["b"]
        for way in ("step", "skip", "skip_until_touched")
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(ends[i] - ends[j]).max() > 1e-4


def test_schedule_counts_updates_from_zero():
    schedule = optax.linear_schedule(RATE, 0.0, 5)
    ours, state = run(adamw(schedule, GROUPS), GRADIENTS)
    assert_close(ours, loop(GRADIENTS, rate=lambda t: RATE * max(0.0, 1 - t / 5)))
    assert state.count == len(GRADIENTS)


def test_multiplier_zero_freezes():
    ours, _ = run(adamw(RATE, [ParamGroup("a", 0.0, 0.1), ParamGroup(".*")]), GRADIENTS)
    np.testing.assert_array_equal(ours["a"], draw(0)["a"])
    assert np.abs(ours["b"] - draw(0)["b"]).max() > 0


def test_state_has_no_shared_buffers():
    """A step that donates its state would fail on one."""
    optimizer = adamw(RATE, GROUPS)
    params = jax.tree.map(jnp.asarray, draw(0))
    state = optimizer.init(params)
    step = jax.jit(lambda s, p: optimizer.update(draw(1), s, p), donate_argnums=0)
    _, state = step(state, params)
    assert state.count == 1


def test_update_needs_parameters():
    optimizer = adamw(RATE, GROUPS)
    with pytest.raises(ValueError, match=r"update\(grads, state, params\)"):
        optimizer.update(draw(1), optimizer.init(draw(0)))


def test_every_parameter_needs_a_group():
    with pytest.raises(ValueError, match=r"2 parameters match no group, first \['b', 'c'\]"):
        adamw(RATE, [ParamGroup("a")]).init(draw(0))


def test_first_updates_keep_their_digits():
    """1 - b^t by subtraction loses half of float32's digits while t is small."""
    grads = [{"p": np.full(1, 0.5, np.float32)}] * 5
    optimizer = adamw(1.0, [ParamGroup(".*")], b2=0.9999, eps=0.0)
    params = {"p": jnp.zeros(1)}
    state = optimizer.init(params)
    for t, grad in enumerate(grads):
        updates, state = jax.jit(optimizer.update)(grad, state, params)
        np.testing.assert_allclose(updates["p"], -1.0, rtol=5e-7, err_msg=str(t))


# --------------------------------------------------------------------------- recorded runs

TRACE_ATOL = 5e-7  # four roundings of the largest parameter


def follow(optimizer, params, grads):
    """The parameters after every update."""
    params = jax.tree.map(jnp.float32, params)
    state, history = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def released(name, lr, weight_decay=0.0, betas=(0.9, 0.999), eps=None, correct_bias=True):
    """The optimizer that a recorded run was made with, from its name and arguments."""
    groups, b = [ParamGroup(".*", 1.0, weight_decay)], dict(b1=betas[0], b2=betas[1])
    if name.startswith("AdamW"):
        return adamw(
            lr,
            groups,
            eps=1e-6 if eps is None else eps,
            official_no_bias_correction=not correct_bias,
            official_uncorrected_eps=True,
            official_decay_after_update=True,
            **b,
        )
    assert name.endswith("RAdam")
    return radam(lr, groups, eps=1e-8 if eps is None else eps, **b)


def test_recorded_runs(recorded_dir):
    """Every entry: those of one tensor, and those of two with a learning rate each."""
    runs = json.loads((recorded_dir / "optim_traces.json").read_text())["optim"]
    start, grads = np.float32(runs.pop("initial")), np.float32(runs.pop("grads"))
    assert runs
    for name, trace in runs.items():
        if "args" in trace:
            history = follow(
                released(name, **trace["args"]), {"w": start}, [{"w": g} for g in grads]
            )
            ours = np.stack([params["w"] for params in history])
            expected = np.float32(trace["params_after_each_step"])
            np.testing.assert_allclose(ours, expected, rtol=0, atol=TRACE_ATOL, err_msg=name)
            continue
        first, second = trace["lrs"]
        groups = [
            ParamGroup("a", 1.0, trace["weight_decay"]),
            ParamGroup("b", second / first, trace["weight_decay"]),
        ]
        optimizer = radam(first, groups, official_shared_step_size=True)
        pairs = [{"a": grad, "b": grad} for grad in grads]
        last = follow(optimizer, {"a": start, "b": start}, pairs)[-1]
        for key in "ab":
            expected = np.float32(trace[f"final_{key}"])
            np.testing.assert_allclose(last[key], expected, rtol=0, atol=TRACE_ATOL)


@pytest.mark.parametrize(
    "option",
    ["official_no_bias_correction", "official_uncorrected_eps", "official_decay_after_update"],
)
def test_official_options_show_in_such_runs(option):
    """Or else the runs above could not tell them apart: their gradients go down to 1e-3."""
    groups = [ParamGroup(".*", 1.0, 0.01)]
    grads = [jax.tree.map(lambda g: 1e-3 * g, grad) for grad in GRADIENTS]
    with_it, _ = run(adamw(RATE, groups, **{option: True}), grads)
    without, _ = run(adamw(RATE, groups), grads)
    assert max(np.abs(with_it[k] - without[k]).max() for k in SHAPES) > 2e-6


# --------------------------------------------------------------------------- RAdam


@pytest.mark.parametrize("b2", [0.5, 0.67, 0.9, 0.98, 0.999, 0.9999])
def test_radam_is_that_of_torch(b2):
    """Which adds eps to another root, so without it; b2 = 0.5 never gets to be rectified."""
    torch = pytest.importorskip("torch")
    steps, start = 25, draw(0)["a"].astype(np.float64)
    rng = np.random.default_rng(3)
    grads = rng.normal(size=(steps, *start.shape)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.RAdam(
        [theirs],
        lr=RATE,
        betas=(0.8, b2),
        eps=1e-30,
        weight_decay=0.1,
        decoupled_weight_decay=True,
    )
    groups = [ParamGroup(".*", 1.0, 0.1)]
    history = follow(
        radam(RATE, groups, b1=0.8, b2=b2, eps=0.0), {"w": start}, [{"w": g} for g in grads]
    )
    for params, grad in zip(history, grads, strict=True):
        theirs.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        np.testing.assert_allclose(params["w"], theirs.detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999])
def test_radam_at_any_count(b2):
    """The factor on the step, whose formula is a difference of large numbers, in float64."""
    optimizer = radam(1.0, [ParamGroup(".*")], b1=0.5, b2=b2, eps=0.0)
    one = {"w": jnp.ones(1)}
    update = jax.jit(optimizer.update)
    for t in [*range(1, 30), 100, 300, 999, 1001, 3000, 20_000, 10**6]:
        state = optimizer.init(one)._replace(count=jnp.int32(t - 1), mu=one, nu=one)
        updates, _ = update(one, state, one)  # both moments stay 1
        correction, n_max = 1 - b2**t, 2 / (1 - b2) - 1
        n = n_max - 2 * t * b2**t / correction
        factor = 1.0
        if n >= 5:
            ratio = (n - 4) / (n_max - 4) * (n - 2) / n * n_max / (n_max - 2)
            factor = np.sqrt(correction * ratio)
        expected = -factor / (1 - 0.5**t)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-6, err_msg=str(t))


def released_radam(groups, gradients, *, share):
    """The released loop in float64, with its ten slots of (step number, n, step size)."""
    params = {name: value.astype(np.float64) for name, value in draw(0).items()}
    moments = {name: [np.zeros_like(p), np.zeros_like(p)] for name, p in params.items()}
    slots = [(None, None, None)] * 10
    for t, grads in enumerate(gradients, 1):
        for name, param in params.items():
            group, grad = next(g for g in groups if g.pattern in (name, ".*")), grads[name]
            if group.learning_rate == 0:
                continue
            lr, (m, v) = RATE * group.learning_rate, moments[name]
            m[...] = 0.9 * m + 0.1 * grad
            v[...] = 0.999 * v + 0.001 * grad.astype(np.float64) ** 2
            if share and slots[t % 10][0] == t:
                _, n, size = slots[t % 10]
            else:
                correction = 1 - 0.999**t
                n, size = 1999 - 2 * t * 0.999**t / correction, lr / (1 - 0.9**t)
                if n >= 5:
                    ratio = (n - 4) / 1995 * (n - 2) / n * 1999 / 1997
                    size *= np.sqrt(correction * ratio)
                slots[t % 10] = (t, n, size)
            param -= lr * group.weight_decay * param
            param -= size * (m / (np.sqrt(v) + 1e-8) if n >= 5 else m)
    return params


@pytest.mark.parametrize("share", [False, True])
def test_radam_groups(share):
    gradients = [draw(seed) for seed in range(1, 24)]
    ours, _ = run(radam(RATE, GROUPS, official_shared_step_size=share), gradients)
    assert_close(ours, released_radam(GROUPS, gradients, share=share), rtol=2e-6)


def test_radam_does_not_share_the_rate_of_a_frozen_group():
    groups = [ParamGroup("a", 0.0), *GROUPS[1:]]
    ours, _ = run(radam(RATE, groups, official_shared_step_size=True), GRADIENTS)
    assert_close(ours, released_radam(groups, GRADIENTS, share=True))


# --------------------------------------------------------------------------- clock


def with_clocks(optimizer, gradients, clocks):
    params = jax.tree.map(jnp.asarray, draw(0))
    state = optimizer.init(params)
    update = jax.jit(lambda g, s, p, clock: optimizer.update(g, s, p, clock=clock))
    for grads, clock in zip(gradients, clocks, strict=True):
        updates, state = update(grads, state, params, jnp.int32(clock))
        params = optax.apply_updates(params, updates)
    return params, state


CLOCKS = [0, 0, 0, 1, 1, 3]


def rate_at(clock):
    return RATE * (1 - clock / 5)


def test_rate_follows_the_clock_and_moments_the_updates():
    ours, state = with_clocks(adamw(rate_at, GROUPS), GRADIENTS, CLOCKS)
    assert_close(ours, loop(GRADIENTS, rate=lambda t: rate_at(CLOCKS[t])))
    assert state.count == len(GRADIENTS)


@pytest.mark.parametrize("optimizer", [adamw, radam])
def test_clock_defaults_to_the_updates(optimizer):
    ours, _ = with_clocks(optimizer(rate_at, GROUPS), GRADIENTS, range(6))
    default, _ = run(optimizer(rate_at, GROUPS), GRADIENTS)
    other, _ = with_clocks(optimizer(rate_at, GROUPS), GRADIENTS, CLOCKS)
    constant, _ = with_clocks(optimizer(RATE, GROUPS), GRADIENTS, CLOCKS)
    fixed, _ = run(optimizer(RATE, GROUPS), GRADIENTS)
    for name in SHAPES:
        np.testing.assert_array_equal(ours[name], default[name])
        np.testing.assert_array_equal(constant[name], fixed[name])
        assert np.abs(other[name] - ours[name]).max() > 1e-4


@pytest.mark.parametrize("optimizer", [adamw, radam])
def test_clock_goes_through_chains_and_wrappers(optimizer):
    plain, _ = with_clocks(optimizer(rate_at, GROUPS), GRADIENTS, CLOCKS)
    chain = optax.chain(
        optax.clip_by_global_norm(1e6), optimizer(rate_at, GROUPS), optax.scale(1.0)
    )
    wrapped = optax.apply_if_finite(optax.with_extra_args_support(chain), 3)
    repeated = [grads for grads in GRADIENTS for _ in range(2)]
    twice = optax.MultiSteps(wrapped, every_k_schedule=2)
    for ours, _ in (
        with_clocks(wrapped, GRADIENTS, CLOCKS),
        with_clocks(twice, repeated, np.repeat(CLOCKS, 2)),
    ):
        assert_close(ours, plain, rtol=1e-6)


# --------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 2.0, 100.0])
def test_clipping(max_norm):
    grads = draw(5)
    expected = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
    clipped, norm = jax.jit(clip_by_global_norm, static_argnums=1)(grads, max_norm)
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    theirs, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
    for name, grad in grads.items():
        np.testing.assert_allclose(clipped[name], theirs[name], rtol=1e-6)
        if max_norm > expected:
            np.testing.assert_array_equal(clipped[name], grad)
    _, after = clip_by_global_norm(clipped, 0)
    np.testing.assert_allclose(after, min(expected, max_norm), rtol=1e-6)


def test_zero_clips_nothing():
    grads = jax.tree.map(lambda g: 1e6 * g, draw(5))
    clipped, norm = clip_by_global_norm(grads, 0)
    assert norm > 1e6
    for name, grad in grads.items():
        np.testing.assert_array_equal(clipped[name], grad)


def test_clipping_of_half_precision_sums_in_float32():
    grads = {"a": jnp.full(100_000, 1e-2, jnp.bfloat16), "b": jnp.ones(3)}
    size = float(grads["a"][0])  # of 1e-2 in bfloat16
    clipped, norm = clip_by_global_norm(grads, 1.0)
    assert norm.dtype == jnp.float32
    assert clipped["a"].dtype == jnp.bfloat16 and clipped["b"].dtype == jnp.float32
    np.testing.assert_allclose(norm, np.sqrt(1e5 * size**2 + 3), rtol=1e-5)


@pytest.mark.parametrize("max_norm", [0, 1.0])
def test_clipping_of_nothing_and_of_too_much(max_norm):
    zeros = {"a": jnp.zeros(3)}
    clipped, norm = clip_by_global_norm(zeros, max_norm)
    assert norm == 0
    np.testing.assert_array_equal(clipped["a"], 0)
    _, norm = clip_by_global_norm({"a": jnp.array([1.0, jnp.nan]), "b": jnp.ones(2)}, max_norm)
    assert np.isnan(norm)


@pytest.mark.parametrize("max_norm", [-1.0, float("nan")])
def test_clipping_refuses(max_norm):
    with pytest.raises(ValueError, match=f"max_norm={max_norm}"):
        clip_by_global_norm(draw(1), max_norm)


# --------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    "optimizer",
    [
        adamw(RATE, [ParamGroup("a", 0.0, 0.1), *GROUPS]),
        adamw(RATE, [ParamGroup("a", 0.0, 0.1), *GROUPS], official_decay_after_update=True),
        adamw(RATE, [ParamGroup("a", 0.0, 0.1), *GROUPS], official_unreached="skip_until_touched"),
        radam(RATE, [ParamGroup("a", 0.0, 0.1), *GROUPS]),
    ],
)
def test_frozen_groups_stay_exactly_as_they_are(optimizer):
    """Whatever their gradients, and with moments from before they were frozen."""
    params, state = run(adamw(RATE, GROUPS), GRADIENTS)
    state = optimizer.init(params)._replace(count=state.count, mu=state.mu, nu=state.nu)
    grads = draw(9) | {"a": np.full(SHAPES["a"], np.nan, np.float32)}
    updates, after = jax.jit(optimizer.update)(grads, state, params)
    new = optax.apply_updates(params, updates)
    for ours, before in ((new, params), (after.mu, state.mu), (after.nu, state.nu)):
        np.testing.assert_array_equal(ours["a"], before["a"])
        assert np.abs(ours["b"] - before["b"]).max() > 0
    assert np.isfinite(new["b"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adamw(RATE, GROUPS, b1=1.0), "b1=1.0"),
        (lambda: radam(RATE, GROUPS, b2=-0.1), "b2=-0.1"),
        (lambda: adamw(RATE, GROUPS, official_unreached="Skip"), "official_unreached='Skip'"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
