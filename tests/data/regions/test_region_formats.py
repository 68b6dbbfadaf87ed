import base64
import os
import pickle
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from twelve_in_one.data.formats import safe_pickle
from twelve_in_one.data.formats.lmdb_file import LmdbFile
from twelve_in_one.data.regions.checks import check_regions
from twelve_in_one.data.regions.concap_lmdb import ConcapStore
from twelve_in_one.data.regions.hdf5 import Hdf5Store
from twelve_in_one.data.regions.lmdb import LmdbStore
from twelve_in_one.data.regions.npy import NpyStore
from twelve_in_one.data.regions.records import (
    RecordStore,
    missing_shards,
    shard_path,
    write_shard,
)
from twelve_in_one.data.regions.tsv import TsvStore
from twelve_in_one.data.stored.records import DataError, Regions


@pytest.mark.parametrize("count", [0, 1, 40, 3000])
def test_lmdb_reader_agrees_with_the_library(tmp_path, count):
    lmdb = pytest.importorskip("lmdb")
    rng = random.Random(count)
    path, values = tmp_path / "a", {}
    for _ in range(count):
        key = rng.randbytes(rng.choice((1, 2, 3, 8, 400)))
        values[key] = rng.randbytes(rng.choice((0, 1, 50, 1500, 4079, 4080, 4081, 9000)))
    with lmdb.open(str(path), map_size=1 << 26) as environment:
        for round_keys in (list(values), list(values)[::3]):  # leaves free pages behind
            with environment.begin(write=True) as transaction:
                for key in round_keys:
                    values.setdefault(key, b"again")
                    transaction.put(key, values[key])
                    if rng.random() < 0.2:
                        transaction.delete(key)
                        del values[key]
        with environment.begin() as transaction:
            expected = [(bytes(key), bytes(value)) for key, value in transaction.cursor()]
            depth = transaction.stat()["depth"]
    assert depth >= (3 if count == 3000 else 0)
    file = LmdbFile(path)
    assert [(key, file.read(*span)) for key, span in file.items()] == expected
    assert file.num_entries == len(expected) == len(values)
    for key in [*values, b"", b"a", bytes(511), b"\xff" * 511]:
        assert file.get(key) == values.get(key)
    file.close()


def test_lmdb_files_of_another_kind(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "a"), max_dbs=2, map_size=1 << 20) as environment:
        child = environment.open_db(b"inner", dupsort=True)
        with environment.begin(write=True) as transaction:
            transaction.put(b"k", b"v", db=child)
    with LmdbStore(tmp_path / "a") as store, pytest.raises(DataError, match="several values"):
        store.get("inner")
    for content in (b"", b"text", bytes(10_000)):
        (tmp_path / "data.mdb").write_bytes(content)
        with pytest.raises(DataError, match=r"data\.mdb: (truncated or no LMDB|cannot be read)"):
            LmdbStore(tmp_path)


def test_lmdb_records_are_described_when_wrong(tmp_path, write_lmdb):
    box, feature = np.ones((1, 4)), np.ones((1, 2))
    good = {"boxes": box, "features": feature, "image_w": 5, "image_h": 6}
    values = {
        "list": ([1], "must be a dict, is a list"),
        "no size": ({k: v for k, v in good.items() if k != "image_w"}, "no 'image_w'; keys: "),
        "flat": (good | {"boxes": np.ones(4)}, r"boxes must be a matrix .*, are float64\[4\]"),
        "five": (good | {"boxes": np.ones((1, 5))}, r"4 columns, have shape \(1, 5\)"),
        "text": (good | {"features": np.array([["a"]])}, "features must be a matrix of numbers"),
        "ragged": (good | {"boxes": [[1, 2], [3]]}, "boxes are no matrix"),
        "size": (good | {"image_h": "6"}, "height must be a number of pixels, is '6'"),
        "half": (good | {"image_h": 6.5}, "height must be a whole number of pixels, is 6.5"),
        "nan": (good | {"image_w": float("nan")}, "width must be a whole number"),
        "evil": (os.system, r"wants \w+\.system, which is not plain data"),
        "empty": (None, "must be a dict, is a NoneType"),
    }
    content = {key.encode(): pickle.dumps(value) for key, (value, _) in values.items()}
    content[b"float"] = pickle.dumps(good | {"image_h": 6.0, "boxes": box.tolist()})
    write_lmdb(tmp_path / "a", content)
    with LmdbStore(tmp_path / "a") as store:
        for key, (_, message) in values.items():
            with pytest.raises(DataError, match=message) as caught:
                store.get(key)
            assert f"{tmp_path / 'a'}: image {key!r}" in str(caught.value)
        assert store.get("float").height == 6
        assert store.get("float").boxes.dtype == store.get("float").features.dtype == np.float32


