"""Reads the weights in Caffe's files (`.caffemodel`), without Caffe.

A file is one message of protocol buffers: layers with a name and arrays, of which the sizes and
float32 numbers are read. Numbers are mapped, never copied on opening.
"""

import dataclasses
import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Numbers of fields in caffe.proto.
_LAYER, _OLD_LAYER = 100, 2  # of a net
_NAME, _BLOBS = 1, 7  # of a layer
_SIDES, _DATA, _SHAPE, _DOUBLES = (1, 2, 3, 4), 5, 7, 8  # of an array
_DIM = 1  # of a shape
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of fields
_MAX_AXES = 8

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Blob:
    """An array of float32 in a file: `path` from byte `start`."""

    path: Path
    start: int
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Its numbers, read-only, mapped from the file."""
        if not math.prod(self.shape):
            return np.zeros(self.shape, np.float32)
        return np.memmap(self.path, "<f4", mode="r", offset=self.start, shape=self.shape)


def load(path: Path) -> dict[str, tuple[Blob, ...]]:
    """The arrays of each layer that has some, by its name.

    Raises:
      ValueError: truncated, not such a file, of Caffe's oldest format, or two layers of one name;
        names the file.
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _net(data, path)
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is truncated or no .caffemodel: {error}") from error


def _net(data: mmap.mmap, path: Path) -> dict[str, tuple[Blob, ...]]:
    layers: dict[str, tuple[Blob, ...]] = {}
    for number, value in _fields(data, (0, len(data))):
        if number == _OLD_LAYER:
            raise ValueError("of Caffe's first format: upgrade it with upgrade_net_proto_binary")
        if number != _LAYER:
            continue
        name, blobs = "", []
        for inner, part in _fields(data, _span(value)):
            if inner == _NAME:
                name = data[slice(*_span(part))].decode()
            elif inner == _BLOBS:
                blobs.append(_blob(data, _span(part), path))
        if blobs:
            if name in layers:
                raise ValueError(f"two layers {name!r} have arrays")
            layers[name] = tuple(blobs)
    return layers


def _blob(data: mmap.mmap, span: Span, path: Path) -> Blob:
    sides, shape, numbers = [], None, None
    for number, value in _fields(data, span):
        if number in _SIDES:
            sides.append(value)
        elif number == _SHAPE:
            shape = [n for field, n in _dims(data, _span(value)) if field == _DIM]
        elif number == _DATA:
            if numbers is not None:
                raise ValueError("an array in several parts")
            numbers = _span(value)
        elif number == _DOUBLES:
            raise ValueError("an array of float64")
    shape = tuple(sides if shape is None else shape)
    start, end = numbers or (0, 0)
    if len(shape) > _MAX_AXES or 4 * math.prod(shape) != end - start:
        raise ValueError(f"an array of {shape[:_MAX_AXES]} in {end - start} bytes")
    return Blob(path, start, shape)


def _dims(data: mmap.mmap, span: Span) -> Iterator[tuple[int, int]]:
    """Numbers of a shape, one by one or packed."""
    for number, value in _fields(data, span):
        if isinstance(value, int):
            yield number, value
            continue
        at, end = value
        while at < end:
            dim, at = _varint(data, at, end)
            yield number, dim


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Numbers of a message's fields, each with its number, or with the bytes where it lies."""
    at, end = span
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at, end)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at, end)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
        if size > end - at:
            raise ValueError(f"a field of {size} bytes at byte {at}, where {end - at} are left")
        yield number, (at, at + size)
        at += size


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"no whole number ends at byte {at}")


def _span(value: int | Span) -> Span:
    if isinstance(value, int):
        raise ValueError("a number where a text or a message belongs")
    return value
