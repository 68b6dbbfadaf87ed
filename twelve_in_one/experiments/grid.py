"""The trainings of an experiment, as changes of one config.

A `Training` is a name, a seed and a ConfigDict; its folder under the experiment's workdir is
`NAME/seed-S`. Identical trainings of different experiments have the same name, so experiments share
them.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.config import defaults
from twelve_in_one.config.settings import task_key
from twelve_in_one.data.stored import reader
from twelve_in_one.systems import SYSTEMS
from twelve_in_one.tasks.twelve import TWELVE

GROUPS = {
    name: tuple(t.name for t in TWELVE if t.group == name) for name in ("G1", "G2", "G3", "G4")
}
# Factors on the learning rate to choose from for single-task models, on validation data.
RATE_FACTORS = (0.5, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Training:
    """One run of the trainer.

    Attributes:
      name: of the folder, e.g. "single-vqa".
      seed: of the run.
      config: of the run.
    """

    name: str
    seed: int
    config: Any

    def folder(self, workdir: Path) -> Path:
        """Workdir of the run."""
        return workdir / self.name / f"seed-{self.seed}"


def check_tested(base: Any) -> None:
    """Checks, for data already built, that every task will have a score to compare.

    Raises:
      ValueError: none of a task's test splits was built.
    """
    if SYSTEMS[base.system.name].pixels:
        return  # a source without its test split is told from one with at the end of a run
    folder, regions = Path(base.data.dir), base.data.regions
    for name in base.tasks:
        splits = base.task[task_key(name)].test_splits
        if reader.is_built(folder, name, regions):
            built = reader.built_folder(folder, name, regions)
            if not any(reader.has_split(built, split) for split in splits):
                raise ValueError(
                    f"{built}: {name} is tested on {', '.join(splits)}, which was not built: build "
                    f"it, or set config.task.{task_key(name)}.test_splits to a split with answers"
                )


def all_tasks(base: Any, seed: int) -> Training:
    """One model of all the config's tasks (paper: AT)."""
    config = with_tasks(base, base.tasks, seed)
    config.evaluation.text_baselines = True
    return Training("all", seed, config)


def group(base: Any, name: str, seed: int) -> Training:
    """One model of a group's tasks, with as many rounds as the all-task model (paper: GT)."""
    tasks = [task for task in base.tasks if task in GROUPS[name]]
    return Training(f"group-{name}", seed, with_tasks(base, tasks, seed))


def groups_of(tasks: Sequence[str]) -> list[str]:
    """The groups of the tasks."""
    return [name for name, members in GROUPS.items() if set(members) & set(tasks)]


def pair(base: Any, names: Sequence[str], seed: int) -> Training:
    """One model of two tasks, with as many rounds as the all-task model."""
    keys = "-".join(task_key(name) for name in names)
    return Training(f"pair-{keys}", seed, with_tasks(base, names, seed))


def leaky(base: Any, seed: int) -> Training:
    """One model of all tasks that also trains on other tasks' test images."""
    config = with_tasks(base, base.tasks, seed)
    config.data.clean = False
    return Training("all-leaky", seed, config)


def single_task(
    base: Any,
    name: str,
    seed: int,
    *,
    updates: int,
    rate_factor: float = 1.0,
    says_updates: bool = False,
) -> Training:
    """A model of one task, trained on a given number of batches (paper: ST).

    Args:
      base: config of all tasks.
      name: of the task.
      seed: of the run.
      updates: batches; none is skipped, as the plan is a round robin of one task.
      rate_factor: on the learning rate.
      says_updates: include the number of batches in the folder's name, to tell models apart.
    """
    config = with_tasks(base, [name], seed)
    config.schedule.kind, config.schedule.num_rounds = "round_robin", updates
    fit_validations(config)
    config.optimizer.learning_rate *= rate_factor
    suffix = "" if rate_factor == 1.0 else f"-rate-{rate_factor:g}"
    suffix += f"-updates-{updates}" if says_updates else ""
    return Training(f"single-{task_key(name)}{suffix}", seed, config)


def fine_tuned(base: Any, name: str, seed: int, source: Training, workdir: Path) -> Training:
    """The model of another training, trained further on one task (paper: "-> finetune ST").

    A quarter of the learning rate and half the rounds are our choice.
    """
    config = with_tasks(base, [name], seed)
    config.init_from = copy.deepcopy(defaults.get_config().init_from)  # takes everything
    config.init_from.path = str(source.folder(workdir))
    config.optimizer.learning_rate /= 4
    config.schedule.kind = "round_robin"
    config.schedule.num_rounds = max(base.schedule.num_rounds // 2, 1)
    fit_validations(config)
    return Training(f"tuned-{source.name}-{task_key(name)}", seed, config)


def with_tasks(base: Any, tasks: Sequence[str], seed: int) -> Any:
    """A copy of a config with some of its tasks and only the reports that an experiment needs."""
    config = copy.deepcopy(base)
    with config.unlocked():
        config.tasks = tuple(tasks)
        options: Mapping[str, Any] = base.task
        config.task = type(base)({task_key(t): copy.deepcopy(options[task_key(t)]) for t in tasks})
    config.seed = seed
    _fit_rate(config, base)
    config.evaluation.pictures = 0
    config.evaluation.text_baselines = False
    return config


def _fit_rate(config: Any, base: Any) -> None:
    """Sets the base rate to the lowest of the tasks' rates if these set the loss scales.

    As in the released code, fewer tasks may have a higher base rate and lower scales. Heads keep
    their rate.
    """
    if not any(options.loss_scale for options in config.task.values()):
        lowest, before = (
            min(options.learning_rate for options in one.task.values()) for one in (config, base)
        )
        if lowest and before:
            config.optimizer.learning_rate *= lowest / before
            config.optimizer.head_learning_rate *= before / lowest


def fit_validations(config: Any) -> None:
    """Validates once, at the end: nothing is stopped, and the last score is compared."""
    config.schedule.min_validation_rounds = config.schedule.num_rounds
    config.schedule.max_validation_rounds = config.schedule.num_rounds
    config.system.official.resets = ()
    config.evaluation.max_validation_examples = 0