def test_npy_files_are_described_when_wrong(tmp_path):
    np.save(tmp_path / "1.npy", np.ones(3))
    np.save(tmp_path / "2.npy", np.array({"bbox": np.ones((1, 4))}, object))
    np.save(tmp_path / "3.npy", np.array(os.system, object))
    (tmp_path / "notes.txt").write_text("other files are left alone")
    store = NpyStore(tmp_path)
    assert list(store.ids()) == ["1", "2", "3"]
    for image_id, message in (("1", "must hold one dict"), ("2", "no 'features'"), ("3", "system")):
        with pytest.raises(DataError, match=message) as caught:
            store.get(image_id)
        assert f"{image_id}.npy" in str(caught.value)
    np.save(tmp_path / "COCO_val2014_000000000002.npy", 1)
    store = NpyStore(tmp_path)
    assert list(store.ids()) == ["1", "3"]
    with pytest.raises(DataError, match=r"'2': 2\.npy and COCO.*npy are both|'2': COCO.* and 2"):
        store.get("2")
    with pytest.raises(DataError, match="cannot be read"):
        NpyStore(tmp_path / "missing")


def test_numpy_pairs_and_archives_are_described_when_wrong(tmp_path, monkeypatch):
    box, feature = np.ones((1, 4), np.float32), np.ones((1, 3), np.float32)
    info = {"bbox": box, "image_width": 5, "image_height": 6, "cls_prob": np.ones((1, 1600))}
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    infos = {"good": info, "evil": info | {"bbox": Evil()}, "poor": {"bbox": box}, "flat": info}
    for name, value in infos.items():
        np.save(tmp_path / f"{name}.npy", np.ones(3) if name == "flat" else feature)
        np.save(tmp_path / f"{name}_info.npy", np.array(value, object))
    np.save(tmp_path / "bare.npy", feature)
    np.save(tmp_path / "lost_info.npy", np.array(info, object))
    arrays = {"x": feature, "bbox": box, "image_w": 5, "image_h": 6}
    np.savez(tmp_path / "sizeless.npz", x=feature, bbox=box)
    np.savez(tmp_path / "hostile.npz", **arrays | {"x": np.array(Evil(), object)})
    np.savez(tmp_path / "aside.npz", **arrays, info=np.array(Evil(), object))
    np.savez(tmp_path / "other.npz", **arrays | {"x": np.ones((7, 3), np.float32)})
    np.savez_compressed(tmp_path / "bomb.npz", **arrays | {"x": np.zeros((1, 1 << 20))})
    monkeypatch.setattr(safe_pickle, "_MAX_MEMBER_BYTES", 1 << 20)
    store = NpyStore(tmp_path)
    assert [skip.record for skip in store.damaged] == ["lost"]
    messages = {
        "evil": r"evil_info\.npy: wants \w+\.system",
        "poor": "no 'image_width'; keys: 'bbox'",
        "flat": r"features must be a matrix .* float64\[3\]",
        "bare": r"holds features only, and bare_info\.npy, which",
        "lost": r"no image 'lost': lost_info\.npy is there, lost\.npy is not",
        "sizeless": "no array image_w or image_width; has x, bbox",
        "hostile": r"hostile\.npz: x\.npy: wants \w+\.system",
        "bomb": r"x\.npy has more than 1048576 bytes",
    }
    for image_id, message in messages.items():
        with pytest.raises(DataError, match=message) as caught:
            store.get(image_id)
        assert image_id in str(caught.value)
    for image_id in ("good", "aside"):
        regions = store.get(image_id)
        assert (regions.width, regions.height, regions.class_probs) == (5, 6, None)
        np.testing.assert_array_equal(regions.features, feature)
    with pytest.raises(DataError, match="1 rows of boxes, 7 of features"):
        check_regions(store.get("other"), store="s", image_id="other")
    assert not canary.exists()


