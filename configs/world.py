"""All twelve tasks on the generated world: one small model, stop-and-go. The default job.

    python -m twelve_in_one.train --config=world --workdir=workdir/world
    python -m twelve_in_one.train --config=world:small --workdir=workdir/small
    python -m twelve_in_one.train --config=world:debug --workdir=workdir/debug

Makes the world and builds its datasets at the first run. `:small` has 600 images instead of 2,000
and looks oftener at how tasks do, so that stop-and-go stops some.
"""

import ml_collections

from twelve_in_one.config import defaults


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "", "small" or "debug"."""
    if mode not in ("", "small", "debug"):
        raise ValueError(f"world takes no argument, :small or :debug, got {mode!r}")
    config = defaults.world_config()
    if mode == "small":
        defaults.use_small_world(config)
    config.evaluation.text_baselines = True
    if mode == "debug":
        defaults.shorten(config)
    return config
