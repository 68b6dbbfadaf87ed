"""Batches whose rows come from several tasks: which task each row shows, by arithmetic.

A task with weight w fills a share w of all rows, as evenly as possible: its k-th row is due at
(k + 1/2) / w rows, and rows are given out in the order in which they are due. So the rows of a
batch are a function of its number and of the weights, without any draw or history: a run resumes at
any batch, hosts agree, and every stretch of training has the shares that the weights say.

Stop-and-go changes the weights; from a batch on, the next `Stage` holds.
"""

import dataclasses
import functools
import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from twelve_in_one.mixing.stop_and_go import State

Weighting = Literal["pairs", "images", "equal", "temperature", "explicit"]
WEIGHTINGS: tuple[Weighting, ...] = ("pairs", "images", "equal", "temperature", "explicit")


class Size(NamedTuple):
    """Size of a task's training set.

    Attributes:
      pairs: of picture and text.
      images: different pictures.
    """

    pairs: int
    images: int


class Stage(NamedTuple):
    """The weights of the tasks from a batch on.

    Attributes:
      first_batch: first batch with these weights.
      weights: of the tasks, in their order; the sum is 1.
    """

    first_batch: int
    weights: tuple[float, ...]


def weights_of(
    weighting: Weighting,
    sizes: Mapping[str, Size],
    *,
    temperature: float = 2.0,
    explicit: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Share of each task in the rows of a mixed stream; the sum is 1.

    Args:
      weighting: "pairs" and "images" are proportional to these, "equal" is the same for all,
        "temperature" is proportional to pairs ** (1 / temperature), "explicit" to `explicit`.
      sizes: task -> size of its training set.
      temperature: 1 is proportional, large is equal.
      explicit: task -> weight, in any unit.

    Raises:
      ValueError: a weight is missing, negative or not finite, or all are 0.
    """
    given: Mapping[str, float]
    if weighting == "equal":
        given = dict.fromkeys(sizes, 1.0)
    elif weighting == "explicit":
        given = explicit or {}
        wrong = [name for name in sizes if not 0 <= given.get(name, -1.0) < math.inf]
        if wrong or not any(given[name] for name in sizes):
            raise ValueError(
                f"weights should be numbers from 0 up, not all 0; wrong of "
                f"{', '.join(wrong) or 'all'}"
            )
    elif weighting == "images":
        given = {name: float(size.images) for name, size in sizes.items()}
    else:
        exponent = 1.0 if weighting == "pairs" else 1.0 / temperature
        largest = max(size.pairs for size in sizes.values())
        # Relative to the largest, so that a low temperature cannot overflow.
        given = {name: (size.pairs / largest) ** exponent for name, size in sizes.items()}
    total = math.fsum(given[name] for name in sizes)
    return {name: given[name] / total for name in sizes}


def weights_now(
    weights: Mapping[str, float], controllers: State, gap: int
) -> dict[str, float] | None:
    """The weights with stopped tasks held back; None if they hold back all of them.

    A stopped task keeps 1 / `gap` of its weight, as it would train in one of `gap` rounds if every
    task had its own batches (the paper's delta), or none if `gap` is 0.

    Args:
      weights: of `weights_of`.
      controllers: task -> its stop-and-go controller.
      gap: see `plan.Schedule`.
    """
    kept = 1.0 / gap if gap else 0.0
    now = {
        name: weight * (kept if controllers[name].stopped else 1.0)
        for name, weight in weights.items()
    }
    total = math.fsum(now.values())
    return {name: weight / total for name, weight in now.items()} if total else None


@dataclasses.dataclass(frozen=True)
class MixedOrder:
    """Task and visit of every row of a mixed stream.

    Attributes:
      batch_size: rows of a batch, of all hosts together.
      stages: in the order of their batches, the first from batch 0.
    """

    batch_size: int
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        firsts = [stage.first_batch for stage in self.stages]
        if not firsts or firsts[0] or firsts != sorted(set(firsts)):
            raise ValueError(f"stages should begin at batch 0 and at later ones, got {firsts}")
        if len({len(stage.weights) for stage in self.stages}) > 1:
            raise ValueError("stages differ in their number of tasks")

    def rows(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a batch.

        Returns:
          int64[B] each: the task, and which visit to it this is, counted from 0 over all batches.
        """
        number = max(i for i, stage in enumerate(self.stages) if stage.first_batch <= batch)
        stage, before = self.stages[number], self._counts_before[number]
        first = (batch - stage.first_batch) * self.batch_size
        counts, heap = _first_rows(stage.weights, first)
        tasks = np.empty(self.batch_size, np.int64)
        visits = np.empty(self.batch_size, np.int64)
        for row in range(self.batch_size):
            task = _advance(stage.weights, counts, heap)
            tasks[row], visits[row] = task, before[task] + counts[task] - 1
        return tasks, visits

    def counts(self, batch: int) -> tuple[int, ...]:
        """Rows of each task in all batches before this one."""
        number = max(i for i, stage in enumerate(self.stages) if stage.first_batch <= batch)
        stage = self.stages[number]
        found, _ = _first_rows(stage.weights, (batch - stage.first_batch) * self.batch_size)
        return tuple(a + b for a, b in zip(self._counts_before[number], found, strict=True))

    @functools.cached_property
    def _counts_before(self) -> tuple[tuple[int, ...], ...]:
        """Rows of each task before each stage."""
        found = [(0,) * len(self.stages[0].weights)]
        for stage, following in zip(self.stages, self.stages[1:], strict=False):
            rows = (following.first_batch - stage.first_batch) * self.batch_size
            counts, _ = _first_rows(stage.weights, rows)
            found.append(tuple(a + b for a, b in zip(found[-1], counts, strict=True)))
        return tuple(found)


_Due = list[tuple[float, int]]  # a heap of (time at which the next row is due, task)


def _first_rows(weights: Sequence[float], rows: int) -> tuple[list[int], _Due]:
    """Rows of each task among the first `rows` of a stage, and what is due next."""
    # The first `rows` are due within half a row per task of that time: begin a little before.
    start = max(rows - len(weights) / 2 - 1, 0.0)
    counts = [max(math.floor(start * weight + 0.5) - 1, 0) for weight in weights]
    heap = [(_due(counts[task], weight), task) for task, weight in enumerate(weights) if weight > 0]
    heapq.heapify(heap)
    for _ in range(rows - sum(counts)):
        _advance(weights, counts, heap)
    return counts, heap


def _advance(weights: Sequence[float], counts: list[int], heap: _Due) -> int:
    """The task of the next row; counts it."""
    task = heap[0][1]
    counts[task] += 1
    heapq.heapreplace(heap, (_due(counts[task], weights[task]), task))
    return task


def _due(count: int, weight: float) -> float:
    return (count + 0.5) / weight
