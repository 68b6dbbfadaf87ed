"""Defaults of every config: the paper's settings, for datasets that a user has built.

The files in `configs/` change a few of these; `configs/twelve.py` is the paper's run. All keys
are explained in `twelve_in_one/config/settings.py`, and each can be given on the command line, e.g.
`--config.task.vqa.batch_size=64 --config.schedule.num_rounds=1000`.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from twelve_in_one.config.settings import (
    OfficialOptions,
    OwnTaskOptions,
    PretrainingOptions,
    task_key,
)
from twelve_in_one.models.two_stream.config import PRETRAINING_HEADS, named_size
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.own import LIKES
from twelve_in_one.tasks.twelve import TASKS, TWELVE

ConfigDict = ml_collections.ConfigDict
_TOKENS = 20  # rows of the released table of task tokens

# The splits of the paper's tables. Only its server knows VQAv2's test answers.
_TEST_SPLITS = {
    "vqa": ("val",),
    "vgqa": ("val",),
    "refcoco": ("testA", "testB"),
    "refcoco+": ("testA", "testB"),
    "conceptual_captions": ("val",),
}


def task_options(name: str) -> ConfigDict:
    """A task's options in the paper's run."""
    task = TASKS[name]
    return ConfigDict(
        dict(
            max_tokens=task.max_tokens,
            max_regions=task.max_regions,
            num_choices=task.num_choices,
            detected_slots=task.detected_slots,
            batch_size=task.batch_size,
            learning_rate=task.learning_rate,
            loss_scale=0.0,
            accumulate=1,
            train_split="train",
            val_split="val",
            test_splits=_TEST_SPLITS.get(name, ("test",)),
            candidates="detected",
            max_train_examples=0,
            task_token=0,
        )
    )


def add_own_task(config: ConfigDict, name: str, **options: Any) -> None:
    """Adds a task on the user's own dataset to a config; `config.tasks` must still name it.

    Its shapes, batch size and rates are those of its `like` task, in this config or in the paper's
    run. It gets the highest free task token, or a new one.

    Args:
      config: to change.
      name: of the task.
      options: fields of `OwnTaskOptions`, `like` among them.

    Raises:
      ValueError: `like` is not a known task.
    """
    like = options.get("like", "")
    if like not in LIKES:
        raise ValueError(f"task.{name}.like: {like!r} is none of {', '.join(LIKES)}")
    key = task_key(like)
    section = config.task[key] if key in config.task else task_options(like)
    section = ConfigDict({**section.to_dict(), "test_splits": ("test",), "train_split": "train"})
    section.val_split = "val"
    for field in dataclasses.fields(OwnTaskOptions):
        if field.name not in section:
            section[field.name] = field.default
    taken = {task.task_id for task in TASKS.values()} | {t.task_token for t in config.task.values()}
    rows = config.model.num_tasks
    free = [token for token in range(rows or _TOKENS) if token not in taken]
    section.task_token = max(free, default=max(taken) + 1)
    if rows:
        config.model.num_tasks = max(rows, section.task_token + 1)
    section.update(options)
    with config.unlocked():
        config.task[name] = section
    # No initial model knows its labels.
    config.init_from.allow_missing = (*config.init_from.allow_missing, f"heads/{name}/.*")


def model_options(size: str) -> ConfigDict:
    """All fields of a named size."""
    fields = dataclasses.asdict(named_size(size))
    return ConfigDict(fields)


def _official_options() -> dict[str, Any]:
    """Switches that are None, and so left to the one for all of them, but typed for flags."""
    hints = typing.get_type_hints(OfficialOptions)
    kinds = {name: typing.get_origin(hint) or hint for name, hint in hints.items()}
    return {name: config_dict.placeholder(kind) for name, kind in kinds.items()} | {"all": False}


def get_config(
    tasks: Sequence[str] = tuple(task.name for task in TWELVE), size: str = "base_6l"
) -> ConfigDict:
    """The paper's settings for some of the tasks."""
    config = ConfigDict()
    config.seed = 0
    config.tasks = tuple(tasks)
    config.task = ConfigDict({task_key(name): task_options(name) for name in tasks})
    config.model = model_options(size)
    config.compilation_cache = "auto"
    config.data = ConfigDict(
        dict(
            dir="data",
            raw_dir="",
            regions="detected",
            clean=True,
            world_images=0,
            world_seed=0,
            world_more_captions=0,
            samples_dir="",
            held_out_dir="",
            own_dir="",
            vocab="",
            feature_dtype="float16",
            cache_megabytes=512,
            prefetch=2,
        )
    )
    config.schedule = ConfigDict(
        dict(
            kind="stop_and_go",
            num_rounds=202_240,
            gap=4,
            validate_epochs=1.0,
            min_validation_rounds=1,
            max_validation_rounds=0,
            temperature=2.0,
            order=(),
            curriculum_share=0.5,
            patience=1,
            threshold=0.001,
            continue_threshold=0.005,
            cooldown=1,
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            update="in_turn",
            learning_rate=2e-5,
            schedule="linear",
            warmup_share=0.1,
            step_rounds=(),
            step_factor=0.2,
            b1=0.9,
            b2=0.999,
            eps=1e-6,
            weight_decay=0.01,
            head_learning_rate=5.0,
            groups=(),
            frozen=(),
            frozen_dtype="float32",
            clip_norm=0.0,
            on_nonfinite="raise",
        )
    )
    config.system = ConfigDict(dict(name="vilbert", official=_official_options()))
    config.evaluation = ConfigDict(
        dict(
            max_validation_examples=0,
            max_test_examples=0,
            batch_size=0,
            retrieval_captions=8,
            retrieval_images=500,
            text_baselines=False,
            pictures=0,
            keep_trained_on=False,
        )
    )
    config.checkpoint = ConfigDict(
        dict(every_rounds=1000, keep_latest=2, keep_best=1, keep_every_rounds=20_000)
    )
    config.init_from = ConfigDict(dict(path="", include=(".*",), exclude=(), allow_missing=()))
    config.log = ConfigDict(
        dict(
            every_rounds=50,
            tensorboard=True,
            wandb_project="",
            profile_start=0,
            profile_rounds=0,
        )
    )
    config.parallel = ConfigDict(
        dict(layout="dp", model=1, devices=0, slices=0, transfer_guard="disallow")
    )
    config.pretraining = ConfigDict(dataclasses.asdict(PretrainingOptions()))
    return config


