"""One model against twelve (paper Table 2): single-task, group, all-task, and fine-tuned models."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
    """
    factors = {name: 1.0 for name in base.tasks}
    outcomes = []
    for seed in seeds:
        first = grid.all_tasks(base, seed)
        found = {"all": [runner.run(first)]}
        updates = {name: entry["updates"] for name, entry in found["all"][0]["tasks"].items()}

        def single(name: str, factor: float, seed: int = seed, updates: Any = updates) -> Training:
            return grid.single_task(base, name, seed, updates=updates[name], rate_factor=factor)

        if "single" in models:
            if seed == seeds[0]:
                factors = {n: _best_factor(runner, n, single) for n in base.tasks}
            found["single"] = [runner.run(single(n, factors[n])) for n in base.tasks]
        if "group" in models:
            groups = [g for g in grid.GROUPS if set(grid.GROUPS[g]) & set(base.tasks)]
            found["group"] = [runner.run(grid.group(base, g, seed)) for g in groups]
        if "tuned" in models:
            found["tuned"] = [
                runner.run(grid.fine_tuned(base, n, seed, first, runner.workdir))
                for n in base.tasks
            ]
        outcomes.append(
            Outcome(
                {
                    model: {
                        name: entry
                        for results in found[model]
                        for name, entry in results["tasks"].items()
                    }
                    for model in MODELS
                    if model in models
                },
                {
                    model: sum(results["parameters"] for results in found[model])
                    for model in MODELS
                    if model in models
                },
            )
        )
    return outcomes


def _best_factor(runner: Runner, name: str, single: Callable[[str, float], Training]) -> float:
    scores = {
        factor: runner.run(single(name, factor))["tasks"][name]["validation"]
        for factor in grid.RATE_FACTORS
    }
    return max(scores, key=lambda factor: scores[factor])
