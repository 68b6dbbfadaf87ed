"""SGD with momentum, for detectors (Kuo et al. 2023): a chain of optax parts."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from twelve_in_one.optim.param_groups import ParamGroup, assign


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    groups: Sequence[ParamGroup],
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """SGD with parameter groups.

    m <- momentum * m + gradient + decay * p,  p <- p - lr * m

    Unlike AdamW's, the decay is added to the gradient and so enters the momentum, as in the recipes
    of detectors (and `torch.optim.SGD`). It does not count towards gradient clipping.

    Args:
      learning_rate: a number, or a schedule of the clock (without one, of the update count).
      groups: multiplier and decay of each parameter. Frozen ones (multiplier 0) have no state.
      momentum: decay of the running sum of gradients.
      nesterov: step by gradient + momentum * m, looking ahead.

    Returns:
      An optax transformation; `update` needs `params` and takes `clock`, int32[].

    Raises:
      ValueError: `momentum` is not within [0, 1).
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must be at least 0 and below 1")

    def trained(params: Any) -> Any:
        return jax.tree.map(lambda group: group.learning_rate > 0, assign(params, groups))

    def decays_by(decay: float) -> optax.GradientTransformation:
        def mask(params: Any) -> Any:
            # `optax.masked` has put a node without leaves where a parameter is frozen.
            assigned = assign(params, groups)
            return jax.tree.map(lambda group: group.weight_decay == decay, assigned)

        return optax.add_decayed_weights(decay, mask)

    decays = sorted({group.weight_decay for group in groups if group.weight_decay})
    steps = optax.chain(*map(decays_by, decays), optax.trace(momentum, nesterov))
    return optax.chain(optax.masked(steps, trained), scale_by_groups(learning_rate, groups))


def scale_by_groups(
    learning_rate: optax.ScalarOrSchedule, groups: Sequence[ParamGroup]
) -> optax.GradientTransformationExtraArgs:
    """Scales by -(rate at the clock) and each parameter's multiplier; 0 for frozen ones.

    optax only has schedules of the update count, and rates by group only with a state for each.
    """

    def init(params: Any) -> optax.ScaleByScheduleState:
        assign(params, groups)  # fail before training rather than at the first update
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, clock: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        clock = state.count if clock is None else clock
        rate = learning_rate(clock) if callable(learning_rate) else learning_rate

        def one(step: jax.Array, group: ParamGroup) -> jax.Array:
            if group.learning_rate == 0:
                return jnp.zeros_like(step)
            return -rate * group.learning_rate * step

        scaled = jax.tree.map(one, updates, assign(updates, groups))
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
