"""Batches of pictures with labels or texts, by number: batch i is a pure function of i.

Python fetches bytes and encodes texts; decoding, augmentation and batching are graph operations on
all cores. A picture that cannot be read, or a text that does not fit, leaves its row empty
(`_mask`), is named once and counted; every epoch, host and evaluation omits the same ones.

A stream has one part for each dataset; the rows of a batch may be of several. Instead of pictures
a batch may hold their tokens by a frozen encoder, which are on disk. Or it holds clips, whose
frames are read in parallel and then treated like one picture, with the same random operations.

Letters: B rows that this host fills, S side of a picture in pixels, T frames of a clip.
"""

import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from twelve_in_one.data.images import clips, encoded, ops, pipeline
from twelve_in_one.data.images.image_set import ImageExample, ImageSet, TextMisfit
from twelve_in_one.data.images.load import load_bytes
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.images.selection import ImageSelection, MixedSelection
from twelve_in_one.data.stored.records import DataError, Skipped
from twelve_in_one.mixing.mixed import Stage
from twelve_in_one.tasks.image_task import ImageTask

MIN_SIDE = 1  # pixels; a picture to classify may be as small as a digit
MAX_UNREADABLE_SHARE = 0.05
_DRAW, _ENCODE = 1, 2  # purposes of a seed, beside the order
# Rows without a picture, with one for graph operations, or with one that only `load_bytes` reads;
# of a set whose pictures graph operations are known to read, only the needed part is decoded.
_EMPTY, _PLAIN, _ODD, _CHECKED = 0, 1, 2, 3
_TRIED = 32

_log = logging.getLogger(__name__)


