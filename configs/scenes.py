"""All twelve tasks on generated scenes (arrays, no pixels), one model, in turn. The default job.

    python -m twelve_in_one.train --config=configs/scenes.py --workdir=workdir/scenes
    python -m twelve_in_one.train --config=configs/scenes.py:debug --workdir=workdir/debug

Shows that model, heads, losses and optimizer learn together on a machine without any dataset. The
scenes are easy: every task ends far above chance within a few minutes on two cores, and the numbers
say nothing about the real datasets. `:debug` makes two rounds, for a quick check.
"""

import ml_collections

from twelve_in_one.tasks.twelve import TWELVE


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "" or "debug"."""
    if mode not in ("", "debug"):
        raise ValueError(f"configs/scenes.py takes no argument or :debug, got {mode!r}")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.tasks = tuple(task.name for task in TWELVE)
    config.model = "tiny"
    config.batch_size = 64
    config.num_rounds = 2 if mode else 250  # every round updates once per task
    config.learning_rate = 3e-3
    config.warmup_rounds = 1 if mode else 20
    config.weight_decay = 0.01
    config.num_eval_examples = 128 if mode else 1024
    config.log_every_rounds = 1 if mode else 20
    return config
