"""MaMMUT reads clips: the encoder of pictures, and sparse tubes of several frames beside patches.

    python -m twelve_in_one.train --config=mammut --workdir=workdir/mammut
    python -m twelve_in_one.train --config=mammut_video --workdir=workdir/mammut_video
    python -m twelve_in_one.train --config=mammut_video:debug --workdir=workdir/debug
    python -m twelve_in_one.train --config=mammut_video:full --workdir=VIDEO \
        --config.data.raw_dir=DATA --config.text.tokenizer=MODEL --config.init_from.path=PAPER

The second command learns questions and captions of the generated world's clips, of 8 frames of 64
pixels, beginning with the weights of the first, which has seen pictures only. Its table has the
score with one frame of each clip, repeated, beside the others. `:full` is the paper's form, 32
frames of 224 pixels in 539 tokens, on MSRVTT-QA in DATA/msrvtt (official files, and the videos
anywhere below); what the paper leaves open is as in `mammut:finetune`. With
--config.tasks="('msvd_qa',)" it learns MSVD-QA, with "('msrvtt_captions',)" and
"('msvd_captions',)" captions. With --config.model.encoder.clip.tubes="()" a model reads the
patches of frames alone.
"""

import ml_collections

from twelve_in_one.config import image_defaults
from twelve_in_one.models.mammut_sizes import named_mammut, paper_form
from twelve_in_one.models.tubes import ClipConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.mammut import SYSTEM, for_tasks
from twelve_in_one.tasks.mammut import VIDEO_TASKS

# Kernel, stride and offset, each in frames, rows and columns.
_TUBES = (
    (8, 8, 8, 8, 8, 8, 0, 0, 0),
    (4, 16, 16, 4, 16, 16, 0, 0, 0),
    (2, 16, 16, 2, 16, 16, 0, 0, 0),
)


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "", "debug" or "full"."""
    modes = {"": _world, "debug": _world, "full": _full}
    if mode not in modes:
        raise ValueError(f"mammut_video takes no argument, :debug or :full, got {mode!r}")
    config = modes[mode]()
    if mode == "debug":
        config.init_from.path = config.text.tokenizer = ""
        image_defaults.use_world(config, images=50, class_pictures=0, clips=80)
        image_defaults.shorten(config)
    return config


def _world() -> ml_collections.ConfigDict:
    encoder = ViTConfig(
        *(128, 2, 4, 512),
        image_size=(64, 64),
        patch_size=8,
        stem="convolutions",
        clip=ClipConfig(frames=8, every=8, tubes=_TUBES),
    )
    model = paper_form(
        encoder,
        (128, 2, 4, 512),
        dict(max_tokens=48, cross_every=1),  # as in configs/mammut.py
        contrast="softmax",
        temperature=0.1,
        scale_limits=(1.0, 100.0),
        per_token=False,
    )
    model = for_tasks(model, max_prompt=32, hidden_images=0.1)
    tasks = {
        name: {**VIDEO_TASKS[name], "weight": weight, "random_crop": False}
        for name, weight in (("msrvtt_qa", 0.8), ("msrvtt_captions", 0.2))
    }
    config = image_defaults.get_config(SYSTEM, model, tasks)
    image_defaults.use_world(config, images=50, class_pictures=0, clips=3000)
    config.init_from.path = "workdir/mammut"
    config.init_from.allow_missing = ("encoder/clip/.*",)
    config.text.tokenizer = "workdir/mammut/model"
    config.mixture.weighting, config.mixture.batch_size = "explicit", 64
    config.text.vocab_size = 400  # of the vocabulary that `:debug` makes
    config.optimizer.learning_rate, config.optimizer.warmup_share = 1e-3, 0.1
    config.schedule.num_rounds = 1000
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 500
    config.evaluation.batch_size, config.evaluation.pictures = 64, 4
    config.evaluation.max_validation_examples = 256
    config.evaluation.max_test_examples = 1000
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 500, 0
    config.log.every_rounds = 50
    return config


def _full() -> ml_collections.ConfigDict:
    model = named_mammut(
        "ablation", encoder=dict(clip=ClipConfig(frames=32)), decoder=dict(max_tokens=65)
    )
    model = for_tasks(model, max_prompt=32)
    tasks = {
        name: {**options, "random_crop": False, "batch_size": 64}
        for name, options in VIDEO_TASKS.items()
    }
    config = image_defaults.get_config(SYSTEM, model, tasks)
    config.tasks = ("msrvtt_qa",)
    config.init_from.allow_missing = ("encoder/clip/.*",)
    config.mixture.weighting = ""
    config.images.randaugment_layers, config.images.randaugment_magnitude = 1, 10.0
    config.evaluation.batch_size = 64
    config.evaluation.max_validation_examples = 2048
    config.schedule.num_rounds = 50_000
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 5_000
    optimizer = config.optimizer
    optimizer.name, optimizer.warmup_share = "adafactor", 0.01
    optimizer.learning_rate, optimizer.weight_decay = 2e-5, 0.1
    return config
