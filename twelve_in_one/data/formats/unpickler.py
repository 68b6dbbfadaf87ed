"""The standard library's unpickler, restricted to plain data.

Names are looked up in a table in this file, and its entries for names of numpy are ours:
numpy itself trusts a pickled shape and reads past the end of a list. Opcodes that only classes
need are refused. The library's Python version is extended, since the C version has no place for
the three bounds that even plain data needs: it hashes nested tuples until the stack
overflows, and allocates for any memo index or byte-array length that it reads.
"""

import dataclasses
import functools
import io
import math
import mmap
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Types that are values by themselves and can be hashed in a bounded time.
SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})
_MAX_KEY_PARTS = 16
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,4}|O[48]?)")


class Refused(Exception):
    """A refused request of the file."""


class RefusedName(Refused):
    """A class or function that is not admitted; the message is its name."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Function:
    """The meaning of an admitted name; `call` is None if it is only mentioned."""

    name: str
    call: Callable[..., Any] | None

    def __call__(self, *arguments: Any) -> Any:
        if self.call is None:
            raise TypeError(f"{self.name} cannot be called")
        return self.call(*arguments)


@dataclasses.dataclass(eq=False, slots=True)
class _Dtype:
    code: str

    def build(self, state: Any) -> None:
        order, *composed = state[1:5]
        if order not in ("<", ">", "|", "=") or composed != [None, None, None]:
            raise Refused(f"a composed dtype made of {self.code}")
        self.code = order + self.code.lstrip("<>|=")


@dataclasses.dataclass(eq=False, slots=True)
class Array:
    """An array, which numpy announces empty and fills with a later opcode.

    Numpy arrays are never on the unpickler's stack: a file could set their items and state.
    """

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if fortran not in (True, False):
            raise TypeError("an array that is in neither order")
        order = "F" if fortran else "C"
        self.value = make_array(_bytes(content), _code(dtype), shape, order)


Names = Mapping[str, Callable[..., Any] | None]


def unpickle(
    data: bytes, names: Names | None = None, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Contents of a pickle.

    Arrays stay as `Array`, and values may be nested to any depth or within themselves.

    Args:
      data: the pickle.
      names: admitted beside those of plain data: full name -> what calling it does. What is made
        so may have a method `build` that takes its state.
      persistent: makes an object from its persistent id; None refuses them.

    Raises:
      Refused: it asks for something other than plain data and `names`.
      Exception: it is damaged: nearly any error except those of the operating system.
    """
    return unpickle_next(io.BytesIO(data), names, persistent)


