"""A small Vision Transformer that learns the classes of the generated world, to encode pictures.

    python -m twelve_in_one.train --config=world_encoder --workdir=workdir/world_encoder
    python -m twelve_in_one.train --config=world_encoder:debug --workdir=workdir/debug

Makes the world at the first run. Its batches mix three tasks: the colour and shape of the largest
thing in a picture, the ground, and the genre of a book by its cover. `lit_decoder.py` begins with
this encoder. It has convolutions in front: see docs/images.md for what they change.
"""

import ml_collections

from twelve_in_one.config import image_defaults
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.image_classifier import SYSTEM, ImageClassifierConfig


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "" or "debug"."""
    if mode not in ("", "debug"):
        raise ValueError(f"world_encoder takes no argument or :debug, got {mode!r}")
    encoder = ViTConfig(128, 2, 4, 512, image_size=(64, 64), patch_size=8, stem="convolutions")
    tasks = {
        name: dict(
            title=name.capitalize(),
            source=f"folder:{{raw_dir}}/classes/{name}/{{split}}",
            random_crop=False,
            flip=name != "genres",
        )
        for name in ("things", "grounds", "genres")
    }
    config = image_defaults.get_config(SYSTEM, ImageClassifierConfig(encoder), tasks)
    image_defaults.use_world(config, images=2000, class_pictures=200, covers=2000)
    config.mixture.weighting, config.mixture.batch_size = "equal", 64
    config.images.train_side = 76
    config.optimizer.learning_rate, config.optimizer.warmup_share = 3e-3, 0.1
    config.schedule.num_rounds = 2000
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 500
    config.evaluation.batch_size, config.evaluation.pictures = 128, 4
    config.evaluation.max_validation_examples = 256
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 500, 0
    config.log.every_rounds = 50
    if mode == "debug":
        image_defaults.use_world(config, images=60, class_pictures=10, covers=60)
        image_defaults.shorten(config)
    return config
