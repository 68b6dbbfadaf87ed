import base64
import bz2
import dataclasses
import gzip
import lzma
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from twelve_in_one.data.regions import open_store
from twelve_in_one.data.regions.checks import check_regions, check_store
from twelve_in_one.data.regions.lmdb import LmdbStore
from twelve_in_one.data.regions.rows import region_rows
from twelve_in_one.data.regions.store import NoRegions, image_key
from twelve_in_one.data.regions.tsv import TsvStore
from twelve_in_one.data.stored.records import DataError, Regions
from twelve_in_one.models.detection.resize import Resizing

FORMATS = (
    "lmdb", "lmdb file", "lmdb base64", "npy", "npy pairs", "npy npz", "tsv lxmert",
    "tsv original", "tsv float64", "hdf5 groups", "hdf5 attributes", "hdf5 flat", "hdf5 ragged",
    "concap", "records",
)  # fmt: skip
WITH_PROBS = ("npy", "hdf5 groups", "hdf5 attributes", "concap", "records")


def _assert_equal(got, expected, probs=True):
    np.testing.assert_array_equal(got.boxes, expected.boxes, strict=True)
    np.testing.assert_array_equal(got.features, expected.features, strict=True)
    assert (got.width, got.height) == (expected.width, expected.height)
    assert type(got.width) is int and type(got.height) is int
    if probs:
        np.testing.assert_array_equal(got.class_probs, expected.class_probs, strict=True)
    else:
        assert got.class_probs is None


@pytest.mark.parametrize("name", ["coco", "flickr", "genome", "gqa", "nlvr2"])
def test_released_layout_gives_what_the_released_reader_gives(shared_dir, name):
    folder = shared_dir / "fixtures/loaders/features"
    with (
        np.load(folder / "expected.npz") as expected,
        open_store(str(folder / f"{name}.lmdb")) as store,
    ):
        ids = expected[f"{name}/ids"].tolist()
        assert isinstance(store, LmdbStore) and len(store) == len(ids)
        assert list(store.ids()) == sorted(ids) and all(image_id in store for image_id in ids)
        assert "keys" not in store and "1" not in store
        for image_id in ids:
            regions = check_regions(
                store.get(image_id), store=store.name, image_id=image_id, feature_dim=2048
            )
            features, locations = region_rows(regions)
            assert features.dtype == locations.dtype == np.float32
            start = f"{name}/{image_id}/"
            want = {k.removeprefix(start): expected[k] for k in expected if k.startswith(start)}
            assert len(features) == len(locations) == want["num_boxes"]
            np.testing.assert_array_equal(locations, want["boxes"])
            np.testing.assert_array_equal(regions.boxes, want["boxes_pixel"][1:, :4])
            np.testing.assert_array_equal(locations[1:, 4], want["boxes_pixel"][1:, 4])
            size = [0, 0, regions.width, regions.height, regions.width * regions.height]
            np.testing.assert_array_equal(size, want["boxes_pixel"][0])
            np.testing.assert_array_equal(features[0], want["global_feature"])
            sums = features.sum(axis=1, dtype=np.float64)
            np.testing.assert_array_equal(sums, want["features_rowsum"])
            np.testing.assert_array_equal(features[1:], regions.features)


def test_all_released_stores_pass_the_checks_and_stay_as_they_are(shared_dir):
    folders = sorted((shared_dir / "fixtures/loaders/features").glob("*.lmdb"))
    assert folders
    for folder in folders:
        with open_store(f"lmdb:{folder}") as store:
            ids = list(store.ids())
            assert check_store(store, ids, feature_dim=2048) == []
            assert len(ids) == len(store)
        assert os.listdir(folder) == ["data.mdb"]


def test_real_lxmert_features(samples_dir):
    path = samples_dir / "bottom_up_features/train2014_obj36.tsv"
    with open_store(str(path)) as store:
        lines = path.read_text().splitlines()
        assert isinstance(store, TsvStore) and len(store) == len(lines) > 0
        assert check_store(store, store.ids(), feature_dim=2048) == []
        for line in lines:
            cells = line.split("\t")
            regions = store.get(str(int(cells[0].removeprefix("COCO_train2014_"))))
            assert (regions.height, regions.width) == (int(cells[1]), int(cells[2]))
            for array, cell, columns in ((regions.boxes, 8, 4), (regions.features, 9, 2048)):
                assert array.shape == (int(cells[7]), columns)
                assert array.tobytes() == base64.b64decode(cells[cell])


