"""AdaFactor against arrays recorded from big_vision, and what it keeps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.optim import adamw, schedules
from twelve_in_one.optim.adafactor import adafactor
from twelve_in_one.optim.param_groups import ParamGroup

FROZEN = "encoder/.*"


@pytest.fixture(scope="module")
def recorded(shared_dir):
    with np.load(shared_dir / "fixtures" / "bv_adafactor.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _tree(recorded, prefix, index=None):
    flat = {
        tuple(name[len(prefix) :].split("/")): array if index is None else array[index]
        for name, array in recorded.items()
        if name.startswith(prefix)
    }
    return unflatten(flat)


def _settings(recorded):
    return json.loads(str(recorded["config_json"]))


def test_training_equals_big_visions(recorded):
    """Clipped without the frozen part, scheduled, decayed: 8 updates."""
    settings = _settings(recorded)
    total = settings["total_steps"]
    factor = schedules.make(
        "cosine", total, max(1, round(settings["warmup_percent"] * total)), boundaries=()
    )
    np.testing.assert_allclose(factor(np.arange(total + 1)), recorded["train/schedule"], atol=1e-6)
    groups = (
        ParamGroup(FROZEN, 0.0),
        ParamGroup(".*/kernel", 1.0, settings["wd"]),
        ParamGroup(".*"),
    )
    optimizer = adafactor(settings["lr"], factor, groups)
    params = _tree(recorded, "param/")
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads, clock):
        learnt = {k: v for k, v in grads.items() if k != "encoder"}
        learnt, norm = adamw.clip_by_global_norm(learnt, settings["grad_clip_norm"])
        updates, state = optimizer.update(grads | learnt, state, params, clock=clock)
        return optax.apply_updates(params, updates), state, norm

    for i in range(settings["steps"]):
        params, state, norm = step(params, state, _tree(recorded, "grad/", i), jnp.int32(i))
        np.testing.assert_allclose(norm, recorded["train/grad_norm"][i], rtol=1e-5)
        last = i == settings["steps"] - 1
        for path, ours in flatten(params).items():
            name = "/".join(path)
            theirs = recorded[f"train/param/{name}"][i]
            error = np.max(np.abs(ours - theirs))
            if last:  # compiled and op by op, big_vision rounds its momentum differently
                eager = recorded[f"train_eager/param_last/{name}"]
                error = min(error, np.max(np.abs(ours - eager)))
            assert error <= (1e-5 if last else 2e-4), (name, i)


def test_late_updates_equal_big_visions(recorded):
    """The bare transformation with its count set, past where the decay stops growing."""
    optimizer = adafactor(1.0, lambda clock: 1.0, (ParamGroup(FROZEN, 0.0), ParamGroup(".*")))
    params = _tree(recorded, "param/")
    state = optimizer.init(params)
    for row, (index, count) in enumerate(
        zip(recorded["raw/grad_index"], recorded["raw/count"], strict=True)
    ):
        second, first = state.inner_state
        state = state._replace(inner_state=(second._replace(count=jnp.int32(count)), first))
        grads = _tree(recorded, "grad/", index)
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        for path, theirs in flatten(_tree(recorded, "raw/update/", row)).items():
            ours = -flatten(updates)[path]
            scale = np.max(np.abs(theirs))
            assert np.max(np.abs(ours - theirs)) <= 1e-5 * scale, (path, row)


def test_little_is_kept_and_nothing_of_what_is_frozen():
    params = {"a": {"kernel": jnp.ones((2, 64, 48))}, "encoder": {"kernel": jnp.ones((64, 48))}}
    groups = (ParamGroup(FROZEN, 0.0), ParamGroup(".*"))
    optimizer = adafactor(1e-3, lambda clock: 1.0, groups)
    state = optimizer.init(params)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 1)
    assert shapes == [(2, 48), (2, 64), (2, 64, 48)]  # v's means, and the momentum
    (momentum,) = (leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 64, 48))
    assert momentum.dtype == jnp.bfloat16
    updates, _ = optimizer.update(params, state, params)
    assert not updates["encoder"]["kernel"].any() and updates["a"]["kernel"].all()


def test_decay_follows_the_schedule_and_not_the_rate():
    params = {"kernel": jnp.full((3,), 2.0)}
    grads = {"kernel": jnp.zeros((3,))}
    for rate in (1e-3, 1.0):
        optimizer = adafactor(rate, lambda clock: 0.5, (ParamGroup(".*", 1.0, 0.1),))
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1 * 2.0, rtol=1e-6)


def test_parameters_are_needed():
    optimizer = adafactor(1e-3, lambda clock: 1.0, (ParamGroup(".*"),))
    params = {"kernel": jnp.zeros(3)}
    with pytest.raises(ValueError, match="update\\(grads, state, params\\)"):
        optimizer.update(params, optimizer.init(params))
