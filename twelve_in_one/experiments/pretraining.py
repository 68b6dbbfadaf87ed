"""The benefit of pretraining on captions, and the paper's two changes to it (12-in-1 section 4).

Every variant is the all-task model; they differ in its initial weights. On the generated world the
captions are of additional pictures of the same kind, so all variants train on data in their own
folder, whose twelve datasets equal those of the other experiments.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.config import defaults
from twelve_in_one.data.stored import reader
from twelve_in_one.experiments import grid, summary
from twelve_in_one.experiments.comparison import Outcome, all_together, group_averages
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.runner import Runner

TITLES = {
    "none": "random weights",
    "original": "original masking (ViLBERT)",
    "overlap": "overlap masking, no masked loss on negatives (12-in-1)",
    "negatives": "overlap masking, masked loss on negatives",
}
MODELS = tuple(TITLES)
ALWAYS = ("none",)
_TASK = "conceptual_captions"
# On the world, times the rounds that all tasks then train for: 4,400 for 220.
_ROUNDS_FACTOR = 20
# Parameters that a pretrained model lacks.
_NEW = ("heads/.*", "trunk/text_embedding/task/embedding")
_NOTE = """\
One model of all tasks, begun with the weights of the row; averages of the paper's groups and of all
tasks in percent, mean over seeds ± half of a 95 % interval; Δ is the difference from the first row,
paired by seed, bold where the interval does not hold 0."""


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs.

    Raises:
      ValueError: the config starts from other weights, or there are no captions.
    """
    data = base.data
    if base.init_from.path:
        raise ValueError(f"pretraining begins with random weights, not {base.init_from.path}")
    if not data.world_images and not reader.is_built(Path(data.dir), _TASK, data.regions):
        raise ValueError(
            f"{data.dir}: no {_TASK} with region features {data.regions!r}: build it with "
            f"`python -m twelve_in_one.data.build {_TASK} --data_dir {data.dir} ...`"
        )
    return (2 * len(models) - 1) * len(seeds)


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    Args:
      runner: of the trainings.
      base: config of all tasks.
      seeds: of the trainings.
      models: of `MODELS`, "none" among them.

    Raises:
      ValueError: as in `Runner.run`.
      Stopped: as in `Runner.run`.
    """
    base = with_captions(base)
    outcomes = []
    for seed in seeds:
        found = {}
        for variant in models:
            source = None
            if variant != "none":
                source = pretraining(base, variant, seed)
                runner.run(source)
            found[variant] = runner.run(begun_with(base, variant, seed, source, runner.workdir))
        outcomes.append(
            Outcome(
                {variant: one["tasks"] for variant, one in found.items()},
                {variant: one["parameters"] for variant, one in found.items()},
            )
        )
    return outcomes


def with_captions(base: Any) -> Any:
    """The config on data with captions for pretraining; the world is remade with more of them."""
    config, data = copy.deepcopy(base), base.data
    if data.world_images and not data.world_more_captions:
        more = defaults.MORE_CAPTIONS
        config.data.world_more_captions = more
        for name, part in (("raw_dir", "raw"), ("dir", "data")):
            world = Path(data[name]).parent
            config.data[name] = str(world.with_name(f"{world.name}-{more}") / part)
    return config


def pretraining(base: Any, variant: str, seed: int) -> Training:
    """Pretraining of a model of the config's sizes on its captions.

    Args:
      base: from `with_captions`.
      variant: of `MODELS` except "none".
      seed: of the run.
    """
    config = defaults.pretraining_config()
    if base.data.world_images:
        defaults.pretrain_on_world(config)
        config.schedule.num_rounds = _ROUNDS_FACTOR * base.schedule.num_rounds
    chosen = {name: config.model[name] for name in ("heads", "num_tasks", "visual_target")}
    config.model = copy.deepcopy(base.model)
    config.model.update(chosen)
    config.data = copy.deepcopy(base.data)
    config.compilation_cache, config.log = base.compilation_cache, copy.deepcopy(base.log)
    config.parallel = copy.deepcopy(base.parallel)
    config.seed = seed
    if variant == "original":
        config.pretraining.overlap_iou = 1.0
    config.pretraining.objective = 1 if variant == "overlap" else 0
    return Training(f"pretraining-{variant}", seed, config)


def begun_with(
    base: Any, variant: str, seed: int, source: Training | None, workdir: Path
) -> Training:
    """The all-task model, started from the weights of a pretraining or from random ones."""
    config = grid.with_tasks(base, base.tasks, seed)
    if source is not None:
        config.init_from.path = str(source.folder(workdir))
        config.init_from.allow_missing = _NEW
    return Training(f"pretrained-{variant}", seed, config)


def report(outcomes: Sequence[Outcome]) -> str:
    """Averages of every variant, and its scores by task."""
    averages = summary.by_variant(outcomes, TITLES, group_averages(outcomes))
    tasks = summary.by_task(outcomes, TITLES, all_together(outcomes))
    return f"{averages}\n\n{_NOTE}\n\n{tasks}"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Gains from pretraining, one line per task."""
    summary.plot(outcomes, TITLES, all_together(outcomes), path)
