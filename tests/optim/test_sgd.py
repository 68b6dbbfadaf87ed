"""SGD against optax, PyTorch and a loop in NumPy, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.optim.sgd import sgd

RATE, MOMENTUM = 1e-2, 0.9
SHAPES = {"a": (3, 2), "b": (4,), "c": (2, 2)}
GROUPS = (ParamGroup("a", 5.0, 0.1), ParamGroup("b", 0.0, 0.1), ParamGroup(".*", 0.5, 0.01))


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


GRADIENTS = [draw(seed) for seed in range(1, 7)]


def run(optimizer, clocks=None):
    params = jax.tree.map(jnp.asarray, draw(0))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for t, grads in enumerate(GRADIENTS):
        clock = {} if clocks is None else {"clock": jnp.int32(clocks[t])}
        updates, state = update(grads, state, params, **clock)
        params = optax.apply_updates(params, updates)
    return params, state


def loop(nesterov, rate):
    """The rule in float64; its first momentum is the gradient itself."""
    params = {name: value.astype(np.float64) for name, value in draw(0).items()}
    sums = {name: np.zeros_like(value) for name, value in params.items()}
    for t, grads in enumerate(GRADIENTS):
        for name, param in params.items():
            group = next(g for g in GROUPS if g.pattern in (name, ".*"))
            grad = grads[name] + group.weight_decay * param
            sums[name] = MOMENTUM * sums[name] + grad
            step = grad + MOMENTUM * sums[name] if nesterov else sums[name]
            param -= rate(t) * group.learning_rate * step
    return params


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("clocks", [None, [0, 0, 0, 1, 1, 3]])
def test_groups_momentum_and_clock(nesterov, clocks):
    def rate(clock):
        return RATE * (1 - clock / 5)

    ours, state = run(sgd(rate, GROUPS, nesterov=nesterov), clocks)
    expected = loop(nesterov, lambda t: rate(t if clocks is None else clocks[t]))
    for name, theirs in expected.items():
        np.testing.assert_allclose(ours[name], theirs, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(ours["b"], draw(0)["b"])
    kept = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert kept == sorted([SHAPES["a"], SHAPES["c"]])  # nothing of what is frozen


@pytest.mark.parametrize("nesterov", [False, True])
def test_is_that_of_torch(nesterov):
    torch = pytest.importorskip("torch")
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in draw(0).items()}
    optimizer = torch.optim.SGD(
        theirs.values(), lr=RATE, momentum=MOMENTUM, weight_decay=0.1, nesterov=nesterov
    )
    for grads in GRADIENTS:
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        optimizer.step()
    ours, _ = run(sgd(RATE, [ParamGroup(".*", 1.0, 0.1)], nesterov=nesterov))
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_bad_settings():
    with pytest.raises(ValueError, match="momentum=1 must be at least 0 and below 1"):
        sgd(RATE, GROUPS, momentum=1)
    with pytest.raises(ValueError, match="2 parameters match no group"):
        sgd(RATE, GROUPS[:1]).init(draw(0))