def _tsv_line(image_id="1", boxes=1, count="1", size=b"5", dim=3):
    encode = lambda n: base64.b64encode(np.ones(n, np.float32).tobytes())  # noqa: E731
    return b"\t".join(
        [image_id.encode(), size, b"6", count.encode(), encode(4 * boxes), encode(dim)]
    )


def test_tsv_files_are_described_when_wrong(tmp_path):
    path = tmp_path / "a.tsv"
    lines = {
        "count": (_tsv_line(count="2"), "4 numbers of boxes and 3 of features do not make 2"),
        "uneven": (_tsv_line(boxes=2, count="2"), "do not make 2 regions"),
        "size": (_tsv_line(size=b"x"), "b'x' is no size"),
        "negative": (_tsv_line(size=b"-5"), "b'-5' is no size"),
        "base64": (_tsv_line() + b"*", "no base64"),
        "bytes": (_tsv_line() + b"AAAA", "no base64"),
    }
    for line, message in lines.values():
        path.write_bytes(line + b"\n")
        with TsvStore(path) as store, pytest.raises(DataError, match=message):
            store.get("1")
    path.write_bytes(_tsv_line() + b"\n" + _tsv_line("2")[:20])
    with TsvStore(path) as store:
        (cut,) = store.damaged
        assert (cut.file, cut.record) == (str(path), "2")
        with pytest.raises(DataError, match=r"'2': line 2 has [1-5] columns, not 10 .* or 6"):
            store.get("2")
        assert list(store.ids()) == ["1"]
    glued, other = _tsv_line("2") + _tsv_line("3"), _tsv_line("000000000001")
    path.write_bytes(b"\n".join([_tsv_line(), b"", other, _tsv_line(), glued, _tsv_line("4")]))
    with TsvStore(path) as store:
        assert list(store.ids()) == ["4"]
        assert [skip.record for skip in store.damaged] == ["1", "2"]
        for image_id, reason in (("1", "lines 1 and 3 give it diff"), ("2", "line 5 has 11 col")):
            with pytest.raises(DataError, match=f"no image '{image_id}': {reason}"):
                store.get(image_id)
    path.write_bytes(b"a,b,c\n1,2,3")
    with pytest.raises(DataError, match="no line can be used; the first: line 1 has 1 columns"):
        TsvStore(path)
    names = b"image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\n"
    path.write_bytes(names + _tsv_line())
    with TsvStore(path) as store:
        assert list(store.ids()) == ["1"] and not store.damaged
    path.write_bytes(names.replace(b"w\timage_h", b"h\timage_w") + _tsv_line())
    with pytest.raises(DataError, match="columns image_id, image_h, .*must be image_id, image_w"):
        TsvStore(path)
    path.write_bytes(b"\t".join([b"1", b"5", b"6", b"1", b"b'AAAA'", b"b'AAAA'"]))
    with TsvStore(path) as store, pytest.raises(DataError, match=r"Python 3 prints .*\.decode\(\)"):
        store.get("1")
    path.write_bytes(_tsv_line() + b"\n" + _tsv_line())
    with TsvStore(path) as store:
        assert len(store) == 1
    path.write_bytes(_tsv_line(boxes=0, count="0", dim=0))
    with TsvStore(path) as store:
        assert store.get("1").features.shape == (0, 0)


