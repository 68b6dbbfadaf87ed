"""How the released code's optimizers and schedules differ from their namesakes.

Eight behaviours, available as options `official_*` of `adamw`, `param_groups` and `schedules`:

* no bias correction of the moments, in task training (`no_bias_correction`);
* the decay acts on the updated parameter (`decay_after_update`);
* epsilon is added before the correction, `uncorrected_root`;
* RAdam's step size is that of the first group, `shared_multiplier`;
* parameters that a task does not reach may stay unchanged, `leave_unreached`;
* some norms decay, `DECAYED_NORMS`;
* the schedule advances within a round, or before an update, `advance_within_round` and
  `advance_before_update`;
* two schedulers overwrite each other's rate, `rewritten_step`.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from twelve_in_one.optim.curves import Clock, Schedule, constant, stairs, where

if TYPE_CHECKING:  # it imports this file
    from twelve_in_one.optim.param_groups import ParamGroup

Unreached = Literal["step", "skip", "skip_until_touched"]

# The released rule exempts names that contain "bias" or "LayerNorm.weight", which misses the two
# norms of a connection ("LayerNorm1", "LayerNorm2") and the classifiers' ("logit_fc.2").
DECAYED_NORMS = r".*/connection_\d+/(text|visual)_norm/scale|heads/(vqa|gqa|image_pair)/norm/scale"


def uncorrected_root(nu: jax.Array, correction: Any, eps: float) -> jax.Array:
    """The divisor of AdamW's step: adds epsilon to the raw root, then corrects the sum."""
    return (jnp.sqrt(nu) + eps) / jnp.sqrt(correction)


def shared_multiplier(groups: "Sequence[ParamGroup]") -> float:
    """RAdam's learning-rate multiplier for all parameters: that of the first group not frozen.

    The released code computes the step size once per update, for its first group. That is the word
    embedding's; to put it first, pass it as `param_groups.two_stream(extra=...)`.
    """
    return next((g.learning_rate for g in groups if g.learning_rate), 0.0)


def leave_unreached(
    optimizer: optax.GradientTransformationExtraArgs, how: Unreached
) -> optax.GradientTransformationExtraArgs:
    """Sets the treatment of parameters without gradient in an update (another task's head).

    A gradient that is zero in every element counts as none; parameters must be unrolled, not
    scanned, to distinguish layers.

    Args:
      optimizer: one with an `AdamWState`.
      how: "step" treats them like any other: momentum and decay continue. "skip" leaves parameter
        and moments unchanged (torch >= 2, gradients set to None). "skip_until_touched" does so
        only until the first gradient arrives (the released code's torch, gradients zero-filled).

    Raises:
      ValueError: none of these.
    """
    if how not in get_args(Unreached):
        raise ValueError(f"official_unreached={how!r}: known are {get_args(Unreached)}")
    if how == "step":
        return optimizer

    def init(params: Any) -> Any:
        touched = jax.tree.map(lambda _: jnp.zeros((), bool), params)
        return optimizer.init(params)._replace(touched=touched)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, new = optimizer.update(grads, state, params, **extra)
        active = jax.tree.map(lambda grad: jnp.any(grad != 0), grads)
        if how == "skip_until_touched":
            active = jax.tree.map(jnp.logical_or, active, state.touched)
            new = new._replace(touched=active)
        updates = jax.tree.map(lambda on, step: jnp.where(on, step, 0), active, updates)
        mu = jax.tree.map(jnp.where, active, new.mu, state.mu)
        nu = jax.tree.map(jnp.where, active, new.nu, state.nu)
        return updates, new._replace(mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(init, update)


def rewritten_step(
    boundaries: Sequence[int], decay: float, warmup: float, epoch_rounds: int
) -> Schedule:
    """`step` as in the released code ("mannul").

    There, warm-up and decay are two schedulers that overwrite each other's rate: the warm-up after
    every round that began within it, the decay at the start and at every epoch's end. So the first
    round, and the first of every epoch within the warm-up, run without warm-up; and a boundary
    within the warm-up or an epoch takes effect at the first epoch's end after it.

    Args:
      boundaries: see `step`.
      decay: see `step`.
      warmup: see `constant`.
      epoch_rounds: rounds in an epoch of the training loop.
    """
    up, warm = constant(warmup), math.ceil(warmup)

    def factor(clock: Clock) -> Any:
        epoch_start = clock // epoch_rounds * epoch_rounds
        decay_wrote_last = (clock == epoch_start) | (epoch_start >= warm)
        return where(decay_wrote_last, stairs(epoch_start, boundaries, decay), up(clock))

    return factor


def advance_before_update(factor: Schedule) -> Schedule:
    """Gives each update the factor of the next clock (pretraining)."""
    return lambda clock: factor(clock + 1)


def advance_within_round(factor: Schedule, warmup: float, *, all_of_it: bool) -> Schedule:
    """Gives updates after a round's first the next round's factor (task training).

    Args:
      factor: schedule of rounds.
      warmup: see `constant`.
      all_of_it: otherwise only the warm-up, a separate scheduler, advances in this way.

    Returns:
      A schedule of clocks from `schedules.update_clock`.
    """
    up = constant(warmup)

    def later(rounds: Clock) -> Any:
        if all_of_it:
            return factor(rounds + 1)
        return where(rounds < warmup, up(rounds + 1), factor(rounds))

    return lambda clock: where(clock % 2 == 1, later(clock // 2), factor(clock // 2))
