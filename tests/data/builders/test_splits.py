"""Cleaning and overlap against plain sets of photos, on datasets that share some."""

import dataclasses
import json

import numpy as np
import pytest

from twelve_in_one.data.builders import splits
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.stored.index import SplitIndex
from twelve_in_one.data.stored.records import DataError


def _index(image_ids, coco_ids=None, counts=None):
    """One record an image, or a pair where `image_ids` holds pairs."""
    ids = np.array(image_ids, str)
    ids = ids.reshape(len(ids), -1) if ids.size else ids.reshape(0, 1)
    return SplitIndex(
        record_ids=ids[:, 0],
        image_ids=ids,
        coco_ids=np.full(ids.shape, -1)
        if coco_ids is None
        else np.array(coco_ids, np.int64).reshape(ids.shape),
        counts=np.ones(len(ids), np.int64) if counts is None else np.array(counts, np.int64),
        texts=(),
        mean_features=np.zeros((0, 0), np.float16),
    )


@dataclasses.dataclass(frozen=True)
class Photo:
    """What the test knows of a photo: that it is one, whatever the datasets call it."""

    number: int
    coco: int = -1
    genome: int = -1
    flickr: int = -1
    nlvr2: str = ""

    def id_in(self, domain):
        key = {"visual_genome": "genome", "flickr30k": "flickr"}.get(domain, domain)
        return str(getattr(self, key))


def _photos():
    """80 of COCO, 60 of Visual Genome, 30 of these in both; the same numbers for other photos."""
    coco = [Photo(i, coco=i) for i in range(50)]
    both = [Photo(i, coco=i, genome=110 - i) for i in range(50, 80)]
    genome = [Photo(100 + i, genome=i) for i in range(30)]
    flickr = [Photo(200 + i, flickr=i) for i in range(40)]
    nlvr2 = [Photo(300 + i, nlvr2=f"dev-{i}-0-img0") for i in range(60)]
    return {
        "coco": coco + both,
        "visual_genome": both + genome,
        "flickr30k": flickr,
        "nlvr2": nlvr2,
        "conceptual_captions": [Photo(400 + i, nlvr2="", flickr=i) for i in range(10)],
    }


def _records(rng, source, photos):
    """Records of random photos per split, splits drawn apart so that they share some."""
    found = {}
    for split in source.splits:
        count = int(rng.integers(8, 20))
        if source.name == "nlvr2":
            drawn = [rng.choice(len(photos), 2, replace=False) for _ in range(count)]
        else:
            drawn = rng.choice(len(photos), (min(count, len(photos)), 1), replace=False)
        found[split] = [
            (tuple(photos[i] for i in record), int(rng.integers(1, 5))) for record in drawn
        ]
    return found


def _id(photo, domain):
    return f"cc{photo.flickr}" if domain == "conceptual_captions" else photo.id_in(domain)


def _as_index(source, records):
    """As the builders write it: GQA's files know nothing of COCO."""
    photos = [record for record, _ in records]
    return _index(
        [[_id(photo, source.domain) for photo in record] for record in photos],
        [[-1 if source.name == "gqa" else photo.coco for photo in record] for record in photos],
        [count for _, count in records],
    )


@pytest.fixture(params=range(4))
def world(request):
    """(dataset -> split -> records, the same as indexes)."""
    rng = np.random.default_rng(request.param)
    photos = _photos()
    records = {}
    for name, source in SOURCES.items():
        records[name] = _records(rng, source, photos[source.domain])
    # Visual Genome QA asks about every photo of Visual Genome.
    everywhere = [((photo,), int(rng.integers(1, 5))) for photo in photos["visual_genome"]]
    records["vgqa"] = {"train": everywhere[:40], "val": everywhere[40:]}
    indexes = {
        name: {split: _as_index(SOURCES[name], part) for split, part in parts.items()}
        for name, parts in records.items()
    }
    return records, indexes


def _tested(records):
    return {
        photo
        for name, parts in records.items()
        for split in SOURCES[name].test_splits
        for record, _ in parts[split]
        for photo in record
    }


def test_no_test_image_is_trained_on(world):
    records, indexes = world
    clean = splits.test_images(indexes)
    tested = _tested(records)
    lost = 0
    for name, parts in records.items():
        for split, part in parts.items():
            kept = clean.keeps(SOURCES[name].domain, indexes[name][split])
            expected = [not tested & set(photos) for photos, _ in part]
            assert kept.dtype == bool
            assert kept.tolist() == expected, (name, split)
            lost += len(part) - sum(expected)
    assert lost > 100
    assert clean.datasets == tuple(name for name in records if SOURCES[name].test_splits)


def test_removed_counts(world):
    records, indexes = world
    tested = _tested(records)
    rows = splits.removed(indexes, splits.test_images(indexes))
    cleaned = {(row.dataset, row.split): row for row in rows}
    twelve = records.keys() - {"conceptual_captions"}
    expected = {(name, "train") for name in twelve} | {("vgqa", "val")}
    assert set(cleaned) == expected
    assert len(rows) == len(expected)
    for (name, split), row in cleaned.items():
        part = records[name][split]
        gone = [count for photos, count in part if tested & set(photos)]
        assert (row.records, row.removed_records) == (len(part), len(gone))
        assert row.annotations == sum(count for _, count in part)
        assert row.removed_annotations == sum(gone)


