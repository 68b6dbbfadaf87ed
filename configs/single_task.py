r"""One task by itself: what the twelve of the paper's comparison are (paper Table 2, row 1).

    python -m twelve_in_one.train --config=single_task:vqa --workdir=workdir/vqa
    python -m twelve_in_one.train --config=single_task:vqa,debug --workdir=workdir/debug

NAME is one of vqa, vgqa, gqa, coco, flickr30k, refcoco, refcoco+, refcocog, visual7w, guesswhat,
nlvr2, snli_ve. Runs on the generated world as `world.py` does: the same model, the same number of
updates of the task, of the same size.
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
        raise ValueError(
            f"single_task takes one of {', '.join(known)}, and debug, got {argument!r}"
        )
    config = defaults.world_config(names)
    if "debug" in words:
        defaults.shorten(config)
    return config
