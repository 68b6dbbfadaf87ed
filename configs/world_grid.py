"""All twelve tasks on the generated world, from pixels: 12-in-1 with a grid instead of regions.

    python -m twelve_in_one.train --config=world_encoder --workdir=workdir/world_encoder
    python -m twelve_in_one.train --config=world_grid --workdir=workdir/world_grid
    python -m twelve_in_one.train --config=world_grid:debug --workdir=workdir/debug

Begins with the encoder of `world_encoder`, which it trains on; without one give
--config.init_from.path=. Every task reads an 8 x 8 grid of cells; those that point at boxes read
these as well, as the encoder sees them. --config.model.grid.freeze_encoder=True leaves the encoder
as it is, and --config.model.grid.region_features=True adds the features that `world` reads.
"""

import dataclasses

import ml_collections

from twelve_in_one.config import defaults
from twelve_in_one.config.settings import task_key
from twelve_in_one.models.two_stream.grid import GridConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.vilbert_grid import SYSTEM
from twelve_in_one.tasks.twelve import TASKS


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; `mode` is "" or "debug"."""
    if mode not in ("", "debug"):
        raise ValueError(f"world_grid takes no argument or :debug, got {mode!r}")
    # Of each kind of input one: programs of an encoder take long to compile.
    config = defaults.world_config(("vqa", "refcoco", "nlvr2")) if mode else defaults.world_config()
    config.evaluation.text_baselines = True
    if mode == "debug":
        defaults.shorten(config)
    _read_pictures(config)
    if mode == "":
        config.init_from.path, config.init_from.include = "workdir/world_encoder", ("encoder/.*",)
    return config


def _read_pictures(config: ml_collections.ConfigDict) -> None:
    config.system.name = SYSTEM
    encoder = ViTConfig(128, 2, 4, 512, image_size=(64, 64), patch_size=8, stem="convolutions")
    grid = GridConfig(encoder, rows=8, columns=8, encoder_learning_rate=0.3)
    with config.unlocked():
        config.model.grid = ml_collections.ConfigDict(dataclasses.asdict(grid))
    # Datasets with pictures are others than those without.
    world = f"workdir/worlds/{config.data.world_images}-0-pictures"
    config.data.raw_dir, config.data.dir = f"{world}/raw", f"{world}/data"
    for task in TASKS.values():
        options = config.task.get(task_key(task.name))
        if options is None or task.kind == "region":
            continue  # which chooses among found boxes
        choices = options.max_regions - options.detected_slots if task.kind == "choice" else 0
        options.max_regions, options.detected_slots = 1 + choices, 1
