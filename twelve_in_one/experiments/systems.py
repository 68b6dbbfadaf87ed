"""12-in-1, LiT-decoder and MaMMUT side by side, trained on the same examples of the world.

All learn VQAv2, GQA and the captions of COCO: the same pictures, the same splits, and as many rows
of each, in the form that a system has for them. 12-in-1 chooses the caption of a picture among
four, LiT-decoder writes it, MaMMUT does that and compares it with the other pictures of its batch.
Another 12-in-1 learns RefCOCO besides, for which the others have no form.

Sizes of pictures and of MaMMUT, the length of training and the world are of the config, which is
of MaMMUT; LiT-decoder has the same encoder, and a decoder of the same sizes. Optimizers, batches
and the size of 12-in-1 are as in the configs `lit_decoder` and `world`, whose rates suit them.
"""

import copy
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one import configs
from twelve_in_one.config import check, defaults
from twelve_in_one.config.image_settings import ImageTaskOptions
from twelve_in_one.experiments import grid, mammut, pictures, summary
from twelve_in_one.experiments.comparison import Outcome, scores
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.experiments.statistics import estimate, show
from twelve_in_one.logs import metrics_writer
from twelve_in_one.models.flops import traced_flops
from twelve_in_one.parallel import sharding
from twelve_in_one.parallel.placement import HOST_ONLY
from twelve_in_one.tasks.lit import LIT_TASKS
from twelve_in_one.tasks.mammut import MAMMUT_TASKS
from twelve_in_one.training import job, steps

BASE = mammut.BASE  # the config without --config
TITLES = {
    "twelve": "12-in-1",
    "twelve-refcoco": "12-in-1, also RefCOCO",
    "lit": "LiT-decoder",
    "mammut": "MaMMUT",
}
MODELS = tuple(TITLES)
ALWAYS = ()
_QUESTIONS = ("vqa", "gqa")
_LEARNT = (*_QUESTIONS, "coco")
# What each system makes of the captions of COCO, as a column of the table.
_CAPTIONS, _RETRIEVAL = "captions", "coco"
_NOTE = """\
Scores in percent, CIDEr-D of captions in points of 1; mean over seeds ± half of a 95 % interval.
Blank is what a system has no form for: 12-in-1 writes no captions, LiT-decoder has no vectors to
retrieve by, and neither it nor MaMMUT points at regions. 12-in-1 reads regions and their features,
which are made once and are in no number here; the others read pixels, and begin with an encoder
that has learnt the world's classes. "training FLOPs" are of the products of one update, forward and
back, per row of its batch, and "examples/s" is the median of the log of training alone: on one
machine, but not at one time."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an example costs in training: FLOPs, and how many there were in a second."""

    flops: float
    examples_per_s: float


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs.

    Raises:
      ValueError: the config is not of MaMMUT on the generated world.
    """
    if base.system.name != mammut.SYSTEM:
        raise ValueError(f"systems needs a config of {mammut.SYSTEM}, not of {base.system.name}")
    if not base.data.world_images:
        raise ValueError("systems compares on the generated world: config.data.world_images is 0")
    pictures.check_mixture(base, "systems")
    return (_needs_encoder(base, models) + len(models)) * len(seeds)


def _needs_encoder(base: Any, models: Sequence[str]) -> bool:
    return pictures.has_encoder(base) and bool({"lit", "mammut"} & set(models))


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    Entries of a system also have "flops" and "examples_per_s", those of `Cost`.

    Args:
      runner: of the trainings.
      base: config of MaMMUT.
      seeds: of the trainings.
      models: of `MODELS`.

    Raises:
      ValueError: as in `Runner.run`, or systems were tested on different examples.
      Stopped: as in `Runner.run`.
    """
    outcomes = []
    for seed in seeds:
        if _needs_encoder(base, models):
            runner.run(pictures.encoder(base, seed))
        found = {}
        for name in models:
            one = training(base, name, seed, runner.workdir)
            results = runner.run(one)
            cost = dataclasses.asdict(cost_of(one, runner.workdir))
            tasks = {_column(name, task): {**x, **cost} for task, x in results["tasks"].items()}
            found[name] = [{**results, "tasks": tasks}]
        outcomes.append(pictures.outcome(found))
    _check_same_tests(outcomes[0])
    return outcomes


def _column(model: str, task: str) -> str:
    """LiT-decoder's form of COCO is to write captions."""
    return _CAPTIONS if (model, task) == ("lit", "coco") else task


def _check_same_tests(outcome: Outcome) -> None:
    sizes: dict[str, dict[str, int]] = {}
    for model, entries in outcome.results.items():
        for task, entry in entries.items():
            sizes.setdefault(task, {})[model] = entry["examples"]
    for task, found in sizes.items():
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{TITLES[name]} {number:,}" for name, number in found.items())
            raise ValueError(
                f"systems were tested on different numbers of examples of {task} ({listed}): "
                "build their data anew, from one world"
            )


def rows_of_task(base: Any) -> int:
    """Rows of each task in each training."""
    return base.schedule.num_rounds * base.mixture.batch_size // len(_LEARNT)


