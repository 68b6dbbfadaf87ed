"""AdamW and RAdam with parameter groups, and clipping.

AdamW follows Loshchilov and Hutter, RAdam Liu et al., by default; the `official_*` options give the
released code's variants (pytorch-transformers 1.x) step for step; see `official`.

Each is one transformation, not a chain of optax parts: `optax.scale_by_adam` corrects its moments
by 1 - b^t in float32, which costs the first updates three digits, and has neither rates nor decays
by group. Their state is saved with a run, so its structure must not change.

The learning rate may be a schedule of a *clock* that the caller keeps, since one round of several
tasks takes several updates (see `schedules`): `update(grads, state, params, clock=rounds)`. Without
it the schedule counts updates.

Both optimizers are optax transformations and chain with others. Transform gradients before
them; later transformations see the final steps, scaled by the rate and including decay. Wrappers
pass the clock on:

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw(schedule, groups))
    optimizer = optax.apply_if_finite(optimizer, max_consecutive_errors=5)
    updates, state = optimizer.update(grads, state, params, clock=rounds)

For optimizers that may not take a clock, `optax.with_extra_args_support` ignores it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from twelve_in_one.optim import official
from twelve_in_one.optim.param_groups import ParamGroup, assign

Params = Any


def clip_by_global_norm(grads: Params, max_norm: float) -> tuple[Params, jax.Array]:
    """Scales gradients down to a global norm, like `optax.clip_by_global_norm`; returns the norm.

    Args:
      grads: a tree of arrays.
      max_norm: largest norm left unchanged; 0 disables clipping.

    Returns:
      The gradients, and float32[] their norm before, summed in float32 for any type. If the norm
      is not finite, the gradients are useless.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm={max_norm} must be 0 (no clipping) or more")
    norm = optax.tree.norm(jax.tree.map(lambda grad: grad.astype(jnp.float32), grads))
    if max_norm == 0:
        return grads, norm
    scale = jnp.minimum(1.0, max_norm / norm)
    return jax.tree.map(lambda grad: (scale * grad).astype(grad.dtype), grads), norm


class AdamWState(NamedTuple):
    """State of both optimizers.

    `count` int32[] updates done; moments like parameters; `touched` bool[] per parameter, or ().
    """

    count: jax.Array
    mu: Params
    nu: Params
    touched: Any


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    groups: Sequence[ParamGroup],
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    official_no_bias_correction: bool = False,
    official_uncorrected_eps: bool = False,
    official_decay_after_update: bool = False,
    official_unreached: official.Unreached = "step",
) -> optax.GradientTransformationExtraArgs:
    """AdamW with parameter groups (Loshchilov and Hutter).

    p <- p - lr * (m_hat / (sqrt(v_hat) + eps) + decay * p)

    The released task training is `official_no_bias_correction=True,
    official_decay_after_update=True`; its pretraining is `b2=0.98, official_uncorrected_eps=True,
    official_decay_after_update=True`.

    Args:
      learning_rate: a number, or a schedule of the clock (without one, of the update count).
      groups: multiplier and decay of each parameter, see `ParamGroup`.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      official_no_bias_correction: use the raw moments, as the released code does.
      official_uncorrected_eps: add `eps` to the root of the raw second moment and correct the sum.
      official_decay_after_update: decay the updated parameter, not the old one.
      official_unreached: see `official.leave_unreached`.

    Returns:
      An optax transformation; `update` needs `params` and takes `clock`, int32[].

    Raises:
      ValueError: `b1` or `b2` is not within [0, 1), or `official_unreached` unknown.
    """

    def make_rule(rate: Any, count: jax.Array) -> _Rule:
        if official_no_bias_correction:
            correct1 = correct2 = 1.0
        else:
            correct1, correct2 = _bias_correction(b1, count), _bias_correction(b2, count)

        def rule(mu: jax.Array, nu: jax.Array, param: jax.Array, group: ParamGroup) -> jax.Array:
            lr = rate * group.learning_rate
            if official_uncorrected_eps:
                root = official.uncorrected_root(nu, correct2, eps)
            else:
                root = jnp.sqrt(nu / correct2) + eps
            step = -lr * (mu / correct1) / root
            decayed = param + step if official_decay_after_update else param
            return step - lr * group.weight_decay * decayed

        return rule

    optimizer = _optimizer(learning_rate, groups, b1, b2, make_rule)
    return official.leave_unreached(optimizer, official_unreached)


