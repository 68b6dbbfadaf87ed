"""Reads strangers' pickles, .npy and .npz files without running anything that they ask for.

The released code keeps labels, referring expressions and region features in pickles. This folder's
`unpickler` reads them; it imports nothing and calls only its own functions, so a hostile file can
at worst be refused. It admits None, numbers, text, bytes,
the built-in containers, and numpy arrays and scalars of plain types as numpy 1 and 2 write them.
Numpy scalars become Python's; arrays may be read-only.
"""

import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data.formats.files import shorten
from twelve_in_one.data.formats.unpickler import (
    SCALARS,
    Array,
    Refused,
    make_array,
    numpy_dtype,
    unpickle,
)
from twelve_in_one.data.stored.records import DataError

# Beyond the depth and sharing in any real file: such values cost little to store, but code that
# walks through them overflows the stack or never returns.
_MAX_DEPTH = 64
_MAX_SHARING = 24
_FREE_VISITS = 10_000
_MAX_HEADER_BYTES = 1 << 16
_MAX_MEMBER_BYTES = 1 << 28

_NPY_MAGIC = b"\x93NUMPY"
# Numpy always writes the three keys in this order; integers of Python 2 end in L.
_NPY_HEADER = re.compile(
    r"\{'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \(([\dL, ]*)\), *\} *\n?"
)
_LEAVES = SCALARS | {bytearray, np.ndarray}
# Errors of the unpickler and numpy about invalid data.
_DAMAGE = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, EOFError,
    RecursionError, MemoryError, pickle.UnpicklingError, struct.error, Warning,
)  # fmt: skip
# Further errors of zipfile.
_ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, RuntimeError)


def load(path: str | os.PathLike[str]) -> Any:
    """The value in a pickle file.

    Raises:
      DataError: missing, truncated, not a pickle, nested too deep, or asking for any class or
        function other than those of plain data; names the file and the request.
    """
    return loads(_read(Path(path)), str(path))


def loads(data: bytes, where: str) -> Any:
    """The value in `data`; `where` begins the error's message. See `load`."""
    try:
        return _Plain().walk(unpickle(data), 0)
    except Refused as error:
        raise DataError(
            f"{where}: wants {error}, which is not plain data: refused, nothing was executed"
        ) from error
    except _DAMAGE as error:
        raise DataError(f"{where}: damaged or no pickle: {_describe(error)}") from error


def load_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a .npy file; arrays of objects are read like pickles.

    Raises:
      DataError: missing, not a .npy file, a compound dtype, a shape that does not fit the file's
        size, or see `load`.
    """
    return _array(_read(Path(path)), str(path))


def load_npz(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays among `names` that a .npz file has; others are not read.

    Raises:
      DataError: missing, damaged, an array of more than a quarter GiB, or see `load_npy`.
    """
    data = _read(Path(path))
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            there = {name: f"{name}.npy" for name in names if f"{name}.npy" in archive.namelist()}
            for name, member in there.items():
                with archive.open(member) as stream:
                    content = stream.read(_MAX_MEMBER_BYTES + 1)
                if len(content) > _MAX_MEMBER_BYTES:
                    raise ValueError(f"{member} has more than {_MAX_MEMBER_BYTES} bytes")
                arrays[name] = _array(content, f"{path}: {member}")
    except DataError:
        raise
    except (*_DAMAGE, *_ZIP_DAMAGE) as error:
        raise DataError(f"{path}: damaged or no .npz file: {_describe(error)}") from error
    return arrays


def _array(data: bytes, where: str) -> np.ndarray:
    try:
        dtype, shape, order, start = _npy_header(data)
        content = data[start:]
        if dtype.hasobject:
            value = loads(content, where)
            if type(value) is not np.ndarray or value.shape != shape:
                raise ValueError(f"the header says objects {shape}, the pickle disagrees")
            return value
        return make_array(content, dtype.str, shape, order)
    except DataError:
        raise
    except Refused as error:
        raise DataError(f"{where}: holds {error}; only plain types can be read") from error
    except _DAMAGE as error:
        raise DataError(f"{where}: damaged or no .npy file: {_describe(error)}") from error


class _Plain:
    """Replaces placeholders by their arrays, within a number of visits and a depth."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.budget = _FREE_VISITS

    def walk(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is Array:
            value, kind = value.value, np.ndarray
            if value is None:
                raise ValueError("an array that is never filled")
        if kind is np.ndarray and value.dtype.hasobject:
            flat = value.reshape(-1)
            for index, inner in enumerate(self._each(value, flat, depth)):
                flat[index] = inner
            return value
        if kind in _LEAVES:
            return value
        if kind is list:
            value[:] = self._each(value, value, depth)
        elif kind is dict:
            value.update(zip(value, self._each(value, list(value.values()), depth), strict=True))
        elif kind is tuple:
            return tuple(self._each(value, value, depth))
        elif kind not in (set, frozenset):
            raise Refused(f"to leave a {kind.__name__.strip('_').lower()} as a value")
        return value

    def _each(self, holder: Any, values: Any, depth: int) -> list[Any]:
        if id(holder) not in self.seen:
            self.seen.add(id(holder))
            self.budget += _MAX_SHARING * len(values)
        self.budget -= len(values)
        if depth >= _MAX_DEPTH or self.budget < 0:
            raise ValueError(f"nested deeper than {_MAX_DEPTH}, or in itself")
        return [v if type(v) in SCALARS else self.walk(v, depth + 1) for v in values]


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read: {_describe(error)}") from error


def _npy_header(data: bytes) -> tuple[np.dtype, tuple[int, ...], str, int]:
    """Dtype, shape, "C" or "F", and start of the content."""
    if data[:6] != _NPY_MAGIC or data[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise ValueError(f"begins with {data[:8]!r}")
    length = struct.Struct("<H" if data[6] == 1 else "<I")
    (size,) = length.unpack_from(data, 8)
    start = 8 + length.size
    if size > min(_MAX_HEADER_BYTES, len(data) - start):
        raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
    text = data[start : start + size].decode("latin-1")
    parts = _NPY_HEADER.fullmatch(text)
    if parts is None:
        raise ValueError(f"the header {shorten(text, 120)} describes no array of a plain type")
    shape = tuple(int(n) for n in parts[3].replace("L", "").replace(",", " ").split())
    return numpy_dtype(parts[1]), shape, "F" if parts[2] == "True" else "C", start + size


def _describe(error: BaseException) -> str:
    return shorten(str(error) or type(error).__name__, 200)
