"""The least time that a step can take: the slowest of products, memory and network, each at its
published peak and all of them at once (Williams et al. 2009, "Roofline").

A ring of n devices sends 2 (n - 1) / n of an array to sum it everywhere, and (n - 1) / n to gather
or to scatter it (Patarasuk and Yuan 2009). Over several slices or machines the sum is made inside
each first, so that of k devices there each sends a k-th over the slow network.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from twelve_in_one.preflight.chips import Chip
from twelve_in_one.preflight.hlo import Collective

COMPUTE, MEMORY, FAST, SLOW = "products", "memory", "fast network", "slow network"
_RINGS = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0, "all-to-all": 1.0}


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that each part of a chip needs for one step."""

    seconds: Mapping[str, float]

    @property
    def step(self) -> float:
        """The least time of the step."""
        return max(self.seconds.values())

    @property
    def by(self) -> str:
        """What bounds it."""
        return max(self.seconds, key=lambda part: self.seconds[part])


def bound(
    chip: Chip, flops: Mapping[str, float], moved: float, collectives: Iterable[Collective]
) -> Bound:
    """The bound of a program.

    Args:
      chip: of all devices.
      flops: dtype -> FLOPs of products of one device.
      moved: bytes that one device moves in its memory.
      collectives: of the program.

    Raises:
      ValueError: it crosses a network whose speed is not published.
    """
    fast, slow = 0.0, 0.0
    for collective in collectives:
        near, far = sent(collective)
        fast, slow = fast + near, slow + far
    if slow and not chip.slow:
        raise ValueError("the network between slices of this chip has no published speed")
    peaks = {"bfloat16": chip.flops, "float16": chip.flops}
    return Bound(
        {
            COMPUTE: sum(n / peaks.get(dtype, chip.flops_float32) for dtype, n in flops.items()),
            MEMORY: moved / chip.memory_bandwidth,
            FAST: fast / chip.fast,
            SLOW: slow / chip.slow if slow else 0.0,
        }
    )


def sent(collective: Collective) -> tuple[float, float]:
    """Bytes that a device sends in a step over the fast and over the slow network."""
    size = float(collective.bytes * collective.times)
    islands = collective.islands
    if collective.kind == "collective-permute":
        return (size, 0.0) if islands == 1 else (0.0, size)
    rounds, inside = _RINGS[collective.kind], collective.ways / islands
    near = rounds * size * (inside - 1) / inside
    return near, rounds * size / inside * (islands - 1) / islands
