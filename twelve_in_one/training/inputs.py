"""The streams of a run, as its config asks for them. Trainer and evaluator share this."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twelve_in_one.checkpoints.model_folder import Serving
from twelve_in_one.config.check import resolve_model
from twelve_in_one.config.settings import PretrainingOptions, RunConfig, TaskRun
from twelve_in_one.data import own_spec
from twelve_in_one.data.pipeline import Stream
from twelve_in_one.data.stored.reader import has_split, open_split
from twelve_in_one.data.streams import DataFolder, open_folder, open_stream, preprocessing_of
from twelve_in_one.models.two_stream.config import ALL_HEADS, TwoStreamConfig
from twelve_in_one.tasks.task import Task, label_names


def open_data(run: RunConfig, workdir: Path) -> DataFolder:
    """The data folder of a run.

    Raises:
      DataError: a file is missing or damaged.
    """
    folder, regions = own_spec.data_folder(run, workdir)
    return open_folder(folder, regions, clean=run.data.clean)


def splits_of(folder: DataFolder, task: TaskRun, splits: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the splits that were built; a user may lack the files of one."""
    built = folder.built(task.task.name)
    return tuple(split for split in splits if has_split(built, split))


def feature_dim(folder: DataFolder, tasks: tuple[TaskRun, ...]) -> int:
    """F, region feature size of the tasks' training splits; 0 where none has features.

    Raises:
      ValueError: tasks differ in it.
    """
    found = {}
    for task in tasks:
        built = folder.built(task.task.name)
        found[task.task.name] = open_split(built, task.options.train_split).index.feature_dim
    sizes = {size for size in found.values() if size}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in found.items())
        raise ValueError(f"{folder.path}: region features differ in size: {listed}")
    return max(sizes, default=0)


def model_of(
    fields: Mapping[str, Any], folder: DataFolder, tasks: Sequence[Task], feature_dim: int
) -> TwoStreamConfig:
    """The model's config with the sizes that the data decides, and heads of the user's own.

    Args:
      fields: `RunConfig.model`.
      folder: of the data.
      tasks: that the model learns.
      feature_dim: F of the data's regions; 0 if it has none.

    Raises:
      ConfigError: a size that the config gives does not fit the data.
      DataError: no answers are known for a head.
    """
    heads = []
    for task in tasks:
        if task.head not in ALL_HEADS:
            labels = len(label_names(task, folder.answers))
            heads.append((task.head, labels, task.rows_per_example))
    return resolve_model(
        fields,
        vocab_size=folder.tokenizer.vocab_size,
        answers={head: len(answers) for head, answers in folder.answers.items()},
        region_feature_dim=feature_dim,
        own_heads=tuple(heads),
    )


def open_task(
    run: RunConfig,
    folder: DataFolder,
    task: TaskRun,
    split: str,
    model: TwoStreamConfig,
    *,
    training: bool,
    batch_size: int | None = None,
) -> Stream:
    """This process's share of the batches of a task.

    Args:
      run: the settings.
      folder: from `open_data`.
      task: one of the run's.
      split: of it.
      model: whose sizes the batches have.
      training: shuffled and endless, or once in stored order.
      batch_size: B over all processes; that of the task if None.

    Raises:
      DataError: the dataset or something that it needs has not been built.
    """
    limit = task.options.max_train_examples if training else 0
    feature_dtype = np.dtype(run.data.feature_dtype).type
    return open_stream(
        folder,
        task.task,
        split,
        batch_size=batch_size or task.task.batch_size,
        training=training,
        feature_dim=model.region_feature_dim,
        num_labels=model.num_answers.get(task.task.head),
        seed=run.seed,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        cache_bytes=run.data.cache_megabytes << 20,
        max_examples=limit,
        encoding_options={
            "candidates": task.options.candidates,
            "feature_dtype": feature_dtype,
        },
        pretraining_options=pretraining_options(run.pretraining, model, training=training)
        | {"feature_dtype": feature_dtype},
    )


def pretraining_options(
    options: PretrainingOptions, model: TwoStreamConfig, *, training: bool
) -> dict[str, object]:
    """Fields of `PretrainingStream`; see `PretrainingOptions` for what differs in validation."""
    all_labels = options.official_validation and options.objective == 1 and not training
    return {
        "num_classes": model.num_region_classes,
        "visual_target": model.visual_target,
        "objective": 0 if all_labels else options.objective,
        "overlap_iou": options.overlap_iou,
        "official_overlap": options.official_overlap,
        "region_weight": options.region_weight,
        "num_negatives": options.num_negatives,
    }


def serving_of(folder: DataFolder, tasks: tuple[TaskRun, ...], feature_dim: int) -> Serving:
    """What goes with the weights of a model that learnt these tasks from this folder."""
    shapes = tuple(task.task for task in tasks)
    heads = {task.head for task in shapes}
    answers = {head: answers for head, answers in folder.answers.items() if head in heads}
    preprocessing = preprocessing_of(folder, shapes, feature_dim)
    return Serving(shapes, folder.tokenizer, answers, preprocessing)