def unpickle_next(
    stream: io.BytesIO | mmap.mmap,
    names: Names | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Like `unpickle`, of the pickle at a stream's position, which then is at its end.

    The stream must not allocate more than it holds, however much it is asked to read.
    """
    start = stream.tell()
    unpickler = _Unpickler(stream, encoding="latin-1")
    unpickler.admitted = _ADMITTED | (names or {})
    unpickler.persistent = persistent
    value = unpickler.load()
    size = stream.tell() - start
    if any(index > size for index in unpickler.memo):
        raise ValueError(f"a memo index of {max(unpickler.memo)} in {size} bytes")
    return value


class _Unpickler(pickle._Unpickler):
    admitted: Names
    persistent: Callable[[Any], Any] | None

    def find_class(self, module: str, name: str) -> Function:
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full not in self.admitted:
            raise RefusedName(full[:120].encode("unicode_escape").decode())
        return Function(full, self.admitted[full])

    def persistent_load(self, name: Any) -> Any:
        if self.persistent is None:
            raise Refused("a persistent object" + (f" {name!r:.60}" if name else ""))
        return self.persistent(name)

    def get_extension(self, code: int) -> None:
        raise Refused(f"the registered class {code}")

    def load_build(self) -> None:
        state = self.stack.pop()
        if not hasattr(type(self.stack[-1]), "build"):
            kind = type(self.stack[-1]).__name__.strip("_").lower()
            raise Refused(f"to change the state of a {kind}")
        self.stack[-1].build(state)

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # never allocates more than there is

    def refuse(self, name: str) -> None:
        raise Refused(f"to run opcode {name}")


def _opcodes() -> dict[int, Callable[[Any], None]]:
    """The action of each opcode of the protocols up to 5."""
    table = {}
    for opcode in pickletools.opcodes:
        code, name = ord(opcode.code), opcode.name
        if name in ("OBJ", "NEWOBJ", "NEWOBJ_EX", "NEXT_BUFFER", "READONLY_BUFFER"):
            table[code] = functools.partial(_Unpickler.refuse, name=name)
        elif name in _HASHED:
            table[code] = _hashing(_Unpickler.dispatch[code], _HASHED[name])
        elif opcode.proto <= 5:
            table[code] = _Unpickler.dispatch[code]
    return table | {
        pickle.BUILD[0]: _Unpickler.load_build,
        pickle.BYTEARRAY8[0]: _Unpickler.load_bytearray8,
    }


# Opcodes that hash, and which of the values since the last mark they hash.
_HASHED = {
    "SETITEM": slice(-2, -1),
    "SETITEMS": slice(0, None, 2),
    "DICT": slice(0, None, 2),
    "ADDITEMS": slice(None),
    "FROZENSET": slice(None),
}


def _hashing(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    def checked(self: _Unpickler) -> None:
        for key in self.stack[keys]:
            _key(key)
        load(self)

    return checked


def _key(value: Any) -> Any:
    """`value`, if hashing it takes a bounded time: nested tuples can take all memory or forever."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is tuple and len(value) <= _MAX_KEY_PARTS and all(type(v) in SCALARS for v in value):
        return value
    raise TypeError(f"a {kind.__name__} cannot be a key here")


_Unpickler.dispatch = _opcodes()


# Names that pickles may call.


def make_array(content: Any, dtype: str, shape: Any, order: str) -> np.ndarray:
    """An array over `content`, which must fit its dtype and shape exactly; maybe read-only.

    Args:
      content: bytes, or a list for the dtype of objects.
      dtype: a plain type as numpy writes it, such as "<f4" or "|O".
      shape: a tuple of sizes, or one size.
      order: "C" or "F".

    Raises:
      Refused: the dtype is not plain.
      ValueError: something does not fit.
    """
    if type(shape) is int:
        shape = (shape,)
    if type(shape) is not tuple or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise ValueError("a shape that is no tuple of sizes")
    if order not in ("C", "F"):
        raise ValueError("an array that is in neither order")
    made, count = numpy_dtype(dtype), math.prod(shape)
    if made.hasobject:
        if type(content) is not list or len(content) != count:
            raise ValueError(f"shape {shape} does not fit the objects that are there")
        flat = np.empty(count, object)
        for index, value in enumerate(content):
            flat[index] = value
        return flat.reshape(shape)  # numpy lists objects in this order, whatever `order` says
    if type(content) not in (bytes, bytearray) or len(content) != count * made.itemsize:
        size = len(content) if isinstance(content, bytes | bytearray) else "no"
        raise ValueError(f"shape {shape} of {made} does not fit {size} bytes")
    return np.frombuffer(content, made).reshape(shape, order=order)


def numpy_dtype(code: Any) -> np.dtype:
    """The dtype that numpy writes as `code`.

    Raises:
      Refused: not plain numbers, text, bytes or objects.
    """
    if type(code) is not str or not _DTYPE.fullmatch(code):
        raise Refused(f"the dtype {code!r:.60}" if type(code) is str else "a composed dtype")
    return np.dtype(object) if "O" in code else np.dtype(code)


def _plain_array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if "O" in _code(dtype):
        raise Refused("objects in a scalar or a buffer")
    return make_array(_bytes(content), _code(dtype), shape, order)


def _bytes(content: Any) -> Any:
    """Bytes of Python 2 come as text."""
    return content.encode("latin-1") if type(content) is str else content


def _code(dtype: Any) -> str:
    if type(dtype) is not _Dtype:
        raise TypeError(f"a {type(dtype).__name__} where a dtype belongs")
    return dtype.code


def _make_dtype(code: Any, *flags: Any) -> _Dtype:
    numpy_dtype(code)
    return _Dtype(code)


def _reconstruct(kind: Any, *_: Any) -> Array:
    if type(kind) is not Function or kind.name != "numpy.ndarray":
        raise TypeError("numpy reconstructs arrays only")
    return Array()


def _scalar(dtype: Any, content: Any) -> Any:
    return _plain_array(content, dtype, (), "C").item()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Array:
    if order != "K" or axes is None:
        return Array(_plain_array(content, dtype, shape, order))
    array = _plain_array(content, dtype, shape, "C")
    whole = type(axes) in (tuple, list) and all(type(axis) is int for axis in axes)
    if not whole or sorted(axes) != list(range(array.ndim)):
        raise ValueError("axes that are not those of the array")
    return Array(array.transpose(axes))


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocols before 3 write bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise TypeError("only text in latin1 can be bytes")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _set(items: list[Any] | tuple[Any, ...] = ()) -> set[Any]:
    return set(map(_key, items))


def _frozen_set(items: list[Any] | tuple[Any, ...] = ()) -> frozenset[Any]:
    return frozenset(map(_key, items))


def _complex(real: float, imaginary: float) -> complex:
    if type(real) not in (int, float) or type(imaginary) not in (int, float):
        raise TypeError("a complex number of something else than numbers")
    return complex(real, imaginary)


_RENAMED = {
    "__builtin__": "builtins",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}
_ADMITTED: dict[str, Callable[..., Any] | None] = {
    "_codecs.encode": _encode,
    "builtins.bytes": _no_bytes,
    "builtins.complex": _complex,
    "builtins.frozenset": _frozen_set,
    "builtins.set": _set,
    "numpy.dtype": _make_dtype,
    "numpy.ndarray": None,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
}
