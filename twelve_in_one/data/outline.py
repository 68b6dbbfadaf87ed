"""What is known of a run whose data is not there: sizes, shapes of batches, and what is missing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from twelve_in_one.config import check
from twelve_in_one.config.check import MIXTURE, TaskRun
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.data.encode.examples import Encoding, encode_batch
from twelve_in_one.data.encode.pretraining import PretrainingStream
from twelve_in_one.data.encode.text import SPECIALS, Tokenizer
from twelve_in_one.data.image_inputs import ImageInputs, built_dataset
from twelve_in_one.data.images.features import frozen_encoder
from twelve_in_one.data.images.stream import ClassLabels
from twelve_in_one.data.images.texts import empty_text
from twelve_in_one.data.run_inputs import pretraining_options
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.mixing.mixed import Size
from twelve_in_one.models.two_stream.config import ALL_HEADS
from twelve_in_one.parallel.placement import HOST_ONLY
from twelve_in_one.systems import SYSTEMS
from twelve_in_one.systems.base import Facts, System
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.task import VERDICTS

# Of BERT, VQA v2 and GQA, and of bottom-up attention's regions, as in the released configs; the
# classes of a list that is not there are as many as ImageNet's.
_PUBLISHED = {
    "vocab_size": 30_522,
    "num_vqa_answers": 3_129,
    "num_gqa_answers": 1_533,
    "region_feature_dim": 2_048,
}
_LABELS = 1_000

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Outline(NamedTuple):
    """A run without its data.

    Attributes:
      system: with the vocabulary's size of the settings, where the data would decide it.
      sizes: task -> size of its training set, as found, or else as published; others are left out.
      missing: what cannot be opened, and how to get it.
    """

    system: System
    sizes: Mapping[str, Size]
    missing: tuple[str, ...]


def outline(run: RunConfig, workdir: Path, why: Exception) -> Outline:
    """The outline of a run that cannot be opened.

    Args:
      run: the settings.
      workdir: of the run.
      why: the error of opening it.

    Raises:
      ConfigError: a size in the settings does not fit.
    """
    kind = SYSTEMS[run.system.name]
    facts = Facts(vocab_size=run.text.vocab_size, answers={}, num_tasks=len(run.tasks))
    sizes: dict[str, Size] = {}
    missing = [str(why)]
    if not kind.pixels:  # its vocabulary is not made of the settings
        facts = dataclasses.replace(facts, vocab_size=0)
        return Outline(kind.resolve(run.model, facts), sizes, tuple(missing))
    inputs = ImageInputs(run, check.task_runs(run), workdir)
    for task in inputs.tasks:
        name, options = task.task.name, task.options
        try:
            sizes[name] = inputs.images(task, options.first_split).size
        except DataError as error:
            if not built_dataset(options.source) and str(error) not in missing:
                missing.append(str(error))  # `why` names all that are not built
            if options.published_pairs:
                sizes[name] = Size(options.published_pairs, options.published_images)
    return Outline(kind.resolve(run.model, facts), sizes, tuple(missing))


def assumed_system(run: RunConfig) -> tuple[System, tuple[str, ...]]:
    """The system of a run, with sizes that the data would decide as published ones.

    Returns:
      The system, and each size that was assumed, for people.

    Raises:
      ConfigError: a size in the settings does not fit.
    """
    kind, tasks = SYSTEMS[run.system.name], check.task_runs(run)
    notes: list[str] = []
    heads: list[tuple[str, int, int]] = []

    def assume(name: str, size: int) -> int:
        notes.append(f"{name} = {size:,}")
        return size

    if kind.pixels:
        words = 0
        if "text" in kind.image_kinds.values():
            words = assume("vocabulary (text.vocab_size)", run.text.vocab_size)
        heads = [
            (task.task.name, assume(f"classes of {task.task.name}", _LABELS), 1)
            for task in tasks
            if task.task.kind == "class"
        ]
        facts = Facts(words, {}, own_heads=tuple(heads), num_tasks=len(tasks))
        return kind.resolve(run.model, facts), tuple(notes)
    sizes = {
        name: assume(f"model.{name}", _PUBLISHED[name])
        for name in kind.data_decides
        if not run.model[name]
    }
    for task in tasks:
        head, labels = task.task.head, getattr(task.options, "labels", ())
        if head not in ALL_HEADS and head not in {name for name, *_ in heads}:
            count = len(labels) or assume(f"answers of {head}", _LABELS)
            heads.append((head, count, task.task.rows_per_example))
    facts = Facts(vocab_size=0, answers={}, own_heads=tuple(heads))
    return kind.resolve({**run.model, **sizes}, facts), tuple(notes)


def batch_shapes(run: RunConfig, system: System) -> dict[str, Shapes]:
    """Training stream -> the arrays of its batches, over all processes."""
    tasks = check.task_runs(run)
    if not run.mixture.weighting:
        return {
            task.task.name: _shapes(run, system, task, task.task.batch_size, training=True)
            for task in tasks
        }
    first = next(task for task in tasks if task.options.learns)
    return {MIXTURE: _shapes(run, system, first, run.mixture.batch_size, training=True)}


def validation_shapes(run: RunConfig, system: System) -> dict[str, Shapes]:
    """Task -> the arrays of the batches of its validations."""
    size = run.evaluation.batch_size
    return {
        task.task.name: _shapes(run, system, task, size or task.task.batch_size, training=False)
        for task in check.task_runs(run)
    }


def resized(shapes: Shapes, rows: int) -> Shapes:
    """The same arrays for another number of examples."""
    return {
        name: jax.ShapeDtypeStruct((rows, *x.shape[1:]) if x.ndim else (), x.dtype)
        for name, x in shapes.items()
    }


def _shapes(run: RunConfig, system: System, task: TaskRun, size: int, *, training: bool) -> Shapes:
    make = _picture_row if SYSTEMS[run.system.name].pixels else _region_row
    row = make(run, system, task, training)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in row.items()}
    return resized({name: x for name, x in shapes.items() if name != HOST_ONLY}, size)


def _region_row(
    run: RunConfig, system: System, task: TaskRun, training: bool
) -> Mapping[str, np.ndarray]:
    """A batch of one row, without an example."""
    sizes = system.sizes(task.task)
    words, width = Tokenizer(SPECIALS, lower_case=False), sizes["feature_dim"]
    dtype = np.dtype(run.data.feature_dtype).type
    if KINDS[task.task.kind].pretrains:
        options = sizes["pretraining_options"] | pretraining_options(
            run.pretraining, run.system.official, training=training
        )
        stream = PretrainingStream(None, task.task, words, width, feature_dtype=dtype, **options)
        return stream.empty(1)
    encoding = Encoding(
        task.task,
        words,
        width,
        num_labels=len(VERDICTS.get(task.task.head, ())) or sizes["num_labels"] or 0,
        training=training,
        candidates=task.options.candidates,
        feature_dtype=dtype,
    )
    return encode_batch(encoding, (), 1)


def _picture_row(
    run: RunConfig, system: System, task: TaskRun, training: bool
) -> Mapping[str, np.ndarray]:
    """The same of pictures, or of their tokens if these are stored."""
    if task.task.kind in ("class", "names"):
        row = ClassLabels().empty
    else:
        sizes = system.sizes(task.task)
        row = empty_text(0, sizes["max_tokens"], sizes["max_question"])
    arrays = {name: np.asarray(x)[None] for name, x in row.items()}
    arrays |= {"_mask": np.zeros(1, bool), "task_id": np.zeros(1, np.int32)}
    if run.images.tokens and system.token_encoder is not None:
        params = nn.unbox(system.abstract())["encoder"]
        tokens = frozen_encoder(system.token_encoder, params).shape
        return arrays | {"image_tokens": np.zeros((1, *tokens), np.float16)}
    side = system.image_size
    return arrays | {"images": np.zeros((1, side, side, 3), np.float32)}
