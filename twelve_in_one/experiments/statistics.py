"""Means over seeds with confidence intervals."""

import dataclasses
import math
from collections.abc import Sequence

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
      mean: of the values.
      half_width: the confidence interval at `LEVEL` is mean +- half_width (Student's t); None for
        a single value.
      count: number of values.
    """

    mean: float
    half_width: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and confidence interval of independent values.

    For differences between two models with the same seed, this is the paired comparison.

    Raises:
      ValueError: no values.
    """
    if not values:
        raise ValueError("a mean of no values")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    from scipy import stats

    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1))
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
    return Estimate(mean, quantile * deviation / math.sqrt(count), count)


def show(found: Estimate, *, signed: bool = False) -> str:
    """An estimate as text, in hundredths: "+2.1 ± 0.8"."""
    text = f"{100 * found.mean:{'+' if signed else ''}.1f}"
    return text if found.half_width is None else f"{text} ± {100 * found.half_width:.1f}"