class Encode(Protocol):
    """Turns the label or the texts of an example into arrays of fixed shapes, by name."""

    @property
    def empty(self) -> Mapping[str, np.ndarray]:
        """The arrays of a row without an example."""
        ...

    def __call__(self, example: ImageExample, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The arrays of an example; draws, e.g. which of its texts to take, are from `rng`.

        Raises:
          TextMisfit: the example is to be left out; names it.
          DataError: it does not belong to the model, as a class that it does not know.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ClassLabels:
    """Encodes labels as "targets".

    Attributes:
      num_labels: C: float32[C], one-hot, all zero without a label; 0 for int32[] numbers of
        classes, -1 without a label.
    """

    num_labels: int = 0

    @property
    def empty(self) -> Mapping[str, np.ndarray]:
        """See `Encode`."""
        return {"targets": self._targets(-1)}

    def __call__(self, example: ImageExample, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """See `Encode`."""
        if self.num_labels and example.label >= self.num_labels:
            raise DataError(f"{example.example_id}: class {example.label} of {self.num_labels}")
        return {"targets": self._targets(example.label)}

    def _targets(self, label: int) -> np.ndarray:
        if not self.num_labels:
            return np.int32(label)
        return (np.arange(self.num_labels) == label).astype(np.float32)


class StoredTokens(Protocol):
    """The tokens of a set's pictures; see `features.ImageFeatures`."""

    shape: tuple[int, int]

    def has(self, number: int) -> bool:
        """Whether an example has tokens; without, its picture is unreadable."""
        ...

    def read(self, number: int) -> np.ndarray:
        """float16[K, W]."""
        ...


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the datasets of a stream.

    Attributes:
      images: its pictures.
      preprocess: of the pictures.
      encode: of labels or texts.
      task_id: stated in its rows.
      seed: ints that random operations depend on.
      by_image: whether the selection numbers images, of whose examples each visit draws one.
      tokens: of its pictures, for batches of tokens; in all parts of a stream or in none.
    """

    images: ImageSet
    preprocess: Preprocess
    encode: Encode
    task_id: int = 0
    seed: tuple[int, ...] = (0,)
    by_image: bool = False
    tokens: StoredTokens | None = None


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
    """Batches of pictures with labels or texts, by number.

    Attributes:
      selection: which examples, and in which order.
      parts: the datasets; their pictures have one size, and their rows the same arrays.
      task: of an evaluation; None in training.
      unreadable: examples left out so far.
    """

    selection: ImageSelection | MixedSelection
    parts: tuple[Part, ...]
    task: ImageTask | None = None
    unreadable: Unreadable = dataclasses.field(default_factory=Unreadable)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes of the only dataset, in the order of their numbers."""
        (part,) = self.parts
        return part.images.labels

    def with_stages(self, stages: tuple[Stage, ...]) -> "ImageStream":
        """The same mixed stream with other weights of its parts."""
        order = dataclasses.replace(self.selection.order, stages=stages)
        selection = dataclasses.replace(self.selection, order=order)
        other = dataclasses.replace(self, selection=selection)
        # Batches are made alike, so the traced function serves both.
        vars(other)["_compiled"] = self._compiled
        return other

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """This host's rows of batch `number`, counted from 0 over all epochs.

        Returns:
          images: float32[B, S, S, 3], of clips [B, T, S, S, 3]; or image_tokens: float16[B, K, W],
            if these are stored.
          _mask: bool[B], rows with a picture.
          example_id: bytes[B]; b"" where there is no example.
          task_id: int32[B].
          The arrays of `Part.encode`, [B, ...].

        Raises:
          IndexError: beyond the end of an evaluation.
        """
        if self._stored:
            return self._tokens(number)
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
        if stop is None:
            training = self.selection.training
            stop = np.iinfo(np.int64).max if training else self.selection.num_batches
        keys = sorted(self._tokens(0)) if self._stored else []

        def fetch(number: int) -> list[np.ndarray]:
            if not keys:
                return self._fetch(number)
            batch = self._tokens(int(number))
            return [batch[key] for key in keys]

        example = fetch(0)
        types = [tf.string if x.dtype == object else x.dtype for x in example]

        def make(number: tf.Tensor) -> dict[str, tf.Tensor]:
            found = tf.numpy_function(fetch, [number], types, stateful=False)
            pairs = zip(found, example, strict=True)
            columns = [tf.ensure_shape(x, like.shape) for x, like in pairs]
            return dict(zip(keys, columns, strict=True)) if keys else self._compiled(*columns)

        options = tf.data.Options()
        options.deterministic = True
        return (
            tf.data.Dataset.range(start, stop)
            .map(make, num_parallel_calls=prefetch)
            .prefetch(prefetch)
            .with_options(options)
        )

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        """Names of the encoded arrays."""
        return tuple(sorted(self.parts[0].encode.empty))

    def _fetch(self, number: int) -> list[np.ndarray]:
        """Bytes, states, parts, epochs, numbers and ids of a batch's rows, [B] each, bytes of clips
        [B, T]; then the encoded arrays, [B, ...].
        """
        parts, epochs, numbers = self.selection.parts_and_rows(int(number))
        count, rows, frames = len(parts), self.selection.num_rows, self._recipes[0].frames
        data = np.full((rows, frames) if frames else rows, b"", object)
        ids = np.full(rows, b"", object)
        states, arrays = np.full(rows, _EMPTY, np.int32), self._empty_arrays(rows)

        def read(row: int) -> tuple[ImageExample, tuple[bytes, ...], int, Mapping[str, np.ndarray]]:
            part = self.parts[parts[row]]
            return self._read(part, int(epochs[row]), int(numbers[row]))[1:]

        found = _readers().map(read, range(count)) if frames else map(read, range(count))
        for row, (example, pictures, state, encoded_row) in enumerate(found):
            states[row], ids[row] = state, example.example_id.encode()
            if pictures:
                data[row] = pictures if frames else pictures[0]
            for name, value in encoded_row.items():
                arrays[name][row] = value

        def padded(values: np.ndarray, dtype: Any) -> np.ndarray:
            return np.pad(np.asarray(values, dtype), (0, rows - count))

        columns = [data, states, padded(parts, np.int32)]
        columns += [padded(epochs, np.int64), padded(numbers, np.int64), ids]
        return columns + [arrays[name] for name in self._names]

    def _empty_arrays(self, rows: int) -> dict[str, np.ndarray]:
        """The encoded arrays of rows without an example."""
        return {
            name: np.repeat(np.asarray(value)[None], rows, axis=0)
            for name, value in self.parts[0].encode.empty.items()
        }

    @property
    def _stored(self) -> bool:
        return self.parts[0].tokens is not None

    def _tokens(self, number: int) -> dict[str, np.ndarray]:
        """`batch` with the tokens of its pictures."""
        parts, epochs, numbers = self.selection.parts_and_rows(number)
        rows = self.selection.num_rows
        batch = self._empty_arrays(rows) | {
            "image_tokens": np.zeros((rows, *self.parts[0].tokens.shape), np.float16),
            "_mask": np.zeros(rows, bool),
            "example_id": np.full(rows, b"", object),
            # As rows without an example have in `_assemble`.
            "task_id": np.full(rows, self.parts[0].task_id, np.int32),
        }
        for row, place in enumerate(parts):
            part = self.parts[place]
            drawn, example, _, state, arrays = self._read(part, int(epochs[row]), int(numbers[row]))
            batch["example_id"][row] = example.example_id.encode()
            batch["task_id"][row] = part.task_id
            if state == _EMPTY or not part.tokens.has(drawn):
                continue
            batch["_mask"][row] = True
            batch["image_tokens"][row] = part.tokens.read(drawn)
            for name, value in arrays.items():
                batch[name][row] = value
        return batch

    def _read(
        self, part: Part, epoch: int, number: int
    ) -> tuple[int, ImageExample, tuple[bytes, ...], int, Mapping[str, np.ndarray]]:
        """Number of the example that is drawn, the example, its encoded picture or those of its
        frames, its state and its encoded arrays.
        """
        images = part.images
        rng = np.random.default_rng((_ENCODE, *part.seed, epoch, number))
        if part.by_image and images.first_of_image is not None:
            number = int(rng.integers(*images.first_of_image[number : number + 2]))
        try:
            example = images.read(number)
        except DataError as error:
            self.unreadable.add(images.name, str(number), error)
            return number, ImageExample(b"", str(number)), (), _EMPTY, {}
        try:
            arrays = part.encode(example, rng)
        except TextMisfit as error:
            self.unreadable.add(images.name, example.example_id, error)
            return number, ImageExample(b"", example.example_id), (), _EMPTY, {}
        except DataError as error:
            raise DataError(f"{images.name}: {error}") from error
        recipe = part.preprocess
        try:
            pictures = clips.frames_of(
                example,
                recipe.frames or 1,
                recipe.frame_stride,
                rng if recipe.random_frames else None,
            )
        except DataError as error:
            self.unreadable.add(images.name, example.example_id, error)
            return number, example, (), _EMPTY, {}
        if images.is_checked:
            return number, example, pictures, _CHECKED, arrays
        plain = all(encoded.is_plain(data, MIN_SIDE) for data in pictures)
        return number, example, pictures, _PLAIN if plain else _ODD, arrays

    def _load(self, data: bytes, part: int, example_id: bytes) -> tuple[np.ndarray, bool]:
        """The pixels of a picture that graph operations cannot handle."""
        name, place = example_id.decode(), self.parts[part].images.name
        try:
            return load_bytes(data, f"{place}: {name}", min_side=MIN_SIDE), True
        except DataError as error:
            self.unreadable.add(place, name, error)
            return np.zeros((1, 1, 3), np.uint8), False

    @functools.cached_property
    def _compiled(self) -> Any:
        # Traced once for all datasets of the stream, as every validation makes one. A partial has
        # no code object, by which TensorFlow would count the tracings of all streams, and warn.
        return tf.function(functools.partial(self._assemble))

    @functools.cached_property
    def _base_seeds(self) -> np.ndarray:
        """int32[parts, 2]."""
        return np.stack([pipeline.base_seed((_DRAW, *part.seed)) for part in self.parts])

    @functools.cached_property
    def _recipes(self) -> tuple[Preprocess, ...]:
        """The different kinds of preprocessing."""
        return tuple(dict.fromkeys(part.preprocess for part in self.parts))

    def _assemble(
        self,
        data: tf.Tensor,
        states: tf.Tensor,
        parts: tf.Tensor,
        epochs: tf.Tensor,
        numbers: tf.Tensor,
        ids: tf.Tensor,
        *arrays: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """A batch from the result of `_fetch`."""
        columns = (data, parts, epochs, numbers, ids)
        images, usable = self._pictures(states, *columns)
        # A file whose headers promise more than it holds: `load_bytes` decides.
        broken = (tf.equal(states, _PLAIN) | tf.equal(states, _CHECKED)) & ~usable
        images, usable = tf.cond(
            tf.reduce_any(broken),
            lambda: self._repaired(images, usable, broken, columns),
            lambda: (images, usable),
        )
        first = self._recipes[0]
        images = ops.value_range(images, first.low, first.high)
        filled = _along(tf.cast(usable, tf.float32), images)
        task_ids = tf.constant([part.task_id for part in self.parts], tf.int32)
        return dict(zip(self._names, arrays, strict=True)) | {
            "images": tf.cond(tf.reduce_all(usable), lambda: images, lambda: images * filled),
            "_mask": usable,
            "example_id": ids,
            "task_id": tf.gather(task_ids, parts),
        }

    def _repaired(
        self, images: tf.Tensor, usable: tf.Tensor, broken: tf.Tensor, columns: tuple
    ) -> tuple[tf.Tensor, tf.Tensor]:
        states = tf.where(broken, _ODD, _EMPTY)
        again, repaired = self._pictures(states, *columns)
        return tf.where(_along(repaired, images), again, images), usable | repaired

    def _pictures(
        self,
        states: tf.Tensor,
        data: tf.Tensor,
        parts: tf.Tensor,
        epochs: tf.Tensor,
        numbers: tf.Tensor,
        ids: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """uint8[B, S, S, 3], or of clips, and whether each could be read, bool[B].

        Rows are made in parallel. A row that fails is left out alone, which only a dataset can
        do; each row names its place, which tells them apart.
        """
        rows, shape = self.selection.num_rows, self._recipes[0].shape
        places = tf.range(rows)

        def make(
            place: tf.Tensor, state: tf.Tensor, *columns: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return place, *self._picture(state, *columns)

        nothing = (tf.constant([-1]), tf.zeros([1, *shape], tf.uint8), tf.constant([False]))
        found, images, usable = (
            tf.data.Dataset.from_tensor_slices((places, states, data, parts, epochs, numbers, ids))
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
                tf.scatter_nd(found[:-1, None], images[:-1], [rows, *shape]),
                tf.scatter_nd(found[:-1, None], usable[:-1], [rows]),
            ),
        )
        return tf.ensure_shape(images, [rows, *shape]), tf.ensure_shape(usable, [rows])

    def _picture(
        self,
        state: tf.Tensor,
        data: tf.Tensor,
        part: tf.Tensor,
        epoch: tf.Tensor,
        number: tf.Tensor,
        example_id: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if len(self._recipes) == 1:
            args = (state, data, part, epoch, number, example_id)
            return self._picture_by(self._recipes[0], *args)
        kinds = tf.constant([self._recipes.index(part.preprocess) for part in self.parts])

        def by(recipe: Preprocess) -> Any:
            return lambda: self._picture_by(recipe, state, data, part, epoch, number, example_id)

        return tf.switch_case(tf.gather(kinds, part), [by(recipe) for recipe in self._recipes])

    def _picture_by(
        self,
        recipe: Preprocess,
        state: tf.Tensor,
        data: tf.Tensor,
        part: tf.Tensor,
        epoch: tf.Tensor,
        number: tf.Tensor,
        example_id: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        seed = pipeline.example_seed(tf.gather(self._base_seeds, part), epoch, number)
        side = [recipe.size, recipe.size, 3]

        def plain(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = pipeline.decode(data, recipe)
            return pipeline.augment(image, seed, recipe), tf.constant(True)

        def odd(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image, usable = tf.numpy_function(
                self._load, [data, part, example_id], [tf.uint8, tf.bool], False
            )
            image = pipeline.augment(tf.ensure_shape(image, [None, None, 3]), seed, recipe)
            return image, tf.ensure_shape(usable, [])

        def empty() -> tuple[tf.Tensor, tf.Tensor]:
            return tf.zeros(recipe.shape, tf.uint8), tf.constant(False)

        def checked(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return pipeline.read(data, seed, recipe), tf.constant(True)

        def of_all(one: Any) -> Any:
            """The operations on one picture, or on all frames of a clip."""
            if not recipe.frames:
                return functools.partial(one, data)
            kinds = tf.TensorSpec(side, tf.uint8), tf.TensorSpec([], tf.bool)

            def frames() -> tuple[tf.Tensor, tf.Tensor]:
                images, usable = tf.map_fn(one, data, fn_output_signature=kinds)
                return images, tf.reduce_all(usable)

            return frames

        branches = {_EMPTY: empty}
        branches |= {_PLAIN: of_all(plain), _ODD: of_all(odd), _CHECKED: of_all(checked)}
        image, usable = tf.switch_case(state, branches)
        return tf.ensure_shape(image, recipe.shape), usable


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """Threads that read clips: files and decoders work outside Python's lock."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="clips")


def _along(values: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Values [B] with further axes of length 1, as many as images [B, ...] have."""
    return tf.reshape(values, [-1] + [1] * (images.shape.rank - 1))


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
            where = f"{images.name}: {example.example_id}"
            load_bytes(clips.still_of(example), where, min_side=MIN_SIDE)
        except DataError as error:
            errors.append(error)
    if len(errors) > max(max_unreadable_share * len(numbers), 1) or len(errors) == len(numbers):
        raise DataError(
            f"{images.name}: {len(errors)} of {len(numbers)} pictures that were tried cannot be "
            f"read, the first: {errors[0]}. A larger max_unreadable_share goes on without them"
        ) from errors[0]
