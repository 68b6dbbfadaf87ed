"""Batches of one task, by number: `stream.batch(i)` is a pure function of i.

A `Selection` knows which examples take part and in which order; batch i is computed from
i alone, so a run resumes at any batch, and hosts agree without communication. `as_dataset` adds
tf.data's parallel prefetching. Training runs through epoch after epoch without a partial batch;
evaluation covers every example once and pads the last batch (`_mask`).
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from twelve_in_one.data.encode.examples import Batch, Encoding, Example, encode_batch
from twelve_in_one.data.encode.negatives import draw_negatives
from twelve_in_one.data.encode.text import Tokenizer
from twelve_in_one.data.stored.order import (
    BLOCK_CHUNKS,
    CHUNK_RECORDS,
    PERMUTED_EXAMPLES,
    TrainingOrder,
    epoch_order,
    host_rows,
)
from twelve_in_one.data.stored.reader import SplitReader
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.task import Task

_ORDER, _DRAW = 0, 1  # purposes of a seed
_SHARD_RECORDS = CHUNK_RECORDS * BLOCK_CHUNKS


@dataclasses.dataclass(frozen=True)
class Seen:
    """How much of a split was trained on.

    Attributes:
      records: examples that were.
      of_records: examples of the split.
      images: images that were, with any question.
      of_images: images of the split.
      left_out: whether these examples are left out of the score.
      unknown: the unknown part of this, in words.
    """

    records: int
    of_records: int
    images: int
    of_images: int
    left_out: bool
    unknown: tuple[str, ...] = ()


class AllTrainedOn(DataError):
    """A split with nothing left to score: the model was trained on all its records."""

    def __init__(self, name: str, records: int):
        super().__init__(
            f"{name}: all {records:,} records were trained on; --keep_trained_on "
            "(config.evaluation.keep_trained_on) scores them all the same"
        )
        self.records = records


@dataclasses.dataclass(frozen=True)
class Selection:
    """The examples of a split that take part, and their order.

    Attributes:
      reader: the split.
      records: int64[n'], positions of the records that take part (cleaning removes some).
      batch_size: B, global.
      training: shuffled anew every epoch and without end; otherwise in stored order, once.
      seed: ints that the order and every example's random draws depend on, e.g. (seed, task id).
      host: which of the hosts this is.
      num_hosts: how many there are; each fills an equal part of every batch.
      order_options: of `epoch_order`.
      permuted_examples: see `TrainingOrder`.
      domain: collection that the images come from.
      seen: how much of the split was trained on; None in training, and if not computed.
    """

    reader: SplitReader
    records: np.ndarray
    batch_size: int
    training: bool
    seed: tuple[int, ...] = (0,)
    host: int = 0
    num_hosts: int = 1
    order_options: Mapping[str, int] = dataclasses.field(default_factory=dict)
    domain: str = ""
    seen: Seen | None = None
    permuted_examples: int = PERMUTED_EXAMPLES

    def __post_init__(self) -> None:
        host_rows(self.batch_size, self.host, self.num_hosts)
        if not self.num_examples:
            raise DataError(f"{self.reader.name}: no example takes part")
        try:
            _ = self.training and self._order.shards
        except ValueError as error:
            raise DataError(f"{self.reader.name}: {error}") from error

    @functools.cached_property
    def first_example(self) -> np.ndarray:
        """int64[n' + 1], number of each record's first example among those that take part."""
        return np.concatenate([[0], np.cumsum(self.reader.index.counts[self.records])])

    @property
    def num_examples(self) -> int:
        """Examples per epoch."""
        return int(self.first_example[-1])

    @property
    def num_batches(self) -> int:
        """Batches per epoch, counting a partial last one as full."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_rows(self) -> int:
        """Rows of a batch that this host fills."""
        return self.batch_size // self.num_hosts

    @functools.cached_property
    def _order(self) -> TrainingOrder:
        counts = self.reader.index.counts[self.records]
        seed = (_ORDER, *self.seed)
        return TrainingOrder(
            np.add.reduceat(counts, np.arange(0, len(counts), _SHARD_RECORDS)),
            self.batch_size,
            lambda epoch: epoch_order(counts, (*seed, epoch), **self.order_options),
            seed,
            self.host,
            self.num_hosts,
            self.permuted_examples,
            # Memory holds as many records as a block of `epoch_order`.
            -(-_SHARD_RECORDS * self.num_examples // len(counts)),
        )

    def rows(self, batch: int) -> list[tuple[int, int]]:
        """(epoch, example number) of this host's rows of a batch; fewer at the end of evaluation.

        Raises:
          IndexError: beyond the end of an evaluation.
        """
        if self.training:
            epochs, numbers = self._order.rows(batch)
            return list(zip(epochs.tolist(), numbers.tolist(), strict=True))
        if batch >= self.num_batches:
            raise IndexError(f"{self.reader.name}: batch {batch} of {self.num_batches}")
        rows = host_rows(self.batch_size, self.host, self.num_hosts)
        positions = batch * self.batch_size + np.arange(rows.start, rows.stop)
        return [(0, int(position)) for position in positions if position < self.num_examples]

    def locate(self, number: int) -> tuple[int, int]:
        """(position in `records`, position among its annotations) of an example."""
        record = int(np.searchsorted(self.first_example, number, side="right")) - 1
        return record, number - int(self.first_example[record])

    def text(self, number: int) -> str:
        """The caption of an example, without reading its record."""
        record, which = self.locate(number)
        first = self.reader.first_example[self.records[record]]
        return self.reader.index.texts[int(first) + which]

    def rng(self, epoch: int, number: int) -> np.random.Generator:
        """For an example's random draws, the same in any worker, host or resumed run."""
        return np.random.default_rng((_DRAW, *self.seed, epoch, number))


class Stream(Protocol):
    """Batches by number."""

    @property
    def selection(self) -> Selection: ...

    @property
    def task(self) -> Task: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def batch(self, number: int) -> Batch:
        """This host's rows of a batch, counted from 0 over all epochs."""
        ...


@dataclasses.dataclass(frozen=True)
class TaskStream:
    """Batches of one of the twelve tasks.

    Attributes:
      selection: which examples.
      encoding: how they become batches.
      pool: int32[n', P] hard negatives of retrieval, as positions in `selection.records`.
    """

    selection: Selection
    encoding: Encoding
    pool: np.ndarray | None = None

    @property
    def task(self) -> Task:
        """With the shapes of the batches."""
        return self.encoding.task

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the texts."""
        return self.encoding.tokenizer

    def batch(self, number: int) -> Batch:
        """This host's rows of batch `number`, counted from 0 over all epochs.

        Raises:
          DataError: an example is unusable; dataset, split and example are named.
          IndexError: beyond the end of an evaluation.
        """
        examples = [self._example(*row) for row in self.selection.rows(number)]
        return encode_batch(self.encoding, examples, self.selection.num_rows)

    def _example(self, epoch: int, number: int) -> Example:
        selection = self.selection
        image, which = selection.locate(number)
        record = selection.reader.record(int(selection.records[image]))
        annotation = record.annotations[which]
        if not KINDS[self.encoding.task.kind].ranked:
            return Example(record, annotation)
        # Every evaluation draws the same negatives.
        rng = selection.rng(epoch, number)
        drawn = draw_negatives(rng, image, selection.first_example, self.pool)
        other = selection.reader.record(int(selection.records[drawn.image]))
        options = (
            (record, annotation.text),
            (record, selection.text(drawn.caption)),
            (other, annotation.text),
            (record, selection.text(drawn.hard_caption)),
        )
        return Example(record, annotation, options)


def as_dataset(
    stream: Stream, *, start: int = 0, stop: int | None = None, prefetch: int = 2
) -> Any:
    """Batches start, start + 1, ... as a `tf.data.Dataset`, made in parallel ahead of use.

    Args:
      stream: source of the batches.
      start: first batch, equal to the number of batches used before.
      stop: end; None for the end of the evaluation, or never in training.
      prefetch: number of batches that wait ready.

    Returns:
      A dataset of dicts with static shapes, in the order of their numbers; example_id is bytes,
      TensorFlow's form of texts.
    """
    import tensorflow as tf

    if hasattr(stream, "as_dataset"):  # of pictures, which are decoded outside Python
        return stream.as_dataset(start=start, stop=stop, prefetch=prefetch)
    selection = stream.selection
    if stop is None:
        stop = np.iinfo(np.int64).max if selection.training else selection.num_batches
    example = stream.batch(0)
    keys = sorted(example)
    types = [tf.string if key == "example_id" else example[key].dtype for key in keys]

    def make(number: int) -> list[np.ndarray]:
        batch = stream.batch(int(number))
        return [batch[key] for key in keys]

    def shaped(*values: Any) -> dict[str, Any]:
        for key, value in zip(keys, values, strict=True):
            value.set_shape(example[key].shape)
        return dict(zip(keys, values, strict=True))

    options = tf.data.Options()
    options.deterministic = True
    return (
        tf.data.Dataset.range(start, stop)
        .map(
            lambda number: shaped(*tf.numpy_function(make, [number], types, stateful=False)),
            num_parallel_calls=prefetch,
        )
        .prefetch(prefetch)
        .with_options(options)
    )


def yield_often() -> None:
    """Lets the training loop's thread run after half a millisecond while others make batches.

    Python's default of five would add up: the loop asks for a batch a hundred times a second.
    """
    sys.setswitchinterval(5e-4)


def hide_accelerators() -> None:
    """Keeps TensorFlow off the GPUs: it would take their whole memory just to read files."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
