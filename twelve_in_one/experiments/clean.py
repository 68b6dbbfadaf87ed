"""The effect of cleaning (paper section 3.2): training with and without other tests' images.

The leaky model trains as many rounds as the clean one, on every annotation of the training splits;
both are tested on the same complete test sets. Cleaning removes examples from the test split of
Visual Genome QA (as in the released code), so this task is trained on but not compared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.data.builders import finish, splits
from twelve_in_one.experiments import grid, summary
from twelve_in_one.experiments.comparison import Outcome, all_together
from twelve_in_one.experiments.runner import Runner

MODELS = ALWAYS = ()
TITLES = {"clean": "clean", "leaky": "leaky"}
_NOTE = """\
One model of all tasks; scores in percent, mean over seeds ± half of a 95 % interval; differences
are paired by seed, bold where the interval does not hold 0. "left out" are training examples on
images that some task is tested on: the leaky model trains on them, too. A task of which the models
are tested on other examples, since cleaning takes from its test split, has no row."""


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs.

    Raises:
      ValueError: the config does not clean.
    """
    if not base.data.clean:
        raise ValueError("clean compares with config.data.clean=True, it is False")
    return 2 * len(seeds)


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    Entries of the clean model also have "train_examples" and "left_out" of their dataset.

    Raises:
      ValueError: as in `Runner.run`, or the data folder is damaged.
      Stopped: as in `Runner.run`.
    """
    outcomes = []
    for seed in seeds:
        found = {
            "clean": runner.run(grid.all_tasks(base, seed)),
            "leaky": runner.run(grid.leaky(base, seed)),
        }
        results = {variant: one["tasks"] for variant, one in found.items()}
        for name, numbers in _left_out(base).items():
            results["clean"][name] |= numbers
        tested = [{n: tasks[n]["examples"] for n in base.tasks} for tasks in results.values()]
        compared = [name for name in base.tasks if tested[0][name] == tested[1][name]]
        results = {v: {name: tasks[name] for name in compared} for v, tasks in results.items()}
        parameters = {variant: one["parameters"] for variant, one in found.items()}
        outcomes.append(Outcome(results, parameters))
    return outcomes


def _left_out(base: Any) -> dict[str, dict[str, int]]:
    """Task -> number of training examples, and how many of them cleaning leaves out."""
    folder = Path(base.data.dir)
    clean = splits.read_clean_split(folder / finish.CLEAN_SPLIT)
    rows = splits.removed(finish.built_indexes(folder, base.data.regions), clean)
    return {
        row.dataset: {"train_examples": row.annotations, "left_out": row.removed_annotations}
        for row in rows
        if row.split == "train" and row.dataset in base.tasks
    }


def report(outcomes: Sequence[Outcome]) -> str:
    """The table, with the losses of each dataset."""
    entries = outcomes[0].results["clean"]
    facts = {
        "metric": {name: entry["metric"] for name, entry in entries.items()},
        "training examples": {n: f"{x['train_examples']:,}" for n, x in entries.items()},
        "left out": {
            name: f"{entry['left_out']:,} ({entry['left_out'] / entry['train_examples']:.1%})"
            for name, entry in entries.items()
        },
    }
    return f"{summary.by_task(outcomes, TITLES, all_together(outcomes), facts)}\n\n{_NOTE}"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Gains from the leaks, one line per task."""
    summary.plot(outcomes, TITLES, all_together(outcomes), path)
