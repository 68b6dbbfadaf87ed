"""Batches of pictures with labels, by number: batch i is a pure function of i.

Python fetches bytes; decoding, augmentation and batching are graph operations on all cores. A
picture that cannot be read leaves its row empty (`_mask`), is named once and counted; every epoch,
host and evaluation omits the same ones.

Letters: B rows that this host fills, S side of a picture in pixels, C classes.
"""

import dataclasses
import functools
import logging
import os
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from twelve_in_one.data.images import encoded, ops, pipeline
from twelve_in_one.data.images.image_set import ImageExample, ImageSet
from twelve_in_one.data.images.load import load_bytes
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.images.selection import ImageSelection
from twelve_in_one.data.stored.records import DataError, Skipped

MIN_SIDE = 1  # pixels; a picture to classify may be as small as a digit
MAX_UNREADABLE_SHARE = 0.05
_DRAW = 1  # purpose of a seed, beside the order
_EMPTY, _PLAIN, _ODD = 0, 1, 2  # rows: without a picture, with one for graph operations or not
_TRIED = 32

_log = logging.getLogger(__name__)


class Unreadable:
    """Unreadable examples so far, each logged once. Threads may share it."""

    def __init__(self) -> None:
        self._skipped: dict[str, Skipped] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._skipped)

    def add(self, file: str, example_id: str, error: Exception) -> None:
        """Adds an example."""
        with self._lock:
            if example_id in self._skipped:
                return
            self._skipped[example_id] = Skipped(file, example_id, str(error))
        _log.warning("%s; its row is left out", error)

    def skipped(self) -> tuple[Skipped, ...]:
        """The examples left out, with reasons."""
        with self._lock:
            return tuple(self._skipped.values())


