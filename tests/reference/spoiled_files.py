"""Damages small files in the ways in which files of strangers are damaged."""

import json

import numpy as np

_VALUES = [None, True, "", "x", "7.", "\ud800", -1, 0, 1.5, 2**63, 1e308, float("nan")]
_CONTAINERS = [[], {}, [[]], [None], {"id": 1}]
# JSON may hold numbers that Python refuses to write.
_HUGE = "@huge@"


def spoil(data: bytes, seed: int) -> bytes:
    """A copy of the file `data`, damaged in one way; JSON in half of the cases by one value."""
    rng = np.random.default_rng(seed)
    place = int(rng.integers(len(data)))
    match rng.integers(6):
        case 0:
            return data[:place]
        case 1:
            spoiled = np.frombuffer(data, np.uint8).copy()
            places = rng.integers(0, len(data), 1 + place % 4)
            spoiled[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
            return spoiled.tobytes()
        case 2:
            return data[:place] + rng.bytes(1 + place % 3) + data[place:]
        case _:
            return _with_other_value(data, rng)


def _with_other_value(data: bytes, rng: np.random.Generator) -> bytes:
    """JSON or JSON lines with one value deleted or replaced; else (a table) without a part."""
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
    root = {"root": json.loads(data)}
    container, key = _any_place(root, rng)
    match rng.integers(4):
        case 0 if container is not root:
            del container[key]
        case 1:
            container[key] = _HUGE
        case 2:
            container[key] = _CONTAINERS[rng.integers(len(_CONTAINERS))]
        case _:
            container[key] = _VALUES[rng.integers(len(_VALUES))]
    return json.dumps(root["root"]).replace(f'"{_HUGE}"', "1" * 5000).encode()


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
    """Cuts what Orbax wrote of arrays below `folder` in half, as a full disk or a crash does."""
    files = [path for path in folder.rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
