"""Stop-and-go over the weights of a mixture, against weights that stay.

For any system whose batches mix tasks: LiT-decoder by default, `--config=mammut` for MaMMUT. A task
that has stopped keeps a share of its weight (`schedule.gap`), or none, and the others get its rows;
so all models train for as many updates, unless all tasks have stopped. All validate equally often,
and oftener than a plain run, as a controller decides nothing between validations.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.config.image_settings import ImageTaskOptions
from twelve_in_one.experiments import pictures, summary
from twelve_in_one.experiments.comparison import Outcome, all_together
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.experiments.statistics import estimate, show
from twelve_in_one.report.workdir import read_run, stop_spans

BASE = "lit_decoder"  # the config without --config
VALIDATIONS = 16
TITLES = {
    "fixed": "fixed weights",
    "stop-and-go": "stop-and-go",
    "stop": "stopped tasks get no rows",
}
MODELS = tuple(TITLES)
ALWAYS = ("fixed",)
_NOTE = """\
Scores in percent, CIDEr-D of captions in points of 1; mean over seeds ± half of a 95 % interval;
differences are paired by seed, bold where the interval does not hold 0."""
_ROWS_NOTE = """\
Share of each task that is trained on in the rows (in their tokens, with model.per_token), and of
the rounds for which it was stopped, in percent."""
_NEVER = "No task was stopped in any run, so all models are the same."


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs.

    Raises:
      ValueError: the config is not of a mixture of several tasks.
    """
    pictures.check_mixture(base, "stop-and-go")
    learnt = learnt_tasks(base)
    if len(learnt) < 2:
        raise ValueError(
            f"stop-and-go shifts rows between tasks: this mixture has only {', '.join(learnt)}"
        )
    return (pictures.has_encoder(base) + len(models)) * len(seeds)


def learnt_tasks(base: Any) -> list[str]:
    """The tasks that a config trains on."""
    return [name for name in base.tasks if ImageTaskOptions(**base.task[name]).learns]


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    Entries of tasks that are trained on also have "share", of the rows, and "stopped", of the
    rounds.

    Args:
      runner: of the trainings.
      base: config of the model with fixed weights.
      seeds: of the trainings.
      models: of `MODELS`, "fixed" among them.

    Raises:
      ValueError: as in `Runner.run`.
      Stopped: as in `Runner.run`.
    """
    outcomes, learnt = [], learnt_tasks(base)
    for seed in seeds:
        if pictures.has_encoder(base):
            runner.run(pictures.encoder(base, seed))
        found = {}
        for name in models:
            one = training(base, name, seed, runner.workdir)
            results = runner.run(one)
            facts = _facts(runner, one, learnt)
            tasks = {
                task: {**entry, **facts.get(task, {})} for task, entry in results["tasks"].items()
            }
            found[name] = [{**results, "tasks": tasks}]
        outcomes.append(pictures.outcome(found))
    return outcomes


def training(base: Any, name: str, seed: int, workdir: Path) -> Training:
    """A model."""
    config = pictures.begun(base, seed, workdir)
    schedule = config.schedule
    interval = max(schedule.num_rounds // VALIDATIONS, 1)
    schedule.min_validation_rounds = schedule.max_validation_rounds = interval
    if name != "fixed":
        schedule.kind = "stop_and_go"
    if name == "stop":
        schedule.gap = 0
    system = base.system.name.partition("_")[0]
    return Training(f"stopping-{system}-{name}", seed, config)


def _facts(
    runner: Runner, one: Training, learnt: Sequence[str]
) -> Mapping[str, Mapping[str, float]]:
    rows = pictures.rows_of(runner, one)
    total = sum(rows.values())
    history = read_run(one.folder(runner.workdir))
    found = {}
    for name in learnt:
        stopped = sum(s.end - s.start for s in stop_spans(history, name) if s.stopped)
        rounds = one.config.schedule.num_rounds
        found[name] = {"share": rows[name] / total, "stopped": stopped / rounds}
    return found


def report(outcomes: Sequence[Outcome]) -> str:
    """Scores, and what each task was trained on."""
    facts = summary.about_tasks(outcomes[0].results["fixed"])
    table = summary.by_task(outcomes, TITLES, all_together(outcomes), facts)
    variants = list(outcomes[0].results)
    stopping = [name for name in variants if name != "fixed"]
    header = ["task", *(f"{TITLES[name]}: rows" for name in variants)]
    header += [f"{TITLES[name]}: stopped" for name in stopping]
    rows = [
        [
            entry["title"],
            *(_mean(outcomes, name, task, "share") for name in variants),
            *(_mean(outcomes, name, task, "stopped") for name in stopping),
        ]
        for task, entry in outcomes[0].results["fixed"].items()
        if "share" in entry
    ]
    parts = [table, _NOTE, summary.markdown(header, rows), _ROWS_NOTE]
    entries = [x for one in outcomes for name in stopping for x in one.results[name].values()]
    if stopping and not any(entry.get("stopped") for entry in entries):
        parts.append(_NEVER)
    return "\n\n".join(parts)


def _mean(outcomes: Sequence[Outcome], variant: str, task: str, fact: str) -> str:
    return show(estimate([one.results[variant][task][fact] for one in outcomes]))


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Differences from fixed weights."""
    summary.plot(outcomes, TITLES, all_together(outcomes), path)
