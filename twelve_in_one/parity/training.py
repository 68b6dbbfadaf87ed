"""Compares AdamW runs and the hyperparameters of every parameter."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import names
from twelve_in_one.models.two_stream.encoder import unstack_layers
from twelve_in_one.optim import adamw, param_groups
from twelve_in_one.parity.fixture import Check, Fixture, absolute, relative, released
from twelve_in_one.parity.gradients import Value


def compare_training(fixture: Fixture, value: Callable[..., Value]) -> Iterator[Check]:
    """AdamW under the official options, alternating two tasks; `value`: the loss function."""
    arrays, config = fixture.arrays, fixture.config
    if "train/param_lr" not in arrays:
        return
    base, head = (float(f(arrays["train/param_lr"])) for f in (np.min, np.max))
    decay = float(arrays["train/param_wd"].max())
    groups = param_groups.two_stream(
        head_learning_rate=head / base, weight_decay=decay, official_decayed_norms=True
    )
    yield from _compare_groups(fixture, groups, base)
    if config.scan_layers:
        return  # distinguishing reached from unreached layers needs them unrolled
    for variant, unreached in (("none", "skip"), ("zero", "skip_until_touched")):
        if f"train/losses_grad_{variant}" not in arrays:
            continue
        optimizer = adamw.adamw(
            base,
            groups,
            official_no_bias_correction=True,
            official_decay_after_update=True,
            official_unreached=unreached,
        )
        expected = arrays[f"train/losses_grad_{variant}"]
        history, params = _train(fixture, value, optimizer, len(expected))
        for step, (ours, theirs) in enumerate(zip(history, expected, strict=True)):
            yield relative(f"train/losses_grad_{variant}[{step}]", ours, theirs)
        ours = released(fixture, params)
        for parameter, theirs in fixture.inputs(f"train/final_grad_{variant}/").items():
            key = f"train/final_grad_{variant}/{parameter}"
            yield absolute(key, ours[parameter], theirs)


def _train(
    fixture: Fixture,
    value: Callable[..., Value],
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> tuple[list[float], Any]:
    tasks = ("vl_classifier", "v_logit")

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, fixture.params)
    state, history = jax.jit(optimizer.init)(params), []
    for i in range(num_steps):
        loss, _, grads = value(tasks[i % len(tasks)], params)
        params, state = step(params, state, grads)
        history.append(float(loss))
    return history, params


def _compare_groups(
    fixture: Fixture, groups: Sequence[param_groups.ParamGroup], base: float
) -> Iterator[Check]:
    """Compares learning rate and decay of every parameter with the recorded ones."""
    unrolled = fixture.params
    if fixture.config.scan_layers:
        unrolled = unstack_layers(fixture.config, unrolled)
    assigned = flatten(param_groups.assign(unrolled, groups))
    paths = {e.name: e.path for e in names.table(fixture.config) if e.path is not None}
    listed = fixture.arrays["train/param_names"].tolist()
    used = [i for i, name in enumerate(listed) if name in paths]
    ours = [assigned[paths[listed[i]]] for i in used]
    rates, decays = (fixture.arrays[f"train/param_{k}"][used] for k in ("lr", "wd"))
    yield relative("train/param_lr", [base * group.learning_rate for group in ours], rates)
    yield relative("train/param_wd", [group.weight_decay for group in ours], decays)
