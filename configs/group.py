r"""The tasks of one of the paper's four groups, or of several, in one model (paper Tables 2 and 3).

    python -m twelve_in_one.train --config=group:G1 --workdir=workdir/G1
    python -m twelve_in_one.train --config=group:G1,G3 --workdir=workdir/G1-G3
    python -m twelve_in_one.train --config=group:G2,debug --workdir=workdir/debug

G1 answers questions, G2 retrieves images, G3 points at regions, G4 verifies statements. Runs on the
generated world as `world.py` does, with the same number of examples of each task; for other data
set `--config.data.dir` and what `twelve.py` sets. `debug` after a comma makes a quick check of it.
"""

import ml_collections

from twelve_in_one.config import defaults
from twelve_in_one.tasks.twelve import TWELVE

_GROUPS = ("G1", "G2", "G3", "G4")


def get_config(argument: str = "G1") -> ml_collections.ConfigDict:
    """The config of "G1", "G2,G4", "G3,debug", ... ; "debug" alone is of G1."""
    words = argument.split(",")
    groups = [word for word in words if word != "debug"] or ["G1"]
    if set(groups) - set(_GROUPS) or len(set(groups)) < len(groups):
        raise ValueError(f"group takes {', '.join(_GROUPS)} and debug, got {argument!r}")
    config = defaults.world_config([task.name for task in TWELVE if task.group in groups])
    if "debug" in words:
        defaults.shorten(config)
    return config
