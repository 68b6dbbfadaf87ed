"""What MaMMUT's paper varies in its reading of clips, on the generated world (Kuo et al. 2023).

The first model is the config as it is. Others differ from it in one setting: their fixed embedding
of places has no gate, or there is none and tubes learn theirs; they read the patches of frames
alone, without tubes; or the middle frame of each clip alone, as a picture. All
begin with the weights of the config's `init_from.path`, if it names any.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.experiments import grid, summary
from twelve_in_one.experiments.comparison import Outcome
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.systems.mammut import SYSTEM

BASE = "mammut_video"  # the config without --config
# Name -> title, and settings of `model.encoder.clip` that differ.
_CHANGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "full": ("the config: tubes, gate, fixed embedding", {}),
    "no-gate": ("no gate", {"gate": False}),
    "no-fixed": ("no fixed embedding", {"fixed": False}),
    "no-tubes": ("frames alone", {"tubes": ()}),
    "single-frame": ("one frame", {"frames": 0}),
}
TITLES = {name: title for name, (title, _) in _CHANGES.items()}
MODELS = tuple(TITLES)
ALWAYS = ("full",)
_PAPER = """\
The paper's, of ViT-L on real videos, exact matches in percent (Kuo et al. 2023):

| | tubes, gate, fixed embedding | no gate | no fixed embedding | no tubes |
| --- | --- | --- | --- | --- |
| MSRVTT-QA | 42.1 | 41.8 | 41.5 | 40.3 |
| MSVD-QA | 45.8 | 45.5 | 45.1 | 42.6 |"""
_NOTE = """\
Scores in percent, CIDEr-D of captions in points of 1; mean over seeds ± half of a 95 % interval;
differences are paired by seed, bold where the interval does not hold 0. All models train for as
many rounds."""


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs.

    Raises:
      ValueError: the config is not of MaMMUT, or reads no clips through tubes.
    """
    if base.system.name != SYSTEM:
        raise ValueError(f"video needs a config of {SYSTEM}, this is of {base.system.name}")
    clip = base.model.encoder.clip
    if not clip.frames or not clip.tubes or not (clip.fixed and clip.gate):
        raise ValueError(
            "video takes tubes, gate and fixed embedding away one by one: its config needs "
            "config.model.encoder.clip with all of them"
        )
    return len(models) * len(seeds)


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    Args:
      runner: of the trainings.
      base: config of the first model.
      seeds: of the trainings.
      models: of `MODELS`, "full" among them.

    Raises:
      ValueError: as in `Runner.run`.
      Stopped: as in `Runner.run`.
    """
    outcomes = []
    for seed in seeds:
        found = {name: runner.run(training(base, name, seed)) for name in models}
        outcomes.append(
            Outcome(
                {name: dict(one["tasks"]) for name, one in found.items()},
                {name: one["parameters"] for name, one in found.items()},
            )
        )
    return outcomes


def training(base: Any, name: str, seed: int) -> Training:
    """The first model, or one that differs from it in a setting."""
    config = grid.with_tasks(base, base.tasks, seed)
    config.model.encoder.clip.update(_CHANGES[name][1])
    return Training(f"video-{name}", seed, config)


def report(outcomes: Sequence[Outcome]) -> str:
    """The table, with the paper's below it."""
    facts = summary.about_tasks(outcomes[0].results["full"])
    table = summary.by_task(outcomes, TITLES, {}, facts)
    return f"### Clips\n\n{table}\n\n{_NOTE}\n\n{_PAPER}"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Differences of all models from the first one."""
    summary.plot(outcomes, TITLES, {}, path)
