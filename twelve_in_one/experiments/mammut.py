"""What MaMMUT's paper varies in its ablations, on the generated world (Kuo et al. 2023).

The first model is the config as it is: both losses on pairs, in one mixture with questions. Others
differ from it in one setting: one loss alone, the number of layers with cross-attention, the
weights of the losses, what the contrastive pass reads, and the contrastive loss. A model that the
config already is, or whose decoder would have too few layers, is left out.

If the config begins with an encoder of the world, every seed trains its own, as for LiT-decoder;
with `config.init_from.path=` all begin with random weights, as in the paper. The paper learns
questions afterwards and from the weights of its pairs; here they are part of the mixture.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.config.image_settings import ImageTaskOptions
from twelve_in_one.experiments import paper, pictures, summary
from twelve_in_one.experiments.comparison import Outcome
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.pictures import setting
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.systems.mammut import SYSTEM

BASE = "mammut"  # the config without --config
_log = logging.getLogger(__name__)


def _crossed(count: int) -> pictures.Change:
    """Cross-attention in a number of the layers, if that is possible."""

    def change(config: Any) -> None:
        decoder = config.model.decoder
        every = -(-decoder.num_layers // count)
        if -(-decoder.num_layers // every) == count:
            decoder.cross_every = every

    return change


def _weights(contrast: float, caption: float) -> tuple[str, pictures.Change]:
    change = setting(model__contrast_weight=contrast, model__caption_weight=caption)
    return f"weights {contrast:g} and {caption:g}", change


_CHANGES: pictures.Questions = {
    "objectives": {
        "contrastive": ("contrastive only", setting(model__caption_weight=0.0)),
        "generative": ("generative only", setting(model__contrast_weight=0.0)),
    },
    "cross-attention": {
        f"cross-{n}": (f"in {n} layer{'s' * (n > 1)}", _crossed(n)) for n in (1, 2, 4)
    },
    "loss weights": {
        f"weights-{contrast:g}-{caption:g}": _weights(contrast, caption)
        for contrast, caption in ((2.0, 0.5), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0), (0.5, 2.0))
    },
    "reading in the contrastive pass": {
        "causal": ("reads only backwards", setting(model__causal_contrast=True)),
        "bidirectional": ("reads in both directions", setting(model__causal_contrast=False)),
    },
    "contrastive loss": {
        "focal": ("focal", setting(model__contrast="focal")),
        "focal-paper": (
            "focal, temperature from 1 (the paper)",
            setting(model__contrast="focal", model__temperature=1.0, model__scale_limits=()),
        ),
        "softmax": ("softmax", setting(model__contrast="softmax")),
    },
}
TITLES = {"both": "the config: both losses", **pictures.titles_of(_CHANGES)}
MODELS = tuple(TITLES)
ALWAYS = ("both",)
# Groups of tasks that a model has not learnt to do: what it scores there is no result.
_UNLEARNT = {"contrastive": ("caption",), "generative": ("pairs", "zero_shot")}
_NOTE = """\
Scores in percent, CIDEr-D of captions in points of 1; mean over seeds ± half of a 95 % interval;
differences are paired by seed, bold where the interval does not hold 0. All models train for as
many rounds on the same mixture, of which VQAv2 is a part: it is not fine-tuned. Blank is what a
model has not learnt to do: to compare, without the contrastive loss, and to describe, without the
generative loss of pairs."""


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs.

    Raises:
      ValueError: the config is not of MaMMUT, not of a mixture, or learns no pairs.
    """
    if base.system.name != SYSTEM:
        raise ValueError(f"mammut needs a config of {SYSTEM}, this is of {base.system.name}")
    pictures.check_mixture(base, "mammut")
    options = [ImageTaskOptions(**base.task[name]) for name in base.tasks]
    if not any(one.learns and one.group == "pairs" for one in options):
        raise ValueError("mammut needs a task of group pairs in config.tasks that is trained on")
    if not base.model.contrast_weight or not base.model.caption_weight:
        raise ValueError("mammut needs both losses in its config, and takes one of them away")
    return (pictures.has_encoder(base) + len(_different(base, models))) * len(seeds)


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    Args:
      runner: of the trainings.
      base: config of the first model.
      seeds: of the trainings.
      models: of `MODELS`, "both" among them.

    Raises:
      ValueError: as in `Runner.run`.
      Stopped: as in `Runner.run`.
    """
    outcomes, kept = [], _different(base, models)
    groups = {name: base.task[name].group for name in base.tasks}
    for name in models:
        if name not in kept:
            _log.info("%s is left out: the config is that already, or has too few layers", name)
    for seed in seeds:
        if pictures.has_encoder(base):
            runner.run(pictures.encoder(base, seed))
        found = {name: [runner.run(training(base, name, seed, runner.workdir))] for name in kept}
        outcomes.append(pictures.outcome(found, lambda name, tasks: measures(tasks, groups, name)))
    return outcomes


def training(base: Any, name: str, seed: int, workdir: Path) -> Training:
    """The first model, or one that differs from it in a setting."""
    config = pictures.begun(base, seed, workdir)
    pictures.change_of(_CHANGES, name)(config)
    return Training(f"mammut-{name}", seed, config)


def _different(base: Any, models: Sequence[str]) -> list[str]:
    """The first model, and those that differ from it."""
    found = []
    for name in models:
        config = copy.deepcopy(base)
        pictures.change_of(_CHANGES, name)(config)
        if name in ALWAYS or config.model.to_dict() != base.model.to_dict():
            found.append(name)
    return found


def measures(
    tasks: Mapping[str, Mapping[str, Any]], groups: Mapping[str, str], model: str
) -> dict[str, dict[str, Any]]:
    """What a model is compared by: a score of each task that it has learnt, of pairs two.

    Args:
      tasks: entries of its `results.json`.
      groups: of the tasks.
      model: of `MODELS`.
    """
    learnt = {name: entry for name, entry in tasks.items() if groups[name] not in _unlearnt(model)}
    return dict(
        measure
        for name, entry in learnt.items()
        for measure in (_both_ways(name, entry) if groups[name] == "pairs" else [(name, entry)])
    )


def _unlearnt(model: str) -> Sequence[str]:
    return _UNLEARNT.get(model, ())


def _both_ways(name: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Retrieval of pictures by text, which is the score, and of texts by picture."""
    yield name, {**entry, "title": f"{entry['title']}, t→i"}
    texts = {"score": entry["metrics"]["text_R@1"], "chance": None, "words": None}
    yield f"{name}-texts", {**entry, **texts, "title": f"{entry['title']}, i→t"}


def report(outcomes: Sequence[Outcome]) -> str:
    """A table for every question that has models, with the paper's below it."""
    found = list(outcomes[0].results)
    facts = summary.about_tasks(outcomes[0].results["both"])
    parts = []
    for question, models in _CHANGES.items():
        there = [name for name in models if name in found]
        if there:
            part = pictures.part_of(outcomes, ["both", *there])
            table = summary.by_task(part, TITLES, {}, facts)
            parts.append(f"### {question.capitalize()}\n\n{table}")
            if published := paper.mammut(question):
                parts.append(published)
    if not parts:
        table = summary.by_task(outcomes, TITLES, {}, facts)
        parts.append(f"### {TITLES['both'].capitalize()}\n\n{table}")
    return "\n\n".join((*parts, _NOTE))


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Differences of all models from the first one."""
    summary.plot(outcomes, TITLES, {}, path)
