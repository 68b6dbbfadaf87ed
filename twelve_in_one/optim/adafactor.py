"""AdaFactor as big_vision configures it, for LiT-decoder's recipe (Zhai et al. 2022, appendix).

The second moment of a matrix is kept as its rows' and columns' means, the first in bfloat16: half a
byte per parameter for every eight of AdamW's. Built from optax parts; only their settings are ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from twelve_in_one.optim.param_groups import ParamGroup, assign

# Largest decay of the running mean of squared gradients, which is 1 - t^-0.8 at update t.
_LARGEST_DECAY = 0.999


def adafactor(
    learning_rate: float,
    factor: Callable[[Any], Any],
    groups: Sequence[ParamGroup],
    *,
    momentum: float = 0.9,
    decay_exponent: float = 0.8,
    min_dim_size_to_factor: int = 32,
    eps: float = 1e-30,
) -> optax.GradientTransformationExtraArgs:
    """AdaFactor with parameter groups.

    p <- p - factor * (lr * m + decay * p), with m the running mean of gradient / root(v)

    Unlike AdamW's, the decay follows the schedule but not the base rate. There is no clipping of
    updates, no scaling by the parameters' size, and no bias correction of the means.

    Args:
      learning_rate: base rate.
      factor: schedule of the clock that multiplies it, see `schedules.make`.
      groups: multiplier and decay of each parameter. Frozen ones (multiplier 0) have no state.
      momentum: decay of the running mean of updates, which is kept in bfloat16.
      decay_exponent: of the second moment's decay 1 - t^-exponent, t from 1.
      min_dim_size_to_factor: a parameter whose two largest dimensions are at least this is kept as
        means along them; its other dimensions stay apart.
      eps: added to squared gradients.

    Returns:
      An optax transformation; `update` needs `params` and takes `clock`, int32[].
    """
    second_moment = optax.scale_by_factored_rms(
        decay_rate=decay_exponent,
        min_dim_size_to_factor=min_dim_size_to_factor,
        epsilon=eps,
        decay_rate_fn=_second_moment_decay,
    )
    first_moment = optax.ema(momentum, debias=False, accumulator_dtype=jnp.bfloat16)

    def trained(params: Any) -> Any:
        return jax.tree.map(lambda group: group.learning_rate > 0, assign(params, groups))

    moments = optax.masked(optax.chain(second_moment, first_moment), trained)

    def update(
        grads: Any, state: Any, params: Any = None, *, clock: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("weights decay: call update(grads, state, params)")
        updates, state = moments.update(grads, state, params)
        count = state.inner_state[0].count - 1
        rate = factor(count if clock is None else clock)

        def one(group: ParamGroup, step: jax.Array, param: jax.Array) -> jax.Array:
            if group.learning_rate == 0:
                return jnp.zeros_like(param)
            step = learning_rate * group.learning_rate * step + group.weight_decay * param
            return -rate * step

        return jax.tree.map(one, assign(params, groups), updates, params), state

    return optax.GradientTransformationExtraArgs(moments.init, update)


def _second_moment_decay(count: Any, exponent: float) -> jax.Array:
    t = jnp.asarray(count + 1, jnp.float32)
    return jnp.minimum(1.0 - t ** (-exponent), _LARGEST_DECAY)
