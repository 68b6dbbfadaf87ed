"""Bounds by hand, and names of machines."""

import pytest

from twelve_in_one.preflight import roofline, topology
from twelve_in_one.preflight.chips import TPUS, Chip
from twelve_in_one.preflight.hlo import Collective

CHIP = Chip(100.0, 50.0, 1000.0, 10.0, 4.0, 1.0)


def collective(kind, size, ways, islands=1, times=1):
    return Collective(kind, size, ("data",), ways, islands, times, "")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (collective("all-reduce", 80, 4), (120.0, 0.0)),  # 2 x 3/4
        (collective("all-gather", 80, 4, times=2), (120.0, 0.0)),
        (collective("reduce-scatter", 80, 8), (70.0, 0.0)),
        # Two islands of four: 2 x 3/4 inside, and of a quarter 2 x 1/2 between them.
        (collective("all-reduce", 80, 8, islands=2), (120.0, 20.0)),
        (collective("all-reduce", 80, 2, islands=2), (0.0, 80.0)),  # one of each island
        (collective("collective-permute", 80, 2), (80.0, 0.0)),
        (collective("collective-permute", 80, 2, islands=2), (0.0, 80.0)),
    ],
)
def test_bytes_sent(item, expected):
    assert roofline.sent(item) == pytest.approx(expected)


def test_the_slowest_part_bounds_a_step():
    flops = {"bfloat16": 200.0, "float32": 100.0}
    found = roofline.bound(CHIP, flops, 30.0, [collective("all-reduce", 80, 8, islands=2)])
    seconds = (2.0 + 2.0, 3.0, 30.0, 20.0)
    assert tuple(found.seconds.values()) == pytest.approx(seconds)
    assert (found.step, found.by) == (30.0, roofline.FAST)
    found = roofline.bound(CHIP, flops, 50.0, [])
    assert (found.step, found.by) == (5.0, roofline.MEMORY)
    with pytest.raises(ValueError, match="no published speed"):
        roofline.bound(TPUS["v4"], flops, 0.0, [collective("all-reduce", 80, 2, islands=2)])


def test_names_of_machines():
    slice_ = topology.parse("v5e:16x16")
    assert (slice_.chips, slice_.island, slice_.islands, slice_.gpu) == (256, 256, 1, False)
    slices = topology.parse("v5p:4x4x8", 3)
    assert (slices.chips, slices.island, slices.islands) == (384, 128, 3)
    gpus = topology.parse("gpu:h100x8x4")
    assert (gpus.chips, gpus.island, gpus.islands, gpus.chip.memory) == (32, 8, 4, 80e9)


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v3:2x2", 1, "'v3' is none of v4, v5e, v5p, v6e, gpu"),
        ("v5e", 1, "has 2 dimensions, as in v5e:4x4"),
        ("v5p:4x4", 1, "has 3 dimensions, as in v5p:4x4x4"),
        ("v5e:0x4", 1, "no chips"),
        ("v5e:32x16", 1, "at most 256 chips; for more, add --slices=2"),
        ("v5e:4x4", 0, "at least 1"),
        ("gpu:b17x8x4", 1, "of a100, h100, h200"),
        ("gpu:h100x0x4", 1, "no GPUs"),
        ("gpu:h100x8x4", 2, "its machines are the slices"),
    ],
)
def test_bad_names_of_machines(name, slices, message):
    with pytest.raises(ValueError, match=message):
        topology.parse(name, slices)
