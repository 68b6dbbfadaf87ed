"""The order of examples: index arithmetic, done before any feature is read.

Records are stored on disk in random order. An epoch visits chunks of neighbouring
records in a new order, gathers some chunks into a block, and shuffles the examples within it:
each record is then read once per epoch and kept only while its block lasts, however many examples
it has. The whole order is a pure function of (seed, epoch), so a run resumes at example k by
counting, and every host computes the same order.
"""

import dataclasses
import functools
import heapq
from collections.abc import Callable

import numpy as np

# 16 records of 100 regions are 6.5 MB, a long enough read for a disk; a block keeps at most 64
# chunks of them, 420 MB, in memory.
CHUNK_RECORDS = 16
BLOCK_CHUNKS = 64
# For `ShardOrder`: pictures are read one by one, so memory holds only their places.
WINDOW = 1 << 16
# A permutation of this many numbers takes 32 MB and a fifth of a second per epoch.
PERMUTED_EXAMPLES = 1 << 22
_SHARDS, _WINDOWS = 0, 1  # purposes of a seed


def epoch_order(
    counts: np.ndarray,
    seed: tuple[int, ...],
    *,
    chunk_records: int = CHUNK_RECORDS,
    block_chunks: int = BLOCK_CHUNKS,
) -> np.ndarray:
    """Example numbers 0..E-1 in the order of one epoch.

    Examples are numbered record by record, in stored order.

    Args:
      counts: int[n], examples of each record.
      seed: of the epoch, e.g. (seed, task id, epoch).
      chunk_records: neighbouring records that stay together.
      block_chunks: chunks whose examples are mixed.

    Returns:
      int64[E], a permutation.
    """
    rng = np.random.default_rng(seed)
    num_chunks = -(-len(counts) // chunk_records)
    place = rng.permutation(num_chunks)
    block = (place // block_chunks)[np.arange(len(counts)) // chunk_records]
    # Sorting by block and by a random number within it shuffles every block at once. Stable, since
    # other sorts order equal numbers differently on different CPUs.
    return np.argsort(np.repeat(block, counts) + rng.random(int(counts.sum())), kind="stable")


def host_rows(batch_size: int, host: int, num_hosts: int) -> slice:
    """The rows of a global batch that a host fills; the hosts together fill each row once.

    Raises:
      ValueError: rows do not divide among the hosts, or there is no such host.
    """
    if not 0 <= host < num_hosts:
        raise ValueError(f"host {host} of {num_hosts}")
    if batch_size % num_hosts:
        raise ValueError(f"batch size {batch_size} does not divide among {num_hosts} hosts")
    rows = batch_size // num_hosts
    return slice(host * rows, (host + 1) * rows)


@dataclasses.dataclass(frozen=True)
class ShardOrder:
    """The order, by arithmetic, of a set too large for a permutation of all its examples.

    Each epoch puts the shards of a host one after another in a new order, and mixes the
    examples of each window of that sequence: an example's place is a function of (seed, epoch,
    position), so a run resumes at any position, and only a few shards are read at a time.
    Each host owns some of the shards and reads only these.

    Attributes:
      sizes: examples of each shard, of all hosts.
      seed: ints that the order depends on.
      window: examples that are mixed.
      host: which of the hosts this is.
      num_hosts: how many there are.
    """

    sizes: tuple[int, ...]
    seed: tuple[int, ...]
    window: int = WINDOW
    host: int = 0
    num_hosts: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.host < self.num_hosts:
            raise ValueError(f"host {self.host} of {self.num_hosts}")
        if self.window < 1:
            raise ValueError(f"window must be positive, is {self.window}")
        filled = sum(size > 0 for size in self.sizes)
        if filled < self.num_hosts:
            raise ValueError(
                f"{filled} shards cannot be divided among {self.num_hosts} hosts; write the set in "
                "more shards"
            )

    @functools.cached_property
    def shards(self) -> np.ndarray:
        """int64[], the shards of this host, ascending.

        The largest first, each to the host with the fewest examples so far.
        """
        hosts = [(0, host) for host in range(self.num_hosts)]
        own = []
        for shard in np.argsort(-np.array(self.sizes), kind="stable").tolist():
            count, host = heapq.heappop(hosts)
            heapq.heappush(hosts, (count + self.sizes[shard], host))
            if host == self.host:
                own.append(shard)
        return np.sort(np.array(own, np.int64))

    @functools.cached_property
    def num_examples(self) -> int:
        """Examples per epoch of this host."""
        return int(np.array(self.sizes, np.int64)[self.shards].sum())

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The places of examples.

        Args:
          positions: int64[n], counted from 0 over all epochs of this host.

        Returns:
          int64[n] each: epoch, shard and index within the shard.
        """
        epochs, offsets = np.divmod(np.asarray(positions, np.int64), self.num_examples)
        windows, places = np.divmod(offsets, self.window)
        shards, indices = np.empty_like(offsets), np.empty_like(offsets)
        for epoch, window in sorted(set(zip(epochs.tolist(), windows.tolist(), strict=True))):
            rows = (epochs == epoch) & (windows == window)
            mixed = self._in_window(epoch, window)[places[rows]] + window * self.window
            visited, starts = self._visits(epoch)
            visit = np.searchsorted(starts, mixed, side="right") - 1
            shards[rows], indices[rows] = visited[visit], mixed - starts[visit]
        return epochs, shards, indices

    @functools.cached_property
    def _visits(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """Epoch -> shards in their order, and the start of each."""

        def visits(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            rng = np.random.default_rng((_SHARDS, *self.seed, epoch))
            visited = rng.permutation(self.shards)
            sizes = np.array(self.sizes, np.int64)[visited]
            return visited, np.cumsum(sizes) - sizes

        return functools.lru_cache(maxsize=2)(visits)

    @functools.cached_property
    def _in_window(self) -> Callable[[int, int], np.ndarray]:
        """(epoch, window) -> the order within it; a few are kept for neighbouring batches."""

        def in_window(epoch: int, window: int) -> np.ndarray:
            rng = np.random.default_rng((_WINDOWS, *self.seed, epoch, window))
            return rng.permutation(min(self.window, self.num_examples - window * self.window))

        return functools.lru_cache(maxsize=4)(in_window)


@dataclasses.dataclass(frozen=True)
class TrainingOrder:
    """The examples in the batches of a training run, epoch after epoch without a partial batch.

    Attributes:
      sizes: examples of each shard of the set; examples are numbered shard by shard.
      batch_size: of all hosts together.
      permutation: epoch -> int64[E], the order of a set that is shuffled as a whole.
      seed: ints that `ShardOrder` depends on.
      host: which of the hosts this is.
      num_hosts: how many there are; each fills an equal part of every batch.
      permuted_examples: a larger set is shuffled by shards and windows (`ShardOrder`), and each
        host reads its own shards; a smaller set is shuffled as a whole, by all hosts together.
      window: of `ShardOrder`.
    """

    sizes: np.ndarray
    batch_size: int
    permutation: Callable[[int], np.ndarray]
    seed: tuple[int, ...]
    host: int = 0
    num_hosts: int = 1
    permuted_examples: int = PERMUTED_EXAMPLES
    window: int = WINDOW

    @functools.cached_property
    def first_of_shard(self) -> np.ndarray:
        """int64[shards + 1], number of the first example of each shard, and the end."""
        return np.concatenate([[0], np.cumsum(np.asarray(self.sizes, np.int64))])

    @functools.cached_property
    def shards(self) -> ShardOrder | None:
        """The order of a set too large for a permutation.

        Raises:
          ValueError: its shards do not divide among the hosts.
        """
        if self.first_of_shard[-1] <= self.permuted_examples:
            return None
        sizes = tuple(np.asarray(self.sizes).tolist())
        return ShardOrder(sizes, self.seed, self.window, self.host, self.num_hosts)

    @functools.cached_property
    def _epoch(self) -> Callable[[int], np.ndarray]:
        """Epoch -> order. Two are kept, for batches that span the border between epochs."""
        return functools.lru_cache(maxsize=2)(self.permutation)

    def rows(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and example number, int64[] each, of this host's rows of a batch."""
        rows = host_rows(self.batch_size, self.host, self.num_hosts)
        if self.shards is not None:
            count = rows.stop - rows.start
            epochs, shards, indices = self.shards.locate(batch * count + np.arange(count))
            return epochs, self.first_of_shard[shards] + indices
        positions = batch * self.batch_size + np.arange(rows.start, rows.stop)
        epochs, offsets = np.divmod(positions, self.first_of_shard[-1])
        numbers = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            numbers[of_epoch] = self._epoch(epoch)[offsets[of_epoch]]
        return epochs, numbers
