r"""Pretraining on captions: masked words, masked regions, alignment (12-in-1 section 4).

    python -m twelve_in_one.train --config=pretrain_cc:world --workdir=workdir/pretrained
    python -m twelve_in_one.train --config=world --workdir=DIR \
        --config.data.dir=workdir/worlds/2000-0-16000/data \
        --config.init_from.path=workdir/pretrained \
        --config.init_from.allow_missing="('heads/.*','.*task/embedding')"
    python -m twelve_in_one.train --config=pretrain_cc --workdir=DIR \
        --config.data.dir=DATA --config.data.regions=detected --config.init_from.path=BERT
    python -m twelve_in_one.train --config=pretrain_cc:official --workdir=DIR ...
    python -m twelve_in_one.train --config=pretrain_cc:debug --workdir=workdir/debug

`:world` pretrains a small model on a world with 16,160 captioned pictures, in which the twelve
datasets are those of `configs/world.py`. Without an argument it is the paper's run: DATA holds
Conceptual Captions with a detector's features and class probabilities, as
`python -m twelve_in_one.data.build conceptual_captions` leaves it, and BERT is a folder made by
`python -m twelve_in_one.convert BERT-BASE-UNCASED BERT --config base_6l`, whose vocabulary the data
was built with. `:official` does as the released code where that differs from the paper.

`pretraining.objective`, `pretraining.overlap_iou` and `model.visual_target` choose what is learnt;
`twelve_in_one/config/settings.py` explains them. `:world` takes fifteen minutes on one core, once
its world is made (twelve minutes), and then guesses 0.70 to 0.74 of the masked words, and for 0.70
to 0.83 of the pairs whether the caption was swapped. What the tasks gain is in EXPERIMENTS.md.
"""

import ml_collections

from twelve_in_one.config import defaults


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "", "world", "official" or "debug"."""
    if mode not in ("", "world", "official", "debug"):
        raise ValueError(f"pretrain_cc takes :world, :official or :debug, got {mode!r}")
    config = defaults.pretraining_config()
    if mode == "official":
        config.system.official.all = True
    if mode == "world":
        defaults.pretrain_on_world(config)
    if mode == "debug":
        defaults.shorten(config)
    return config
