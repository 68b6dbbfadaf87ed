"""The subject of an evaluation: a run or a model folder, with the data to score it on."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twelve_in_one.checkpoints import inputs_record, state, weights
from twelve_in_one.checkpoints.inputs_record import Record
from twelve_in_one.config import check, defaults
from twelve_in_one.config.check import TaskRun
from twelve_in_one.config.settings import (
    EvaluationOptions,
    OfficialOptions,
    PretrainingOptions,
    RunConfig,
)
from twelve_in_one.data import own_spec, run_inputs, streams, trained_on
from twelve_in_one.data.pipeline import Stream
from twelve_in_one.data.serving import Serving, answers_file, load_serving
from twelve_in_one.data.stored.preprocessing import Preprocessing, check_same, other_stores
from twelve_in_one.data.stored.reader import has_split
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.streams import DataFolder
from twelve_in_one.data.trained_on import TrainedOn
from twelve_in_one.parallel import sharding
from twelve_in_one.parallel.placement import Placement
from twelve_in_one.systems.base import System
from twelve_in_one.tasks.task import Task
from twelve_in_one.tasks.twelve import TASKS

REPORTED = "reported"  # the splits of the paper's tables
_WITHOUT_RUN = EvaluationOptions(0, 0, 0, retrieval_captions=8, retrieval_images=500)
_BASELINE_EXAMPLES = 20_000


@dataclasses.dataclass(frozen=True)
class Subject:
    """The subject of an evaluation.

    Attributes:
      name: its origin, for messages.
      tasks: of the model, with their shapes.
      reported: task name -> splits that are scored at the end of a run.
      candidates: task name -> "detected" or "annotated".
      folder: of the data.
      system: the model.
      preprocessing: of its inputs; None if a run has not saved it yet.
      options: sizes of blocks and batches.
      pretraining: options of what pretraining hides.
      official: where these follow the released code.
      feature_dtype: of regions.
      cache_megabytes: for records, per split.
      prefetch: number of batches to prepare ahead.
      layout: of the parameters.
      model_axis: devices along the mesh's model axis.
      notes: remarks for readers of the scores.
    """

    name: str
    tasks: tuple[Task, ...]
    reported: Mapping[str, tuple[str, ...]]
    candidates: Mapping[str, str]
    folder: DataFolder
    system: System
    preprocessing: Preprocessing | None
    options: EvaluationOptions
    pretraining: PretrainingOptions = PretrainingOptions()
    official: OfficialOptions = OfficialOptions()
    feature_dtype: str = "float16"
    cache_megabytes: int = 512
    prefetch: int = 2
    layout: str = "dp"
    model_axis: int = 1
    notes: tuple[str, ...] = ()


def of_workdir(
    workdir: Path,
    data_dir: Path | None = None,
    features: str | None = None,
) -> tuple[Subject, int]:
    """A run as its `config.json` describes it, and its last round.

    Args:
      workdir: of the run.
      data_dir: of the data; the run's if None.
      features: name of the region features; the run's if None.

    Raises:
      ValueError: no workdir, or its data is missing or different.
    """
    config = state.read_config(workdir)
    tasks = check.task_runs(config)
    found_dir, regions = own_spec.data_folder(config, workdir)
    folder = streams.open_folder(
        Path(data_dir or found_dir), features or regions, clean=config.data.clean
    )
    shapes = tuple(task.task for task in tasks)
    record, notes = inputs_record.read(workdir), []
    if record is not None and record.serving is not None:
        _check_words_and_answers(str(workdir), record, folder)
        folder = dataclasses.replace(folder, answers=record.serving.answers)
        system = record.system.with_layout(config.model.get("scan_layers", False))
    else:
        notes.append(f"{workdir} did not note its answers, which are taken to be {folder.path}'s")
        dim = run_inputs.feature_dim(folder, tasks)
        system = run_inputs.system_of(config, folder, shapes, dim)
    subject = Subject(
        name=str(workdir),
        tasks=shapes,
        reported={task.task.name: task.options.test_splits for task in tasks},
        candidates={task.task.name: task.options.candidates for task in tasks},
        folder=dataclasses.replace(
            folder, trained_on=_trained_on(workdir, config, tasks, record, system, notes)
        ),
        system=system,
        preprocessing=None if record is None else record.preprocessing,
        options=config.evaluation,
        pretraining=config.pretraining,
        official=config.system.official,
        feature_dtype=config.data.feature_dtype,
        cache_megabytes=config.data.cache_megabytes,
        prefetch=config.data.prefetch,
        layout=config.parallel.layout,
        model_axis=config.parallel.model,
        notes=tuple(notes),
    )
    return subject, config.schedule.num_rounds


def _check_words_and_answers(name: str, record: Record, folder: DataFolder) -> None:
    known = record.serving
    offered = Serving((), folder.tokenizer, folder.answers, known.preprocessing)
    found = inputs_record.differences(known, offered, record.path, folder.path)
    if found:
        raise ValueError(f"{name} and {folder.path} do not fit each other: {'; '.join(found)}")


def _trained_on(
    workdir: Path,
    config: RunConfig,
    tasks: Sequence[TaskRun],
    record: Record | None,
    system: System,
    notes: list[str],
) -> TrainedOn:
    """The examples a run has seen: as recorded, or without a record as it would see them now."""
    if record is not None and record.serving is not None and record.serving.trained_on is not None:
        return record.serving.trained_on
    try:
        data = run_inputs.open_data(config, workdir)
        seen = trained_on.of_streams(
            run_inputs.open_task(
                config, data, task, task.options.train_split, system, training=True
            )
            for task in tasks
        )
    except DataError:
        return trained_on.nothing(f"what {workdir} was trained on: its data are gone")
    notes.append(
        f"{workdir} did not note what it was trained on, which is taken to be what it would be "
        f"trained on now ({data.path})"
    )
    return seen


def of_model(path: Path, data_dir: Path, features: str) -> Subject:
    """A model folder, with data from elsewhere.

    Raises:
      ValueError: no such folder, or it or the data is damaged.
    """
    serving = load_serving(path)
    system = weights.read_system(path)
    folder = streams.open_folder(data_dir, features)
    notes = [
        f"{folder.path / answers_file(head)} is not used, but the answers of {path}: "
        f"{inputs_record.difference(answers, folder.answers[head], 'answer')}"
        for head, answers in serving.answers.items()
        if folder.answers.get(head, answers) != answers
    ]
    seen = serving.trained_on or trained_on.nothing(f"what {path} was trained on")
    return Subject(
        name=str(path),
        tasks=serving.tasks,
        reported={
            task.name: tuple(defaults.task_options(task.name).test_splits)
            if task.name in TASKS
            else ("test",)
            for task in serving.tasks
        },
        candidates={},
        # Labels are the model's; answers unknown to it count as wrong.
        folder=dataclasses.replace(folder, answers=serving.answers, trained_on=seen),
        system=system,
        preprocessing=serving.preprocessing,
        options=_WITHOUT_RUN,
        notes=tuple(notes),
    )


def check_inputs(subject: Subject, tasks: Sequence[Task], splits: Mapping[str, Any]) -> list[str]:
    """Refuses data made differently from the model's training data.

    Returns:
      Possible differences, in words.

    Raises:
      ValueError: lists the differences.
    """
    if subject.preprocessing is None:
        return []
    folder = subject.folder
    found = run_inputs.feature_dim_of(folder, {name: wanted[0] for name, wanted in splits.items()})
    known = subject.system.sizes(tasks[0]).get("feature_dim", 0)
    # A model of boxes alone takes regions of any features.
    offered = streams.preprocessing_of(folder, tasks, found or known if known else 0)
    try:
        check_same(subject.preprocessing, offered)
    except ValueError as error:
        hint = ""
        if offered.vocab_sha256 != subject.preprocessing.vocab_sha256:
            hint = (
                f"; the vocabulary {folder.path / 'vocab.txt'} is not the model's: build the data "
                "with the vocab.txt of the model's folder"
            )
        raise ValueError(f"{subject.name} and {folder.path}: {error}{hint}") from error
    return other_stores(subject.preprocessing, offered)


def splits_to_score(
    subject: Subject, tasks: Sequence[Task], wanted: str
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Task name -> splits to score, and the splits that cannot be scored as they were not built.

    Args:
      subject: see `Subject`.
      tasks: some of its tasks.
      wanted: `REPORTED`, "test" for all test splits of a dataset, or a split's name.
    """
    found: dict[str, tuple[str, ...]] = {}
    missing = []
    for task in tasks:
        if wanted == REPORTED:
            names = subject.reported[task.name]
        elif wanted == "test":
            splits = subject.folder.source(task.name).splits
            names = [name for name in splits if name.startswith("test")]
        else:
            names = [wanted]
        built = subject.folder.built(task.name)
        there = tuple(name for name in names if has_split(built, name))
        if wanted == REPORTED and not there and task.name in subject.folder.own:
            there = ("val",)  # as at the end of a run
        missing += [f"{task.name}/{name}" for name in names if name not in there]
        if not names:
            missing.append(f"{task.name}/{wanted}")
        if there:
            found[task.name] = there
    return found, missing