def test_tsv_is_streamed(tmp_path):
    path = tmp_path / "a.tsv"
    with path.open("wb") as stream:
        for number in range(40):
            stream.write(_tsv_line(str(number), dim=200_000) + b"\n")
    tracemalloc.start()
    try:
        with TsvStore(path) as store:
            assert len(store) == 40
            assert store.get("39").features.shape == (1, 200_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 40 << 20 and peak < 12 << 20


def test_hdf5_files_are_described_when_wrong(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones((1, 4), np.float32)
    with h5py.File(path, "w") as file:
        for name in ("nothing", "huge", "external", "virtual", "no size", "text"):
            group = file.create_group(name)
            group["boxes"] = np.ones((1, 4))
            if name != "no size":
                group.attrs["image_w"] = group.attrs["image_h"] = 5
        file["huge"].create_dataset("features", (1 << 40, 8), "f4", chunks=(1, 8))
        file["external"]["features"] = h5py.ExternalLink("other.h5", "x")
        layout = h5py.VirtualLayout((1, 4), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (1, 4))
        file["virtual"].create_virtual_dataset("features", layout)
        file["text"]["features"] = [["a"]]
        file["alone"] = 1
        file["link"] = h5py.ExternalLink("other.h5", "x")
    messages = {
        "nothing": "no dataset 'features'",
        "huge": "has 35184372088832 bytes, more than regions can have",
        "external": "no dataset 'features'",
        "virtual": "features lies in another file: refused",
        "no size": "no image_w and image_h",
        "text": "features is of the type object, which is not plain",
        "alone": "must be a group",
        "link": "is a link to somewhere else",
    }
    with Hdf5Store(path) as store:
        assert set(store.ids()) == set(messages)
        for image_id, message in messages.items():
            with pytest.raises(DataError, match=message) as caught:
                store.get(image_id)
            assert f"{path}: image {image_id!r}" in str(caught.value)
    with h5py.File(path, "w") as file:
        file["image_features"], file["image_bb"] = np.ones((2, 1, 3)), np.ones((2, 1, 4))
    with pytest.raises(DataError, match="no dataset 'image_id'"):
        Hdf5Store(path)
    with h5py.File(path, "a") as file:
        file["image_id"], file["image_w"], file["image_h"] = [1, 1], [5, 5], [5, 5]
    with Hdf5Store(path) as store:
        assert list(store.ids()) == []
        with pytest.raises(DataError, match="no image '1': record 0 and record 1 are both of it"):
            store.get("1")
    with h5py.File(path, "a") as file:
        file["image_id"][:] = [1, 2]
        file["pos_boxes"] = [[1, 0], [0, 1]]
    with Hdf5Store(path) as store, pytest.raises(DataError, match=r"\[1, 0\] bound no rows"):
        store.get("1")
    path.write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="truncated or no HDF5 file"):
        Hdf5Store(path)


def test_concap_in_order(write_store, make_regions):
    items = make_regions(5)
    with ConcapStore(Path(write_store("concap", items).removeprefix("concap:"))) as store:
        captions = [(image_id, f"caption of {image_id}") for image_id in items]
        assert list(store.captions()) == captions and len(store) == 5
        for (image_id, caption, regions), expected in zip(store.records(), captions, strict=True):
            assert (image_id, caption) == expected
            for name in ("boxes", "features", "class_probs"):
                np.testing.assert_array_equal(
                    getattr(regions, name), getattr(items[image_id], name), strict=True
                )


def test_captions_are_found_without_reading_arrays(write_store, make_regions, monkeypatch):
    read, total = LmdbFile.read, []
    monkeypatch.setattr(
        LmdbFile,
        "read",
        lambda self, start, end: total.append(end - start) or read(self, start, end),
    )
    spec = write_store("concap", make_regions(5, dim=2000))
    with ConcapStore(Path(spec.removeprefix("concap:"))) as store:
        assert len(list(store.captions())) == 5
        assert sum(total) < 5 * 500
        store.get("11")
        assert sum(total) > 8000


def test_concap_records_are_described_when_wrong(tmp_path, make_regions, write_lmdb, pack_array):
    msgpack = pytest.importorskip("msgpack")
    regions = make_regions(1, rows=2)["11"]

    def packed(array, **changes):
        return pack_array(array) | {key.encode(): value for key, value in changes.items()}

    boxes, features = packed(regions.boxes), packed(regions.features)
    good = [features, packed(regions.class_probs), boxes, 2, 120, 100, 17, "caption"]
    evil = pickle.dumps(os.system)

    def changed(place, value):
        return [*good[:place], value, *good[place + 1 :]]

    cases = {
        "pickled": (changed(0, packed(regions.boxes, type="|O", kind=b"O", data=evil)), "refused"),
        "object": (changed(0, packed(regions.features, type="|O", data=evil)), "does not fit"),
        "fields": (changed(0, packed(regions.features, type="V8")), "the dtype"),
        "shape": (changed(0, packed(regions.features, shape=[1 << 39, 5])), "does not fit"),
        "negative": (changed(0, packed(regions.features, shape=[-1])), "no tuple of sizes"),
        "no shape": (changed(0, {b"nd": True, b"type": "<f4", b"data": b""}), "without dtype"),
        "a map": (changed(0, {b"x": 1}), "a map of x is no array"),
        "extension": (changed(0, msgpack.ExtType(5, b"abcd")), "extension type"),
        "time": (changed(0, msgpack.Timestamp(1)), "extension type"),
        "number key": (changed(0, {1: 2}), "key that is no text"),
        "deep": (changed(0, [[[[[[[[[1]]]]]]]]]), "nested deeper"),
        "more": (changed(3, 3), "for 3 regions"),
        "none": (changed(3, None), "NoneType|cannot"),
        "text": (changed(4, "tall"), "height must be a number"),
        "no id": (changed(6, None), "image id None and caption"),
        "no caption": (changed(7, 5), "caption 5 must be text"),
        "short": (good[:7], "must be a list of 8"),
    }  # fmt: skip
    for name, (record, message) in cases.items():
        path = tmp_path / name.replace(" ", "_")
        write_lmdb(path, {b"00000000": msgpack.packb(record, use_bin_type=True)})
        with ConcapStore(path) as store, pytest.raises(DataError, match=message) as caught:
            list(store.records())
        assert f"{path}: record 00000000" in str(caught.value), name
    raw = {
        b"\x91" * 100: "nested deeper",
        b"\xdd\xff\xff\xff\xff": "bytes wanted",
        b"\xc6\xff\xff\xff\xff": "4294967295 bytes wanted",
        b"\xc1": "unknown byte 0xc1",
        b"\x01\x01": "1 bytes follow",
    }
    for number, (content, message) in enumerate(raw.items()):
        path = tmp_path / f"raw{number}"
        write_lmdb(path, {b"00000000": content})
        with ConcapStore(path) as store, pytest.raises(DataError, match=message):
            store.get("1")


def test_concap_padding_is_cut_and_ids_are_unique(tmp_path, make_regions, write_lmdb, pack_array):
    msgpack = pytest.importorskip("msgpack")
    regions = make_regions(1, rows=3)["11"]
    arrays = [pack_array(x) for x in (regions.features, regions.class_probs, regions.boxes)]
    texts = [{key.decode(): value for key, value in array.items()} for array in arrays]
    records = [
        msgpack.packb([*kind, 2, 120, 100, "a", "caption"], use_bin_type=True)
        for kind in (arrays, texts)
    ]
    for number, record in enumerate(records):
        with ConcapStore(write_lmdb(tmp_path / str(number), {b"0": record})) as store:
            np.testing.assert_array_equal(store.get("a").features, regions.features[:2])
            assert len(store.get("a").boxes) == len(store.get("a").class_probs) == 2
    path = write_lmdb(tmp_path / "both", {b"0": records[0], b"1": records[1]})
    with (
        ConcapStore(path) as store,
        pytest.raises(DataError, match="record 0 and record 1 are both of it"),
    ):
        store.get("a")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_records_keep_their_type(tmp_path, make_regions, dtype):
    items = make_regions()
    write_shard(tmp_path, 0, 1, items, dtype=dtype)
    with RecordStore(tmp_path) as store:
        for image_id, regions in items.items():
            got = store.get(image_id)
            np.testing.assert_array_equal(got.boxes, regions.boxes, strict=True)
            np.testing.assert_array_equal(got.features, regions.features.astype(dtype), strict=True)
            probs = regions.class_probs.astype(dtype).astype(np.float32)
            np.testing.assert_array_equal(got.class_probs, probs, strict=True)
            check_regions(got, store="x", image_id=image_id, feature_dim=5)


def test_shards_are_resumed(tmp_path, make_regions):
    items = make_regions()
    folder = tmp_path / "new" / "store"
    assert missing_shards(folder, 3) == [0, 1, 2]
    write_shard(folder, 1, 3, items)
    assert missing_shards(folder, 3) == [0, 2]
    with pytest.raises(DataError, match="holds shards of 3, not of 4"):
        missing_shards(folder, 4)
    with pytest.raises(DataError, match="2 of 3 shards are missing: 0, 2"):
        RecordStore(folder)
    (folder / ".regions-00000-of-00003.safetensors.1.partial").write_bytes(b"interrupted")
    write_shard(folder, 0, 3, {})
    unlike = Regions(np.ones((2, 4)), np.ones((1, 3)), 5, 5)
    inf = Regions(np.ones((1, 4)), np.full((1, 3), 70_000.0), 5, 5)
    for bad, message in (
        ({"a/b": items["11"]}, "must not be empty or contain '/'"),
        ({"": items["11"]}, "must not be empty"),
        ({"x": inf}, "'x': features are not finite as float16"),
        ({"x": unlike}, "'x': 1 features, 2 boxes"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shard(folder, 2, 3, bad)
        assert missing_shards(folder, 3) == [2]
    write_shard(folder, 2, 3, {"v7w_1 é\n": items["11"]})
    assert missing_shards(folder, 3) == []
    with RecordStore(folder) as store:
        assert len(store) == 4 and "v7w_1 é\n" in store
    write_shard(folder, 2, 3, {"11": items["11"]})
    with pytest.raises(DataError, match="image '11' is in another shard, too"):
        RecordStore(folder)
    for index, count in ((3, 3), (-1, 3), (0, 0), (0, 100_000)):
        with pytest.raises(ValueError, match=f"shard {index} of {count}"):
            shard_path(folder, index, count)


def test_a_shard_that_cannot_be_written_leaves_the_old_one(tmp_path, make_regions, monkeypatch):
    path = write_shard(tmp_path, 0, 1, make_regions())
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path, 0, 1, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_shards_of_others_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = shard_path(tmp_path, 0, 1)
    ours = {"format": "twelve_in_one regions, version 1"}
    boxes, size = np.ones((1, 4), np.float32), np.array([5, 6], np.int32)
    good = {"1/boxes": boxes, "1/features": boxes, "1/size": size}
    for tensors, metadata, message in (
        (good, None, "not 'twelve_in_one regions, version 1'"),
        (good, {"format": "twelve_in_one regions, version 2"}, "version 1', but .*version 2"),
        ({"1/boxes": boxes}, ours, "image '1' has boxes"),
        (good | {"1/x": boxes}, ours, "image '1' has boxes, features, size, x"),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(DataError, match=message):
            RecordStore(tmp_path)
    save_file(good | {"1/size": np.ones(3, np.int32)}, path, metadata=ours)
    with RecordStore(tmp_path) as store, pytest.raises(DataError, match="has shape \\(3,\\)"):
        store.get("1")
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(DataError, match="truncated or no safetensors file"):
        RecordStore(tmp_path)
