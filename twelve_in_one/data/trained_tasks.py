"""The tasks of a trained model, which every kind of `Serving` has."""

import dataclasses

from twelve_in_one.systems.base import AnyTask


@dataclasses.dataclass(frozen=True)
class TrainedTasks:
    """Tasks by name.

    Attributes:
      tasks: that the model was trained on.
    """

    tasks: tuple[AnyTask, ...]

    def task(self, name: str) -> AnyTask:
        """The task called `name`.

        Raises:
          ValueError: the model was not trained on it.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        known = ", ".join(task.name for task in self.tasks)
        raise ValueError(f"the model was not trained on {name!r}, but on {known}")
