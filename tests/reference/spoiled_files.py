"""Damages small files in the ways in which foreign files are damaged."""

import collections
import copy
import functools
import json
import pickle
from pathlib import Path

import numpy as np

from twelve_in_one.data.stored.records import AnnotationSet, DataError

_VALUES = [
    None,
    True,
    "",
    "x",
    "7.",
    "\ud800",
    -1,
    0,
    1.5,
    2**63,
    1e308,
    float("nan"),
    float("inf"),
]
_DEEP = functools.reduce(lambda inner, _: [inner], range(200), [])
_CONTAINERS = [[], {}, [[]], [None, 1, "a"], {"id": 1}, {"question_id": {}}, _DEEP]
# JSON may contain numbers that Python refuses to write.
_HUGE = "@huge@"


def read_spoiled(read, folder, *names, num=150, blank_texts=True):
    """Results of reading a folder with one file spoiled, each time in another way.

    Args:
      read: makes an `AnnotationSet` of `folder`, which must be consistent.
      folder: of a readable dataset.
      names: files to spoil in turn; by default all.
      num: number of times.
      blank_texts: whether examples may have blank texts.

    Returns:
      Counts of "fine", "skipped" (of records) and "error" (which names the folder).
    """
    paths = [folder / name for name in names] or sorted(p for p in folder.rglob("*") if p.is_file())
    good = {path: path.read_bytes() for path in paths}
    check_consistent(read(folder), blank_texts)
    outcomes = collections.Counter()
    for seed in range(num):
        path = paths[seed % len(paths)]
        path.write_bytes(spoil(good[path], seed))
        try:
            found = read(folder)
        except DataError as error:
            assert str(folder) in str(error)
            outcomes["error"] += 1
        else:
            check_consistent(found, blank_texts)
            outcomes["skipped" if found.skipped else "fine"] += 1
        path.write_bytes(good[path])
    return outcomes


def check_consistent(found, blank_texts=True):
    """Checks that the parts of an `AnnotationSet` fit each other and can be stored."""
    assert isinstance(found, AnnotationSet)
    annotations, images = found.annotations, found.images
    assert len({a.example_id for a in annotations}) == len(annotations)
    pairs = {i for a in annotations for i in found.pairs.get(a.image_id, [a.image_id])}
    assert pairs <= images.keys()
    for a in annotations:
        texts = (a.example_id, a.image_id, a.text, *a.answers)
        assert all(type(text) is str and text.encode() is not None for text in texts)
        assert blank_texts or a.text.strip()
        assert len(a.answers) == len(a.scores) == len(set(a.answers))
        assert all(type(score) is float and 0 <= score <= 1 for score in a.scores)
        assert a.label in (-1, 0, 1, 2)
        if a.choice_ids:
            box_ids = images[a.image_id].box_ids
            assert a.target_id in a.choice_ids and {*a.choice_ids} <= {*box_ids}
    for image_id, image in images.items():
        assert image.image_id == image_id
        assert len(image.boxes) == len(image.box_ids) == len({*image.box_ids})
        np.array([image.width, image.height], np.int32)
        np.array([image.coco_id, *image.box_ids], np.int64)
    for skip in found.skipped:
        assert skip.file.encode() and skip.record.encode() and skip.reason.encode()


def encoded(name, value):
    """A value in the format of the file `name`: a pickle, or JSON."""
    is_pickle = Path(name).suffix in (".p", ".pkl")
    return pickle.dumps(value) if is_pickle else json.dumps(value).encode()


def spoil(data: bytes, seed: int) -> bytes:
    """A copy of the file `data`, damaged in one way: in its bytes, or in one of its values."""
    rng = np.random.default_rng(seed)
    return spoil_bytes(data, rng) if rng.integers(2) else _with_other_value(data, rng)


def spoil_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` truncated, with bytes changed, added or removed, or with a piece moved."""
    place, other = (int(n) for n in rng.integers(0, len(data), 2))
    length = int(rng.choice((1, 8, 300)))
    changed = bytearray(data)
    match rng.integers(7):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + rng.bytes(1 + place % 3) + data[place:]
        case 2:
            return data[:place] + data[other : other + length] + data[place:]
        case 3:
            return data[:place] + data[place + length :]
        case 4:
            changed[place : place + 64] = bytes(len(changed[place : place + 64]))
        case 5:
            changed[place] ^= 1 << int(rng.integers(8))
        case _:
            for each in rng.integers(0, len(data), rng.choice((1, 4, 30))):
                changed[each] = rng.choice((0, 1, 0x7F, 0xFF, rng.integers(256)))
    return bytes(changed)


def _with_other_value(data: bytes, rng: np.random.Generator) -> bytes:
    """JSON, a pickle or JSON lines with one value changed; else (a table) without a part."""
    if data.startswith(b"\x80"):
        return pickle.dumps(_change(pickle.loads(data), rng, 10**5000))
    try:
        return _change_json(data, rng)
    except ValueError:
        pass
    lines = data.splitlines(keepends=True)
    number = int(rng.integers(len(lines)))
    try:
        lines[number] = _change_json(lines[number], rng) + b"\n"
    except ValueError:
        start, end = sorted(rng.integers(0, len(lines[number]), 2))
        lines[number] = lines[number][:start] + lines[number][end:]
    return b"".join(lines)


def _change_json(data: bytes, rng: np.random.Generator) -> bytes:
    changed = _change(json.loads(data), rng, _HUGE)
    return json.dumps(changed).replace(f'"{_HUGE}"', "1" * 5000).encode()


def _change(value, rng: np.random.Generator, huge):
    root = {"root": value}
    container, key = _any_place(root, rng)
    match rng.integers(6):
        case 0 if container is not root:
            del container[key]
        case 1:
            container[key] = huge
        case 2:
            container[key] = copy.deepcopy(_CONTAINERS[rng.integers(len(_CONTAINERS))])
        case 3 if isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        case 3 if container is not root and isinstance(key, str):
            container[key + "x"] = container.pop(key)
        case _:
            container[key] = _VALUES[rng.integers(len(_VALUES))]
    return root["root"]


def _any_place(root: dict, rng: np.random.Generator) -> tuple[dict | list, str | int]:
    places = []
    pending: list = [root]
    while pending:
        container = pending.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            places.append((container, key))
            if isinstance(container[key], dict | list):
                pending.append(container[key])
    return places[rng.integers(len(places))]


def truncate_arrays(folder):
    """Cuts Orbax's array files below `folder` in half, like a full disk or a crash."""
    files = [path for path in folder.rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