def training(base: Any, name: str, seed: int, workdir: Path) -> Training:
    """A system on the tasks that it has a form for."""
    make = {"lit": _lit, "mammut": _mammut}.get(name)
    if make is None:
        tasks = (*_LEARNT, *(("refcoco",) if name == "twelve-refcoco" else ()))
        config = _twelve(base, tasks)
    else:
        config = make(base)
        config.mixture = copy.deepcopy(base.mixture)
        config.mixture.weighting = "equal"
        config.schedule.num_rounds = base.schedule.num_rounds
        config.data = copy.deepcopy(base.data)
        config.images, config.text = copy.deepcopy(base.images), copy.deepcopy(base.text)
        config.evaluation.batch_size = base.evaluation.batch_size
        config.init_from = copy.deepcopy(base.init_from)
        if pictures.has_encoder(base):
            pictures.begin_with(config, pictures.encoder(base, seed), workdir)
    for section in ("log", "checkpoint", "parallel"):
        config[section] = copy.deepcopy(base[section])
    config.compilation_cache, config.seed = base.compilation_cache, seed
    config.schedule.kind = "round_robin"
    grid.fit_validations(config)
    evaluation = config.evaluation
    # All of a split, so that all systems are tested on the same.
    evaluation.max_test_examples, evaluation.keep_trained_on = 0, True
    evaluation.text_baselines, evaluation.pictures = True, 0
    return Training(f"systems-{name}", seed, config)


def _twelve(base: Any, tasks: Sequence[str]) -> Any:
    config = defaults.world_config(tasks)
    batch = config.task.vqa.batch_size
    for options in config.task.values():  # equal, so that a round has as many rows of each
        options.batch_size = batch
    config.schedule.num_rounds = max(round(rows_of_task(base) / batch), 1)
    data = config.data
    with config.unlocked():
        for name in base.data:
            if name.startswith("world_"):
                data[name] = base.data[name]
    # The same world, whose records hold regions beside those that hold pictures. Systems of
    # pictures train on all examples, so cleaning would take some away here alone.
    data.raw_dir, data.dir, data.clean = base.data.raw_dir, f"{base.data.dir}-regions", False
    return config


def _lit(base: Any) -> Any:
    config = configs.get("lit_decoder")
    config.model.encoder = copy.deepcopy(base.model.encoder)
    for name in ("hidden_dim", "num_layers", "num_heads", "mlp_dim", "max_tokens", "encoder_dim"):
        config.model.decoder[name] = base.model.decoder[name]
    config.model.decoder.encoder_dim = base.model.encoder.hidden_dim
    config.model.max_prompt = base.model.max_prompt
    _use_tasks(config, {name: LIT_TASKS[name] for name in _LEARNT})
    return config


def _mammut(base: Any) -> Any:
    config = copy.deepcopy(base)
    tasks = {
        "vqa": MAMMUT_TASKS["vqa"],
        "gqa": {**LIT_TASKS["gqa"], "prompt": ""},
        "coco": {**MAMMUT_TASKS["coco"], "title": "COCO retrieval", "train": True},
        _CAPTIONS: {**MAMMUT_TASKS["captions"], "train": False},  # learnt as pairs
    }
    _use_tasks(config, tasks)
    return config


def _use_tasks(config: Any, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets the tasks; small pictures of several things: a box of one would change the answers."""
    plain = dataclasses.asdict(ImageTaskOptions())
    with config.unlocked():
        config.tasks = tuple(tasks)
        config.task = type(config)(
            {name: {**plain, **options, "random_crop": False} for name, options in tasks.items()}
        )


def cost_of(training: Training, workdir: Path) -> Cost:
    """The cost of an example of a finished training; its programs are traced, not compiled.

    FLOPs are means over streams, by their rows.
    """
    folder = training.folder(workdir)
    history = metrics_writer.read(folder / metrics_writer.FILE)
    speeds = [x["timing"]["examples_per_s"] for x in history if x["event"] == "train"]
    config = copy.deepcopy(training.config)
    config.parallel.devices = 1  # a program of several holds the work of one
    opened = job.open_job(check.check(config), folder)
    flops = rows = 0
    with sharding.use(opened.placement.mesh, opened.placement.layout):
        state, frozen = job.abstract_of(opened)
        for stream in opened.streams:
            step = steps.make_grad_step(opened.system.objective(stream.tasks))
            batch = opened.train_streams[stream.name].batch(0)
            arrays = {name: array for name, array in batch.items() if name != HOST_ONLY}
            key = jax.random.key(0)
            flops += traced_flops(step, state.params, state.step, arrays, key, frozen)
            rows += opened.train_streams[stream.name].selection.batch_size
    return Cost(flops / rows, statistics.median(speeds))


def report(outcomes: Sequence[Outcome]) -> str:
    """One row per system."""
    models = list(outcomes[0].results)
    entries: dict[str, Mapping[str, Any]] = {}
    for model in models:
        for task, entry in outcomes[0].results[model].items():
            entries.setdefault(task, entry)
    order = [*_QUESTIONS, _RETRIEVAL, _CAPTIONS, "refcoco"]
    tasks = [task for task in order if task in entries]
    header = ["system", *(f"{entries[x]['title']}, {entries[x]['metric']}" for x in tasks)]
    header += ["parameters", "training FLOPs per example", "examples/s"]
    rows = [
        [title, *(_percent(entries[task].get(title)) for task in tasks), "", "", ""]
        for title in ("chance", "words")
    ]
    for model in models:
        found = scores(outcomes, model)
        first = next(iter(outcomes[0].results[model].values()))
        speed = statistics.fmean(
            next(iter(one.results[model].values()))["examples_per_s"] for one in outcomes
        )
        rows.append(
            [
                TITLES[model],
                *(show(estimate(found[task])) if task in found else "" for task in tasks),
                f"{outcomes[0].parameters[model]:,}",
                f"{first['flops'] / 1e9:.3f} G",
                f"{speed:,.0f}",
            ]
        )
    return f"{summary.markdown(header, rows)}\n\n{_NOTE}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Differences of all systems from the first, on the tasks that both have."""
    summary.plot(outcomes, TITLES, {}, path)
