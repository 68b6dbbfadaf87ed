"""Batches whose rows are compared with each other, in parts: the numbers of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.parallel.sharding import make_mesh, use
from twelve_in_one.systems.base import Joint, Objective
from twelve_in_one.tasks.contrastive import contrastive_loss
from twelve_in_one.tasks.losses import Sums
from twelve_in_one.training import steps

ROWS, PARTS = 16, 2
ZERO = jnp.zeros(())


def draw_rows(params, batch, key):
    """Vectors under dropout, and a loss of each row's own."""
    keep = jax.random.bernoulli(key, 0.7, (len(batch["x"]), 5))
    hidden = jnp.tanh(batch["x"] @ params["x"]) * keep
    vectors = {"image": hidden, "text": jnp.tanh(batch["y"] @ params["y"])}
    own = jnp.where(batch["_mask"], jnp.sum(hidden**2, axis=1), 0.0)
    count = jnp.sum(batch["_mask"], dtype=jnp.float32)
    sums = (jnp.sum(own), jnp.sum(own > 1, dtype=jnp.float32), count)
    return vectors, Sums(*(jnp.stack([x, ZERO]) for x in sums))


def compare_rows(params, vectors, batch):
    found = contrastive_loss(
        vectors["image"], vectors["text"], params["scale"], batch["_mask"], form="softmax"
    )
    return Sums(*(jnp.stack([ZERO, x]) for x in found.sums))


JOINT = Joint(draw_rows, compare_rows)
OBJECTIVE = Objective(
    "joint",
    ("own", "contrast"),
    JOINT.loss,
    lambda batch: jnp.full(2, jnp.sum(batch["_mask"], dtype=jnp.float32)),
    joint=JOINT,
    weights=(0.5, 2.0),
)


def as_one(params, step, batch, key):
    """The gradient of all parts at once: each draws its own masks, as it does alone."""
    key = jax.random.fold_in(jax.random.fold_in(key, step), batch["task_id"])
    arrays = {name: x for name, x in batch.items() if np.ndim(x)}

    def loss(params):
        drawn = [
            draw_rows(
                params, {k: x[i::PARTS] for k, x in arrays.items()}, jax.random.fold_in(key, i)
            )
            for i in range(PARTS)
        ]
        own = jax.tree.map(lambda *x: sum(x), *(sums for _, sums in drawn))
        vectors = jax.tree.map(
            lambda *x: jnp.stack(x, 1).reshape(ROWS, -1), *(vectors for vectors, _ in drawn)
        )
        sums = jax.tree.map(jnp.add, own, compare_rows(params, vectors, batch))
        weights = jnp.array(OBJECTIVE.weights)
        return 3.0 * jnp.sum(weights * sums.loss / jnp.sum(batch["_mask"])), sums

    return jax.grad(loss, has_aux=True)(params)


@pytest.mark.parametrize("devices", [1, 8])
def test_parts_have_the_gradient_of_the_whole(devices):
    rng = np.random.default_rng(0)
    params = {
        "x": rng.normal(size=(4, 5)).astype(np.float32),
        "y": rng.normal(size=(3, 5)).astype(np.float32),
        "scale": np.float32(1.5),
    }
    batch = {
        "x": rng.normal(size=(ROWS, 4)).astype(np.float32),
        "y": rng.normal(size=(ROWS, 3)).astype(np.float32),
        "_mask": np.arange(ROWS) < ROWS - 1,
        "task_id": np.int32(2),
    }
    key, grad_step = (
        jax.random.key(0),
        steps.make_grad_step(OBJECTIVE, loss_scale=3.0, accumulate=PARTS),
    )
    expected, sums = jax.jit(as_one)(params, 7, batch, key)
    mesh = make_mesh(devices=jax.devices()[:devices])
    with use(mesh, "dp"):
        split = jax.NamedSharding(mesh, jax.P("data"))
        placed = {k: jax.device_put(x, split) if np.ndim(x) else x for k, x in batch.items()}
        gradient, metrics = jax.jit(grad_step)(params, 7, placed, key)
    assert gradient.ok
    for name, ours in gradient.grads.items():
        np.testing.assert_allclose(ours, expected[name], rtol=2e-6, atol=1e-6, err_msg=name)
    for ours, theirs in zip(metrics.sums, sums, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
