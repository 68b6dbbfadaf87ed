"""The order of an epoch: every example once, few records needed at a time, the same everywhere."""

import numpy as np
import pytest

from twelve_in_one.data.stored.order import ShardOrder, epoch_order, host_rows

COUNTS = {
    "none": [],
    "one record": [7],
    "one example": [1],
    "no example": [0, 0, 0],
    "some without": [3, 0, 2, 0, 0, 5, 1],
    "less than a chunk": [1, 2],
    "many": np.random.default_rng(0).integers(0, 9, 203),
}
SIZES = [(1, 1), (2, 3), (4, 4), (16, 64)]


def _record_of(counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
@pytest.mark.parametrize(("chunk_records", "block_chunks"), SIZES)
def test_order_visits_records_block_by_block(counts, chunk_records, block_chunks):
    counts = np.array(counts, np.int64)
    order = epoch_order(counts, (5,), chunk_records=chunk_records, block_chunks=block_chunks)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(counts.sum()))

    # Cut the order where no record has examples on both sides; these pieces need to be in memory.
    records = _record_of(counts)[order]
    last_use = {record: position for position, record in enumerate(records)}
    alive, end = set(), 0
    for position, record in enumerate(records):
        if position > end:
            alive = set()
        alive.add(record)
        end = max(end, last_use[record])
        assert len(alive) <= chunk_records * block_chunks


def test_neighbours_on_disk_stay_in_one_block():
    counts = np.ones(40, np.int64)
    order = epoch_order(counts, (1,), chunk_records=4, block_chunks=1)
    chunks = order.reshape(10, 4) // 4
    assert (chunks == chunks[:, :1]).all()
    assert chunks[:, 0].tolist() != sorted(chunks[:, 0])


def test_blocks_gather_chunks_from_everywhere():
    """A block holds chunks drawn from the whole epoch, and its examples are mixed."""
    counts = np.full(1000, 3, np.int64)
    order = epoch_order(counts, (2,), chunk_records=5, block_chunks=20)
    block = _record_of(counts)[order][:300] // 5
    assert len(set(block)) == 20
    assert max(block) - min(block) > 100
    assert np.count_nonzero(np.diff(block)) > 250  # sorted chunks would change 19 times


def test_every_place_is_as_likely():
    """Chi-square of where each example lands, over many seeds."""
    counts = np.array([2, 1, 3])
    seeds = 3000
    seen = np.zeros((6, 6))
    for seed in range(seeds):
        order = epoch_order(counts, (seed,), chunk_records=1, block_chunks=8)
        seen[np.arange(6), order] += 1
    expected = seeds / 6
    assert ((seen - expected) ** 2 / expected).sum() < 52.6  # 25 degrees of freedom, 0.1 %


