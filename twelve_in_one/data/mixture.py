"""Several tasks as one sequence of batches, in the order of a plan.

The plan decides which task comes when, so it holds all the weights of the mixture: a stopped task
simply does not occur in it. One tf.data pipeline per task works ahead of it. Positions, the
number of batches used from each task, are all that a run needs to resume.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from twelve_in_one.data.pipeline import Stream, as_dataset


class Mixture:
    """Draws batches from the streams of several tasks.

    Attributes:
      positions: task name -> batches used so far; save it, and pass it again to resume.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        positions: Mapping[str, int] | None = None,
        *,
        prefetch: int = 2,
    ):
        self._streams = dict(streams)
        self._prefetch = prefetch
        self._iterators: dict[str, Iterator[dict[str, Any]]] = {}
        self.positions = dict.fromkeys(streams, 0) | dict(positions or {})
        unknown = self.positions.keys() - self._streams.keys()
        if unknown:
            raise ValueError(f"positions of unknown tasks: {', '.join(sorted(unknown))}")

    def next(self, task: str) -> dict[str, Any]:
        """The next batch of a task, as the stream makes it.

        Raises:
          KeyError: no such task.
        """
        if task not in self._iterators:
            dataset = as_dataset(
                self._streams[task], start=self.positions[task], prefetch=self._prefetch
            )
            self._iterators[task] = iter(dataset.as_numpy_iterator())
        batch = next(self._iterators[task])
        # TensorFlow's strings are bytes.
        batch["example_id"] = np.array([i.decode() for i in batch["example_id"]], object)
        self.positions[task] += 1
        return batch

    def replace(self, task: str, stream: Stream) -> None:
        """Goes on with another stream from the same position; what is prefetched is dropped."""
        self._streams[task] = stream
        self._iterators.pop(task, None)

    def follow(self, plan: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(task, batch) for every task name of a plan."""
        for task in plan:
            yield task, self.next(task)