def test_overlap_matrix(world):
    records, indexes = world
    names, matrix = splits.overlap_matrix(indexes)
    assert names == tuple(records)

    def photos(name, wanted):
        parts = [records[name][split] for split in wanted if split in records[name]]
        return {photo for part in parts for record, _ in part for photo in record}

    for i, row in enumerate(names):
        tests = photos(row, SOURCES[row].test_splits)
        for j, column in enumerate(names):
            if i == j or not tests:
                assert np.isnan(matrix[i, j])
            else:
                shared = tests & photos(column, ("train", "val"))
                assert matrix[i, j] == pytest.approx(len(shared) / len(tests))
    assert np.nanmax(matrix) == 1  # Visual7W's images are all Visual Genome's


def _counts(indexes, name, split="train"):
    clean = splits.test_images(indexes)
    return clean.keeps(SOURCES[name].domain, indexes[name][split]).tolist()


@pytest.mark.parametrize("knows", ["itself", "vgqa"])
def test_a_coco_test_image_leaves_visual_genome(knows):
    indexes = {
        "refcoco": {"testB": _index(["7"], [7])},
        "gqa": {"train": _index(["7", "31", "32"], [5, 7, -1] if knows == "itself" else None)},
        "vgqa": {"val": _index(["31", "40"], [7, 9])},
    }
    assert _counts(indexes, "gqa") == [True, False, True]
    assert _counts(indexes, "vgqa", "val") == [False, True]


@pytest.mark.parametrize("knows", ["itself", "vgqa"])
def test_a_visual_genome_test_image_leaves_coco(knows):
    indexes = {
        "visual7w": {"test": _index(["31"], [7] if knows == "itself" else None)},
        "vqa": {"train": _index(["7", "31"], [7, 31])},
        "vgqa": {"train": _index(["31", "7"], [7, -1])},
    }
    assert _counts(indexes, "vqa") == [False, True]
    assert _counts(indexes, "vgqa") == [False, True]


def test_either_image_of_a_pair_removes_it():
    indexes = {
        "nlvr2": {
            "train": _index([["a", "b"], ["c", "d"], ["e", "a"], ["f", "g"]], counts=[1, 2, 4, 8]),
            "test": _index([["b", "x"], ["y", "e"]]),
        }
    }
    assert _counts(indexes, "nlvr2") == [False, True, False, True]
    (row,) = splits.removed(indexes, splits.test_images(indexes))
    assert (row.removed_records, row.removed_annotations) == (2, 5)


def test_collections_do_not_mix():
    """Equal ids of different collections are different images."""
    indexes = {
        "flickr30k": {"test": _index(["1"])},
        "nlvr2": {"test": _index([["2", "3"]])},
        "vqa": {"train": _index(["1", "2", "3"], [1, 2, 3])},
        "gqa": {"train": _index(["1", "2"])},
        "conceptual_captions": {"train": _index(["1", "3"])},
        "snli_ve": {"train": _index(["1", "2"])},
    }
    for name in ("vqa", "gqa", "conceptual_captions"):
        assert all(_counts(indexes, name))
    assert _counts(indexes, "snli_ve") == [False, True]


def test_without_tests_nothing_is_removed():
    indexes = {
        "vqa": {"train": _index(["1", "2"], [1, 2])},
        "flickr30k": {"train": _index(["1"]), "test": _index([])},
    }
    assert splits.test_images({}).datasets == ()
    assert _counts(indexes, "vqa") == [True, True]
    assert np.isnan(splits.overlap_matrix(indexes)[1]).all()


def test_given_lists():
    clean = splits.from_id_lists({"coco": np.array([7, 9]), "visual_genome": [31]})
    assert clean.keeps("coco", _index(["7", "8"], [7, 8])).tolist() == [False, True]
    # Visual Genome by its own id, or by that of COCO.
    genome = _index(["31", "7", "32"], [-1, -1, 9])
    assert clean.keeps("visual_genome", genome).tolist() == [False, True, False]
    assert clean.keeps("flickr30k", _index(["7", "31"])).all()
    # -1 says that an image is none of COCO's, not which.
    assert splits.from_id_lists({"coco": [-1]}).keeps("flickr30k", _index(["7"])).all()


def test_clean_split_file(tmp_path, world):
    clean = splits.test_images(world[1])
    path = tmp_path / "clean_split.json"
    splits.write_clean_split(path, clean)
    assert splits.read_clean_split(path) == clean
    assert set(json.loads(path.read_text())["images"]) == {s.domain for s in SOURCES.values()}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": {"coco": 3}, "datasets": []}', None])
def test_damaged_clean_split(tmp_path, text):
    path = tmp_path / "clean_split.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=r"clean_split\.json: cannot be read.*data\.build"):
        splits.read_clean_split(path)


def test_tables(world):
    _, indexes = world
    rows = splits.removed(indexes, splits.test_images(indexes))
    lines = splits.format_removed(rows).splitlines()
    assert len(lines) == len(rows) + 2
    for line, row in zip(lines[1:-1], rows, strict=True):
        share = 100 * row.removed_annotations / row.annotations
        expected = [row.dataset, row.split, row.annotations, row.removed_annotations]
        assert line.replace(",", "").split() == [*map(str, expected), f"{share:.1f}%"]
    shares = [r.removed_annotations / r.annotations for r in rows if r.split == "train"]
    assert f"mean share of the 12 training splits: {100 * np.mean(shares):.1f}%" in lines[-1]

    names, matrix = splits.overlap_matrix(indexes)
    lines = splits.format_overlap(names, matrix).splitlines()
    assert lines[1].split() == list(names)
    assert {len(line) for line in lines[1:]} == {len(lines[1])}
    for line, name, row in zip(lines[2:], names, matrix, strict=True):
        cells = ["-" if np.isnan(x) else str(round(100 * x)) for x in row]
        assert line.split() == [name, *cells]


def test_tables_of_nothing():
    assert "0 training splits" in splits.format_removed(())
    assert splits.format_overlap(*splits.overlap_matrix({}))
