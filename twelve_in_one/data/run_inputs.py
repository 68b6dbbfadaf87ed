"""The streams of a run, as set by its config. Trainer and evaluator share this."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from twelve_in_one.config.check import TaskRun
from twelve_in_one.config.settings import OfficialOptions, PretrainingOptions, RunConfig
from twelve_in_one.data import own_spec
from twelve_in_one.data.pipeline import Stream
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.reader import has_split, open_split
from twelve_in_one.data.streams import DataFolder, open_folder, open_stream, preprocessing_of
from twelve_in_one.models.two_stream.config import ALL_HEADS
from twelve_in_one.systems import SYSTEMS
from twelve_in_one.systems.base import Facts, System
from twelve_in_one.tasks.task import Task, label_names


def open_data(run: RunConfig, workdir: Path) -> DataFolder:
    """The data folder of a run.

    Raises:
      DataError: a file is missing or damaged.
    """
    folder, regions = own_spec.data_folder(run, workdir)
    return open_folder(folder, regions, clean=run.data.clean)


def splits_of(folder: DataFolder, task: TaskRun, splits: tuple[str, ...]) -> tuple[str, ...]:
    """The splits among these that were built; a user may lack the files of some."""
    built = folder.built(task.task.name)
    return tuple(split for split in splits if has_split(built, split))


def feature_dim(folder: DataFolder, tasks: tuple[TaskRun, ...]) -> int:
    """`feature_dim_of` the tasks' training splits."""
    return feature_dim_of(folder, {task.task.name: task.options.train_split for task in tasks})


def feature_dim_of(folder: DataFolder, splits: Mapping[str, str]) -> int:
    """F, region feature size of the datasets' splits; 0 if none has features.

    Raises:
      ValueError: it differs between them.
    """
    found = {
        name: open_split(folder.built(name), split).index.feature_dim
        for name, split in splits.items()
    }
    sizes = {size for size in found.values() if size}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in found.items())
        raise ValueError(f"{folder.path}: region features differ in size: {listed}")
    return max(sizes, default=0)


def system_of(
    run: RunConfig, folder: DataFolder, tasks: Sequence[Task], feature_dim: int
) -> System:
    """The system of a run with the sizes set by the data, and the user's own heads.

    Args:
      run: the settings.
      folder: of the data.
      tasks: that the model learns.
      feature_dim: F of the data's regions; 0 if it has none.

    Raises:
      ConfigError: a size in the config does not fit the data.
      DataError: no answers are known for a head.
    """
    heads = []
    for task in tasks:
        if task.head not in ALL_HEADS:
            labels = len(label_names(task, folder.answers))
            heads.append((task.head, labels, task.rows_per_example))
    facts = Facts(
        vocab_size=folder.tokenizer.vocab_size,
        answers={head: len(answers) for head, answers in folder.answers.items()},
        feature_dim=feature_dim,
        own_heads=tuple(heads),
    )
    return SYSTEMS[run.system.name].resolve(run.model, facts)


def open_task(
    run: RunConfig,
    folder: DataFolder,
    task: TaskRun,
    split: str,
    system: System,
    *,
    training: bool,
    batch_size: int | None = None,
) -> Stream:
    """This process's share of the batches of a task.

    Args:
      run: the settings.
      folder: from `open_data`.
      task: one of the run's.
      split: of the task.
      system: sets the sizes of the batches.
      training: shuffled and endless, or once in stored order.
      batch_size: B over all processes; that of the task if None.

    Raises:
      DataError: the dataset or one of its inputs has not been built.
    """
    limit = task.options.max_train_examples if training else 0
    feature_dtype = np.dtype(run.data.feature_dtype).type
    sizes = system.sizes(task.task)
    options = sizes.pop("pretraining_options", {})
    options |= pretraining_options(run.pretraining, run.system.official, training=training)
    return open_stream(
        folder,
        task.task,
        split,
        batch_size=batch_size or task.task.batch_size,
        training=training,
        seed=run.seed,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        cache_bytes=run.data.cache_megabytes << 20,
        max_examples=limit,
        encoding_options={
            "candidates": task.options.candidates,
            "feature_dtype": feature_dtype,
        },
        pretraining_options=options | {"feature_dtype": feature_dtype},
        **sizes,
    )


def pretraining_options(
    options: PretrainingOptions, official: OfficialOptions, *, training: bool
) -> dict[str, object]:
    """Fields of `PretrainingStream`; see `PretrainingOptions` for differences in validation."""
    all_labels = official.validation and options.objective == 1 and not training
    return {
        "objective": 0 if all_labels else options.objective,
        "overlap_iou": options.overlap_iou,
        "official_overlap": official.overlap,
        "region_weight": options.region_weight,
        "num_negatives": options.num_negatives,
    }


def serving_of(folder: DataFolder, tasks: tuple[TaskRun, ...], system: System) -> Serving:
    """Companion of the weights of a model that learnt these tasks from this folder."""
    shapes = tuple(task.task for task in tasks)
    heads = {task.head for task in shapes}
    answers = {head: answers for head, answers in folder.answers.items() if head in heads}
    dim = system.sizes(shapes[0]).get("feature_dim", 0)
    preprocessing = preprocessing_of(folder, shapes, dim)
    return Serving(shapes, folder.tokenizer, answers, preprocessing)
