"""Defaults of the configs of systems that read pictures.

The files in `configs/` change a few of these. All keys are explained in `config/settings.py` and
`config/image_settings.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from twelve_in_one.config import defaults
from twelve_in_one.config.image_settings import (
    ImageOptions,
    ImageTaskOptions,
    MixtureOptions,
    TextOptions,
)

ConfigDict = ml_collections.ConfigDict


def get_config(system: str, model: Any, tasks: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """A config of a system of pictures, with the settings of 12-in-1's for what they share.

    Args:
      system: one of `systems.SYSTEMS`.
      model: its config, a dataclass.
      tasks: name -> fields of `ImageTaskOptions`, in the order of the tasks.
    """
    config = defaults.get_config(("vqa",))
    config.unlock()
    config.system.name = system
    config.tasks = tuple(tasks)
    config.task = ConfigDict(
        {
            name: {**dataclasses.asdict(ImageTaskOptions()), **options}
            for name, options in tasks.items()
        }
    )
    config.model = ConfigDict(dataclasses.asdict(model))
    for name, options in (
        ("mixture", MixtureOptions),
        ("images", ImageOptions),
        ("text", TextOptions),
    ):
        config[name] = ConfigDict(dataclasses.asdict(options()))
    for name in ("world_class_pictures", "world_covers", "world_clips", "world_detection"):
        config.data[name] = 0
    config.data.world_pictures = config.data.world_other_pictures = ""
    config.data.world_cover_side, config.data.world_cover_words = 64, 16
    config.data.regions = "none"
    config.mixture.weighting = "pairs"
    config.schedule.kind = "round_robin"
    optimizer = config.optimizer
    optimizer.schedule, optimizer.clip_norm, optimizer.head_learning_rate = "cosine", 1.0, 1.0
    config.lock()
    return config


def use_world(
    config: ConfigDict,
    *,
    images: int,
    class_pictures: int,
    covers: int = 0,
    clips: int = 0,
    more_captions: int = 0,
    folder: str = "workdir/worlds",
) -> None:
    """Takes pictures from the generated world, which is made if it is missing."""
    name = f"{images}-0-classes{class_pictures}" + (f"-covers{covers}" if covers else "")
    name += f"-clips{clips}" if clips else ""
    name += f"-captions{more_captions}" if more_captions else ""
    data = config.data
    data.raw_dir, data.dir = f"{folder}/{name}/raw", f"{folder}/{name}/data"
    data.world_images, data.world_class_pictures, data.world_covers = images, class_pictures, covers
    data.world_clips, data.world_more_captions = clips, more_captions


def shorten(config: ConfigDict) -> None:
    """Turns a config into a run of a few rounds, for a quick check."""
    config.mixture.batch_size, config.mixture.accumulate = 16, 1
    for task in config.task.values():
        task.batch_size, task.accumulate = 16, 1
    config.schedule.num_rounds = 4
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 2
    config.evaluation.max_validation_examples, config.evaluation.max_test_examples = 32, 32
    config.evaluation.batch_size, config.evaluation.pictures = 16, 1
    config.checkpoint.every_rounds = 2
    config.log.every_rounds = 1
