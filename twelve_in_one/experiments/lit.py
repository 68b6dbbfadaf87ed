"""What LiT-decoder's study varies, on the generated world (Beyer et al. 2023).

Every seed trains its own encoder on the world's classes, for as many rounds as the decoders. The
first model is the config as it is: a small decoder on that encoder, frozen. Others differ from it
in one setting, or in what they train on:

* single-task models see as many rows of their task as the first model did, or three times as many,
  at the learning rate that validates best with the first seed;
* transfer: a task is held out, and then learnt in a quarter of its rows by a decoder that has
  learnt all others, and by a new one, each at the rate that validates best with the first seed.

The paper's tables could not be read, so there are no numbers of it to compare with.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.checkpoints import state
from twelve_in_one.experiments import grid, pictures, summary
from twelve_in_one.experiments.comparison import Outcome, all_together
from twelve_in_one.experiments.grid import RATE_FACTORS, Training
from twelve_in_one.experiments.pictures import setting
from twelve_in_one.experiments.runner import Runner

BASE = "lit_decoder"  # the config without --config
SYSTEM = "lit_decoder"
LENGTHS = (1, 3)  # rows of a single-task model, times those that the first model saw of its task
_TRANSFER_SHARE = 0.25
_TRANSFER, _NEW = "transfer", "transfer-new"


def _fine_tuned(config: Any) -> None:
    config.model.freeze_encoder = False
    config.optimizer.groups = (("encoder/.*", 0.1, 0.0), *config.optimizer.groups)


_CHANGES: pictures.Questions = {
    "encoder": {
        "finetuned": ("encoder trained on, at a tenth of the rate", _fine_tuned),
        "scratch": (
            "encoder trained from the start",
            setting(model__freeze_encoder=False, init_from__path=""),
        ),
        "random": ("random encoder, frozen", setting(init_from__path="")),
    },
    "mixture": {
        "pairs": ("rows in proportion to pairs", setting(mixture__weighting="pairs")),
        "images": ("in proportion to images", setting(mixture__weighting="images")),
        "equal": ("as many of each task", setting(mixture__weighting="equal")),
    },
    "conditioning": {
        "no-condition": ("nothing names the task", setting(model__conditioning="none")),
        "group-prompt": ("a prompt names the group", setting(model__specificity="group")),
        "embedding": ("an embedding before the text", setting(model__conditioning="embedding")),
        "token": ("a token beside the image's", setting(model__conditioning="token")),
    },
    "depth": {
        f"depth-{n}": (f"{n} layer{'s' * (n > 1)}", setting(model__decoder__num_layers=n))
        for n in (1, 4, 6)
    },
}
TITLES = {
    "frozen": "the config: frozen encoder, one decoder",
    "single": "single-task models, tuned",
    **pictures.titles_of(_CHANGES),
    _TRANSFER: "after the other tasks",
    _NEW: "a new decoder",
}
MODELS = tuple(name for name in TITLES if name != _NEW)
ALWAYS = ("frozen",)
_NOTE = """\
Scores in percent, CIDEr-D of captions in points of 1; mean over seeds ± half of a 95 % interval;
differences are paired by seed, bold where the interval does not hold 0. All models of a table train
for as many rounds, but for single-task ones, whose rows of their task and rate are tuned."""
_ABOUT_TRANSFER = """\
{task} is held out. Both decoders learn it in a quarter of its rows of the first model, with the
tokens of the decoder of all other tasks."""


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Largest number of trainings that `run` needs.

    Raises:
      ValueError: the config is not of LiT-decoder, not of a mixture, not on the generated world, or
        of too few tasks.
    """
    if base.system.name != SYSTEM:
        raise ValueError(f"lit needs a config of {SYSTEM}, this is of {base.system.name}")
    pictures.check_mixture(base, "lit")
    if not base.data.world_class_pictures:
        raise ValueError(
            "lit trains its encoder on the generated world: config.data.world_class_pictures is 0"
        )
    tasks, plain = len(base.tasks), set(models) - {"single", _TRANSFER}
    if tasks < 2 and {"single", _TRANSFER} & set(models):
        raise ValueError("single and transfer need several tasks in config.tasks")
    total = (1 + len(plain)) * len(seeds)  # and the encoder
    if "single" in models:
        total += tasks * (len(LENGTHS) * len(RATE_FACTORS) + len(seeds) - 1)
    if _TRANSFER in models:
        total += len(seeds) + 2 * (len(RATE_FACTORS) + len(seeds) - 1)
    return total


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    Outcomes have the task that is held out only for `transfer` and its new decoder.

    Args:
      runner: of the trainings.
      base: config of the first model.
      seeds: of the trainings.
      models: of `MODELS`, "frozen" among them.

    Raises:
      ValueError: as in `Runner.run`.
      Stopped: as in `Runner.run`.
    """
    singles: dict[str, tuple[float, int]] = {}
    rates: dict[str, float] = {}
    outcomes = []
    for seed in seeds:
        runner.run(pictures.encoder(base, seed))
        first = with_change(base, "frozen", seed, runner.workdir)
        found = {"frozen": [runner.run(first)]}
        if "single" in models:
            rows = pictures.rows_of(runner, first)
            found["single"] = []
            for name in base.tasks:
                if name not in singles:
                    singles[name] = _tuned_single(runner, base, name, seed, rows[name])
                tuned = single(base, name, seed, runner.workdir, rows[name], *singles[name])
                found["single"].append(runner.run(tuned))
        for name in models:
            if name not in found and name != _TRANSFER:
                found[name] = [runner.run(with_change(base, name, seed, runner.workdir))]
        if _TRANSFER in models:
            found |= _transferred(runner, base, first, rates)
        outcomes.append(pictures.outcome(found))
    return outcomes


def _tuned_single(runner: Runner, base: Any, name: str, seed: int, rows: int) -> tuple[float, int]:
    """Factor on the learning rate and on the rows with which a single-task model validates best."""
    choices = {
        (rate, length): single(base, name, seed, runner.workdir, rows, rate, length)
        for length in LENGTHS
        for rate in RATE_FACTORS
    }
    return _best(runner, name, choices)


def _transferred(
    runner: Runner, base: Any, first: Training, rates: dict[str, float]
) -> dict[str, list[Any]]:
    """Results of the decoders that learn the task held out; notes the best rate of each."""
    name, seed, workdir = held_out(base), first.seed, runner.workdir
    rows = pictures.rows_of(runner, first)[name]
    others = without(base, name, seed, workdir)
    runner.run(others)
    found = {}
    for variant in (_TRANSFER, _NEW):
        learn = functools.partial(transfer, base, variant, seed, workdir, others, rows)
        if variant not in rates:
            rates[variant] = _best(runner, name, {rate: learn(rate) for rate in RATE_FACTORS})
        found[variant] = [runner.run(learn(rates[variant]))]
    return found


def _best(runner: Runner, task: str, choices: Mapping[Any, Training]) -> Any:
    """The choice whose training validates best."""
    found = {
        choice: runner.run(training)["tasks"][task]["validation"]
        for choice, training in choices.items()
    }
    return max(found, key=lambda choice: found[choice])


def with_change(base: Any, name: str, seed: int, workdir: Path) -> Training:
    """The first model ("frozen"), or one that differs from it in a setting."""
    config = pictures.with_encoder(base, base.tasks, seed, workdir)
    pictures.change_of(_CHANGES, name)(config)
    return Training(f"lit-{name}", seed, config)


def single(
    base: Any, name: str, seed: int, workdir: Path, rows: int, rate: float, length: int
) -> Training:
    """A model of one task.

    Args:
      base: config of all tasks.
      name: of the task.
      seed: of the run.
      workdir: of the experiment, which has the encoder.
      rows: of the task that the model of all tasks saw.
      rate: factor on the learning rate.
      length: factor on the rows.
    """
    config = pictures.with_encoder(base, [name], seed, workdir)
    _shorten(config, base, rows * length, rate)
    return Training(f"lit-single-{name}-rate-{rate:g}-rows-{length:g}", seed, config)


def held_out(base: Any) -> str:
    """The task to transfer to: the last one."""
    return base.tasks[-1]


def without(base: Any, name: str, seed: int, workdir: Path) -> Training:
    """The first model without a task."""
    tasks = [task for task in base.tasks if task != name]
    return Training(f"lit-without-{name}", seed, pictures.with_encoder(base, tasks, seed, workdir))


def transfer(
    base: Any, variant: str, seed: int, workdir: Path, source: Training, rows: int, rate: float
) -> Training:
    """A decoder that learns the task that was held out, after the others or as a new one.

    Args:
      base: config of all tasks.
      variant: "transfer" or "transfer-new".
      seed: of the run.
      workdir: of the experiment.
      source: training without the task.
      rows: of the task that the model of all tasks saw.
      rate: factor on the learning rate.
    """
    config = pictures.with_encoder(base, [held_out(base)], seed, workdir)
    folder = source.folder(workdir)
    config.text.tokenizer = str(folder / state.MODEL)
    if variant == _TRANSFER:
        config.init_from.path, config.init_from.include = str(folder), (".*",)
        config.init_from.exclude = ("task_table",)
    _shorten(config, base, math.ceil(rows * _TRANSFER_SHARE), rate)
    return Training(f"lit-{variant}-{held_out(base)}-rate-{rate:g}", seed, config)


def _shorten(config: Any, base: Any, rows: int, rate: float) -> None:
    """Trains for a number of rows in all, and validates at the end."""
    config.mixture.weighting = ""
    for options in config.task.values():  # the only one
        options.batch_size, options.accumulate = base.mixture.batch_size, base.mixture.accumulate
    config.schedule.num_rounds = max(round(rows / base.mixture.batch_size), 1)
    config.optimizer.learning_rate *= rate
    grid.fit_validations(config)


def report(outcomes: Sequence[Outcome]) -> str:
    """A table for every question that has models."""
    found = list(outcomes[0].results)
    facts = summary.about_tasks(outcomes[0].results["frozen"])
    questions = {"the price of multi-tasking": ["single"]}
    questions |= {question: list(models) for question, models in _CHANGES.items()}
    parts = []
    for question, models in questions.items():
        there = [name for name in models if name in found]
        if there:
            part = pictures.part_of(outcomes, ["frozen", *there])
            averages = all_together(part)
            table = summary.by_task(part, TITLES, averages, facts)
            parts.append(f"### {question.capitalize()}\n\n{table}")
    if _TRANSFER in found:
        part = pictures.part_of(outcomes, [_NEW, _TRANSFER])
        (entry,) = part[0].results[_NEW].values()
        table = summary.by_task(part, TITLES, {}, summary.about_tasks(part[0].results[_NEW]))
        about = _ABOUT_TRANSFER.format(task=entry["title"])
        parts.append(f"### Transfer\n\n{about}\n\n{table}")
    if not parts:
        table = summary.by_task(outcomes, TITLES, all_together(outcomes), facts)
        parts.append(f"### {TITLES['frozen'].capitalize()}\n\n{table}")
    return "\n\n".join((*parts, _NOTE))


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Differences of all models of all tasks from the first one."""
    variants = [name for name in outcomes[0].results if name not in (_TRANSFER, _NEW)]
    part = pictures.part_of(outcomes, variants)
    summary.plot(part, TITLES, all_together(part), path)