def test_order_depends_on_the_seed_alone():
    counts = COUNTS["many"]
    orders = {
        seed: epoch_order(counts, seed) for seed in ((0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0))
    }
    for seed, order in orders.items():
        np.testing.assert_array_equal(order, epoch_order(counts, seed))
    assert len({order.tobytes() for order in orders.values()}) == len(orders)


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 12])
def test_hosts_share_the_rows(num_hosts):
    parts = [np.arange(12)[host_rows(12, host, num_hosts)] for host in range(num_hosts)]
    assert {len(part) for part in parts} == {12 // num_hosts}
    assert np.concatenate(parts).tolist() == list(range(12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((12, 5, 5), "host 5 of 5"),
        ((12, -1, 2), "host -1 of 2"),
        ((12, 0, 0), "host 0 of 0"),
        ((10, 0, 4), "batch size 10 does not divide among 4 hosts"),
    ],
)
def test_host_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        host_rows(*arguments)


def test_order_is_that_of_a_loop():
    """Exactly, not just some permutation: a later version that resumes a run goes on in it."""
    counts, seed = np.array([2, 0, 3, 1, 2, 4, 1]), (3, 1, 4)
    rng = np.random.default_rng(seed)
    places = rng.permutation(4)  # of chunks of two records
    examples = []
    for record, count in enumerate(counts):
        for _ in range(count):
            examples.append((places[record // 2] // 3, rng.random(), len(examples)))
    wanted = [number for _, _, number in sorted(examples)]
    got = epoch_order(counts, seed, chunk_records=2, block_chunks=3)
    np.testing.assert_array_equal(got, wanted)


SIZES = (7, 0, 13, 5, 1, 9, 11, 4)


def _whole(order, epochs):
    n = order.num_examples
    found = np.stack(order.locate(np.arange(epochs * n)), axis=1)
    return found.reshape(epochs, n, 3)


@pytest.mark.parametrize("num_hosts", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 6, 1000])
def test_shards_and_windows_hold_each_example_once(num_hosts, window):
    everything = {(shard, index) for shard, size in enumerate(SIZES) for index in range(size)}
    for epoch in range(3):
        seen = []
        for host in range(num_hosts):
            found = _whole(ShardOrder(SIZES, (4, 2), window, host, num_hosts), 3)[epoch]
            assert (found[:, 0] == epoch).all()
            seen += [tuple(row) for row in found[:, 1:].tolist()]
        assert len(seen) == len(everything) and set(seen) == everything


def test_shards_are_resumed_anywhere():
    order = ShardOrder(SIZES, (1,), 8)
    found = _whole(order, 2).reshape(-1, 3)
    again = ShardOrder(SIZES, (1,), 8)
    for start in (99, 50, 3, 49, 0):  # backwards, too, and over the border between epochs
        got = np.stack(again.locate(np.arange(start, start + 1)), axis=1)
        np.testing.assert_array_equal(got, found[start : start + 1])
    mixed = np.array([60, 2, 99, 2])
    np.testing.assert_array_equal(np.stack(again.locate(mixed), axis=1), found[mixed])


def test_shards_and_windows_are_in_a_new_order_each_epoch():
    first, second = _whole(ShardOrder(SIZES, (1,), 8), 2)
    assert not np.array_equal(first[:, 1:], second[:, 1:])
    other = _whole(ShardOrder(SIZES, (2,), 8), 1)[0]
    assert not np.array_equal(first[:, 1:], other[:, 1:])
    unmixed = _whole(ShardOrder(SIZES, (1,), 1), 1)[0]
    # Without a window, shards are read one after the other, and from front to back.
    assert (np.diff(unmixed[:, 1]) != 0).sum() == len([size for size in SIZES if size]) - 1
    assert (first[:, 1:] != unmixed[:, 1:]).any(axis=1).mean() > 0.5
    # An example moves within its window only.
    place = {tuple(row): i for i, row in enumerate(unmixed[:, 1:].tolist())}
    assert all(place[tuple(row)] // 8 == i // 8 for i, row in enumerate(first[:, 1:].tolist()))


def test_shards_are_divided_evenly():
    orders = [ShardOrder((100, 1, 1, 50, 50, 98), (0,), 8, host, 3) for host in range(3)]
    assert [order.num_examples for order in orders] == [100, 100, 100]


def test_shards_of_a_huge_set_cost_no_more_than_a_window():
    order = ShardOrder((10_000_000,) * 500, (0,), 1024)
    _, shards, indices = order.locate(np.array([0, 4_999_999_999, 5_000_000_000]))
    assert ((shards >= 0) & (shards < 500) & (indices >= 0) & (indices < 10_000_000)).all()


def test_shards_that_cannot_be_divided():
    with pytest.raises(ValueError, match="2 shards cannot be divided among 3 hosts"):
        ShardOrder((4, 0, 5), (0,), 8, 0, 3)
    with pytest.raises(ValueError, match="host 2 of 2"):
        ShardOrder((4, 5), (0,), 8, 2, 2)
    with pytest.raises(ValueError, match="window"):
        ShardOrder((4, 5), (0,), 0)
