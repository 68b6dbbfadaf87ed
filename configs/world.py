"""All twelve tasks on the generated world: one small model, stop-and-go. The default job.

    python -m twelve_in_one.train --config=configs/world.py --workdir=workdir/world
    python -m twelve_in_one.train --config=configs/world.py:debug --workdir=workdir/debug

Makes the world and builds its datasets at the first run.
"""

import ml_collections

from twelve_in_one import default_config


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "" or "debug"."""
    if mode not in ("", "debug"):
        raise ValueError(f"configs/world.py takes no argument or :debug, got {mode!r}")
    config = default_config.world_config()
    config.evaluation.text_baselines = True
    if mode == "debug":
        default_config.shorten(config)
    return config
