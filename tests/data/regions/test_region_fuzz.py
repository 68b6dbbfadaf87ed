"""Damaged stores of every format: reading ends in regions or in a DataError, and soon."""

import os
import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest
from reference.spoiled_files import spoil_bytes

from twelve_in_one.data.regions import open_store
from twelve_in_one.data.regions.checks import check_regions
from twelve_in_one.data.regions.concap_lmdb import ConcapStore
from twelve_in_one.data.stored.records import DataError, Regions

ROUNDS = 400


def _read_all(spec):
    """Reads whatever a store has; returns how many images failed."""
    failed = 0
    with open_store(spec) as store:
        ids = list(store.ids())
        assert all(isinstance(image_id, str) for image_id in ids)
        assert len(store) >= 0
        for image_id in [*ids[:20], "11"]:
            try:
                regions = store.get(image_id)
                assert isinstance(regions, Regions)
                assert regions.boxes.shape[1] == 4 and regions.features.ndim == 2
                check_regions(regions, store=store.name, image_id=image_id)
            except DataError as error:
                assert store.name in str(error)
                failed += 1
        if isinstance(store, ConcapStore):
            list(store.captions())
    return failed


@pytest.mark.parametrize(
    "kind",
    [
        "lmdb", "lmdb base64", "npy", "npy pairs", "npy npz", "tsv lxmert", "tsv original",
        "hdf5 groups", "hdf5 ragged", "concap", "records",
    ],
)  # fmt: skip
def test_damaged_files(write_store, make_regions, kind):
    spec = write_store(kind, make_regions(3, rows=2))
    path = Path(spec.partition(":")[2])
    if kind.startswith("lmdb"):
        path = path / "data.mdb"
    elif path.is_dir():
        path = sorted(path.iterdir())[kind == "npy pairs"]  # the info
    data, rng, outcomes = path.read_bytes(), np.random.default_rng(len(kind)), set()
    began = time.monotonic()
    for _ in range(ROUNDS):
        path.write_bytes(spoil_bytes(data, rng))
        try:
            outcomes.add("some failed" if _read_all(spec) else "all read")
        except DataError as error:
            assert str(path.parent) in str(error)
            outcomes.add("not opened")
    assert len(outcomes) > 1
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("count", [30, 600])
def test_damaged_trees(tmp_path, write_lmdb, count):
    """Only the pages of the tree are changed, not the values that fill most of a file."""
    values = {b"%d" % number: pickle.dumps([number] * 5) for number in range(count)}
    path = write_lmdb(tmp_path / "a", values) / "data.mdb"
    data, rng = path.read_bytes(), random.Random(count)
    heads = [start + offset for start in range(0, len(data), 4096) for offset in range(100)]
    for _ in range(ROUNDS):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 2, 20))):
            changed[rng.choice(heads)] = rng.choice((0, 1, 2, 4, 0x10, 0xFF, rng.randrange(256)))
        path.write_bytes(changed)
        try:
            with open_store(str(tmp_path / "a")) as store:
                for image_id in ("0", "17", "999"):
                    image_id in store  # noqa: B015
                assert len(list(store.ids())) < 10**6
        except DataError as error:
            assert str(tmp_path) in str(error)


def test_damaged_values(tmp_path, write_lmdb):
    """LMDB values are pickles: hostile ones as values, each mutated a few times."""
    canary = tmp_path / "canary"
    good = {"boxes": np.ones((1, 4)), "features": np.ones((1, 3)), "image_w": 5, "image_h": 5}

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    seeds = [pickle.dumps(good | {"features": Evil()}, protocol) for protocol in (0, 2, 4)]
    rng = np.random.default_rng(0)
    values = {str(n).encode(): spoil_bytes(seeds[n % 3], rng) or b"." for n in range(ROUNDS)}
    with open_store(str(write_lmdb(tmp_path / "a", values))) as store:
        for image_id in store.ids():
            try:
                store.get(image_id)
            except DataError as error:
                assert f"{tmp_path / 'a'}: image {image_id!r}" in str(error)
    assert not canary.exists()
