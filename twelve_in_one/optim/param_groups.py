"""Parameter groups: learning-rate multiplier and weight decay by parameter.

A group gives every parameter whose path it matches a learning-rate multiplier and a weight decay;
the first match wins and every parameter must match one.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from twelve_in_one.config.settings import OptimizerOptions
from twelve_in_one.optim import official

Params = Any


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """Hyperparameters of the parameters whose "/"-joined path matches `pattern` (re.fullmatch).

    Attributes:
      pattern: regular expression.
      learning_rate: multiplier of the optimizer's learning rate; 0 freezes the group's parameters
        and moments.
      weight_decay: decoupled weight decay, itself multiplied by the learning rate.

    Raises:
      ValueError: the pattern is not a regular expression, or a number is negative or not finite.
    """

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"group {self.pattern!r} is no regular expression: {error}") from error
        for field in ("learning_rate", "weight_decay"):
            value = getattr(self, field)
            if not 0 <= value < math.inf:
                raise ValueError(f"group {self.pattern!r}: {field}={value} must be 0 or more")


# The heads whose released names start with "vil_", which train at 1e-4 for any task rate, and
# those of a user's own datasets: all but these.
VIL_HEADS = r"heads/(?!region_score/|token_score/|masked_|alignment/).*"
_NO_DECAY = r".*/(bias|scale|masked_language_bias)"


def two_stream(
    *,
    head_learning_rate: float,
    weight_decay: float,
    extra: Sequence[ParamGroup] = (),
    official_decayed_norms: bool = False,
) -> tuple[ParamGroup, ...]:
    """Groups of the two-stream model: task heads learn faster, biases and norms do not decay.

    Args:
      head_learning_rate: multiplier for `VIL_HEADS` (released code: 1e-4 over the base rate).
      weight_decay: of every parameter that decays.
      extra: the user's own groups, put before the others so that they win.
      official_decayed_norms: also decay the norms that the released rule misses.
    """
    decays = [(_NO_DECAY, 0.0), (".*", weight_decay)]
    if official_decayed_norms:
        decays.insert(0, (official.DECAYED_NORMS, weight_decay))
    heads = [ParamGroup(rf"(?={VIL_HEADS}$)({p})", head_learning_rate, d) for p, d in decays]
    return (*extra, *heads, *(ParamGroup(p, 1.0, d) for p, d in decays))


def kernels_decay(options: OptimizerOptions) -> tuple[ParamGroup, ...]:
    """Groups of the systems of pictures: only kernels decay (big_vision).

    Args:
      options: `groups`, the user's own, come before the others so that they win.
    """
    return (
        *(ParamGroup(*group) for group in options.groups),
        ParamGroup(".*/kernel", 1.0, options.weight_decay),
        ParamGroup(".*"),
    )


def assign(params: Params, groups: Sequence[ParamGroup]) -> Any:
    """The group of every parameter: a tree like `params` with a `ParamGroup` at each leaf.

    Raises:
      ValueError: parameters that no group matches; names them.
    """
    compiled = [(re.compile(group.pattern), group) for group in groups]
    unmatched = []

    def one(path: tuple[Any, ...], _: Any) -> ParamGroup | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
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


def describe(params: Params, groups: Sequence[ParamGroup]) -> str:
    """A table of the groups' contents, one row per group, in matching order.

    Args:
      params: parameters, or their shapes (`jax.ShapeDtypeStruct`).
      groups: see `assign`; one that matches no parameter is marked.

    Raises:
      ValueError: parameters that no group matches.
    """
    tensors, sizes = [0] * len(groups), [0] * len(groups)
    place = {id(group): i for i, group in reversed(list(enumerate(groups)))}
    assigned = jax.tree.leaves(assign(params, groups))
    for group, leaf in zip(assigned, jax.tree.leaves(params), strict=True):
        tensors[place[id(group)]] += 1
        sizes[place[id(group)]] += math.prod(leaf.shape)
    total = max(1, sum(sizes))
    rows = [f"{'tensors':>7}  {'parameters':>13}  {'share':>6}  {'rate':>6}  {'decay':>6}  pattern"]
    for group, count, size in zip(groups, tensors, sizes, strict=True):
        rate = f"x{group.learning_rate:g}" if group.learning_rate else "frozen"
        note = "" if count else "  (matches nothing)"
        rows.append(
            f"{count:7,}  {size:13,}  {size / total:6.1%}  {rate:>6}  {group.weight_decay:6g}  "
            f"{group.pattern}{note}"
        )
    rows.append(f"{sum(tensors):7,}  {sum(sizes):13,}  {1:6.1%}")
    return "\n".join(rows)