def test_real_lxmert_features_are_those_of_proposals(samples_dir):
    """Traces of how they were made: sizes of photos, suppression of proposals at .7, ReLU."""
    resizing = Resizing(600, 1000)  # that of detectors as Caffe runs them
    with open_store(str(samples_dir / "bottom_up_features/train2014_obj36.tsv")) as store:
        found = [store.get(image_id) for image_id in store.ids()]
    for regions in found:
        rows, columns, scale = resizing.size(regions.height, regions.width)
        ends = regions.boxes[:, 2:].max(0)
        np.testing.assert_allclose(ends, [(columns - 1) / scale, (rows - 1) / scale], atol=1e-3)
        low, high = np.split(regions.boxes.astype(np.float64), 2, axis=1)
        shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low) + 1
        shared, area = np.maximum(shared, 0).prod(-1), (high - low + 1).prod(-1)
        overlap = shared / (area[:, None] + area - shared)
        assert (overlap - np.eye(len(area))).max() <= 0.7
    features = np.concatenate([regions.features for regions in found])
    assert features.min() == 0 and 24 < features.max() < 36
    assert 0.5 < features.mean() < 0.8 and 0.24 < (features == 0).mean() < 0.4


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip(write_store, make_regions, kind):
    items = make_regions(7, rows=3 if kind == "hdf5 flat" else None)
    spec = write_store(kind, items)
    with open_store(spec) as store:
        assert store.name == spec.partition(":")[2]
        assert sorted(store.ids()) == list(items) and len(store) == 7
        shuffled = list(items)
        random.Random(0).shuffle(shuffled)
        for image_id in shuffled:
            assert image_id in store
            _assert_equal(store.get(image_id), items[image_id], probs=kind in WITH_PROBS)
        assert check_store(store, items, feature_dim=5) == []
        with pytest.raises(DataError, match=r"no image '0001[12]'; there is '1[12]'") as caught:
            store.get("00011" if "11" in store else "00012")
        assert store.name in str(caught.value)
        with pytest.raises(DataError, match="no image 'abc'; its 7 images begin with '11'"):
            store.get("abc")


@pytest.mark.parametrize("kind", FORMATS)
def test_bare_paths_are_recognised(write_store, make_regions, kind):
    spec = write_store(kind, make_regions(rows=2))
    path = spec.partition(":")[2]
    if kind == "concap":  # the same file format as others, so it has to be named
        with pytest.raises(DataError, match="written by tensorpack; open it as 'concap:"):
            open_store(path)
        return
    with open_store(path) as store, open_store(spec) as named:
        assert type(store) is type(named) and "11" in store


