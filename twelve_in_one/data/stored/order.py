"""In which order examples are seen: index arithmetic, done before any feature is read.

Records lie on disk in an order that is random already. An epoch visits chunks of neighbouring
records in a new order, gathers some chunks to a block, and shuffles the examples within the block:
each record is then read once an epoch and kept only while its block lasts, however many examples it
has. The whole order is a pure function of (seed, epoch), so a run resumes at example k by counting,
and every host computes the same one.
"""

import numpy as np

# 16 records of 100 regions are 6.5 MB, long enough a read for a disk; 64 chunks of them, 420 MB,
# are what a block keeps in memory at most.
CHUNK_RECORDS = 16
BLOCK_CHUNKS = 64


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
    # other sorts order equal numbers differently from one CPU to the next.
    return np.argsort(np.repeat(block, counts) + rng.random(int(counts.sum())), kind="stable")


def host_rows(batch_size: int, host: int, num_hosts: int) -> slice:
    """The rows of a global batch that a host fills; together the hosts fill each row once.

    Raises:
      ValueError: rows do not divide among the hosts, or there is no such host.
    """
    if not 0 <= host < num_hosts:
        raise ValueError(f"host {host} of {num_hosts}")
    if batch_size % num_hosts:
        raise ValueError(f"batch size {batch_size} does not divide among {num_hosts} hosts")
    rows = batch_size // num_hosts
    return slice(host * rows, (host + 1) * rows)
