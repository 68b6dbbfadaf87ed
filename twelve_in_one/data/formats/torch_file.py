"""Reads the files that `torch.save` writes, without PyTorch and without running anything of them.

Both formats: the zip archive of PyTorch 1.6 and later, and the legacy one before it, a row of
pickles followed by the numbers. Pickles are read by the restricted `unpickler`, to whose plain data
this module adds tensors and the few names that training scripts save beside them. Numbers are
mapped when they are read, never copied on opening.
"""

import contextlib
import dataclasses
import functools
import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from twelve_in_one.data.formats.unpickler import (
    Function,
    Refused,
    RefusedName,
    unpickle,
    unpickle_next,
)

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER, _LENGTHS_AT = 30, 26  # of a member of a zip archive, in bytes
# PyTorch's names of types -> (name of the storage's class, bytes of a number)
_TYPES = {
    "float64": ("Double", 8), "float32": ("Float", 4), "float16": ("Half", 2),
    "bfloat16": ("BFloat16", 2), "int64": ("Long", 8), "int32": ("Int", 4), "int16": ("Short", 2),
    "int8": ("Char", 1), "uint8": ("Byte", 1), "bool": ("Bool", 1),
    "complex64": ("ComplexFloat", 8), "complex128": ("ComplexDouble", 16),
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": dtype for dtype, (name, _) in _TYPES.items()}


@dataclasses.dataclass(eq=False, slots=True)
class _Storage:
    """Numbers in a file: those from byte `start`, which is known after the pickle."""

    path: Path
    key: str
    dtype: str
    size: int
    start: int = -1

    @property
    def num_bytes(self) -> int:
        return self.size * _TYPES[self.dtype][1]


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A dense tensor in a file.

    Attributes:
      storage: the numbers, which it may share with others.
      offset: of its first number.
      shape: sizes.
      strides: in numbers, as PyTorch counts them.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """PyTorch's name of the type, such as "float32"."""
        return self.storage.dtype

    def read(self) -> np.ndarray:
        """Its numbers, read-only, mapped from the file; bfloat16 needs JAX's extension of NumPy."""
        dtype = np.dtype(self.dtype)
        span = _span(self.shape, self.strides)
        if not span:
            return np.zeros(self.shape, dtype)
        start = self.storage.start + self.offset * dtype.itemsize
        # Mapped anew for each tensor: one map would keep every page that was touched.
        flat = np.memmap(self.storage.path, dtype, mode="r", offset=start, shape=(span,))
        steps = [step * dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Other:
    """Something of PyTorch that is no dense tensor; `name` says what."""

    name: str


class _Dict(dict):
    """An ordered dictionary; state dicts of modules carry attributes, which are not needed."""

    def build(self, state: Any) -> None:
        pass


def load(path: Path) -> Any:
    """The contents of a file: plain data, in which tensors are `Tensor`.

    Raises:
      ValueError: truncated, in neither format, of another byte order, or asking for something that
        is neither plain data nor a tensor; names the file and the request.
      OSError: it cannot be read.
    """
    storages: dict[str, _Storage] = {}
    persistent = functools.partial(_storage, path, storages)
    try:
        with path.open("rb") as file:
            zipped = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC  # PyTorch 1.6 and later
            content = (_read_zip if zipped else _read_legacy)(file, storages, persistent)
            size = file.seek(0, io.SEEK_END)
        for storage in storages.values():
            if not 0 <= storage.start <= size - storage.num_bytes:
                raise ValueError(f"it ends before the {storage.size} numbers of {storage.key}")
        return content
    except OSError:
        raise
    except Refused as error:
        wish = f"to load {error}" if isinstance(error, RefusedName) else str(error)
        raise ValueError(
            f"{path} wants {wish}, which is not a tensor: refused, nothing of it was executed. "
            "Save a bare state dict (model.state_dict()) and convert that"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path} is truncated or not a PyTorch checkpoint: {type(error).__name__}: {reason}"
        ) from error


Storages = Mapping[str, _Storage]
Persistent = Callable[[Any], _Storage]


def _read_zip(file: BinaryIO, storages: Storages, persistent: Persistent) -> Any:
    """The contents; says for each storage where it starts."""
    archive = zipfile.ZipFile(file)
    members = {member.filename: member for member in archive.infolist()}
    (pickled,) = (name for name in members if name.count("/") == 1 and name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise ValueError("compressed, which PyTorch never does")
    order = f"{folder}byteorder"
    _check_order(order not in members or archive.read(order) == b"little")
    content = unpickle(archive.read(pickled), _NAMES, persistent)
    for storage in storages.values():
        member = members[f"{folder}data/{storage.key}"]
        if member.file_size != storage.num_bytes:
            raise ValueError(f"{member.filename} has {member.file_size} bytes")
        file.seek(member.header_offset + _LENGTHS_AT)
        lengths = struct.unpack("<HH", file.read(4))  # of its name and of extra fields
        storage.start = member.header_offset + _LOCAL_HEADER + sum(lengths)
    return content


def _read_legacy(file: BinaryIO, storages: Storages, persistent: Persistent) -> Any:
    """Like `_read_zip`."""
    with _mapped(file) as data:
        if unpickle_next(data) != _LEGACY_MAGIC or unpickle_next(data) != _LEGACY_PROTOCOL:
            raise ValueError("it begins with another number than PyTorch's")
        _check_order(unpickle_next(data)["little_endian"] is True)
        content = unpickle_next(data, _NAMES, persistent)
        for key in unpickle_next(data):
            (size,) = struct.unpack("<q", data.read(8))
            storage = storages[key]
            if size != storage.size:
                raise ValueError(f"{size} numbers are stored where {storage.size} belong")
            storage.start = data.tell()
            data.seek(storage.num_bytes, io.SEEK_CUR)  # an error beyond the end
    return content


@contextlib.contextmanager
def _mapped(file: BinaryIO) -> Iterator[mmap.mmap]:
    """The file as a stream that never allocates more than there is, whatever a pickle asks for."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _check_order(little: bool) -> None:
    if not little:
        raise ValueError("written on a big-endian machine; save it again on another")


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Numbers from the first one of a tensor to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


# Names that pickles of PyTorch may call.


def _storage(path: Path, storages: dict[str, _Storage], pid: Any) -> _Storage:
    tag, kind, key, _, size, *view = pid
    if tag != "storage" or type(kind) is not Function or kind.name not in _STORAGES:
        raise Refused("a persistent object that is no storage")
    if type(key) is not str or type(size) is not int or not 0 <= size < 1 << 40:
        raise ValueError("a storage without a key or a size")
    if any(part is not None for part in view):
        raise Refused("a view of a storage, as only PyTorch 0.1 saved it")
    storage = storages.setdefault(key, _Storage(path, key, _STORAGES[kind.name], size))
    if (storage.dtype, storage.size) != (_STORAGES[kind.name], size):
        raise ValueError(f"storage {key} has two types or sizes")
    return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    if type(storage) is not _Storage or not all(type(n) is int and n >= 0 for n in numbers):
        raise TypeError("a tensor without a storage or with odd sizes")
    span = _span(tuple(shape), tuple(strides))
    if offset + span > storage.size or math.prod(shape) > storage.size:
        raise ValueError(
            f"a tensor {tuple(shape)} beyond the {storage.size} numbers of its storage"
        )
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_: Any) -> Any:
    if type(tensor) not in (Tensor, Other):
        raise TypeError("a parameter that is no tensor")
    return tensor


def _sparse(layout: Any, *_: Any) -> Other:
    return Other(layout if type(layout) is str else "sparse tensor")


def _text(value: Any, *_: Any) -> str:
    if type(value) is not str:
        raise TypeError("no text where a name belongs")
    return value


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    return tuple(sizes) if type(sizes) in (tuple, list) else ()


def _ordered(*pairs: Any) -> _Dict:
    if pairs:
        raise Refused("an ordered dictionary of pairs, as Python 2 saved it")
    return _Dict()


_NAMES: Mapping[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch.serialization._get_layout": _text,
    "torch.Size": _size,
    "torch.device": _text,
    **dict.fromkeys(_STORAGES),
    **{f"torch.{dtype}": None for dtype in _TYPES},
}