# With [CLS] and [SEP]; the longest text of each of the world's datasets fits. Equal lengths share
# programs.
_WORLD_TOKENS = dict(
    vqa=18, vgqa=18, gqa=26, coco=26, flickr30k=26, refcoco=26, refcoco_plus=26, refcocog=26,
    visual7w=20, guesswhat=80, nlvr2=28, snli_ve=22, conceptual_captions=26,
)  # fmt: skip
_WORLD_REGIONS = 17  # 16 slots of the pixel extractor and the whole picture
# Small: in so short a run, learning depends more on the number of updates than on that of examples.
# Smaller if an example has several rows or long text.
_WORLD_BATCH = 32
_WORLD_BATCHES = dict(coco=12, flickr30k=12, guesswhat=24, nlvr2=24, conceptual_captions=64)
# Pictures with captions beyond the world's own, for pretraining: `pretrain_on_world` sees each of
# its training pictures twenty times.
MORE_CAPTIONS = 16_000
_WORLD_CHOICES = dict(visual7w=4, guesswhat=8)


def use_world(
    config: ConfigDict, images: int, *, more_captions: int = 0, folder: str = "workdir/worlds"
) -> None:
    """Uses the generated world as data, with a small model that suits it."""
    for name, task in config.task.items():
        task.max_tokens, task.max_regions = _WORLD_TOKENS[name], _WORLD_REGIONS
        if name in _WORLD_CHOICES:
            task.detected_slots, task.num_choices = _WORLD_REGIONS, _WORLD_CHOICES[name]
            task.max_regions = _WORLD_REGIONS + max(_WORLD_CHOICES.values())
        task.batch_size = _WORLD_BATCHES.get(name, _WORLD_BATCH)
        task.loss_scale = 1.0
    name = f"{images}-0" + (f"-{more_captions}" if more_captions else "")
    data, world = config.data, f"{folder}/{name}"
    data.raw_dir, data.dir, data.regions = f"{world}/raw", f"{world}/data", "pixels"
    data.world_images, data.world_more_captions = images, more_captions
    data.feature_dtype = "float32"
    chosen = {name: config.model[name] for name in ("heads", "num_tasks")}
    config.model = model_options("tiny")
    config.model.update(chosen)
    config.model.max_positions = 128
    if "conceptual_captions" in config.tasks:
        config.model.visual_target = 1  # regions of the world have no classes
    for size in Vilbert.data_decides:
        config.model[size] = 0
    for stream in (config.model.text, config.model.visual):
        stream.dropout_rate = stream.attention_dropout_rate = 0.0
    config.model.head_dropout_rate = 0.0
    config.optimizer.learning_rate, config.optimizer.head_learning_rate = 1e-3, 1.0
    config.optimizer.schedule, config.optimizer.warmup_share = "cosine", 0.03
    config.evaluation.retrieval_captions, config.evaluation.retrieval_images = 8, 32


