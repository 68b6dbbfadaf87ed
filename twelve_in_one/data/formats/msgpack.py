"""MessagePack, as far as tensorpack writes it: plain values, and numpy arrays as maps.

Binary parts, which are nearly all of a record, are not read but located, so a pass over
ids and captions touches few pages of the file: 23 MB of 634 with records of 36 regions; the
`msgpack` library has to read all of them. Extension types are refused, and with them anything
that a library would attach to them; so are arrays of objects, which msgpack-numpy pickles.
"""

import dataclasses
import struct
from typing import Any, Protocol

import numpy as np

from twelve_in_one.data.formats.unpickler import Refused, make_array

_MAX_DEPTH = 8
_MAX_KEY_BYTES = 64
_NUMBERS = {
    0xCA: struct.Struct(">f"), 0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"), 0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"), 0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"), 0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"), 0xD3: struct.Struct(">q"),
}  # fmt: skip
# First byte -> bytes that give the length.
_BINARY = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class Source(Protocol):
    """A source of bytes, such as an `LmdbFile`."""

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Binary:
    """Position of a binary part in the source."""

    start: int
    end: int


def unpack(source: Source, start: int, end: int) -> Any:
    """The value between two offsets; binary parts as `Binary`, keys of maps as text.

    Raises:
      ValueError: not MessagePack, truncated, followed by other bytes, nested deeper than 8, or with
        an extension type.
    """
    reader = _Reader(source, start, end)
    value = reader.value(0)
    if reader.position != end:
        raise ValueError(f"{end - reader.position} bytes follow the value")
    return value


def array(source: Source, value: Any) -> np.ndarray:
    """The array that msgpack-numpy stored as a map; also a number or a list as an array.

    Raises:
      ValueError: something else, objects, or a shape that does not fit the bytes.
    """
    if not isinstance(value, dict):
        return np.asarray(value)
    if not {"nd", "type", "data"} <= set(value):
        raise ValueError(f"a map of {', '.join(map(str, value))} is no array")
    kind, dtype, data = value.get("kind"), value["type"], value["data"]
    if isinstance(kind, Binary) and kind.end > kind.start or kind in ("O", "V"):
        raise ValueError("a pickled or composed array, which is not plain data: refused")
    if isinstance(dtype, Binary):
        dtype = source.read(dtype.start, min(dtype.end, dtype.start + _MAX_KEY_BYTES)).decode()
    shape = value.get("shape") if value["nd"] else []
    if not isinstance(data, Binary) or not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError("an array without dtype, shape or bytes")
    try:
        return make_array(source.read(data.start, data.end), dtype, tuple(shape), "C")
    except Refused as error:
        raise ValueError(f"{error}, which is not plain data: refused") from error


class _Reader:
    def __init__(self, source: Source, start: int, end: int):
        self.source, self.position, self.end = source, start, end

    def take(self, size: int) -> bytes:
        return self.source.read(*self.skip(size))

    def skip(self, size: int) -> tuple[int, int]:
        start, stop = self.position, self.position + size
        if stop > self.end:
            raise ValueError(f"{size} bytes wanted, {self.end - start} left")
        self.position = stop
        return start, stop

    def length(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH}")
        (first,) = self.take(1)
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return _NUMBERS[first].unpack(self.take(_NUMBERS[first].size))[0]
        if first in _BINARY:
            return Binary(*self.skip(self.length(_BINARY[first])))
        if 0xA0 <= first < 0xC0 or first in _TEXT:
            size = self.length(_TEXT[first]) if first in _TEXT else first & 0x1F
            return self.take(size).decode("utf-8")
        if 0x90 <= first < 0xA0 or first in _LISTS:
            size = self.length(_LISTS[first]) if first in _LISTS else first & 0x0F
            return [self.value(depth + 1) for _ in range(size)]
        if first < 0x90 or first in _MAPS:
            size = self.length(_MAPS[first]) if first in _MAPS else first & 0x0F
            return {self.key(depth + 1): self.value(depth + 1) for _ in range(size)}
        raise ValueError(f"extension type or unknown byte {first:#x}")

    def key(self, depth: int) -> str:
        key = self.value(depth)
        if isinstance(key, Binary) and key.end - key.start <= _MAX_KEY_BYTES:
            key = self.source.read(key.start, key.end).decode("utf-8")
        if not isinstance(key, str):
            raise ValueError("a key that is no text")
        return key
