"""Outcomes of several seeds as scores, averages over tasks, and differences paired by seed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from twelve_in_one.experiments.grid import GROUPS
from twelve_in_one.experiments.statistics import Estimate, estimate

AVERAGE = "average"
Averages = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of one seed.

    Attributes:
      results: variant -> task (or another measure) -> its entry of `results.json`, where "title"
        and "score" are required. A variant lacks the tasks that it has no form for.
      parameters: variant -> parameters of all its models together.
      updates: variant -> updates of all its models together, if a batch may hold several tasks;
        else each entry has those of its task, as "updates".
    """

    results: Mapping[str, Mapping[str, Mapping[str, Any]]]
    parameters: Mapping[str, int]
    updates: Mapping[str, int] = dataclasses.field(default_factory=dict)


def all_together(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """The average of all tasks, as input for `scores`."""
    return {AVERAGE: list(next(iter(outcomes[0].results.values())))}


def group_averages(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Averages of the paper's groups, if they have tasks here, and the average of all tasks."""
    everything = all_together(outcomes)
    groups = {
        group: [name for name in everything[AVERAGE] if name in members]
        for group, members in GROUPS.items()
    }
    return {group: names for group, names in groups.items() if names} | everything


def scores(
    outcomes: Sequence[Outcome], variant: str, averages: Averages | None = None
) -> dict[str, list[float]]:
    """Score of each seed, by task and by average.

    Args:
      outcomes: one per seed.
      variant: to score.
      averages: name -> tasks that it averages; none if None.
    """
    found = {
        name: [outcome.results[variant][name]["score"] for outcome in outcomes]
        for name in outcomes[0].results[variant]
    }
    for average, names in (averages or {}).items():
        columns = zip(*(found[name] for name in names), strict=True)
        found[average] = [math.fsum(column) / len(column) for column in columns]
    return found


def differences(
    outcomes: Sequence[Outcome], variant: str, other: str, averages: Averages | None = None
) -> dict[str, Estimate]:
    """Score of one variant minus that of another, paired by seed, by task and by average.

    Only of tasks that both have.
    """
    ours, theirs = scores(outcomes, variant, averages), scores(outcomes, other, averages)
    return {
        name: estimate([a - b for a, b in zip(ours[name], theirs[name], strict=True)])
        for name in ours
        if name in theirs
    }


def updates(outcomes: Sequence[Outcome], variant: str) -> float | None:
    """Updates of a variant's trainings, mean over seeds; None if unknown."""
    if all(variant in outcome.updates for outcome in outcomes):
        return sum(outcome.updates[variant] for outcome in outcomes) / len(outcomes)
    entries = [list(outcome.results[variant].values()) for outcome in outcomes]
    if any("updates" not in entry for seed in entries for entry in seed):
        return None
    return sum(entry["updates"] for seed in entries for entry in seed) / len(outcomes)
