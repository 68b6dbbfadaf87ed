r"""The paper's comparisons as tables with seeds and confidence intervals.

    python -m twelve_in_one.experiments main --workdir=workdir/experiments
    python -m twelve_in_one.experiments main --seeds=0 --models=single,all \
        --config=configs/world.py --config.schedule.num_rounds=120 --workdir=DIR

main: one model of all tasks against single-task models of the same size and number of examples,
models of the paper's groups, and the model of all tasks fine-tuned (paper Table 2).

Trainings lie in folders of their own under the workdir. The same command again goes on where it was
cut short, and makes table and plot anew: DIR/main.md, DIR/main.json and DIR/main.png.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from twelve_in_one import default_config, distributed
from twelve_in_one import train as trainer
from twelve_in_one.experiments import grid, main, summary
from twelve_in_one.experiments.runner import Runner, Stopped

_log = logging.getLogger("twelve_in_one")

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the trainings.")
_MODELS = flags.DEFINE_list("models", list(main.MODELS), f"Of {', '.join(main.MODELS)}.")


def run(argv: Sequence[str]) -> None:
    """Entry point."""
    if list(argv[1:]) != ["main"]:
        raise app.UsageError(f"expected the name of an experiment (main), got {argv[1:]}")
    trainer.set_up_logging()
    base = flags.FLAGS.config or default_config.world_config()
    models = [model for model in main.MODELS if model in {*_MODELS.value, "all"}]
    unknown = set(_MODELS.value) - set(main.MODELS)
    if unknown or not all(seed.isdecimal() for seed in _SEEDS.value):
        raise app.UsageError(f"--models takes {', '.join(main.MODELS)}, --seeds takes numbers")
    seeds = [int(seed) for seed in _SEEDS.value]
    workdir = Path(flags.FLAGS.workdir)
    runner = Runner(workdir, trainer.train, _count(base.tasks, len(seeds), models))
    try:
        outcomes = main.run(runner, base, seeds, models)
    except Stopped as stopped:
        _log.info("stopped in %s; the same command goes on from there", stopped)
        sys.exit(distributed.exit_code_when_stopped())
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    text = summary.table(outcomes)
    (workdir / "main.md").write_text(text + "\n", encoding="utf-8")
    raw = [dataclasses.asdict(outcome) for outcome in outcomes]
    (workdir / "main.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    summary.plot(outcomes, workdir / "main.png")
    print(text)


def _count(tasks: Sequence[str], seeds: int, models: Sequence[str]) -> int:
    """Trainings that `main.run` needs; the best learning rate's is one of the first seed's."""
    groups = sum(bool(set(members) & set(tasks)) for members in grid.GROUPS.values())
    tuning = len(tasks) * (len(grid.RATE_FACTORS) - 1) if "single" in models else 0
    each = {"all": 1, "single": len(tasks), "group": groups, "tuned": len(tasks)}
    return tuning + seeds * sum(each[model] for model in models)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(run, flags_parser=trainer.parse_flags)