def radam(
    learning_rate: optax.ScalarOrSchedule,
    groups: Sequence[ParamGroup],
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    official_shared_step_size: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """RAdam with parameter groups and decoupled weight decay (Liu et al., the released variant).

    p <- p - lr * (r_t * m / (sqrt(v) + eps) + decay * p), with m / (1 - b1^t) in place of the first
    term for as long as the second moment averages fewer than five gradients.

    Args:
      learning_rate, groups, b1, b2: as in `adamw`.
      eps: added to the root of the raw second moment.
      official_shared_step_size: every step takes the learning rate of the first of `groups` that
        is not frozen, and only decay takes the parameter's own; see `official.shared_multiplier`.

    Returns:
      As `adamw`.

    Raises:
      ValueError: `b1` or `b2` is not within [0, 1).
    """
    shared = official.shared_multiplier(groups)

    def make_rule(rate: Any, count: jax.Array) -> _Rule:
        rectified, scale = _rectification(b2, count)
        scale = scale / _bias_correction(b1, count)

        def rule(mu: jax.Array, nu: jax.Array, param: jax.Array, group: ParamGroup) -> jax.Array:
            multiplier = shared if official_shared_step_size else group.learning_rate
            step = scale * jnp.where(rectified, mu / (jnp.sqrt(nu) + eps), mu)
            decay = group.learning_rate * group.weight_decay
            return -rate * (multiplier * step + decay * param)

        return rule

    return _optimizer(learning_rate, groups, b1, b2, make_rule)


# (first moment, second moment, parameter, its group) -> update
_Rule = Callable[[jax.Array, jax.Array, jax.Array, ParamGroup], jax.Array]


def _optimizer(
    learning_rate: optax.ScalarOrSchedule,
    groups: Sequence[ParamGroup],
    b1: float,
    b2: float,
    make_rule: Callable[[Any, jax.Array], _Rule],
) -> optax.GradientTransformationExtraArgs:
    """Keeps the moments; `make_rule` of rate and update count (from 1) turns them into updates."""
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be at least 0 and below 1")

    def init(params: Params) -> AdamWState:
        assign(params, groups)  # fail before training rather than at the first update
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))  # no shared buffers
        return AdamWState(jnp.zeros((), jnp.int32), mu, nu, ())

    def update(
        grads: Params,
        state: AdamWState,
        params: Params | None = None,
        *,
        clock: jax.Array | None = None,
        **_: Any,  # for other transformations of a chain
    ) -> tuple[Params, AdamWState]:
        if params is None:
            raise ValueError("weights decay: call update(grads, state, params)")
        count = optax.safe_increment(state.count)
        clock = state.count if clock is None else clock
        rule = make_rule(learning_rate(clock) if callable(learning_rate) else learning_rate, count)

        def one(
            grad: jax.Array, mu: jax.Array, nu: jax.Array, param: jax.Array, group: ParamGroup
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            if group.learning_rate == 0:
                return jnp.zeros_like(param), mu, nu
            mu = b1 * mu + (1.0 - b1) * grad
            nu = b2 * nu + (1.0 - b2) * jnp.square(grad)
            return rule(mu, nu, param, group), mu, nu

        updates, mu, nu = _map3(one, grads, state.mu, state.nu, params, assign(params, groups))
        return updates, AdamWState(count, mu, nu, state.touched)

    return optax.GradientTransformationExtraArgs(init, update)


def _bias_correction(decay: float, count: jax.Array) -> jax.Array:
    """1 - decay^count without cancellation, which costs the first updates three digits."""
    return -jnp.expm1(count * (math.log(decay) if decay else -math.inf))


def _rectification(b2: float, count: jax.Array) -> tuple[Any, Any]:
    """For RAdam: bool[] whether the second moment's root divides, float[] the factor on the step.

    The moment averages n = n_max - 2 t b2^t / (1 - b2^t) gradients, a difference of numbers near
    2 / (1 - b2). With x = -t ln b2 it is n = c + t h(x), h(x) = 2 / x - 2 / (e^x - 1), where
    c = n_max + 2 / ln b2 is small and h goes from 1 to 0, which float32 can hold.
    """
    n_max = 2.0 / (1.0 - b2) - 1.0
    if n_max <= 5.0:
        return False, 1.0
    # The first rectified update, in float64: in float32 `n` might pass 5 one update off.
    first = next(t for t in itertools.count(1) if n_max + 2 * t * (1 - 1 / (1 - b2**t)) >= 5)
    rate = -math.log(b2)
    x = count * rate
    series = 1.0 - x / 6.0 + x**3 / 360.0 - x**5 / 15120.0 + x**7 / 604800.0
    h = jnp.where(x < 1.0, series, 2.0 / x - 2.0 / jnp.expm1(x))
    n = jnp.maximum(n_max - 2.0 / rate + count * h, 5.0)
    ratio = (n - 4.0) * (n - 2.0) / n * (n_max / ((n_max - 4.0) * (n_max - 2.0)))
    rectified = count >= first
    return rectified, jnp.where(rectified, jnp.sqrt(_bias_correction(b2, count) * ratio), 1.0)


def _map3(function: Any, tree: Any, *rest: Any) -> tuple[Any, Any, Any]:
    """`jax.tree.map` of a function with three results: three trees."""
    leaves, treedef = jax.tree.flatten(tree)
    columns = [treedef.flatten_up_to(other) for other in rest]
    results = [function(*row) for row in zip(leaves, *columns, strict=True)]
    return tuple(treedef.unflatten(column) for column in zip(*results, strict=True))
