"""LiT-decoder on the generated world: one small decoder on a frozen encoder learns to classify,
caption, answer and read.

    python -m twelve_in_one.train --config=world_encoder --workdir=workdir/world_encoder
    python -m twelve_in_one.train --config=lit_decoder --workdir=workdir/lit_decoder
    python -m twelve_in_one.train --config=lit_decoder:debug --workdir=workdir/debug

The first command trains the encoder, and the second begins with it.
"""

import ml_collections

from twelve_in_one.config import image_defaults
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.lit_decoder import SYSTEM


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "" or "debug"."""
    if mode not in ("", "debug"):
        raise ValueError(f"lit_decoder takes no argument or :debug, got {mode!r}")
    encoder = ViTConfig(128, 4, 4, 512, image_size=(64, 64), patch_size=8)
    decoder = TextDecoderConfig(
        128, 2, 4, 512, max_tokens=48, encoder_dim=128, block_biases=False, dropout_rate=0.1
    )
    model = LitDecoderConfig(encoder, decoder, max_prompt=32, hidden_images=0.1)
    folder = "folder:{raw_dir}/classes/"
    tasks = {
        "things": dict(title="Things", group="classify", source=folder + "things/{split}"),
        "grounds": dict(title="Grounds", group="classify", source=folder + "grounds/{split}"),
        "coco": dict(title="COCO captions", group="caption", source="captions:coco/{split}"),
        "vqa": dict(
            title="VQAv2", group="vqa", source="questions:vqa/{split}", test_splits=("val",)
        ),
        "gqa": dict(title="GQA", group="vqa", source="questions:gqa/{split}"),
        "ocr_vqa": dict(title="OCR-VQA", group="ocr", source="questions:ocr_vqa/{split}"),
    }
    for options in tasks.values():
        options |= dict(random_crop=False)
    config = image_defaults.get_config(SYSTEM, model, tasks)
    image_defaults.use_world(config, images=600, class_pictures=200, covers=2000)
    config.mixture.weighting, config.mixture.batch_size = "temperature", 64
    config.text.vocab_size = 400
    config.optimizer.learning_rate, config.optimizer.warmup_share = 1e-3, 0.1
    config.schedule.num_rounds = 1500
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 300
    config.evaluation.batch_size, config.evaluation.pictures = 64, 4
    config.evaluation.max_validation_examples = 256
    config.evaluation.max_test_examples = 1024
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 300, 0
    config.log.every_rounds = 50
    config.init_from.path, config.init_from.include = "workdir/world_encoder", ("encoder/.*",)
    if mode == "debug":
        config.init_from.path = ""
        image_defaults.use_world(config, images=60, class_pictures=10, covers=60)
        image_defaults.shorten(config)
    return config
