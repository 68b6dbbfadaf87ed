r"""The paper's run: twelve tasks, full size, on built datasets with a detector's region features.

    python -m twelve_in_one.train --config=twelve --workdir=DIR \
        --config.data.dir=DATA --config.data.regions=detected --config.init_from.path=PRETRAINED
    python -m twelve_in_one.train --config=twelve:official --workdir=DIR ...
    python -m twelve_in_one.train --config=twelve:debug --workdir=workdir/debug

DATA is what `python -m twelve_in_one.data.build` leaves. PRETRAINED is a model folder, or a
converted checkpoint, that was pretrained on Conceptual Captions. Lengths, batch sizes and learning
rates are those of the released task file, the optimizer's numbers those of its training script.
`:official` also takes over what the released code does otherwise than the paper says. On a pod,
`--config.optimizer.update=fused` puts all tasks of a round into one update.

What to expect: with the paper's region features and pretrained weights, its numbers; nobody has run
this at full size yet. `--dry_run` prints plan, memory and an estimate of the time on your devices.
"""

import ml_collections

from twelve_in_one.config import defaults


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "", "official" or "debug"."""
    if mode not in ("", "official", "debug"):
        raise ValueError(f"twelve takes :official or :debug, got {mode!r}")
    config = defaults.get_config()
    # What a pretrained model does not have.
    config.init_from.allow_missing = (r"heads/.*", r"trunk/text_embedding/task/embedding")
    if mode == "official":
        config.system.official.all = True
    if mode == "debug":
        defaults.shorten(config)
    return config