@dataclasses.dataclass(frozen=True)
class ImageStream:
    """Batches of pictures with labels, by number.

    Attributes:
      selection: which examples.
      preprocess: of the pictures.
      num_labels: C of one-hot targets; 0 for the numbers of the classes.
      task_id: stated in every row.
      unreadable: examples left out so far.
    """

    selection: ImageSelection
    preprocess: Preprocess
    num_labels: int = 0
    task_id: int = 0
    unreadable: Unreadable = dataclasses.field(default_factory=Unreadable)

    def __post_init__(self) -> None:
        classes = len(self.selection.images.labels)
        if self.num_labels and classes > self.num_labels:
            raise DataError(
                f"{self.selection.images.name}: {classes} classes, but the model has "
                f"{self.num_labels} labels"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return self.selection.images.labels

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """This host's rows of batch `number`, counted from 0 over all epochs.

        Returns:
          images: float32[B, S, S, 3].
          targets: float32[B, C], one-hot, all zero without a label; or int32[B], -1 without.
          _mask: bool[B], rows with a picture.
          example_id: bytes[B]; b"" where there is no example.
          task_id: int32[B].

        Raises:
          IndexError: beyond the end of an evaluation.
        """
        columns = map(tf.constant, self._fetch(number))
        return {key: value.numpy() for key, value in self._compiled(*columns).items()}

    def as_dataset(
        self, *, start: int = 0, stop: int | None = None, prefetch: int = 2
    ) -> tf.data.Dataset:
        """Batches start, start + 1, ... with static shapes, made in parallel ahead of use.

        Args:
          start: first batch, equal to the number of batches used before.
          stop: end; None for the end of the evaluation, or never in training.
          prefetch: number of batches that wait ready, and of batches in the making.
        """
        rows = self.selection.num_rows
        if stop is None:
            training = self.selection.training
            stop = np.iinfo(np.int64).max if training else self.selection.num_batches
        types = [tf.string, tf.int32, tf.int64, tf.int64, tf.int32, tf.string]

        def make(number: tf.Tensor) -> dict[str, tf.Tensor]:
            columns = tf.numpy_function(self._fetch, [number], types, stateful=False)
            return self._assemble(*(tf.ensure_shape(column, [rows]) for column in columns))

        options = tf.data.Options()
        options.deterministic = True
        return (
            tf.data.Dataset.range(start, stop)
            .map(make, num_parallel_calls=prefetch)
            .prefetch(prefetch)
            .with_options(options)
        )

    def _fetch(self, number: int) -> list[np.ndarray]:
        """Bytes, states, epochs, numbers, labels and ids of a batch's rows, [B] each."""
        epochs, numbers = self.selection.rows(int(number))
        examples, states = [], []
        for place in numbers.tolist():
            example, state = self._read(place)
            examples.append(example)
            states.append(state)
        empty = self.selection.num_rows - len(examples)
        examples += [ImageExample(b"", "")] * empty
        data = np.array([example.data for example in examples], object)
        ids = np.array([example.example_id.encode() for example in examples], object)
        return [
            data,
            np.array(states + [_EMPTY] * empty, np.int32),
            np.pad(epochs, (0, empty)),
            np.pad(numbers, (0, empty)),
            np.array([example.label for example in examples], np.int32),
            ids,
        ]

    def _read(self, number: int) -> tuple[ImageExample, int]:
        images = self.selection.images
        try:
            example = images.read(number)
        except DataError as error:
            self.unreadable.add(images.name, str(number), error)
            return ImageExample(b"", str(number)), _EMPTY
        if self.num_labels and example.label >= self.num_labels:
            raise DataError(
                f"{images.name}: {example.example_id}: class {example.label} of {self.num_labels}"
            )
        if images.is_checked or encoded.is_plain(example.data, MIN_SIDE):
            return example, _PLAIN
        return example, _ODD

    def _load(self, data: bytes, example_id: bytes) -> tuple[np.ndarray, bool]:
        """The pixels of a picture that graph operations cannot handle."""
        name, place = example_id.decode(), self.selection.images.name
        try:
            return load_bytes(data, f"{place}: {name}", min_side=MIN_SIDE), True
        except DataError as error:
            self.unreadable.add(place, name, error)
            return np.zeros((1, 1, 3), np.uint8), False

    @functools.cached_property
    def _compiled(self) -> Any:
        return tf.function(self._assemble)

    @functools.cached_property
    def _base_seed(self) -> np.ndarray:
        return pipeline.base_seed((_DRAW, *self.selection.seed))

    def _assemble(
        self,
        data: tf.Tensor,
        states: tf.Tensor,
        epochs: tf.Tensor,
        numbers: tf.Tensor,
        labels: tf.Tensor,
        ids: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """A batch from the result of `_fetch`."""
        columns = (data, epochs, numbers, ids)
        images, usable = self._pictures(states, *columns)
        # A file whose headers promise more than it holds: `load_bytes` decides.
        broken = tf.equal(states, _PLAIN) & ~usable
        images, usable = tf.cond(
            tf.reduce_any(broken),
            lambda: self._repaired(images, usable, broken, columns),
            lambda: (images, usable),
        )
        images = ops.value_range(images, self.preprocess.low, self.preprocess.high)
        filled = tf.cast(usable, tf.float32)[:, None, None, None]
        return {
            "images": tf.cond(tf.reduce_all(usable), lambda: images, lambda: images * filled),
            "targets": tf.one_hot(labels, self.num_labels) if self.num_labels else labels,
            "_mask": usable,
            "example_id": ids,
            "task_id": tf.fill(tf.shape(labels), tf.constant(self.task_id, tf.int32)),
        }

    def _repaired(
        self, images: tf.Tensor, usable: tf.Tensor, broken: tf.Tensor, columns: tuple
    ) -> tuple[tf.Tensor, tf.Tensor]:
        states = tf.where(broken, _ODD, _EMPTY)
        again, repaired = self._pictures(states, *columns)
        return tf.where(repaired[:, None, None, None], again, images), usable | repaired

    def _pictures(
        self,
        states: tf.Tensor,
        data: tf.Tensor,
        epochs: tf.Tensor,
        numbers: tf.Tensor,
        ids: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """uint8[B, S, S, 3] and whether each could be read, bool[B].

        Rows are made in parallel. A row that fails is left out alone, which only a dataset can
        do; each row names its place, which tells them apart.
        """
        rows, side = self.selection.num_rows, self.preprocess.size
        places = tf.range(rows)

        def make(
            place: tf.Tensor, state: tf.Tensor, *columns: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return place, *self._picture(state, *columns)

        nothing = (tf.constant([-1]), tf.zeros([1, side, side, 3], tf.uint8), tf.constant([False]))
        found, images, usable = (
            tf.data.Dataset.from_tensor_slices((places, states, data, epochs, numbers, ids))
            .map(make, num_parallel_calls=os.cpu_count() or 1)
            .ignore_errors()
            .concatenate(tf.data.Dataset.from_tensor_slices(nothing))
            .batch(rows + 1)
            .get_single_element()
        )
        images, usable = tf.cond(
            tf.equal(tf.size(found), rows + 1),
            lambda: (images[:rows], usable[:rows]),
            lambda: (
                tf.scatter_nd(found[:-1, None], images[:-1], [rows, side, side, 3]),
                tf.scatter_nd(found[:-1, None], usable[:-1], [rows]),
            ),
        )
        return tf.ensure_shape(images, [rows, side, side, 3]), tf.ensure_shape(usable, [rows])

    def _picture(
        self,
        state: tf.Tensor,
        data: tf.Tensor,
        epoch: tf.Tensor,
        number: tf.Tensor,
        example_id: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        seed = pipeline.example_seed(self._base_seed, epoch, number)
        side = self.preprocess.size

        def plain() -> tuple[tf.Tensor, tf.Tensor]:
            return self._read_plain(data, seed), tf.constant(True)

        def odd() -> tuple[tf.Tensor, tf.Tensor]:
            image, usable = tf.numpy_function(
                self._load, [data, example_id], [tf.uint8, tf.bool], False
            )
            image = pipeline.augment(tf.ensure_shape(image, [None, None, 3]), seed, self.preprocess)
            return image, tf.ensure_shape(usable, [])

        def empty() -> tuple[tf.Tensor, tf.Tensor]:
            return tf.zeros([side, side, 3], tf.uint8), tf.constant(False)

        image, usable = tf.switch_case(state, {_EMPTY: empty, _PLAIN: plain, _ODD: odd})
        return tf.ensure_shape(image, [side, side, 3]), usable

    def _read_plain(self, data: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        if self.selection.images.is_checked:
            return pipeline.read(data, seed, self.preprocess)
        image = pipeline.decode(data, self.preprocess)
        return pipeline.augment(image, seed, self.preprocess)


def try_some(images: ImageSet, max_unreadable_share: float = MAX_UNREADABLE_SHARE) -> None:
    """Reads a few examples from all over a set, before work on it can be wasted.

    Raises:
      DataError: a larger share (and more than one) cannot be read; names the first.
    """
    numbers = np.unique(np.linspace(0, images.num_examples - 1, _TRIED).astype(int)).tolist()
    errors = []
    for number in numbers:
        try:
            example = images.read(number)
            load_bytes(example.data, f"{images.name}: {example.example_id}", min_side=MIN_SIDE)
        except DataError as error:
            errors.append(error)
    if len(errors) > max(max_unreadable_share * len(numbers), 1) or len(errors) == len(numbers):
        raise DataError(
            f"{images.name}: {len(errors)} of {len(numbers)} pictures that were tried cannot be "
            f"read, the first: {errors[0]}. A larger max_unreadable_share goes on without them"
        ) from errors[0]
