"""The inputs of a run, regions or pictures, with one interface for the trainer."""

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from twelve_in_one.config import check
from twelve_in_one.config.check import TaskRun
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.data import run_inputs, trained_on
from twelve_in_one.data.cut_texts import CutTexts, count_cut
from twelve_in_one.data.image_inputs import ImageInputs
from twelve_in_one.data.image_serving import ImageServing
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.streams import DataFolder
from twelve_in_one.data.trained_on import TrainedOn
from twelve_in_one.systems import SYSTEMS
from twelve_in_one.systems.base import System


class RunInputs(Protocol):
    """The data of a run.

    Attributes:
      kind: "regions" or "pictures"; tables of what differs between them have it as their key.
      path: of the data, for messages.
      tasks: of the run.
    """

    kind: ClassVar[str]
    path: Path
    tasks: tuple[TaskRun, ...]

    def system(self) -> System:
        """The system with the sizes set by the data."""
        ...

    def train_streams(self, system: System) -> dict[str, Any]:
        """Name -> this process's share of the batches of a training stream, endless."""
        ...

    def evaluation_stream(self, task: TaskRun, split: str, system: System) -> Any:
        """This process's share of a split, once and in stored order."""
        ...

    def splits(self, task: TaskRun, splits: Sequence[str]) -> tuple[str, ...]:
        """The splits among these that exist; a user may lack the files of some."""
        ...

    def serving(self, system: System) -> Serving | ImageServing:
        """Companion of the weights of a model that learnt these tasks."""
        ...

    def trained_on(self, streams: Mapping[str, Any]) -> TrainedOn:
        """The data of training on these streams."""
        ...

    def cut_texts(self, streams: Mapping[str, Any]) -> list[CutTexts]:
        """Lengths of the texts of training streams."""
        ...

    def sentences(self, system: System) -> Any:
        """int32[C, T, L], tokens of the sentences that name each class, see `System.derived`; None
        for systems that need none.
        """
        ...

    def for_tests(self, seen: TrainedOn | None, keep: bool) -> Self:
        """The same inputs, whose evaluation leaves out examples that were trained on.

        Args:
          seen: what was trained on.
          keep: only report them.
        """
        ...


class RegionInputs:
    """Batches of regions, from a data folder."""

    kind = "regions"

    def __init__(self, run: RunConfig, tasks: Sequence[TaskRun], workdir: Path):
        self.run, self.tasks = run, tuple(tasks)
        self.folder: DataFolder = run_inputs.open_data(run, workdir)
        self.path = self.folder.path

    def system(self) -> System:
        """See `RunInputs`."""
        shapes = [task.task for task in self.tasks]
        dim = run_inputs.feature_dim(self.folder, self.tasks)
        return run_inputs.system_of(self.run, self.folder, shapes, dim)

    def train_streams(self, system: System) -> dict[str, Any]:
        """See `RunInputs`: one stream per task."""
        return {
            task.task.name: run_inputs.open_task(
                self.run, self.folder, task, task.options.train_split, system, training=True
            )
            for task in self.tasks
        }

    def evaluation_stream(self, task: TaskRun, split: str, system: System) -> Any:
        """See `RunInputs`."""
        size = self.run.evaluation.batch_size or None
        open_task = functools.partial(run_inputs.open_task, training=False, batch_size=size)
        return open_task(self.run, self.folder, task, split, system)

    def splits(self, task: TaskRun, splits: Sequence[str]) -> tuple[str, ...]:
        """See `RunInputs`."""
        return run_inputs.splits_of(self.folder, task, tuple(splits))

    def serving(self, system: System) -> Serving:
        """See `RunInputs`."""
        return run_inputs.serving_of(self.folder, self.tasks, system)

    def trained_on(self, streams: Mapping[str, Any]) -> TrainedOn:
        """See `RunInputs`."""
        return trained_on.of_streams(streams.values())

    def cut_texts(self, streams: Mapping[str, Any]) -> list[CutTexts]:
        """See `RunInputs`."""
        return [count_cut(stream) for stream in streams.values()]

    def sentences(self, system: System) -> None:
        """See `RunInputs`."""

    def for_tests(self, seen: TrainedOn | None, keep: bool) -> Self:
        """See `RunInputs`."""
        other = copy.copy(self)
        other.folder = dataclasses.replace(self.folder, trained_on=seen, keep_trained_on=keep)
        return other


def open_inputs(run: RunConfig, workdir: Path) -> RegionInputs | ImageInputs:
    """The inputs of a run.

    Raises:
      DataError: a file is missing or damaged.
    """
    tasks = check.task_runs(run)
    if SYSTEMS[run.system.name].pixels:
        return ImageInputs(run, tasks, workdir)
    return RegionInputs(run, tasks, workdir)
