"""MaMMUT finds things by their names, also names that it never saw a box of.

    python -m twelve_in_one.train --config=mammut_detection --workdir=workdir/detection
    python -m twelve_in_one.train --config=mammut_detection:closed --workdir=workdir/closed
    python -m twelve_in_one.train --config=mammut_detection:debug --workdir=workdir/debug
    python -m twelve_in_one.train --config=mammut_detection:full --workdir=PAPER \
        --config.data.raw_dir=LVIS --config.init_from.path=MAMMUT --config.text.tokenizer=MODEL

The first command begins with the weights of workdir/mammut (configs/mammut.py) and learns boxes of
60 of the 80 things of the generated world ("red star"), whose pictures it makes; it is then scored
on all of them. `:closed` is the same with a trained vector for each class instead of that of its
name, which is what a usual detector has. `:full` is the published line at the size of MaMMUT's
ablations: LVIS v1 in LVIS/annotations and LVIS/images, pictures of 1,024 pixels, 256 of them per
update, 46,100 updates of SGD. It has not been run.
"""

import ml_collections

from twelve_in_one.config import image_defaults
from twelve_in_one.models.detection.open_vocabulary import DetectorConfig
from twelve_in_one.models.mammut_sizes import named_mammut, paper_form
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.mammut_detector import SYSTEM, detector_of
from twelve_in_one.tasks.mammut import TEMPLATES

_THINGS = ("a {}.", "there is a {}.", "the picture shows a {}.")
# What is taken of a MaMMUT.
_OWN = ("encoder/.*", "bridge/.*", "decoder/.*", "log_scale")


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "", "closed", "debug" or "full"."""
    if mode not in ("", "closed", "debug", "full"):
        raise ValueError(
            f"mammut_detection takes no argument, :closed, :debug or :full, got {mode!r}"
        )
    if mode == "full":
        return _full()
    config = _world(32, 64, "closed" if mode == "closed" else "text")
    if mode == "debug":
        config = _world(16, 32, "text")
        config.init_from.path = config.text.tokenizer = ""
        config.text.vocab_size = 60
        config.data.raw_dir, config.data.world_detection = "workdir/worlds/detection-40", 40
        image_defaults.shorten(config)
        config.task.things.batch_size = config.evaluation.batch_size = 4
    return config


def _world(dim: int, side: int, classifier: str) -> ml_collections.ConfigDict:
    """A detector with `dim` channels on pictures of twice `side` pixels, `side` in pretraining."""
    encoder = ViTConfig(
        128,
        2,
        4,
        512,
        image_size=(2 * side, 2 * side),
        patch_size=8,
        stem="convolutions",
        position_grid=(side // 8, side // 8),
    )
    model = paper_form(
        encoder,
        (128, 2, 4, 512),
        dict(max_tokens=48, cross_every=1),
        contrast="softmax",
        temperature=0.1,
        scale_limits=(1.0, 100.0),
        per_token=False,
    )
    learnt = classifier == "closed"
    detector = DetectorConfig(
        pyramid_dim=dim,
        proposal_layers=1,
        anchor_samples=64,
        train_before=100,
        train_proposals=64,
        test_before=100,
        test_proposals=64,
        box_samples=32,
        box_share=0.5,
        box_layers=1,
        hidden_dim=4 * dim,
        mask_samples=0,
        classifier="learned" if learnt else "text",
        background="learned" if learnt else "empty",
        region_temperature=0.0,  # the small model is less sure than the published one
        detections=50,
        before_suppression=200,
        test_threshold=0.7,
        jitter=(0.8, 1.25),
    )
    tasks = {
        "things": dict(
            title="Things by name",
            group="detect",
            source="lvis:{raw_dir}/lvis_v1_{split}.json,{raw_dir}/images",
            templates=_THINGS,
            batch_size=16,
        )
    }
    config = image_defaults.get_config(SYSTEM, detector_of(model, detector, max_boxes=8), tasks)
    config.data.raw_dir, config.data.world_detection = "workdir/worlds/detection-1500", 1500
    config.init_from.path, config.init_from.include = "workdir/mammut", _OWN
    config.text.tokenizer = "workdir/mammut/model"
    config.mixture.weighting = ""
    config.optimizer.learning_rate, config.optimizer.warmup_share = 2e-3, 0.1
    config.schedule.num_rounds = 800
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 400
    config.evaluation.batch_size, config.evaluation.pictures = 16, 8
    config.evaluation.max_validation_examples = 64
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 400, 0
    config.log.every_rounds = 50
    return config


def _full() -> ml_collections.ConfigDict:
    encoder = dict(
        image_size=(1024, 1024),
        position_grid=(14, 14),
        window=16,
        global_layers=(2, 5, 8, 11),
        remat="full",
    )
    model = named_mammut("ablation", encoder=encoder, decoder=dict(max_tokens=65))
    tasks = {
        "lvis": dict(
            title="LVIS v1",
            group="detect",
            source="lvis:{raw_dir}/annotations/lvis_v1_{split}.json,{raw_dir}/images",
            templates=TEMPLATES,
            test_splits=("val",),
            batch_size=256,
        )
    }
    config = image_defaults.get_config(SYSTEM, detector_of(model, DetectorConfig()), tasks)
    config.init_from.include = _OWN
    config.mixture.weighting = ""
    rounds = 46_100
    config.schedule.num_rounds = rounds
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = rounds // 10
    optimizer = config.optimizer
    optimizer.name, optimizer.b1, optimizer.clip_norm = "sgd", 0.9, 1.0
    optimizer.learning_rate, optimizer.weight_decay = 0.36, 1e-4
    optimizer.schedule, optimizer.warmup_share = "step", 100 / rounds
    optimizer.step_rounds = tuple(round(share * rounds) for share in (0.8, 0.9, 0.95))
    optimizer.step_factor = 0.1
    config.evaluation.batch_size = 64
    config.evaluation.max_validation_examples = 1024
    return config
