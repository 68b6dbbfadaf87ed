"""Which groups help each other (paper Table 3): models of two tasks against single-task models.

Every group is represented by one of its tasks. A single-task model sees as many batches of its task
as the model of two did, at the same learning rate; as stop-and-go may stop a task sooner in one
pair than in another, there is one single-task model per such number. Changes are in points: the
paper's are relative, which is meaningless if a single-task model is at chance.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.experiments import grid, paper
from twelve_in_one.experiments.comparison import AVERAGE, Outcome
from twelve_in_one.experiments.main import batches_used
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.experiments.statistics import estimate, show
from twelve_in_one.experiments.summary import markdown, marked, over_seeds

MODELS = ALWAYS = ()
REPRESENTATIVES = {"G1": "vqa", "G2": "flickr30k", "G3": "visual7w", "G4": "nlvr2"}
_NOTE = """\
Change of the row's task in points when it is trained with the column's task, mean over seeds ± half
of a 95 % interval, paired by seed; bold where the interval does not hold 0. A single-task model
sees as many batches of its task as the model of two."""


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Largest number of trainings for `run`: every pair, and two single-task models for each.

    Raises:
      ValueError: the config lacks some of the tasks.
    """
    missing = set(REPRESENTATIVES.values()) - set(base.tasks)
    if missing:
        raise ValueError(f"pairs needs the tasks {', '.join(sorted(missing))} in config.tasks")
    return 3 * len(_pairs()) * len(seeds)


def _pairs() -> list[tuple[str, str]]:
    return list(itertools.combinations(REPRESENTATIVES.values(), 2))


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    Variants of an outcome are "A+B", the model of two tasks, and "A+B alone", single-task models
    that saw as many batches.

    Raises:
      ValueError: as in `Runner.run`.
      Stopped: as in `Runner.run`.
    """
    return [_one_seed(runner, base, seed) for seed in seeds]


def _one_seed(runner: Runner, base: Any, seed: int) -> Outcome:
    results: dict[str, dict[str, Any]] = {}
    parameters: dict[str, int] = {}
    for names in _pairs():
        together = grid.pair(base, names, seed)
        updates = batches_used(runner, together)
        alone = [
            grid.single_task(base, name, seed, updates=updates[name], says_updates=True)
            for name in names
        ]
        for variant, trainings in (
            ("+".join(names), [together]),
            (f"{'+'.join(names)} alone", alone),
        ):
            found = [runner.run(training) for training in trainings]
            results[variant] = {name: one["tasks"][name] for one in found for name in one["tasks"]}
            parameters[variant] = sum(one["parameters"] for one in found)
    return Outcome(results, parameters)


def changes(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[float]]:
    """(row, column) -> change of the row's task when trained with the column's, per seed.

    The row of `AVERAGE` is the mean effect of a task on the others, its column the mean effect of
    the others on a task.
    """
    found = [_changes_of(outcome) for outcome in outcomes]
    return {cell: [change[cell] for change in found] for cell in found[0]}


def _changes_of(outcome: Outcome) -> dict[tuple[str, str], float]:
    found = {}
    for variant, together in outcome.results.items():
        if f"{variant} alone" in outcome.results:
            alone = outcome.results[f"{variant} alone"]
            for name, other in itertools.permutations(together):
                found[name, other] = together[name]["score"] - alone[name]["score"]
    names = REPRESENTATIVES.values()
    rows = {(name, AVERAGE): [found[name, x] for x in names if x != name] for name in names}
    columns = {(AVERAGE, name): [found[x, name] for x in names if x != name] for name in names}
    return found | {cell: math.fsum(x) / len(x) for cell, x in (rows | columns).items()}


def report(outcomes: Sequence[Outcome]) -> str:
    """The matrix of changes, with the paper's below it."""
    cells = {cell: estimate(values) for cell, values in changes(outcomes).items()}
    names = [*REPRESENTATIVES.values(), AVERAGE]
    rows = []
    for row in names:
        found = (cells.get((row, column)) for column in names)
        texts = ["" if x is None else marked(x) for x in found]
        rows.append([f"**{row}**" if row == AVERAGE else row, *texts])
    table = markdown(["trained with", *names], rows)
    return f"{table}\n\n{_NOTE}\n\n{paper.table_3()}"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """The matrix as a heat map, green where tasks help."""
    import numpy as np
    from matplotlib.figure import Figure

    cells = {cell: estimate(values) for cell, values in changes(outcomes).items()}
    names = [*REPRESENTATIVES.values(), AVERAGE]
    matrix = np.full((len(names), len(names)), np.nan)
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.subplots()
    for (row, column), found in cells.items():
        where = names.index(row), names.index(column)
        matrix[where] = 100 * found.mean
        text = show(found, signed=True).replace(" ± ", "\n± ")
        axes.text(where[1], where[0], text, ha="center", va="center", fontsize=9)
    limit = max(1.5 * np.nanmax(np.abs(matrix)), 1.0)  # the numbers stay readable
    picture = axes.imshow(matrix, cmap="PiYG", vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("trained with")
    axes.set_ylabel("change of")
    figure.colorbar(picture, label=f"points above the single-task score ({over_seeds(outcomes)})")
    figure.savefig(path, format="png", dpi=150)
