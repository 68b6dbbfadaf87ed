"""The time of a run: training, devices waiting for data, and neither."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Stopwatch:
    """Time spent training, waiting for data within it, and not training (validation)."""

    def __init__(self, first_round: int, before: float):
        self._before = before
        self._begin = self._lap = time.perf_counter()
        self._first = self._round = first_round
        self._wait = self._paused = 0.0
        self.examples = 0
        self._updates = 0

    def total(self) -> float:
        """Seconds of the run, over all restarts."""
        return self._before + time.perf_counter() - self._begin

    @contextlib.contextmanager
    def waiting(self, starved: Callable[[], bool]) -> Iterator[None]:
        """Times the making of a batch. It counts if the devices are idle at its end.

        They may have been idle for only part of it: the reported share is an upper bound.
        """
        start = time.perf_counter()
        yield
        if starved():
            self._wait += time.perf_counter() - start
        self._updates += 1

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def lap(self, round: int) -> dict[str, float]:
        """Rates since the last lap, without pauses; starts the next."""
        now = time.perf_counter()
        trained = max(now - self._lap - self._paused, 1e-9)
        rates = {
            "elapsed_s": self.total(),
            "rounds_per_s": (round - self._round) / trained,
            "rounds_per_s_overall": max(round - self._first, 1) / (now - self._begin),
            "updates_per_s": self._updates / trained,
            "examples_per_s": self.examples / trained,
            "data_wait": self._wait / trained,
        }
        self._lap, self._round = now, round
        self._wait = self._paused = 0.0
        self.examples = self._updates = 0
        return rates


def duration(seconds: float) -> str:
    """Readable seconds, "3 h 20 min" or "4 min 5 s"."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
