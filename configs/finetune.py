r"""Trains a multi-task model further on one of its tasks (paper Table 2, rows 6 to 8).

    python -m twelve_in_one.train --config=finetune:vqa --workdir=workdir/vqa-tuned \
        --config.init_from.path=workdir/world
    python -m twelve_in_one.train --config=finetune:debug --workdir=workdir/debug

`init_from.path` is a workdir, a model folder, or a converted checkpoint. The learning rate is a
quarter of the one of multi-task training on the world, and rounds are as many as an epoch of the
largest of its datasets has; both are our choice. `debug` begins with random weights.
"""

import ml_collections

from twelve_in_one.config import defaults
from twelve_in_one.tasks.twelve import TWELVE


def get_config(argument: str = "vqa") -> ml_collections.ConfigDict:
    """The config of a task; "NAME,debug" or "debug" for a quick check."""
    words = argument.split(",")
    names = [word for word in words if word != "debug"] or ["vqa"]
    known = [task.name for task in TWELVE]
    if len(names) != 1 or names[0] not in known:
        raise ValueError(f"finetune takes one of {', '.join(known)}, and debug, got {argument!r}")
    config = defaults.world_config(names)
    config.init_from.path = "workdir/world"
    config.optimizer.learning_rate = 5e-4
    config.schedule.num_rounds = 120
    if "debug" in words:
        defaults.shorten(config)
    return config
