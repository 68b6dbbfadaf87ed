"""What the regions of a detector tell a model about real photos, against rules and against none.

One model learns captions, questions and expressions about the photos of the samples
(`data.real_samples --photos`) together, once on regions of each kind. Every seed holds out another
fifth of the photos, so five seeds test on each photo once; models of a seed differ in nothing but
the regions. Candidates of expressions are labelled objects, described by the same detector.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.data import real_samples
from twelve_in_one.data.stored.reader import is_built
from twelve_in_one.experiments import grid, summary
from twelve_in_one.experiments.comparison import Outcome, all_together
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.runner import Runner

BASE = "real_samples"  # the config without --config
# Kind of regions, as `real_samples --features` takes it -> the column's title.
TITLES = {"none": "no regions", "pixels": "rules about pixels", "small": "small detector"}
MODELS = tuple(TITLES)
ALWAYS = ("none",)
_PARTS = 5
_ROWS = {
    "coco": "captions: finding the photo",
    "vqa": "questions",
    "refcocog": "expressions: finding the object",
}
_ROUNDS = 300
_WORDS = 500  # as few as all parts have, so that programs are compiled once for all seeds
_BATCH_SIZE = dict(coco=8, vqa=16, refcocog=16)
_REGIONS = 37  # the whole photo and the best
_NOTE = """\
Scores in percent, mean over seeds ± half of a 95 % interval; differences are paired by seed, bold
where the interval does not hold 0. "examples" are those of all photos that the seeds test on. Every
seed holds out another fifth of the photos, and all models of a seed are tested on the same examples
of it. Most questions (is there any object of a class?) and expressions (the name of a class) are
made of COCO's labels; captions are people's."""


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs.

    Raises:
      ValueError: the config names no samples.
    """
    if not base.data.samples_dir:
        raise ValueError("photos needs samples: set TWELVE_IN_ONE_SAMPLES")
    return len(models) * len(seeds)


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Builds and trains what is missing, and collects the results of every seed.

    Raises:
      ValueError: as in `Runner.run`, or data cannot be built.
      Stopped: as in `Runner.run`.
    """
    outcomes = []
    for seed in seeds:
        found = {}
        for model in models:
            data = _build(runner.workdir, base.data.samples_dir, model, seed % _PARTS)
            found[model] = runner.run(training(base, model, seed, data))
        outcomes.append(
            Outcome(
                {model: _entries(one["tasks"]) for model, one in found.items()},
                {model: one["parameters"] for model, one in found.items()},
            )
        )
    return outcomes


def _build(workdir: Path, samples: str, model: str, part: int) -> Path:
    """The data folder of a kind of regions and a part of the photos; built if it is not there."""
    folder = workdir / "data" / f"{model}-{part}"
    if all(is_built(folder, name, real_samples.REGIONS) for name in _ROWS):
        return folder
    arguments = ["--samples", samples, "--photos", f"{part}/{_PARTS}", "--features", model]
    arguments += ["--data_dir", str(folder), "--regions", str(workdir / "data" / "regions")]
    arguments += ["--words", str(_WORDS)]
    if real_samples.main(arguments):
        raise ValueError(f"{folder}: the data could not be built, see above")
    return folder


def training(base: Any, model: str, seed: int, data: Path) -> Training:
    """The model of one kind of regions."""
    config = grid.with_tasks(base, tuple(_ROWS), seed)
    for name, task in config.task.items():
        task.max_regions, task.batch_size, task.test_splits = _REGIONS, _BATCH_SIZE[name], ("val",)
    config.data.dir, config.data.samples_dir = str(data), ""
    config.schedule.kind = "round_robin"
    config.schedule.num_rounds = min(base.schedule.num_rounds, _ROUNDS)
    grid.fit_validations(config)
    config.evaluation.text_baselines = True
    return Training(f"photos-{model}", seed, config)


def _entries(tasks: dict[str, Any]) -> dict[str, Any]:
    return {name: {**tasks[name], "title": title} for name, title in _ROWS.items()}


def report(outcomes: Sequence[Outcome]) -> str:
    """The table."""
    entries = [outcome.results["none"] for outcome in outcomes]
    facts = {"examples": {n: f"{sum(x[n]['examples'] for x in entries):,}" for n in _ROWS}}
    facts |= summary.about_tasks(entries[0])
    there = outcomes[0].results
    pairs = {"small": "pixels"} if {"small", "pixels"} <= set(there) else {}
    table = summary.by_task(outcomes, TITLES, all_together(outcomes), facts, pairs)
    return f"{table}\n\n{_NOTE}"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Gains on the model without regions, one line per task."""
    summary.plot(outcomes, TITLES, all_together(outcomes), path)
