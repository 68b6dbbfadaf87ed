"""One model against twelve (paper Table 2): single-task, group, all-task, and fine-tuned models."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from twelve_in_one.experiments import grid
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.runner import Runner

MODELS = ("single", "group", "all", "tuned")
TITLES = {
    "single": "single-task",
    "group": "group",
    "all": "all tasks",
    "tuned": "all tasks → fine-tuned",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of one seed.

    Attributes:
      results: model -> task -> the task's entry of `results.json`.
      parameters: model -> parameters of all models of this kind together.
    """

    results: Mapping[str, Mapping[str, Mapping[str, Any]]]
    parameters: Mapping[str, int]


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    The all-task model comes first, as it says how many batches of each task the single-task models
    get. Their learning rate is tuned on validation scores of the first seed, a task at a time.

    Args:
      runner: of the trainings.
      base: config of all tasks.
      seeds: of the trainings.
      models: of `MODELS`, "all" among them.

    Raises:
      ValueError: as of `Runner.run`.
      Stopped: likewise.
    """
    factors = {}
    if "single" in models:
        factors = {name: _best_factor(runner, base, name, seeds[0]) for name in base.tasks}
    return [_one_seed(runner, base, seed, models, factors) for seed in seeds]


def _one_seed(
    runner: Runner, base: Any, seed: int, models: Sequence[str], factors: Mapping[str, float]
) -> Outcome:
    source = grid.all_tasks(base, seed)
    updates = _updates(runner, source)
    groups = [name for name, tasks in grid.GROUPS.items() if set(tasks) & set(base.tasks)]
    trainings = {
        "single": lambda: [
            grid.single_task(base, name, seed, updates=updates[name], rate_factor=factors[name])
            for name in base.tasks
        ],
        "group": lambda: [grid.group(base, name, seed) for name in groups],
        "all": lambda: [source],
        "tuned": lambda: [
            grid.fine_tuned(base, name, seed, source, runner.workdir) for name in base.tasks
        ],
    }
    results: dict[str, dict[str, Any]] = {}
    parameters: dict[str, int] = {}
    for model in (name for name in MODELS if name in models):
        found = [runner.run(training) for training in trainings[model]()]
        results[model] = {name: one["tasks"][name] for one in found for name in one["tasks"]}
        parameters[model] = sum(one["parameters"] for one in found)
    return Outcome(results, parameters)


def _updates(runner: Runner, source: Training) -> dict[str, int]:
    """Batches of each task that a training used."""
    tasks = runner.run(source)["tasks"]
    return {name: tasks[name]["updates"] for name in tasks}


def _best_factor(runner: Runner, base: Any, name: str, seed: int) -> float:
    """The factor on the learning rate with which a single-task model validates best."""
    updates = _updates(runner, grid.all_tasks(base, seed))[name]
    scores = {}
    for factor in grid.RATE_FACTORS:
        training = grid.single_task(base, name, seed, updates=updates, rate_factor=factor)
        scores[factor] = runner.run(training)["tasks"][name]["validation"]
    return max(scores, key=lambda factor: scores[factor])
