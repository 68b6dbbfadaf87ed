"""Writes stores of every format with the libraries with which people write them."""

import base64
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from twelve_in_one.data.regions.records import write_shard
from twelve_in_one.data.stored.records import Regions


@pytest.fixture
def make_regions() -> Callable[..., dict[str, Regions]]:
    """Makes regions of images "11", "12", ... that pass all checks."""

    def make(count: int = 3, dim: int = 5, rows: int | None = None) -> dict[str, Regions]:
        rng = np.random.default_rng(count)
        items = {}
        for number in range(count):
            size = rows or number % 3 + 1
            low, high = rng.uniform(0, 40, (size, 2)), rng.uniform(50, 100, (size, 2))
            features = rng.normal(size=(size, dim)).astype(np.float32)
            probs = rng.dirichlet(np.ones(4), size).astype(np.float32)
            boxes = np.concatenate([low, high], axis=1).astype(np.float32)
            items[str(11 + number)] = Regions(boxes, features, 100 + number, 120, probs)
        return items

    return make


@pytest.fixture
def write_lmdb() -> Callable[..., Path]:
    """Writes an LMDB environment of one database: `write_lmdb(path, values, subdir=True)`."""
    return _write_lmdb


@pytest.fixture
def pack_array() -> Callable[[np.ndarray], dict[bytes, object]]:
    """Makes of an array what msgpack-numpy makes of it."""
    return _pack_array


@pytest.fixture
def write_store(tmp_path) -> Callable[..., str]:
    """Writes a store: `write_store(format, items)`; returns what `open_store` takes."""

    def write(kind: str, items: Mapping[str, Regions]) -> str:
        name, _, variant = kind.partition(" ")
        return _WRITERS[name](tmp_path, items, variant)

    return write


def _lmdb(folder: Path, items: Mapping[str, Regions], variant: str) -> str:
    values = {}
    for image_id, regions in items.items():
        record = {
            "image_id": image_id,
            "image_h": regions.height,
            "image_w": regions.width,
            "num_boxes": 77,
            "boxes": regions.boxes,
            "features": regions.features,
        }
        if variant == "base64":
            record["num_boxes"] = len(regions.boxes)
            record |= {name: _base64(record[name]) for name in ("boxes", "features")}
        values[image_id.encode()] = pickle.dumps(record)
    if not variant:  # the list is not to be relied on
        values[b"keys"] = pickle.dumps([b"11", b"no such image"])
    return "lmdb:" + str(_write_lmdb(folder / "a.lmdb", values, subdir=variant != "file"))


def _write_lmdb(path: Path, values: Mapping[bytes, bytes], *, subdir: bool = True) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with (
        lmdb.open(str(path), map_size=1 << 26, subdir=subdir, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)
    return path


def _base64(array: np.ndarray) -> bytes:
    return base64.b64encode(array.tobytes())


def _npy(folder: Path, items: Mapping[str, Regions], variant: str) -> str:
    folder = folder / "npy"
    folder.mkdir()
    for image_id, regions in items.items():
        if variant == "npz":  # OpenVQA has the regions in columns
            np.savez_compressed(
                folder / f"{image_id}.npz",
                x=regions.features if int(image_id) % 2 else regions.features.T,
                bbox=regions.boxes,
                image_w=regions.width,
                image_h=regions.height,
                info={"image_id": image_id},
            )
            continue
        record = {
            "bbox": regions.boxes,
            "num_boxes": 1,
            "objects": np.zeros(2, int),
            "image_width": regions.width,
            "image_height": regions.height,
            "cls_prob": regions.class_probs,
            "image_id": image_id,
            "features": regions.features,
        }
        name = f"COCO_val2014_{int(image_id):012d}"
        if variant == "pairs":
            np.save(folder / f"{name}.npy", record.pop("features"))
            name += "_info"
        np.save(folder / f"{name}.npy", np.array(record, object))
    return f"npy:{folder}"


def _tsv(folder: Path, items: Mapping[str, Regions], variant: str) -> str:
    def encode(array: np.ndarray) -> str:
        return _base64(array.astype(np.float64) if variant == "float64" else array).decode()

    lines = []
    for image_id, regions in items.items():
        end = [str(len(regions.boxes)), encode(regions.boxes), encode(regions.features)]
        if variant == "lxmert":
            start = [f"COCO_val2014_{int(image_id):012d}", str(regions.height), str(regions.width)]
            start += [encode(np.zeros(len(regions.boxes)))] * 4
        else:
            start = [image_id, str(regions.width), str(regions.height)]
        lines.append("\t".join(start + end) + ("\r\n" if variant == "original" else "\n"))
    path = folder / "regions.tsv"
    path.write_text("".join(lines), newline="")
    return f"tsv:{path}"


def _hdf5(folder: Path, items: Mapping[str, Regions], variant: str) -> str:
    h5py = pytest.importorskip("h5py")
    path = folder / "regions.h5"
    with h5py.File(path, "w") as file:
        if variant in ("groups", "attributes"):
            for image_id, regions in items.items():
                group = file.create_group(image_id)
                group["boxes"], group["features"] = regions.boxes, regions.features
                group["class_probs"] = regions.class_probs
                place = group if variant == "groups" else group.attrs
                place["image_w"], place["image_h"] = regions.width, regions.height
            return f"hdf5:{path}"
        rows = list(items.values())
        join = np.stack if variant == "flat" else np.concatenate
        file["image_features"] = join([regions.features for regions in rows])
        file["image_bb"] = join([regions.boxes for regions in rows])
        if variant == "flat":
            file["image_id"] = [int(image_id) for image_id in items]
        else:
            ends = np.cumsum([len(regions.boxes) for regions in rows])
            file["pos_boxes"] = np.stack([np.append(0, ends[:-1]), ends], axis=1)
            file["image_id"] = np.array([f"{int(image_id):012d}" for image_id in items], "S")
        file["image_w"] = [regions.width for regions in rows]
        file["image_h"] = [regions.height for regions in rows]
    return f"hdf5:{path}"


def _pack_array(array: np.ndarray) -> dict[bytes, object]:
    """An array as msgpack-numpy packs it."""
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": list(array.shape),
        b"data": array.tobytes(),
    }


def _concap(folder: Path, items: Mapping[str, Regions], _: str) -> str:
    msgpack = pytest.importorskip("msgpack")
    values = {b"__keys__": msgpack.packb([b"00000000"])}
    for number, (image_id, regions) in enumerate(items.items()):
        arrays = [_pack_array(x) for x in (regions.features, regions.class_probs, regions.boxes)]
        height = {b"nd": False, b"type": "<i8", b"data": np.int64(regions.height).tobytes()}
        sizes = [len(regions.boxes), height, regions.width]
        record = [*arrays, *sizes, image_id, f"caption of {image_id}"]
        values[b"%08d" % number] = msgpack.packb(record, use_bin_type=True)
    return f"concap:{_write_lmdb(folder / 'concap.lmdb', values, subdir=False)}"


def _records(folder: Path, items: Mapping[str, Regions], _: str) -> str:
    folder = folder / "records"
    for index in range(2):
        part = dict(list(items.items())[index::2])
        write_shard(folder, index, 2, part, dtype=np.float32)
    return f"records:{folder}"


_WRITERS = {
    "lmdb": _lmdb,
    "npy": _npy,
    "tsv": _tsv,
    "hdf5": _hdf5,
    "concap": _concap,
    "records": _records,
}