def world_config(tasks: Sequence[str] = tuple(task.name for task in TWELVE)) -> ConfigDict:
    """A run of some tasks on the world that takes minutes on two cores."""
    config = get_config(tasks)
    use_world(config, images=2000)
    config.schedule.num_rounds = 320
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 30
    config.evaluation.max_validation_examples = 256
    config.evaluation.pictures = 4
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 50, 0
    config.log.every_rounds = 10
    return config


def use_small_world(config: ConfigDict) -> None:
    """Changes a config of the world so that tasks have few examples and converge within fewer."""
    use_world(config, images=600)
    config.schedule.min_validation_rounds, config.schedule.max_validation_rounds = 10, 20
    config.schedule.patience = 2


def pretraining_config() -> ConfigDict:
    """Pretraining on Conceptual Captions as in the released script."""
    config = get_config(("conceptual_captions",))
    config.model.heads, config.model.num_tasks = PRETRAINING_HEADS, 0
    optimizer = config.optimizer
    optimizer.learning_rate, optimizer.head_learning_rate = 1e-4, 1.0
    optimizer.b2, optimizer.eps = 0.98, 1e-8
    config.schedule.kind = "round_robin"
    config.schedule.num_rounds = 10 * (3_119_449 // 512)  # epochs of the released size
    return config


def pretrain_on_world(config: ConfigDict) -> None:
    """Changes a config of pretraining into one for the world's captions."""
    use_world(config, images=2000, more_captions=MORE_CAPTIONS)
    config.optimizer.learning_rate, config.optimizer.warmup_share = 2e-3, 0.1
    # Without this, so few rounds at so high a rate leave weights that tasks hardly learn from.
    config.optimizer.clip_norm = 1.0
    # Poolers see noise until alignment is learnt, after about 2,500 updates. At the full rate few
    # of their units are alive by then, and sometimes it is never learnt.
    config.optimizer.groups = (("trunk/(text|visual)_pooler/.*", 0.1, 0.0),)
    config.schedule.num_rounds = 4400
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 550
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 250, 0


def shorten(config: ConfigDict) -> None:
    """Turns any config into a run of a few rounds on a small world, for a quick check."""
    use_world(config, images=150)
    for task in config.task.values():
        task.batch_size, task.accumulate = 8, 1
    config.init_from.path = ""
    config.schedule.num_rounds, config.system.official.resets = 4, ()
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 2
    config.optimizer.step_rounds = ()
    config.evaluation.max_validation_examples, config.evaluation.max_test_examples = 16, 32
    config.evaluation.text_baselines = False
    config.checkpoint.every_rounds = 2
    config.log.every_rounds = 1
