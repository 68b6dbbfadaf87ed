"""What a run's settings become."""

import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one import configs
from twelve_in_one.config.check import check
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.training import job


@pytest.mark.parametrize("name", ["adamw", "radam", "adafactor", "sgd", "nesterov"])
def test_every_optimizer_descends_and_decays(name):
    config = configs.get("world:debug")
    config.optimizer.name = name
    config.optimizer.learning_rate, config.optimizer.warmup_share = 0.1, 0.0
    run = check(config)
    groups = (ParamGroup("frozen", 0.0), ParamGroup("decays", 1.0, 0.5), ParamGroup(".*"))
    rate, optimizer = job.optimizer_of(run, groups)
    params = {k: jnp.full((3,), 2.0) for k in ("frozen", "decays", "rest")}
    grads = {k: jnp.full((3,), 0.5) for k in params}
    updates, _ = optimizer.update(grads, optimizer.init(params), params, clock=jnp.int32(0))
    assert rate(0) == pytest.approx(0.1)
    np.testing.assert_array_equal(updates["frozen"], 0.0)
    assert (updates["rest"] < 0).all() and (updates["decays"] < updates["rest"]).all()


def test_momentum_is_b1():
    config = configs.get("world:debug")
    config.optimizer.name, config.optimizer.b1 = "sgd", 0.25
    config.optimizer.learning_rate, config.optimizer.schedule = 0.1, "constant"
    config.optimizer.warmup_share = 0.0
    _, optimizer = job.optimizer_of(check(config), (ParamGroup(".*"),))
    params = {"w": jnp.zeros(2)}
    state, steps = optimizer.init(params), []
    for _ in range(2):
        updates, state = optimizer.update({"w": jnp.ones(2)}, state, params)
        steps.append(float(updates["w"][0]))
    np.testing.assert_allclose(steps, [-0.1, -0.125], rtol=1e-6)
