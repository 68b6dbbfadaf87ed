"""One update and one evaluation of one task, as pure functions to be compiled ahead of time."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from twelve_in_one.models.config import TwoStreamConfig
from twelve_in_one.models.two_stream import TwoStreamModel
from twelve_in_one.tasks.base import Task, task_loss, trunk_inputs
from twelve_in_one.tasks.losses import Sums

Batch = Mapping[str, Any]


class TrainState(NamedTuple):
    """What an update changes: `step` int32[] updates done, parameters, optimizer state."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def batch_sums(
    config: TwoStreamConfig, task: Task, params: Any, batch: Batch, dropout_key: Any = None
) -> Sums:
    """Loss and score of `batch`; computes the head of `task` and no other.

    Args:
      config: the model.
      task: the task `batch` belongs to.
      params: the model's parameters.
      batch: see `tasks.base`.
      dropout_key: turns dropout on; None evaluates.
    """
    model = TwoStreamModel(config)
    inputs = trunk_inputs(task, batch)
    out, _ = model.apply({"params": params}, **inputs, heads=(task.head,), dropout_key=dropout_key)
    return task_loss(task, out[task.head], batch)


def make_train_step(
    config: TwoStreamConfig,
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    loss_scale: float = 1.0,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Sums]]:
    """One update from one batch of `task`, to be jitted with the state donated.

    Args:
      config: the model.
      task: the task; static, so that only its head is compiled.
      optimizer: an optax transformation.
      loss_scale: factor on the mean loss (the released code scales it by the task's learning rate
        over the smallest one).

    Returns:
      A function of (state, batch, key) giving the new state and the batch's `Sums`. The dropout key
      is `key` folded with the step, so a resumed run draws the same masks.
    """

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Sums]:
        def loss(params: Any) -> tuple[jax.Array, Sums]:
            dropout_key = jax.random.fold_in(key, state.step)
            sums = batch_sums(config, task, params, batch, dropout_key)
            return loss_scale * sums.mean_loss(), sums

        grads, sums = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), sums

    return train_step


def make_eval_step(config: TwoStreamConfig, task: Task) -> Callable[[Any, Batch], Sums]:
    """Loss and score of one batch without dropout, as a function of (params, batch)."""

    def eval_step(params: Any, batch: Batch) -> Sums:
        return batch_sums(config, task, params, batch)

    return eval_step
