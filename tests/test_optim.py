"""AdamW and parameter groups against optax, a loop in NumPy and hand-written tables."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from twelve_in_one.convert.names import flatten
from twelve_in_one.models.config import ALL_HEADS
from twelve_in_one.models.two_stream import abstract_params
from twelve_in_one.optim import ParamGroup, adamw, assign_groups, two_stream_groups

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


def test_first_match_wins_and_whole_paths_match():
    tree = assign_groups({"a": 0, "ab": {"a": 0}}, [ParamGroup("a", 3.0), ParamGroup(".*", 2.0)])
    assert tree["a"].learning_rate == 3.0
    assert tree["ab"]["a"].learning_rate == 2.0


# --------------------------------------------------------------------------- the model's groups

ENCODER = "trunk/encoder/"
EXPECTED = {  # path: (multiplier, decays, decays under the released rule)
    "trunk/text_embedding/word/embedding": (1, True, True),
    "trunk/text_embedding/norm/scale": (1, False, False),
    ENCODER + "text_layer_0/attention/query/kernel": (1, True, True),
    ENCODER + "text_layer_0/attention/query/bias": (1, False, False),
    ENCODER + "text_layer_0/feed_forward/norm/scale": (1, False, False),
    ENCODER + "connection_0/text_norm/scale": (1, False, True),
    ENCODER + "connection_1/visual_norm/scale": (1, False, True),
    ENCODER + "connection_1/visual_norm/bias": (1, False, False),
    ENCODER + "connection_0/text_feed_forward/norm/scale": (1, False, False),
    "heads/vqa/hidden/kernel": (5, True, True),
    "heads/vqa/norm/scale": (5, False, True),
    "heads/vqa/norm/bias": (5, False, False),
    "heads/image_pair/logits/bias": (5, False, False),
    "heads/three_way/kernel": (5, True, True),
    "heads/image_text_match/bias": (5, False, False),
    "heads/region_score/kernel": (1, True, True),
    "heads/token_score/bias": (1, False, False),
    "heads/masked_language/norm/scale": (1, False, False),
    "heads/masked_region/dense/kernel": (1, True, True),
    "heads/masked_language_bias": (1, False, False),
}


@pytest.mark.parametrize("official", [False, True])
def test_two_stream_groups(tiny_config, official):
    params = nn.unbox(abstract_params(tiny_config(heads=ALL_HEADS)))
    groups = two_stream_groups(
        head_learning_rate=5, weight_decay=0.01, official_decayed_norms=official
    )
    assigned = {"/".join(p): g for p, g in flatten(assign_groups(params, groups)).items()}
    for path, (multiplier, decays, official_decays) in EXPECTED.items():
        group = assigned[path]
        assert group.learning_rate == multiplier, path
        assert bool(group.weight_decay) == (official_decays if official else decays), path
    norms_and_biases = [p for p in assigned if p.rsplit("/")[-1] in ("bias", "scale")]
    if not official:
        assert all(assigned[path].weight_decay == 0 for path in norms_and_biases)
