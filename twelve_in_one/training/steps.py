"""Gradients, updates and evaluations, as pure functions to be compiled ahead of time.

A gradient step is compiled for every head and shape, an update step only once: tasks differ only in
the former. One update from the sum of several tasks' gradients needs two programs anyway.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from twelve_in_one.checkpoints import trees
from twelve_in_one.optim import adamw, schedules
from twelve_in_one.systems.base import Objective
from twelve_in_one.tasks.losses import Sums

Batch = Mapping[str, Any]


class TrainState(NamedTuple):
    """The state that updates change.

    Attributes:
      step: int32[] updates done or skipped.
      clock: int32[] argument of the learning rate: rounds in which a task was active.
      skipped: int32[] updates skipped because a gradient was not finite.
      params: of the model.
      opt_state: of the optimizer.
    """

    step: jax.Array
    clock: jax.Array
    skipped: jax.Array
    params: Any
    opt_state: Any


class Gradient(NamedTuple):
    """The gradient of one task's batch, or the sum over the tasks of a round.

    Attributes:
      grads: like the parameters.
      ok: bool[] whether loss and gradient are finite.
    """

    grads: Any
    ok: jax.Array


class TaskMetrics(NamedTuple):
    """The logged metrics of one batch.

    Attributes:
      sums: loss and score, without the loss scale.
      grad_norm: float32[] global norm of the gradient, with the loss scale, before clipping.
    """

    sums: Sums
    grad_norm: jax.Array


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    counters = (jnp.zeros((), jnp.int32) for _ in range(3))  # no shared buffers: they are donated
    return TrainState(*counters, params, optimizer.init(params))


def make_grad_step(
    objective: Objective, *, loss_scale: float = 1.0, accumulate: int = 1
) -> Callable[..., tuple[Gradient, TaskMetrics]]:
    """Gradient of one batch, to be jitted.

    Args:
      objective: the training objective; static, so that only the parts it needs are compiled.
      loss_scale: factor on the mean loss (the released code scales it by the task's learning rate
        over the smallest one).
      accumulate: number of parts to cut the batch into, run in sequence to save memory. The
        gradient is that of the whole batch, of one task; the released code mixes tasks. Where every
        row's loss depends on the others, parts run twice: for their vectors, and, once the
        gradients of these are known, for those of the parameters (GradCache, Gao et al. 2021).

    Returns:
      A function of (params, step, batch, key, frozen): the gradient is with respect to `params`;
      `frozen` holds the other parameters, if any. Dropout keys are `key` folded with step and
      task, so that a resumed run draws the same masks.
    """
    joint = objective.joint

    def mean(sums: Sums, count: jax.Array) -> jax.Array:
        means = sums.loss / jnp.maximum(count, 1)
        if objective.weights:
            means *= jnp.array(objective.weights)
        return loss_scale * jnp.sum(means)

    def part_gradient(
        params: Any, frozen: Any, batch: Batch, key: jax.Array, count: jax.Array
    ) -> tuple[Any, Sums]:
        def loss(params: Any) -> tuple[jax.Array, Sums]:
            sums = objective.loss(trees.merge(params, frozen), batch, key)
            return mean(sums, count), sums

        return jax.grad(loss, has_aux=True)(params)

    def add_parts(
        params: Any, frozen: Any, batch: Batch, key: jax.Array, count: jax.Array
    ) -> tuple[Any, Sums]:
        def add(total: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            number, rows = part
            part_key = jax.random.fold_in(key, number)
            new = part_gradient(params, frozen, rows | scalars, part_key, count)
            return jax.tree.map(jnp.add, total, new), None

        scalars, parts = _cut(batch, accumulate)
        zero = jnp.zeros_like(count)
        start = (jax.tree.map(jnp.zeros_like, params), Sums(zero, zero, zero))
        return jax.lax.scan(add, start, (jnp.arange(accumulate), parts))[0]

    def add_joint_parts(
        params: Any, frozen: Any, batch: Batch, key: jax.Array, count: jax.Array
    ) -> tuple[Any, Sums]:
        scalars, parts = _cut(batch, accumulate)

        def rows_of(params: Any, number: jax.Array, rows: Batch) -> tuple[Any, Sums]:
            part_key = jax.random.fold_in(key, number)
            return joint.rows(trees.merge(params, frozen), rows | scalars, part_key)

        def together(params: Any, vectors: Any) -> tuple[jax.Array, Sums]:
            vectors = jax.tree.map(_joined, vectors)
            sums = joint.together(trees.merge(params, frozen), vectors, batch)
            return mean(sums, count), sums

        def add(total: Any, part: tuple[jax.Array, Batch, Any]) -> tuple[Any, None]:
            *inputs, slopes = part

            def loss(params: Any) -> tuple[jax.Array, Sums]:
                vectors, sums = rows_of(params, *inputs)
                # Its gradient is that of the joint loss by way of these rows' vectors.
                products = jax.tree.map(lambda x, slope: jnp.sum(x * slope), vectors, slopes)
                return mean(sums, count) + sum(jax.tree.leaves(products)), sums

            return jax.tree.map(jnp.add, total, jax.grad(loss, has_aux=True)(params)), None

        numbered = (jnp.arange(accumulate), parts)
        vectors = jax.lax.map(lambda part: rows_of(params, *part)[0], numbered)
        slope = jax.grad(together, argnums=(0, 1), has_aux=True)
        (grads, slopes), sums = slope(params, vectors)
        return jax.lax.scan(add, (grads, sums), (*numbered, slopes))[0]

    def grad_step(
        params: Any, step: jax.Array, batch: Batch, key: jax.Array, frozen: Any = None
    ) -> tuple[Gradient, TaskMetrics]:
        frozen = frozen or {}
        key = jax.random.fold_in(key, step)
        if not jnp.ndim(batch["task_id"]):  # in a mixed batch each row has its own
            key = jax.random.fold_in(key, batch["task_id"])
        count = objective.count(batch)
        if accumulate == 1:
            grads, sums = part_gradient(params, frozen, batch, key, count)
        else:
            grad_parts = add_parts if joint is None else add_joint_parts
            grads, sums = grad_parts(params, frozen, batch, key, count)
        norm = optax.tree.norm(grads)
        ok = jnp.isfinite(norm) & jnp.all(jnp.isfinite(sums.loss))
        return Gradient(grads, ok), TaskMetrics(sums, norm)

    return grad_step


def _cut(batch: Batch, parts: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The scalars, and [B, ...] as [parts, B / parts, ...], each part spread over the devices."""

    def one(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    return (
        {name: x for name, x in batch.items() if not jnp.ndim(x)},
        {name: one(x) for name, x in batch.items() if jnp.ndim(x)},
    )


def _joined(x: jax.Array) -> jax.Array:
    """The inverse for an array: [parts, B / parts, ...] as [B, ...]."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def add_gradients(a: Gradient, b: Gradient) -> Gradient:
    """The sum, for one update from several tasks."""
    return Gradient(jax.tree.map(jnp.add, a.grads, b.grads), a.ok & b.ok)


def make_update_step(
    optimizer: optax.GradientTransformation,
    *,
    clip_norm: float = 0.0,
    official_schedule: bool = False,
) -> Callable[[TrainState, Gradient, jax.Array, jax.Array], TrainState]:
    """One update from a gradient, to be jitted with the state donated; the same for all tasks.

    A gradient that is not finite changes only the counters.

    Args:
      optimizer: an optax transformation; those of `optim` evaluate the learning rate at the clock.
      clip_norm: global norm to clip the gradient to; 0 disables clipping.
      official_schedule: the clock distinguishes a round's first update from later ones, see
        `schedules.update_clock`.

    Returns:
      A function of (state, gradient, later, last): bool[] whether the update is not the first,
      and whether it is the last of its round, which advances the clock.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update_step(
        state: TrainState, gradient: Gradient, later: jax.Array, last: jax.Array
    ) -> TrainState:
        def updated() -> tuple[Any, Any]:
            grads = gradient.grads
            if clip_norm:
                grads, _ = adamw.clip_by_global_norm(grads, clip_norm)
            clock = schedules.update_clock(
                state.clock, later, official_advance_within_round=official_schedule
            )
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, clock=clock)
            return optax.apply_updates(state.params, updates), opt_state

        # A branch updates in place; choosing element by element would copy the state first.
        params, opt_state = jax.lax.cond(
            gradient.ok, updated, lambda: (state.params, state.opt_state)
        )
        return TrainState(
            state.step + 1,
            state.clock + last,
            state.skipped + jnp.where(gradient.ok, 0, 1),
            params,
            opt_state,
        )

    return update_step


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    loss_scale: float = 1.0,
    accumulate: int = 1,
    clip_norm: float = 0.0,
    official_schedule: bool = False,
) -> Callable[..., tuple[TrainState, TaskMetrics]]:
    """Gradient and update in one function of (state, batch, key, frozen).

    For a run of one stream, whose every update is both first and last in its round; a run of
    several streams compiles the update once instead of with each. Joined, gradients need no
    separate memory between two programs.
    """
    gradient_of = make_grad_step(objective, loss_scale=loss_scale, accumulate=accumulate)
    update = make_update_step(optimizer, clip_norm=clip_norm, official_schedule=official_schedule)
    # Not of JAX, which would make them on the devices, also if these are only compiled for.
    false, true = np.bool_(False), np.bool_(True)

    def train_step(
        state: TrainState, batch: Batch, key: jax.Array, frozen: Any = None
    ) -> tuple[TrainState, TaskMetrics]:
        gradient, metrics = gradient_of(state.params, state.step, batch, key, frozen)
        return update(state, gradient, false, true), metrics

    return train_step
