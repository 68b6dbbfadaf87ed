"""What experiments on systems of pictures share: the encoder of each seed, changes, rows.

Such a system begins with an encoder that has learnt the classes of the generated world. Every seed
trains its own, for as many rounds as the systems on it, so that no seed shares its luck.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one import configs
from twelve_in_one.experiments import grid
from twelve_in_one.experiments.comparison import Outcome
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.logs import metrics_writer

Change = Callable[[Any], None]
# Question -> its models: name -> (title, the change that makes it of the config).
Questions = Mapping[str, Mapping[str, tuple[str, Change]]]


def setting(**settings: Any) -> Change:
    """A change of a config; "__" in the names stands for dots."""

    def change(config: Any) -> None:
        flat = {name.replace("__", "."): value for name, value in settings.items()}
        config.update_from_flattened_dict(flat)

    return change


def check_mixture(base: Any, name: str) -> None:
    """Checks that a config trains a mixture whose weights stay.

    Args:
      base: the config.
      name: of the experiment.

    Raises:
      ValueError: it does not.
    """
    if not base.get("mixture", {}).get("weighting") or base.schedule.kind != "round_robin":
        raise ValueError(
            f"{name} needs a mixture whose weights stay: config.mixture.weighting, and "
            f"config.schedule.kind=round_robin, which is {base.schedule.kind}"
        )


def has_encoder(base: Any) -> bool:
    """Whether every seed trains an encoder; else all begin as the config says."""
    return bool(base.init_from.path and base.data.world_class_pictures)


def encoder(base: Any, seed: int) -> Training:
    """The training of the encoder on the classes of the config's world."""
    config = configs.get("world_encoder")
    config.data, config.model.encoder = copy.deepcopy(base.data), copy.deepcopy(base.model.encoder)
    if not base.data.world_covers:
        config.tasks = tuple(name for name in config.tasks if name != "genres")
    config.compilation_cache, config.log = base.compilation_cache, copy.deepcopy(base.log)
    config.parallel, config.checkpoint = (
        copy.deepcopy(base.parallel),
        copy.deepcopy(base.checkpoint),
    )
    config.schedule = copy.deepcopy(base.schedule)
    config.mixture.batch_size = base.mixture.batch_size
    for name in ("batch_size", "max_validation_examples", "max_test_examples"):
        config.evaluation[name] = base.evaluation[name]
    config.evaluation.pictures, config.seed = 0, seed
    return Training(f"{base.system.name.partition('_')[0]}-encoder", seed, config)


def begin_with(config: Any, source: Training, workdir: Path) -> None:
    """Makes a config begin with the encoder of a training."""
    config.init_from.path = str(source.folder(workdir))
    config.init_from.include = ("encoder/.*",)


def with_encoder(base: Any, tasks: Sequence[str], seed: int, workdir: Path) -> Any:
    """A copy of a config with some of its tasks that begins with the encoder of its seed."""
    config = grid.with_tasks(base, tasks, seed)
    begin_with(config, encoder(base, seed), workdir)
    return config


def begun(base: Any, seed: int, workdir: Path) -> Any:
    """A copy of a config for a seed, with that seed's encoder if it has one."""
    if has_encoder(base):
        return with_encoder(base, base.tasks, seed, workdir)
    return grid.with_tasks(base, base.tasks, seed)


def rows_of(runner: Runner, training: Training) -> dict[str, int]:
    """Rows of each task that a training of a mixture has seen; tokens, if its loss counts these."""
    history = metrics_writer.read(training.folder(runner.workdir) / metrics_writer.FILE)
    counted = dict.fromkeys(training.config.tasks, 0)
    for record in history:
        for name, rows in (record.get("rows") or {}).items():
            if name in counted:  # other names are of losses that tasks share
                counted[name] += rows
    return counted


def outcome(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    entries_of: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda _, tasks: tasks,
) -> Outcome:
    """The outcome of a seed.

    Args:
      found: variant -> results of its trainings, which are of different tasks.
      entries_of: variant and "tasks" of a training's results -> the entries to compare.
    """
    return Outcome(
        {
            variant: {
                name: entry
                for one in parts
                for name, entry in entries_of(variant, one["tasks"]).items()
            }
            for variant, parts in found.items()
        },
        {variant: sum(one["parameters"] for one in parts) for variant, parts in found.items()},
        {variant: sum(one["updates"] for one in parts) for variant, parts in found.items()},
    )


def part_of(outcomes: Sequence[Outcome], variants: Sequence[str]) -> list[Outcome]:
    """The outcomes of some of the variants."""
    return [
        Outcome(
            {name: one.results[name] for name in variants},
            {name: one.parameters[name] for name in variants},
            {name: one.updates[name] for name in variants},
        )
        for one in outcomes
    ]


def titles_of(questions: Questions) -> dict[str, str]:
    """Title of each model."""
    return {name: title for models in questions.values() for name, (title, _) in models.items()}


def change_of(questions: Questions, name: str) -> Change:
    """The change that makes a model; none for one that no question names."""
    for models in questions.values():
        if name in models:
            return models[name][1]
    return lambda config: None
