"""Reading of built datasets: bounded cache, versions, damaged files."""

import concurrent.futures
import dataclasses
import re
import shutil

import numpy as np
import pytest

from twelve_in_one.data.stored.index import index_path, read_index, write_index
from twelve_in_one.data.stored.reader import (
    RecordCache,
    built_folder,
    has_split,
    open_split,
    read_build_info,
    region_names,
)
from twelve_in_one.data.stored.records import DataError


@dataclasses.dataclass(frozen=True)
class _Sized:
    """Stands in for a record."""

    position: int
    num_bytes: int


class _Source:
    def __init__(self, sizes):
        self.sizes = sizes
        self.reads = []

    def __call__(self, position):
        self.reads.append(position)
        return _Sized(position, self.sizes[position])


def test_cache_keeps_what_was_used_last():
    source = _Source([10] * 6)
    cache = RecordCache(source, 30)
    for position in (0, 1, 2, 0, 3, 0, 1):  # 3 takes the place of 1, which takes that of 2
        assert cache(position).position == position
    assert source.reads == [0, 1, 2, 3, 1]
    cache(0), cache(3), cache(1)
    assert len(source.reads) == 5


def test_cache_never_exceeds_its_size():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 40, 50)
    source = _Source(sizes)
    cache = RecordCache(source, 100)
    recent = []
    for position in rng.integers(0, 50, 2000).tolist():
        hit = position in recent
        before = len(source.reads)
        cache(position)
        assert len(source.reads) - before == (not hit)
        recent = [p for p in recent if p != position] + [position]
        while sum(sizes[p] for p in recent) > 100:
            recent.pop(0)


def test_record_larger_than_the_cache():
    source = _Source([500, 500])
    cache = RecordCache(source, 100)
    assert [cache(p).position for p in (0, 0, 1, 0)] == [0, 0, 1, 0]
    assert source.reads == [0, 1, 0]


def test_threads_share_a_cache():
    source = _Source(list(range(1, 101)))
    cache = RecordCache(source, 2000)
    wanted = np.random.default_rng(0).integers(0, 100, 3000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [r.position for r in pool.map(cache, wanted)] == wanted
    assert len(source.reads) < len(wanted)


def _arrays_of(rows):
    return [getattr(rows, field.name) for field in dataclasses.fields(rows)]


def test_same_records_with_any_cache(small_world):
    readers = [open_split(small_world.built("coco"), "train", cache_bytes=n) for n in (1, 1 << 30)]
    count = len(readers[0].index.counts)
    for position in np.random.default_rng(0).integers(0, count, 40).tolist():
        one, other = (reader.record(position) for reader in readers)
        assert one.annotations == other.annotations
        np.testing.assert_array_equal(one.images[0].features, other.images[0].features)
    record = readers[1].record(0)
    assert readers[1].record(0) is record
    arrays = [*_arrays_of(record.images[0]), *_arrays_of(record.annotated)]
    assert record.num_bytes == sum(array.nbytes for array in arrays)


def test_reader_agrees_with_its_index(small_world, census):
    for name, found in census.examples.items():
        for split in found:
            reader = open_split(small_world.built(name), split)
            assert reader.name == f"{name.replace('+', '_plus')}/{split}"
            ends = np.cumsum(reader.index.counts)
            np.testing.assert_array_equal(reader.first_example, [0, *ends])
            records = [reader.record(position) for position in range(len(ends))]
            assert [len(record.annotations) for record in records] == reader.index.counts.tolist()
            ids = [a.example_id for record in records for a in record.annotations]
            assert len(set(ids)) == len(ids)
            if reader.index.texts:
                texts = [a.text for record in records for a in record.annotations]
                assert list(reader.index.texts) == texts
                means = [record.images[0].mean_feature[0] for record in records]
                np.testing.assert_allclose(reader.index.mean_features, means, rtol=2e-3, atol=1e-3)


def test_folders(small_world, tmp_path):
    folder = small_world.built("refcoco+")
    assert folder == small_world.data / "refcoco_plus/pixels/1.0.0"
    assert region_names(small_world.data, "refcoco+") == ("pixels",)
    assert region_names(tmp_path, "refcoco+") == ()
    assert has_split(folder, "testA") and not has_split(folder, "test")
    with pytest.raises(DataError, match=r"no split 'test'; there is testA, testB, train, val$"):
        open_split(folder, "test")
    with pytest.raises(
        DataError,
        match=r"vqa with region features 'resnext' has not been built; there is .*"
        r"vqa/pixels/1\.0\.0.*\. Run: python -m twelve_in_one\.data\.build vqa --data_dir",
    ):
        built_folder(small_world.data, "vqa", "resnext")
    with pytest.raises(DataError, match="has not been built; there is nothing"):
        built_folder(tmp_path, "vqa", "pixels")


def test_unfinished_and_newer_versions(small_world, tmp_path):
    source = small_world.built("snli_ve")
    other = shutil.copytree(source, tmp_path / "snli_ve/pixels/incomplete.ZZZZZZ_1.0.0")
    with pytest.raises(DataError, match="has not been built"):
        built_folder(tmp_path, "snli_ve", "pixels")
    for version in ("1.0.0", "2.0.0"):
        shutil.copytree(source, other.with_name(version))
    assert built_folder(tmp_path, "snli_ve", "pixels") == other.with_name("2.0.0")


@pytest.fixture
def folder(small_world, tmp_path):
    """A copy of one built dataset."""
    return shutil.copytree(small_world.built("snli_ve"), tmp_path / "snli_ve/pixels/1.0.0")


def _records(folder):
    (path,) = folder.glob("*-train.array_record*")
    return path


def _read_all(folder):
    reader = open_split(folder, "train")
    return [reader.record(position) for position in range(len(reader.index.counts))]


def _half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def _flipped(path):
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)