def open_stream(
    subject: Subject,
    placement: Placement,
    task: Task,
    split: str,
    batch_size: int = 0,
    *,
    removed: bool = False,
) -> Stream:
    """This process's rows of a split, not for training; for `removed` see `data.streams`."""
    size = batch_size or subject.options.batch_size or task.batch_size
    multiple = sharding.batch_ways(placement.mesh)
    feature_dtype = {"feature_dtype": np.dtype(subject.feature_dtype).type}
    options: dict[str, object] = dict(feature_dtype)
    sizes = subject.system.sizes(task)
    pretraining = sizes.pop("pretraining_options", {})
    pretraining |= run_inputs.pretraining_options(
        subject.pretraining, subject.official, training=False
    )
    if task.name in subject.candidates:
        options["candidates"] = subject.candidates[task.name]
    return streams.open_stream(
        subject.folder,
        task,
        split,
        batch_size=-(-size // multiple) * multiple,
        training=False,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        cache_bytes=subject.cache_megabytes << 20,
        removed=removed,
        encoding_options=options,
        pretraining_options=feature_dtype | pretraining,
        **sizes,
    )


def baselines_of(
    folder: DataFolder, candidates: Mapping[str, str], max_examples: int
) -> Callable[[Task, str], dict[str, float]]:
    """Chance, majority and words of a task's split, each computed once.

    Args:
      folder: of the data.
      candidates: task name -> "detected" or "annotated"; detected by default.
      max_examples: per split; 0 takes 20,000.
    """
    from twelve_in_one.data import text_baselines

    @functools.cache
    def baselines(task: Task, split: str) -> dict[str, float]:
        blind = text_baselines.score_task(
            folder,
            task,
            split,
            max_examples=max_examples or _BASELINE_EXAMPLES,
            candidates=candidates.get(task.name, "detected"),
        )
        return {"chance": blind.chance, "majority": blind.majority, "words": blind.words}

    return baselines
