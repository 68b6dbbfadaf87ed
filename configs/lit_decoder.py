"""LiT-decoder: one small decoder on a frozen encoder learns to classify, caption, answer and read.

    python -m twelve_in_one.train --config=world_encoder --workdir=workdir/world_encoder
    python -m twelve_in_one.train --config=lit_decoder --workdir=workdir/lit_decoder
    python -m twelve_in_one.train --config=lit_decoder:debug --workdir=workdir/debug
    python -m twelve_in_one.train --config=lit_decoder:full --workdir=PAPER --config.data.dir=DATA \
        --config.init_from.path=ENCODER --config.text.tokenizer=cc_en.32000.model

The first command trains an encoder on the generated world, and the second begins with it. `:full`
is the recipe of the papers that follow LiT-decoder's protocol: a frozen ViT-L/16, two decoder
layers of B size, 512 pairs per update, 50 epochs, AdaFactor; on the datasets of `tasks/lit.py`.
With `--dry_run` it is described even without these: plan, mixture and memory.
"""

import ml_collections

from twelve_in_one.config import image_defaults
from twelve_in_one.models.decoder_block import TextDecoderConfig, named_decoder
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.vit import ViTConfig, named_vit
from twelve_in_one.systems.lit_decoder import SYSTEM
from twelve_in_one.tasks.lit import LIT_TASKS, PUBLISHED_SIZES


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "", "debug" or "full"."""
    if mode not in ("", "debug", "full"):
        raise ValueError(f"lit_decoder takes no argument, :debug or :full, got {mode!r}")
    config = _full() if mode == "full" else _world()
    if mode == "debug":
        config.init_from.path = ""
        image_defaults.use_world(config, images=60, class_pictures=10, covers=60)
        image_defaults.shorten(config)
    return config


def _world() -> ml_collections.ConfigDict:
    encoder = ViTConfig(128, 2, 4, 512, image_size=(64, 64), patch_size=8, stem="convolutions")
    decoder = TextDecoderConfig(
        128, 2, 4, 512, max_tokens=48, encoder_dim=128, block_biases=False, dropout_rate=0.1
    )
    model = LitDecoderConfig(encoder, decoder, max_prompt=32, hidden_images=0.1)
    classes = "folder:{raw_dir}/classes/"
    tasks = {
        "things": dict(title="Things", source=classes + "things/{split}", flip=True),
        "grounds": dict(title="Grounds", source=classes + "grounds/{split}", flip=True),
        **{name: LIT_TASKS[name] for name in ("coco", "ocr_vqa", "vqa", "gqa")},
    }
    # Small pictures of several things: a box of one would change the answers.
    tasks = {name: {**options, "random_crop": False} for name, options in tasks.items()}
    config = image_defaults.get_config(SYSTEM, model, tasks)
    image_defaults.use_world(config, images=2000, class_pictures=200, covers=2000)
    config.init_from.path, config.init_from.include = "workdir/world_encoder", ("encoder/.*",)
    config.mixture.weighting, config.mixture.batch_size = "temperature", 64
    config.text.vocab_size = 400
    config.optimizer.learning_rate, config.optimizer.warmup_share = 1e-3, 0.1
    config.schedule.num_rounds = 1200
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 300
    config.evaluation.batch_size, config.evaluation.pictures = 64, 4
    config.evaluation.max_validation_examples = 256
    config.evaluation.max_test_examples = 1000
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 300, 0
    config.log.every_rounds = 50
    return config


def _full() -> ml_collections.ConfigDict:
    decoder = named_decoder(
        "B", 2, max_tokens=64, encoder_dim=1024, block_biases=False, dropout_rate=0.1
    )
    model = LitDecoderConfig(named_vit("L/16"), decoder)
    config = image_defaults.get_config(SYSTEM, model, LIT_TASKS)
    config.init_from.include = ("encoder/.*",)
    config.mixture.weighting, config.mixture.batch_size = "pairs", 512
    for name, (pairs, images) in PUBLISHED_SIZES.items():
        config.task[name].published_pairs, config.task[name].published_images = pairs, images
    pairs = sum(pairs for pairs, _ in PUBLISHED_SIZES.values())
    config.schedule.num_rounds = 50 * pairs // 512
    config.text.vocab_size = 32_000
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 20_000
    optimizer = config.optimizer
    optimizer.name, optimizer.learning_rate, optimizer.weight_decay = "adafactor", 3e-4, 1e-4
    config.evaluation.batch_size = 512
    config.evaluation.max_validation_examples = 2048
    return config
