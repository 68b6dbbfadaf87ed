"""A machine for the opcodes of pickles that knows plain data only.

It looks no name up, imports nothing and calls only the functions of this file, so the worst that a
hostile pickle can do is to be refused. Arrays are checked before numpy sees them: numpy itself
believes a pickled shape and reads behind the end of a list.
"""

import dataclasses
import math
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

# Types that are values by themselves and can be hashed in a bounded time.
SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})
_MAX_KEY_PARTS = 16
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,4}|O[48]?)")


class Refused(Exception):
    """What the file wants and does not get."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Global:
    """An admitted name, before it is called; `call` is None where it is only mentioned."""

    name: str
    call: Callable[..., Any] | None


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
    """An array that is announced empty and filled by a later opcode, as numpy does it."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if fortran not in (True, False):
            raise TypeError("an array that is in neither order")
        order = "F" if fortran else "C"
        self.value = make_array(_bytes(content), _code(dtype), shape, order)


def interpret(data: bytes) -> tuple[Any, int]:
    """What a pickle holds, and how many opcodes it took.

    Arrays may be left as `Array`, and values may be nested to any depth or in themselves.

    Raises:
      Refused: it wants something else than plain data.
      Exception: it is damaged: nearly any error but those of the operating system.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if name in _ARGUMENT:
            stack.append(argument)
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in _PUT:
            index = len(memo) if argument is None else argument
            if not 0 <= index <= len(data):
                raise ValueError(f"memo index {index} at byte {position} of {len(data)}")
            memo[index] = stack[-1]
        elif name in _GET:
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TO_MARK:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            _TO_MARK[name](stack, items)
        elif name in _STEP:
            _STEP[name](stack)
        elif name == "GLOBAL":
            stack.append(_global(*argument.split(" ", 1)))
        elif name == "POP":
            (marks if marks and marks[-1] == len(stack) else stack).pop()
        elif name == "STOP":
            return stack.pop(), count + 1
        elif name not in ("PROTO", "FRAME"):
            _refuse(name, argument)
    raise ValueError("no end")


def _refuse(name: str, argument: Any) -> None:
    if name == "INST":
        _global(*argument.split(" ", 1))
    if name in ("PERSID", "BINPERSID"):
        raise Refused("a persistent object" + (f" {argument!r:.60}" if argument else ""))
    if name.startswith("EXT"):
        raise Refused(f"the registered class {argument}")
    raise Refused(f"to run opcode {name}")


def _global(module: Any, name: Any) -> _Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a class must be named by text")
    module = _RENAMED.get(module, module)
    full = f"{module}.{name}"
    if full not in _ADMITTED:
        raise Refused(full[:120].encode("unicode_escape").decode())
    return _Global(full, _ADMITTED[full])


def _key(value: Any) -> Any:
    """`value`, if hashing it takes a bounded time: nested tuples can take all memory or forever."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is tuple and len(value) <= _MAX_KEY_PARTS and all(type(v) in SCALARS for v in value):
        return value
    raise TypeError(f"a {kind.__name__} cannot be a key here")


def _top(stack: list[Any], kind: type) -> Any:
    if type(stack[-1]) is not kind:
        raise TypeError(f"a {type(stack[-1]).__name__} where a {kind.__name__} belongs")
    return stack[-1]


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _append(stack: list[Any]) -> None:
    value = stack.pop()
    _top(stack, list).append(value)


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _top(stack, dict)[_key(key)] = value


def _tuple(stack: list[Any], size: int) -> None:
    if len(stack) < size:
        raise IndexError(f"a tuple of {size} from {len(stack)} values")
    stack[-size:] = [tuple(stack[-size:])]


def _stack_global(stack: list[Any]) -> None:
    name, module = stack.pop(), stack.pop()
    stack.append(_global(module, name))


def _reduce(stack: list[Any]) -> None:
    arguments = stack.pop()
    function = _top(stack, _Global)
    if function.call is None or type(arguments) is not tuple:
        raise TypeError(f"{function.name} cannot be called with {type(arguments).__name__}")
    stack[-1] = function.call(*arguments)


def _build(stack: list[Any]) -> None:
    state = stack.pop()
    if type(stack[-1]) not in (_Dtype, Array):
        raise Refused(f"to change the state of a {type(stack[-1]).__name__}")
    stack[-1].build(state)


_ARGUMENT = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TO_MARK: dict[str, Callable[[list[Any], list[Any]], None]] = {
    "LIST": lambda stack, items: stack.append(items),
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "DICT": lambda stack, items: stack.append(_pairs(items)),
    "FROZENSET": lambda stack, items: stack.append(frozenset(map(_key, items))),
    "APPENDS": lambda stack, items: _top(stack, list).extend(items),
    "SETITEMS": lambda stack, items: _top(stack, dict).update(_pairs(items)),
    "ADDITEMS": lambda stack, items: _top(stack, set).update(map(_key, items)),
    "POP_MARK": lambda stack, items: None,
}
_STEP: dict[str, Callable[[list[Any]], None]] = {
    "APPEND": _append,
    "SETITEM": _set_item,
    "TUPLE1": lambda stack: _tuple(stack, 1),
    "TUPLE2": lambda stack: _tuple(stack, 2),
    "TUPLE3": lambda stack: _tuple(stack, 3),
    "DUP": lambda stack: stack.append(stack[-1]),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}


# What pickles may call.


def make_array(content: Any, dtype: str, shape: Any, order: str) -> np.ndarray:
    """An array over `content`, if that is exactly what its dtype and shape need; maybe read-only.

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
    if type(kind) is not _Global or kind.name != "numpy.ndarray":
        raise TypeError("numpy reconstructs arrays only")
    return Array()


def _scalar(dtype: Any, content: Any) -> Any:
    return _plain_array(content, dtype, (), "C").item()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    if order != "K" or axes is None:
        return _plain_array(content, dtype, shape, order)
    array = _plain_array(content, dtype, shape, "C")
    whole = type(axes) in (tuple, list) and all(type(axis) is int for axis in axes)
    if not whole or sorted(axes) != list(range(array.ndim)):
        raise ValueError("axes that are not those of the array")
    return array.transpose(axes)


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
