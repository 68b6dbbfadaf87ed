"""MaMMUT: one encoder and one text decoder learn to compare, to describe and to answer at once.

    python -m twelve_in_one.train --config=world_encoder --workdir=workdir/world_encoder
    python -m twelve_in_one.train --config=mammut --workdir=workdir/mammut
    python -m twelve_in_one.train --config=mammut:debug --workdir=workdir/debug
    python -m twelve_in_one.train --config=mammut:full --workdir=PAPER --config.data.dir=DATA \
        --config.text.tokenizer=MODEL
    python -m twelve_in_one.train --config=mammut:finetune --workdir=VQA --config.data.dir=DATA \
        --config.text.tokenizer=MODEL --config.init_from.path=PAPER

The second command trains on the generated world, beginning with the encoder of the first: pairs of
pictures and captions in both passes, and questions in the generative one. With
--config.init_from.path= it begins with random weights. `:full` is
the paper's recipe, of its ablations' size: 4,096 pairs per update, 500,000 updates, AdamW with
linear decay, pictures of 272 pixels cut to 224, texts of 64 tokens. `:finetune` learns questions,
over the whole vocabulary, from its weights; what the paper leaves open is as in CoCa. With
--config.tasks="('captions',)" it learns captions, for which CoCa takes half the updates, twice the
batch, half the rate and no RandAugment.
"""

import ml_collections

from twelve_in_one.config import image_defaults
from twelve_in_one.models.mammut_sizes import named_mammut, paper_form
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.mammut import SYSTEM, for_tasks
from twelve_in_one.tasks.mammut import MAMMUT_TASKS


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "", "debug", "full" or "finetune"."""
    modes = {"": _world, "debug": _world, "full": _full, "finetune": _finetune}
    if mode not in modes:
        raise ValueError(f"mammut takes no argument, :debug, :full or :finetune, got {mode!r}")
    config = modes[mode]()
    if mode == "debug":
        config.init_from.path = ""
        image_defaults.use_world(config, images=60, class_pictures=10, covers=60)
        image_defaults.shorten(config)
    return config


def _world() -> ml_collections.ConfigDict:
    encoder = ViTConfig(128, 2, 4, 512, image_size=(64, 64), patch_size=8, stem="convolutions")
    model = paper_form(
        encoder,
        (128, 2, 4, 512),
        dict(max_tokens=48, cross_every=1),  # of two layers, both look
        contrast="softmax",
        temperature=0.1,
        scale_limits=(1.0, 100.0),
        per_token=False,
    )
    model = for_tasks(model, max_prompt=32, hidden_images=0.1)
    classes = "folder:{raw_dir}/classes/"
    things = ("a {}.", "the picture shows a {}.", "there is a {}.")
    grounds = ("a picture of {}.", "on the {}.", "three things on the {}.")
    tasks = {
        "alt_text": MAMMUT_TASKS["alt_text"] | dict(weight=0.4),
        "coco": MAMMUT_TASKS["coco"] | dict(title="COCO retrieval", train=True, weight=0.3),
        "flickr30k": MAMMUT_TASKS["flickr30k"],
        "captions": MAMMUT_TASKS["captions"] | dict(train=False),  # learnt as pairs
        "things": dict(
            title="Things", group="zero_shot", source=classes + "things/{split}", templates=things
        ),
        "grounds": dict(
            title="Grounds",
            group="zero_shot",
            source=classes + "grounds/{split}",
            templates=grounds,
        ),
        "vqa": MAMMUT_TASKS["vqa"] | dict(weight=0.3),
    }
    # Small pictures of several things: a box of one would change the answers.
    tasks = {name: {**options, "random_crop": False} for name, options in tasks.items()}
    config = image_defaults.get_config(SYSTEM, model, tasks)
    image_defaults.use_world(config, images=2000, class_pictures=200, more_captions=6000)
    config.init_from.path, config.init_from.include = "workdir/world_encoder", ("encoder/.*",)
    config.images.train_side = 72
    config.mixture.weighting, config.mixture.batch_size = "explicit", 64
    config.text.vocab_size = 400
    config.optimizer.learning_rate, config.optimizer.warmup_share = 1e-3, 0.1
    config.schedule.num_rounds = 700
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 350
    config.evaluation.batch_size, config.evaluation.pictures = 64, 4
    config.evaluation.max_validation_examples = 256
    config.evaluation.max_test_examples = 1000
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 350, 0
    config.log.every_rounds = 50
    return config


def _paper(names: tuple[str, ...]) -> ml_collections.ConfigDict:
    model = for_tasks(named_mammut("ablation", decoder=dict(max_tokens=65)), max_prompt=32)
    tasks = {name: {**MAMMUT_TASKS[name], "random_crop": False, "batch_size": 64} for name in names}
    config = image_defaults.get_config(SYSTEM, model, tasks)
    config.evaluation.batch_size = 512
    config.evaluation.max_validation_examples = 2048
    return config


def _full() -> ml_collections.ConfigDict:
    config = _paper(("alt_text", "coco", "flickr30k", "imagenet"))
    config.images.train_side = 272
    config.mixture.weighting, config.mixture.batch_size = "pairs", 4096
    config.schedule.num_rounds = 500_000
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 20_000
    optimizer = config.optimizer
    optimizer.learning_rate, optimizer.weight_decay, optimizer.schedule = 1e-3, 0.01, "linear"
    optimizer.warmup_share = 0.02
    return config


def _finetune() -> ml_collections.ConfigDict:
    config = _paper(("vqa", "captions"))
    config.tasks = ("vqa",)
    config.mixture.weighting = ""
    config.images.randaugment_layers, config.images.randaugment_magnitude = 1, 10.0
    config.schedule.num_rounds = 100_000
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 5_000
    optimizer = config.optimizer
    optimizer.name, optimizer.warmup_share = "adafactor", 0.01
    optimizer.learning_rate, optimizer.weight_decay = 2e-5, 0.1
    return config
