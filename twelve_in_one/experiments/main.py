"""One model against twelve (paper Table 2): single-task, group, all-task, and fine-tuned models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.experiments import grid, paper, summary
from twelve_in_one.experiments.comparison import Outcome, all_together
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.runner import Runner

TITLES = {
    "single": "single-task",
    "group": "group",
    "all": "all tasks",
    "group-tuned": "group → fine-tuned",
    "tuned": "all tasks → fine-tuned",
}
MODELS = tuple(TITLES)
BEGUN_WITH = {"group-tuned": "group", "tuned": "all"}
ALWAYS = ("all",)  # sets the number of batches of single-task models
_NOTE = """\
Scores in percent, mean over seeds ± half of a 95 % interval; differences are paired by seed, bold
where the interval does not hold 0. Single-task models see as many batches of their task as the
model of all tasks, and choose their learning rate on validation scores of the first seed. Updates
of fine-tuned models are those of fine-tuning."""


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs; that with the best learning rate is one of the first seed's."""
    tasks, groups = len(base.tasks), len(grid.groups_of(base.tasks))
    total = len(seeds)
    if "single" in models:
        total += tasks * (len(grid.RATE_FACTORS) - 1 + len(seeds))
    if {"group", "group-tuned"} & set(models):
        total += groups * len(seeds)
    return total + tasks * len(seeds) * len({"group-tuned", "tuned"} & set(models))


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    The all-task model comes first, as it sets the number of batches of single-task models. Their
    learning rate is tuned on validation scores of the first seed, one task at a time.

    Args:
      runner: of the trainings.
      base: config of all tasks.
      seeds: of the trainings.
      models: of `MODELS`, "all" among them.

    Raises:
      ValueError: as in `Runner.run`.
      Stopped: as in `Runner.run`.
    """
    factors = {}
    if "single" in models:
        factors = {name: best_factor(runner, base, name, seeds[0]) for name in base.tasks}
    return [_one_seed(runner, base, seed, models, factors) for seed in seeds]


def _one_seed(
    runner: Runner, base: Any, seed: int, models: Sequence[str], factors: Mapping[str, float]
) -> Outcome:
    source = grid.all_tasks(base, seed)
    updates = batches_used(runner, source)
    groups = {name: grid.group(base, name, seed) for name in grid.groups_of(base.tasks)}
    group_of = {task: groups[name] for name in groups for task in grid.GROUPS[name]}

    def tuned(name: str, begin: Training) -> Training:
        runner.run(begin)
        return grid.fine_tuned(base, name, seed, begin, runner.workdir)

    trainings = {
        "single": lambda: [
            grid.single_task(base, name, seed, updates=updates[name], rate_factor=factors[name])
            for name in base.tasks
        ],
        "group": groups.values,
        "all": lambda: [source],
        "group-tuned": lambda: [tuned(name, group_of[name]) for name in base.tasks],
        "tuned": lambda: [tuned(name, source) for name in base.tasks],
    }
    results: dict[str, dict[str, Any]] = {}
    parameters: dict[str, int] = {}
    for model in (name for name in MODELS if name in models):
        found = [runner.run(training) for training in trainings[model]()]
        by_name = {name: one["tasks"][name] for one in found for name in one["tasks"]}
        results[model] = {name: by_name[name] for name in base.tasks}
        parameters[model] = sum(one["parameters"] for one in found)
    return Outcome(results, parameters)


def batches_used(runner: Runner, training: Training) -> dict[str, int]:
    """Batches of each task that a training used."""
    tasks = runner.run(training)["tasks"]
    return {name: entry["updates"] for name, entry in tasks.items()}


def best_factor(runner: Runner, base: Any, name: str, seed: int) -> float:
    """The factor on the learning rate with which a single-task model validates best."""
    updates = batches_used(runner, grid.all_tasks(base, seed))[name]
    found = {}
    for factor in grid.RATE_FACTORS:
        training = grid.single_task(base, name, seed, updates=updates, rate_factor=factor)
        found[factor] = runner.run(training)["tasks"][name]["validation"]
    return max(found, key=lambda factor: found[factor])


def report(outcomes: Sequence[Outcome]) -> str:
    """The table, with the paper's below it."""
    results = outcomes[0].results
    facts = summary.about_tasks(results["all"])
    table = summary.by_task(outcomes, TITLES, all_together(outcomes), facts, BEGUN_WITH)
    return f"{table}\n\n{_NOTE}\n\n{paper.table_2(TITLES, list(results))}"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Gains on the first kind of model, one line per task."""
    summary.plot(outcomes, TITLES, all_together(outcomes), path)