def _empty(path):
    path.write_bytes(b"")


def _gone(path):
    path.unlink()


@pytest.mark.parametrize("damage", [_half, _zeros, _flipped, _empty, _gone])
def test_damaged_records(folder, damage):
    assert len(_read_all(folder)) == len(read_index(folder, "train").counts)
    damage(_records(folder))
    with pytest.raises(
        DataError, match=rf"{re.escape(str(folder))}/.*-train\.array_record.* build the dataset"
    ):
        _read_all(folder)


@pytest.mark.parametrize("damage", [_half, _zeros, _empty, _gone])
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_damaged_description(folder, name, damage):
    damage(folder / name)
    with pytest.raises(DataError, match=rf"{re.escape(str(folder))}/.*build the dataset again"):
        _read_all(folder)


@pytest.mark.parametrize("damage", [_half, _zeros, _empty])
def test_damaged_index(folder, damage):
    damage(index_path(folder, "train"))
    with pytest.raises(DataError, match=r"index-train\.npz: .*build the dataset again"):
        open_split(folder, "train")


def test_index_of_another_split(folder):
    index = read_index(folder, "train")
    fewer = dataclasses.replace(
        index,
        record_ids=index.record_ids[1:],
        image_ids=index.image_ids[1:],
        coco_ids=index.coco_ids[1:],
        counts=index.counts[1:],
        example_keys=index.example_keys[index.counts[0] :],
    )
    write_index(folder, "train", fewer)
    count = len(index.counts)
    with pytest.raises(
        DataError, match=f"split train has {count} records, its index {count - 1}; build"
    ):
        open_split(folder, "train")


@pytest.mark.parametrize("damage", [_half, _zeros, _empty, _gone])
def test_damaged_build_info(folder, damage):
    assert set(read_build_info(folder)["splits"]) == {"train", "val", "test"}
    damage(folder / "build.json")
    with pytest.raises(DataError, match=r"build\.json: cannot be read .*build the dataset again"):
        read_build_info(folder)
