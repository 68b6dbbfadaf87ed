"""Shapes of a learning rate over time: warm-up and decay.

A clock is a Python int, an integer NumPy array or an int32 JAX array of any shape, traced or not;
only the last computes on the device, in float32.
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Clock = Any  # int, or an integer array of NumPy or JAX
Schedule = Callable[[Clock], Any]


def constant(warmup: float = 0.0) -> Schedule:
    """Linear warm-up from 0, then 1.

    Args:
      warmup: rounds until the factor is 1; need not be whole. Unless it is 0, the first round has
        factor 0.
    """

    def factor(clock: Clock) -> Any:
        # Without a warm-up the ramp starts at 1.
        return _numpy(clock).minimum(1.0, (clock + (warmup == 0)) / max(1.0, warmup))

    return factor


def linear(total: int, warmup: float = 0.0) -> Schedule:
    """Linear warm-up from 0 to 1, then linear decay to 0 at `total` (as in the paper's run)."""
    up, rest = constant(warmup), max(1.0, total - warmup)

    def factor(clock: Clock) -> Any:
        xp = _numpy(clock)
        return xp.minimum(up(clock), xp.maximum(0.0, (total - clock) / rest))

    return factor


def cosine(total: int, warmup: float = 0.0) -> Schedule:
    """Linear warm-up from 0 to 1, then half a cosine wave to 0 at `total`."""
    up, rest = constant(warmup), max(1.0, total - warmup)

    def factor(clock: Clock) -> Any:
        xp = _numpy(clock)
        progress = xp.clip((clock - warmup) / rest, 0.0, 1.0)
        return up(clock) * (0.5 + 0.5 * xp.cos(math.pi * progress))

    return factor


def step(boundaries: Sequence[int], decay: float = 0.2, warmup: float = 0.0) -> Schedule:
    """Linear warm-up from 0 to 1, times `decay` for every boundary that the clock has reached."""
    up = constant(warmup)
    return lambda clock: up(clock) * stairs(clock, boundaries, decay)


def stairs(clock: Clock, boundaries: Sequence[int], decay: float) -> Any:
    """`decay` for every boundary that the clock has reached."""
    # A product: NumPy's powers of arrays and of numbers differ in the last bit on some processors.
    return math.prod(where(clock >= boundary, decay, 1.0) for boundary in boundaries)


def _numpy(clock: Clock) -> ModuleType:
    return jnp if isinstance(clock, jax.Array) else np


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` or `no`, in the arithmetic of the condition."""
    if isinstance(condition, jax.Array):
        return jnp.where(condition, yes, no)
    return np.where(condition, yes, no)[()]  # a scalar if the clock is one
