"""Runs trainings one after the other; reads complete ones and resumes interrupted ones."""

import contextlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from twelve_in_one.checkpoints import lock, state
from twelve_in_one.config import check
from twelve_in_one.config.diff import differences
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.experiments.grid import Training
from twelve_in_one.logs.stopwatch import duration
from twelve_in_one.training.finish import RESULTS

Train = Callable[[Any, Path], dict[str, Any] | None]
_log = logging.getLogger(__name__)
# Between checks whether another process has finished a training.
_WAIT_SECONDS = 10.0


class Stopped(Exception):
    """A training was asked to stop and has saved."""


class Runner:
    """Trains, or reads earlier trainings.

    Several may share a workdir, in separate processes: one waits for a training that another is
    running.

    Attributes:
      workdir: of all trainings.
      train: ConfigDict and folder -> results, or None if it was asked to stop (`train.train`).
      total: expected number of trainings, for the progress.
      trained: seconds of each training that this runner ran, by name and seed.
    """

    def __init__(self, workdir: Path, train: Train, total: int):
        self.workdir = workdir
        self.trained: dict[tuple[str, int], float] = {}
        self._train, self._total = train, total
        self._asked: set[Path] = set()

    def run(self, training: Training) -> dict[str, Any]:
        """The results of a training.

        Raises:
          ValueError: its folder holds a run of another config, or a task has no score to compare.
          Stopped: it was asked to stop.
        """
        folder = training.folder(self.workdir)
        self._asked.add(folder)
        complete = folder / RESULTS
        if (folder / state.CONFIG).is_file():
            _check_same(training, folder)
        if complete.is_file():
            return _with_all_tasks(training, json.loads(complete.read_text(encoding="utf-8")))
        done = len(self._asked)
        left = self._total - done + 1
        eta = ""
        if self.trained:
            eta = f", ETA {duration(left * sum(self.trained.values()) / len(self.trained))}"
        _log.info(
            "training %d of %d: %s, seed %d%s",
            done,
            self._total,
            training.name,
            training.seed,
            eta,
        )
        start = time.monotonic()
        try:
            results = self._train(training.config, folder)
        except lock.Occupied:
            _log.info("another process is at it: waiting")
            _wait(complete, folder)
            return self.run(training)
        jax.clear_caches()  # the next training cannot reuse the programs
        if results is None:
            raise Stopped(str(folder))
        self.trained[training.name, training.seed] = time.monotonic() - start
        return _with_all_tasks(training, results)


def _wait(complete: Path, folder: Path) -> None:
    """Waits until a training is complete, or no process is running it."""
    while not complete.is_file():
        time.sleep(_WAIT_SECONDS)
        with contextlib.suppress(lock.Occupied), lock.held(folder):
            return


def _with_all_tasks(training: Training, results: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name in training.config.tasks if name not in results["tasks"]]
    if missing:
        raise ValueError(
            f"{training.name}, seed {training.seed}: no score of {', '.join(missing)}, as the test "
            "split has no answers: leave the task out of config.tasks, or set its test_splits to "
            "one with answers"
        )
    return results


def _check_same(training: Training, folder: Path) -> None:
    before, now = state.read_config(folder), check.check(training.config)
    # NAME/seed-S of a workdir that may have moved
    same_source = _source(before).parts[-2:] == _source(now).parts[-2:]
    differing = differences(before, now, ignore=("init_from.path",) if same_source else ())
    if differing:
        raise ValueError(
            f"{folder} holds a training of other settings ({'; '.join(differing[:3])}): choose "
            "another --workdir"
        )


def _source(run: RunConfig) -> Path:
    return Path(run.init_from.path)