def test_unknown_stores(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1")
    for spec in (str(tmp_path / "a.bin"), str(tmp_path), ""):
        with pytest.raises(DataError, match=r"unknown format; formats: lmdb:PATH .* tsv:FILE"):
            open_store(spec)
    for spec in ("lmdb:", "tsv:nowhere", "nowhere", "zip:a"):
        with pytest.raises(DataError, match=r"no such file or folder; formats: lmdb:PATH"):
            open_store(spec)


def test_several_stores(write_store, make_regions, tmp_path):
    items = make_regions(4)
    first = write_store("tsv original", {i: items[i] for i in ("11", "12")})
    again = dataclasses.replace(items["12"], width=999)
    second = write_store("npy pairs", {"12": again, "13": items["13"]})
    with open_store(f"{first},{second}") as store:
        assert list(store.ids()) == ["11", "12", "13"] and len(store) == 3
        assert [store.get(i).width for i in store.ids()] == [100, 101, 102]
        assert [part.name for part in store.parts] == [s.partition(":")[2] for s in (first, second)]
        assert "14" not in store
        with pytest.raises(DataError, match=r"regions\.tsv, .*npy: no image '14'; its 3 images"):
            store.get("14")
    # An entry that is damaged in one store may be whole in the other.
    path = Path(first.partition(":")[2])
    path.write_text(path.read_text() + "13\tcut off\n14\tcut off\n")
    with open_store(f"{first},{second}") as store:
        assert store.get("13").width == 102
        assert [skip.record for skip in store.damaged] == ["14"]
        with pytest.raises(DataError, match="no image '14': line 4 has 2 columns"):
            store.get("14")
    with pytest.raises(DataError, match="no such file or folder"):
        open_store(f"{first},nowhere")
    for spec in (f"{first},none", f"{first},"):
        with pytest.raises(DataError, match="each must be one"):
            open_store(spec)
    named = path.rename(tmp_path / "a,b.tsv")
    with open_store(f"tsv:{named}") as store, open_store(str(named)) as bare:
        assert store.name == bare.name == str(named)


@pytest.mark.parametrize("prefix", ["", "tsv:", "lmdb:"])
@pytest.mark.parametrize(
    ("name", "pack", "what"),
    [
        ("a.tsv.gz", gzip.compress, r"packed with gzip; unpack it \(gunzip .*a\.tsv\.gz\)"),
        ("a.tsv", bz2.compress, "packed with bzip2"),
        ("a.mdb", lzma.compress, "packed with xz"),
        ("a.zip", lambda data: b"PK\x03\x04" + data, "packed with zip"),
    ],
)
def test_packed_stores_are_named(tmp_path, prefix, name, pack, what):
    (tmp_path / name).write_bytes(pack(b"1\t2"))
    with pytest.raises(DataError, match=what):
        open_store(f"{prefix}{tmp_path / name}")


@pytest.mark.parametrize(
    ("name", "lost", "said", "problem"),
    [
        ("good.tsv", 0, 0, None),
        ("good10.tsv", 0, 0, None),
        ("header.tsv", 0, 0, None),
        ("float64.tsv", 0, 0, None),
        ("zero_boxes.tsv", 0, 0, None),
        ("normalised.tsv", "all", "all", "normalised: multiply x by {width} and y by {height}"),
        ("py3repr.tsv", "all", "all", "how Python 3 prints bytes"),
        ("nan.tsv", 1, 1, r"features\[0, 0\] is nan"),
        ("cut_base64.tsv", 1, 1, "no base64"),
        ("glued.tsv", 2, 1, "line [0-9]+ has 11 columns"),
        ("twice_differently.tsv", 1, 1, "lines [0-9]+ and [0-9]+ give it differently"),
    ],
)
def test_defects_of_public_files(shared_dir, name, lost, said, problem):
    """`lost` of the records are not given, and the store says it `said` times."""
    folder = shared_dir / "cases/02-tsv"
    with open_store(str(folder / name)) as store, open_store(str(folder / "good.tsv")) as whole:
        total = len(whole)
        lost, said = (total if number == "all" else number for number in (lost, said))
        problems = check_store(store, store.ids(), feature_dim=None)
        assert len(store) - len(problems) == total - lost
        problems += [skip.reason for skip in store.damaged]
        assert len(problems) == said
        if problem is not None:
            known = list(map(whole.get, whole.ids()))
            wanted = {problem.format(width=r.width, height=r.height) for r in known}
            assert all(any(re.search(w, text) for w in wanted) for text in problems)
        if lost < total and name != "zero_boxes.tsv":
            _assert_equal(store.get("8"), whole.get("8"), probs=False)


def test_earlier_release(shared_dir):
    with open_store(str(shared_dir / "cases/04-lmdb-base64/beta.lmdb")) as store:
        regions = store.get("7")
    np.testing.assert_array_equal(regions.boxes, np.array([[1, 2, 30, 40]], np.float32))
    np.testing.assert_array_equal(regions.features, np.ones((1, 8), np.float32))


def test_no_regions():
    with open_store("none") as store:
        assert isinstance(store, NoRegions) and store.name == "none"
        assert "any" in store and len(store) == 0 and list(store.ids()) == []
        regions = store.get("any")
        assert regions.boxes.shape == (0, 4) and regions.features.shape == (0, 0)
        assert regions.width == regions.height == 0
        features, locations = region_rows(regions)
        assert features.shape == (1, 0)
        np.testing.assert_array_equal(locations, [[0, 0, 1, 1, 1]])


def test_rows_of_half_precision_and_without_size():
    boxes = np.array([[0, 0, 10, 5]], np.float32)
    regions = Regions(boxes, np.full((1, 3), 60000, np.float16), 20, 10)
    features, locations = region_rows(regions)
    np.testing.assert_array_equal(features, np.full((2, 3), 59_999.99, np.float16))
    np.testing.assert_array_equal(locations[1], np.array([0, 0, 0.5, 0.5, 0.25]))
    with pytest.raises(ValueError, match="image of 0 x 10"):
        region_rows(Regions(boxes, regions.features, 0, 10))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("COCO_train2014_000000318556", "318556"),
        ("COCO_test2015_000000000001.jpg", "1"),
        ("000000318556", "318556"),
        ("318556", "318556"),
        ("2316634.JPG", "2316634"),
        ("v7w_2316634", "v7w_2316634"),
        ("dev-7-0-img0", "dev-7-0-img0"),
        ("dev-7-0-img0.png", "dev-7-0-img0"),
        ("n161313", "n161313"),
        ("007", "007"),
    ],
)
def test_image_key(text, key):
    assert image_key(text) == image_key(key) == key
