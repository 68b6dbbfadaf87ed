"""The index of a built split: it comes back as it was, and a damaged one is refused by name."""

import dataclasses

import numpy as np
import pytest
from reference.spoiled_files import spoil

from twelve_in_one.data.stored.index import SplitIndex, index_path, read_index, write_index
from twelve_in_one.data.stored.records import DataError

TEXTS = ("", "a dog", "", "Zażółć gęślą jaźń", "犬 🐕‍🦺", "line\nbreak\ttab\x00nul", "")


def _index(num=4, images=1, texts=TEXTS, feature_dim=3):
    rng = np.random.default_rng(num)
    ids = np.array([f"img-{i}-é" for i in range(num * images)], str)
    counts = np.zeros(num, np.int64)
    if num:
        np.add.at(counts, rng.integers(0, num, len(texts)), 1)
    return SplitIndex(
        record_ids=np.array([f"r{i}" for i in range(num)], str),
        image_ids=ids.reshape(num, images),
        coco_ids=rng.integers(-1, 10**12, (num, images)),
        counts=counts,
        texts=tuple(texts),
        mean_features=rng.normal(size=(num, feature_dim)).astype(np.float16),
        feature_dim=feature_dim,
    )


def _assert_equal(got, wanted):
    assert (got.texts, got.feature_dim) == (wanted.texts, wanted.feature_dim)
    for field in dataclasses.fields(SplitIndex):
        before, after = getattr(wanted, field.name), getattr(got, field.name)
        if field.name not in ("texts", "feature_dim"):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(after, before, strict=True)


@pytest.mark.parametrize(
    "index",
    [
        _index(),
        _index(images=2),
        dataclasses.replace(_index(texts=()), mean_features=np.zeros((0, 0), np.float16)),
        _index(texts=("",)),
        _index(num=1, texts=("only",), feature_dim=0),
        _index(num=0, texts=(), feature_dim=0),
        _index(num=0, texts=(), feature_dim=5),
    ],
    ids=["texts", "pairs", "no texts", "empty text", "one", "none", "none, with features"],
)
def test_round_trip(tmp_path, index):
    write_index(tmp_path, "train", index)
    assert index_path(tmp_path, "train").is_file()
    got = read_index(tmp_path, "train")
    _assert_equal(got, index)
    assert got.num_examples == index.counts.sum()


def test_splits_lie_side_by_side(tmp_path):
    one, other = _index(num=3), _index(num=5)
    write_index(tmp_path, "testA", one)
    write_index(tmp_path, "testB", other)
    _assert_equal(read_index(tmp_path, "testA"), one)
    _assert_equal(read_index(tmp_path, "testB"), other)
    with pytest.raises(DataError, match=r"index-val\.npz: cannot be read.*build the dataset again"):
        read_index(tmp_path, "val")


def _changed(folder, **changes):
    """Rewrites the index with other arrays, None taking one away."""
    path = index_path(folder, "train")
    with np.load(path) as arrays:
        values = dict(arrays) | changes
    np.savez(path, **{key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": np.int64(99)}, "of another version"),
        ({"version": None}, "of another version"),
        ({"version": np.arange(2)}, "of another version"),
        ({"texts": None}, "damaged"),
        ({"counts": None}, "damaged"),
        ({"something": np.zeros(3)}, "damaged"),
        ({"counts": np.array([1, 2], np.int64)}, "damaged"),
        ({"image_ids": np.array(["a", "b", "c", "d"])}, "damaged"),
        ({"coco_ids": np.zeros((4, 2), np.int64)}, "damaged"),
        ({"record_ids": np.array(["a"])}, "damaged"),
        ({"mean_features": np.zeros((9, 3), np.float16)}, "damaged"),
        ({"text_ends": np.array([0, 5], np.int64)}, "damaged"),
        ({"text_ends": np.int64(3)}, "damaged"),
        ({"texts": np.full(55, 255, np.uint8)}, "damaged"),
    ],
)
def test_other_contents_are_refused(tmp_path, changes, message):
    write_index(tmp_path, "train", _index())
    _changed(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"index-train\.npz: .*{message}.*; build the dataset"):
        read_index(tmp_path, "train")


@pytest.mark.parametrize("data", [b"", b"PK", b"\x93NUMPY", b"not an index", b"\x80\x04N."])
def test_other_files_are_refused(tmp_path, data):
    index_path(tmp_path, "train").write_bytes(data)
    with pytest.raises(DataError, match=r"index-train\.npz: cannot be read"):
        read_index(tmp_path, "train")


def test_a_single_array_is_refused(tmp_path):
    with index_path(tmp_path, "train").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"index-train\.npz"):
        read_index(tmp_path, "train")


def test_truncated_files_are_refused(tmp_path):
    write_index(tmp_path, "train", _index())
    path = index_path(tmp_path, "train")
    data = path.read_bytes()
    for end in range(0, len(data), 37):
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match=r"index-train\.npz: cannot be read"):
            read_index(tmp_path, "train")


def test_damage_is_noticed_or_harmless(tmp_path):
    """Whatever happens to the bytes, nothing but a DataError comes out, or the very index."""
    index = _index()
    write_index(tmp_path, "train", index)
    path = index_path(tmp_path, "train")
    data = path.read_bytes()
    refused = 0
    for seed in range(400):
        path.write_bytes(spoil(data, seed))
        try:
            _assert_equal(read_index(tmp_path, "train"), index)
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 300
