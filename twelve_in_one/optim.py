"""Parameter groups and AdamW.

A group gives every parameter whose path it matches a learning-rate multiplier and a weight decay;
the first match wins and every parameter must match one. AdamW follows Loshchilov and Hutter by
default; the `official_*` options give the released code's variant (pytorch-transformers 1.x) step
for step.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """Hyperparameters of the parameters whose "/"-joined path matches `pattern` (re.fullmatch).

    Attributes:
      pattern: regular expression.
      learning_rate: multiplier of the optimizer's learning rate; 0 freezes the group.
      weight_decay: decoupled weight decay, itself multiplied by the learning rate.
    """

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float = 0.0


# The heads whose released names start with "vil_"; they train at 1e-4 whatever the tasks' rate is.
VIL_HEADS = r"heads/(vqa|gqa|image_pair|image_text_match|three_way)/.*"
_NO_DECAY = r".*/(bias|scale|masked_language_bias)"
# The released rule spares names that contain "bias" or "LayerNorm.weight", which misses the two
# norms of a connection ("LayerNorm1", "LayerNorm2") and the classifiers' ("logit_fc.2").
_OFFICIAL_DECAYED_NORMS = (
    r".*/connection_\d+/(text|visual)_norm/scale|heads/(vqa|gqa|image_pair)/norm/scale"
)


def two_stream_groups(
    *, head_learning_rate: float, weight_decay: float, official_decayed_norms: bool = False
) -> tuple[ParamGroup, ...]:
    """Groups of the two-stream model: task heads learn faster, biases and norms do not decay.

    Args:
      head_learning_rate: multiplier for `VIL_HEADS` (released code: 1e-4 over the base rate).
      weight_decay: of every parameter that decays.
      official_decayed_norms: also decay the norms that the released rule misses.
    """
    decays = [(_NO_DECAY, 0.0), (".*", weight_decay)]
    if official_decayed_norms:
        decays.insert(0, (_OFFICIAL_DECAYED_NORMS, weight_decay))
    heads = [ParamGroup(rf"(?={VIL_HEADS}$)({p})", head_learning_rate, d) for p, d in decays]
    return (*heads, *(ParamGroup(p, 1.0, d) for p, d in decays))


def assign_groups(params: Params, groups: Sequence[ParamGroup]) -> Any:
    """The group of every parameter: a tree like `params` with a `ParamGroup` at each leaf.

    Raises:
      ValueError: parameters that no group matches; names them.
    """
    compiled = [(re.compile(group.pattern), group) for group in groups]
    unmatched = []

    def one(path: tuple[Any, ...], _: Any) -> ParamGroup | None:
        name = "/".join(str(key.key) for key in path)
        for pattern, group in compiled:
            if pattern.fullmatch(name):
                return group
        unmatched.append(name)
        return None

    tree = jax.tree_util.tree_map_with_path(one, params)
    if unmatched:
        raise ValueError(
            f"{len(unmatched)} parameters match no group, first {unmatched[:5]}: "
            'end the groups with a catch-all ".*"'
        )
    return tree


class AdamWState(NamedTuple):
    """Moments like the parameters; `count` int32[]; `touched` bool[] per parameter, or ()."""

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
    official_decay_after_update: bool = False,
    official_unreached: Literal["step", "skip", "skip_until_touched"] = "step",
) -> optax.GradientTransformation:
    """AdamW with parameter groups.

    p <- p - lr * (m_hat / (sqrt(v_hat) + eps) + decay * p)

    Args:
      learning_rate: a number or a schedule of the update count.
      groups: multiplier and decay of each parameter, see `ParamGroup`.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      official_no_bias_correction: use the raw moments, as the released code does.
      official_decay_after_update: decay the updated parameter and not the old one.
      official_unreached: parameters without gradient in an update (another task's head). "step"
        treats them like any other: momentum and decay go on. "skip" leaves parameter and moments
        alone (torch >= 2, gradients set to None). "skip_until_touched" does so only until a first
        gradient arrives (the torch of the released code, gradients zero-filled). A gradient that
        is zero in every element counts as none; parameters must be unrolled, not scanned, for
        layers to be told apart.

    Returns:
      An optax transformation; `update` needs `params`.
    """
    skipping = official_unreached != "step"

    def init(params: Params) -> AdamWState:
        assign_groups(params, groups)  # fail before training rather than at the first update
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))  # no shared buffers
        touched = jax.tree.map(lambda _: jnp.zeros((), bool), params) if skipping else ()
        return AdamWState(jnp.zeros((), jnp.int32), mu, nu, touched)

    def update(
        grads: Params, state: AdamWState, params: Params | None = None
    ) -> tuple[Params, AdamWState]:
        if params is None:
            raise ValueError("adamw decays weights: call update(grads, state, params)")
        count = optax.safe_increment(state.count)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        if official_no_bias_correction:
            correct1 = correct2 = 1.0
        else:
            correct1, correct2 = 1.0 - b1**count, 1.0 - b2**count

        def one(
            grad: jax.Array, mu: jax.Array, nu: jax.Array, param: jax.Array, group: ParamGroup
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            lr = rate * group.learning_rate
            mu = b1 * mu + (1.0 - b1) * grad
            nu = b2 * nu + (1.0 - b2) * jnp.square(grad)
            step = -lr * (mu / correct1) / (jnp.sqrt(nu / correct2) + eps)
            decayed = param + step if official_decay_after_update else param
            return step - lr * group.weight_decay * decayed, mu, nu

        updates, mu, nu = _map3(
            one, grads, state.mu, state.nu, params, assign_groups(params, groups)
        )
        touched = state.touched
        if skipping:
            active = jax.tree.map(lambda grad: jnp.any(grad != 0), grads)
            if official_unreached == "skip_until_touched":
                active = touched = jax.tree.map(jnp.logical_or, active, touched)

            def keep(on: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(on, new, old)

            updates = jax.tree.map(lambda on, new: jnp.where(on, new, 0), active, updates)
            mu = jax.tree.map(keep, active, mu, state.mu)
            nu = jax.tree.map(keep, active, nu, state.nu)
        return updates, AdamWState(count, mu, nu, touched)

    return optax.GradientTransformation(init, update)


def _map3(function: Any, tree: Any, *rest: Any) -> tuple[Any, Any, Any]:
    """`jax.tree.map` of a function with three results: three trees."""
    leaves, treedef = jax.tree.flatten(tree)
    columns = [treedef.flatten_up_to(other) for other in rest]
    results = [function(*row) for row in zip(leaves, *columns, strict=True)]
    return tuple(treedef.unflatten(column) for column in zip(*results, strict=True))
