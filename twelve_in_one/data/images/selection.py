"""The order of the examples of a set of pictures, and of several sets in one stream."""

import dataclasses
import functools

import numpy as np

from twelve_in_one.data.images.image_set import ImageSet
from twelve_in_one.data.pipeline import Seen
from twelve_in_one.data.stored.order import PERMUTED_EXAMPLES, WINDOW, TrainingOrder, host_rows
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.mixing.mixed import MixedOrder

_ORDER = 0  # purpose of a seed


class _Batches:
    """Numbers of an order of examples in batches.

    Attributes:
      num_examples: per epoch, of all hosts together.
      batch_size: of all hosts together.
      num_hosts: how many there are.
    """

    num_examples: int
    batch_size: int
    num_hosts: int

    @property
    def num_batches(self) -> int:
        """Batches per epoch, counting a partial last one as full."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_rows(self) -> int:
        """B, rows of a batch that this host fills."""
        return self.batch_size // self.num_hosts


@dataclasses.dataclass(frozen=True)
class ImageSelection(_Batches):
    """The order of the examples of a set.

    Attributes:
      images: the set.
      batch_size: of all hosts together.
      training: shuffled anew every epoch and without end; otherwise in stored order, once.
      seed: ints that the order and every example's random draws depend on.
      host: which of the hosts this is.
      num_hosts: how many there are; each fills an equal part of every batch.
      permuted_examples: see `TrainingOrder`.
      window: see `TrainingOrder`.
      seen: how much of it was trained on, of what is not for training; None if it is not known.
    """

    images: ImageSet
    batch_size: int
    training: bool
    seed: tuple[int, ...] = (0,)
    host: int = 0
    num_hosts: int = 1
    permuted_examples: int = PERMUTED_EXAMPLES
    window: int = WINDOW
    seen: Seen | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        host_rows(self.batch_size, self.host, self.num_hosts)
        try:
            _ = self.training and self._order.shards
        except ValueError as error:
            raise DataError(f"{self.images.name}: {error}") from error

    @property
    def num_examples(self) -> int:
        """Examples per epoch, of all hosts together."""
        return self.images.num_examples

    @functools.cached_property
    def _order(self) -> TrainingOrder:
        return TrainingOrder(
            np.array(self.images.shard_sizes, np.int64),
            self.batch_size,
            lambda epoch: np.random.default_rng((_ORDER, *self.seed, epoch)).permutation(
                self.num_examples
            ),
            (_ORDER, *self.seed),
            self.host,
            self.num_hosts,
            self.permuted_examples,
            self.window,
        )

    def rows(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and example number, int64[n] each, of this host's rows of a batch.

        n is B, or less at the end of an evaluation.

        Raises:
          IndexError: beyond the end of an evaluation.
        """
        if self.training:
            return self._order.rows(batch)
        if batch >= self.num_batches:
            raise IndexError(f"{self.images.name}: batch {batch} of {self.num_batches}")
        rows = host_rows(self.batch_size, self.host, self.num_hosts)
        positions = batch * self.batch_size + np.arange(rows.start, rows.stop)
        positions = positions[positions < self.num_examples]
        return np.zeros_like(positions), positions

    def parts_and_rows(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Like `MixedSelection.parts_and_rows`, of a stream with one part."""
        epochs, numbers = self.rows(batch)
        return np.zeros_like(numbers), epochs, numbers


@dataclasses.dataclass(frozen=True)
class MixedSelection(_Batches):
    """The examples of several sets in one training stream.

    Attributes:
      sets: the examples of each, in batches of one.
      order: which row is of which set.
      num_examples: of one epoch of the stream; for information, as it never ends.
      host: which of the hosts this is.
      num_hosts: how many there are; each fills an equal part of every batch.
    """

    sets: tuple[ImageSelection, ...]
    order: MixedOrder
    num_examples: int
    host: int = 0
    num_hosts: int = 1

    training = True

    def __post_init__(self) -> None:
        host_rows(self.batch_size, self.host, self.num_hosts)
        if any(one.batch_size != 1 or not one.training for one in self.sets):
            raise ValueError("the sets of a mixed stream are for training, in batches of one")

    @property
    def batch_size(self) -> int:
        """Rows of a batch, of all hosts together."""
        return self.order.batch_size

    def parts_and_rows(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Set, epoch of it, and number of the example: int64[B] each, of this host's rows."""
        rows = host_rows(self.batch_size, self.host, self.num_hosts)
        parts, visits = (column[rows] for column in self.order.rows(batch))
        places = [self.sets[part].rows(visit) for part, visit in zip(parts, visits, strict=True)]
        epochs, numbers = (np.concatenate(column) for column in zip(*places, strict=True))
        return parts, epochs, numbers
