r"""The papers' comparisons as tables with seeds and confidence intervals.

    python -m twelve_in_one.experiments main --workdir=workdir/experiments
    python -m twelve_in_one.experiments ablations --seeds=0 --models=no-token,vanilla \
        --config=world --config.schedule.num_rounds=120 --workdir=DIR

main: one model of all tasks against single-task models of the same size and number of examples,
  models of the paper's groups, and both fine-tuned on one task each (Table 2).
  --models: single, group, all, group-tuned, tuned.
pairs: models of two tasks, of different groups, against single-task models (Table 3).
ablations: task tokens a head instead of a dataset, or none; round robin, curriculum and
  anti-curriculum instead of stop-and-go (Table 6).
  --models: full, head-token, no-token, no-stop, curriculum, anti-curriculum, vanilla.
pretraining: all tasks begun with random weights, or pretrained on captions with the masking of
  ViLBERT, that of 12-in-1, or that with masked losses on swapped captions (section 4).
  --models: none, original, overlap, negatives.
clean: training without and with images that other tasks are tested on (section 3.2).
consistency: how often models both answer a question and find what an expression about the same
  thing means. --models: single, all, tuned.
lit: LiT-decoder instead of 12-in-1: its frozen encoder against trained and random ones, one decoder
  against tuned single-task ones, mixtures, conditioning, depth, transfer to a task held out.
  --config=lit_decoder by default. --models: frozen, single, finetuned, scratch, random, pairs,
  images, equal, no-condition, group-prompt, embedding, token, depth-1, depth-4, depth-6, transfer.
mammut: MaMMUT: one loss or both and their weights, the number of layers with cross-attention, what
  the contrastive pass reads, focal or softmax loss. --config=mammut by default.
  --models: both, contrastive, generative, cross-1, cross-2, cross-4, weights-2-0.5, weights-2-1,
  weights-1-1, weights-1-2, weights-0.5-2, causal, bidirectional, focal, focal-paper, softmax.
stop-and-go: weights of a mixture that stop-and-go changes against weights that stay.
  --config=lit_decoder by default, or mammut. --models: fixed, stop-and-go, stop.
systems: 12-in-1, LiT-decoder and MaMMUT on the same examples: scores, size, work and speed.
  --config=mammut by default. --models: twelve, twelve-refcoco, lit, mammut.
video: MaMMUT on clips: without gate, without fixed embedding, without tubes, with one frame alone.
  --config=mammut_video by default. --models: full, no-gate, no-fixed, no-tubes, single-frame.
photos: captions, questions and expressions about real photos, learnt together on no regions, on
  those of rules about pixels and on those of the small detector. Five seeds test on each photo
  once. TWELVE_IN_ONE_SAMPLES is needed, and the detector's package in the working folder.
  --config=real_samples by default. --models: none, pixels, small.

Trainings lie in folders of their own under the workdir, NAME/seed-S; experiments in one workdir
share those that are the same. The same command again goes on where it was cut short, and makes
table and plot anew: DIR/main.md, DIR/main.json and DIR/main.png, or as the experiment is called.
Several commands may run at once: one waits for a training that another is at.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from twelve_in_one import configs, extras
from twelve_in_one import train as trainer
from twelve_in_one.config import check, defaults
from twelve_in_one.config.paths import expand
from twelve_in_one.experiments import (
    ablations,
    clean,
    consistency,
    grid,
    lit,
    main,
    mammut,
    pairs,
    photos,
    pretraining,
    stopping,
    systems,
    video,
)
from twelve_in_one.experiments.runner import Runner, Stopped
from twelve_in_one.parallel import processes

# Flags of the trainer that are meaningless for a grid of trainings.
_OF_ONE_TRAINING = ("dry_run", "coordinator", "num_processes", "process_id")
_log = logging.getLogger("twelve_in_one")
# The package's docstring describes the interface of each module.
EXPERIMENTS: dict[str, Any] = {
    "main": main,
    "pairs": pairs,
    "ablations": ablations,
    "pretraining": pretraining,
    "clean": clean,
    "consistency": consistency,
    "lit": lit,
    "mammut": mammut,
    "stop-and-go": stopping,
    "systems": systems,
    "video": video,
    "photos": photos,
}

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the trainings.")
_MODELS = flags.DEFINE_list("models", None, "Some of the experiment's models; all by default.")


def run(argv: Sequence[str]) -> None:
    """Entry point."""
    name = argv[1] if len(argv) == 2 else None
    if name not in EXPERIMENTS:
        raise app.UsageError(f"expected one of {', '.join(EXPERIMENTS)}, got {argv[1:]}")
    experiment = EXPERIMENTS[name]
    models = chosen_models(experiment, _MODELS.value)
    seeds = chosen_seeds(_SEEDS.value)
    ignored = [flag for flag in _OF_ONE_TRAINING if flags.FLAGS[flag].present]
    if ignored:
        raise app.UsageError(f"--{ignored[0]} is for a training: python -m twelve_in_one.train")
    trainer.set_up_logging()
    base = flags.FLAGS.config or _default_config(experiment)
    workdir = Path(expand(flags.FLAGS.workdir))
    try:
        extras.require("training", "data")
        check.check(base)
        grid.check_tested(base)
        runner = Runner(workdir, trainer.train, experiment.count(base, seeds, models))
        outcomes = experiment.run(runner, base, seeds, models)
        text = experiment.report(outcomes)
        (workdir / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        raw = [dataclasses.asdict(outcome) for outcome in outcomes]
        (workdir / f"{name}.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        experiment.plot(outcomes, workdir / f"{name}.png")
    except Stopped as stopped:
        _log.info("stopped in %s; the same command goes on from there", stopped)
        sys.exit(processes.exit_code_when_stopped())
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(text)


def _default_config(experiment: Any) -> Any:
    return configs.get(experiment.BASE) if hasattr(experiment, "BASE") else defaults.world_config()


def chosen_models(experiment: Any, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The requested models of the experiment, in its order, with those that others depend on.

    Raises:
      app.UsageError: the experiment has no such model.
    """
    if wanted is None:
        return experiment.MODELS
    unknown = [model for model in wanted if model not in experiment.MODELS]
    if unknown:
        known = ", ".join(experiment.MODELS) or "nothing: there is no choice"
        raise app.UsageError(f"--models takes {known}; got {', '.join(unknown)}")
    return tuple(model for model in experiment.MODELS if model in {*wanted, *experiment.ALWAYS})


def chosen_seeds(wanted: Sequence[str]) -> list[int]:
    """The seeds as numbers.

    Raises:
      app.UsageError: no seeds, not numbers, or duplicates, which would narrow the interval.
    """
    if not wanted or not all(seed.isdecimal() for seed in wanted):
        raise app.UsageError(f"--seeds takes numbers, got {','.join(wanted) or 'none'}")
    seeds = [int(seed) for seed in wanted]
    if len(set(seeds)) < len(seeds):
        raise app.UsageError(f"--seeds takes each number once, got {','.join(wanted)}")
    return seeds


if __name__ == "__main__":
    trainer.define_flags()
    flags.mark_flags_as_required(["workdir"])
    app.run(run, flags_parser=trainer.parse_flags)
