"""Walks through a large JSON text one record at a time.

Parsed, the official question files take several times the memory of their text (a million GQA
questions with their programs, ten answers to each VQA question), of which a few fields are kept.
Here only one record exists in parsed form at any time. What is accepted is what `json.loads`
accepts, except that the key under which `elements` looks may not be repeated.
"""

import json
import re
from collections.abc import Generator, Iterator
from typing import Any

from twelve_in_one.data.stored.records import DataError

_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def elements(text: str, where: str, key: str | None = None) -> Iterator[Any]:
    """Elements of the outermost list, or of the list under `key` of the outermost object.

    Args:
      text: a whole JSON document.
      where: begins the messages of errors, usually the path.
      key: None where the list itself is outermost.

    Yields:
      The elements in order, as `json.loads` returns them. What follows an element has been checked
      only when the next one is asked for.

    Raises:
      DataError: not JSON, the outermost value or the one under `key` is of another type, or `key`
        is missing or repeated.
    """
    try:
        position = _after_blanks(text, 0)
        if key is None:
            _require(text, position, "[", f"{where}: top level must be a list")
            position = yield from _list(text, position)
        else:
            _require(text, position, "{", f"{where}: top level must be an object")
            position = yield from _list_under(text, position, key, where)
        _require_end(text, position)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def members(text: str, where: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of the outermost object in order, repeated keys as often as they occur.

    Args:
      text: a whole JSON document.
      where: begins the messages of errors, usually the path.

    Raises:
      DataError: not JSON, or the outermost value is no object.
    """
    try:
        position = _after_blanks(text, 0)
        _require(text, position, "{", f"{where}: top level must be an object")
        position, more = _enter(text, position, "}")
        while more:
            key, position = _key(text, position)
            value, position = _value(text, position)
            yield key, value
            position, more = _advance(text, position, "}")
        _require_end(text, position)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def _list(text: str, position: int) -> Generator[Any, None, int]:
    """Yields the elements of the list that opens at `position`; returns where the text goes on."""
    position, more = _enter(text, position, "]")
    while more:
        value, position = _value(text, position)
        yield value
        position, more = _advance(text, position, "]")
    return position


def _list_under(text: str, position: int, wanted: str, where: str) -> Generator[Any, None, int]:
    keys = []
    position, more = _enter(text, position, "}")
    while more:
        key, position = _key(text, position)
        if key == wanted:
            _require(text, position, "[", f"{where}: {wanted!r} must be a list")
            if key in keys:
                raise DataError(f"{where}: {wanted!r} occurs twice")
            position = yield from _list(text, position)
        else:
            _, position = _value(text, position)
        keys.append(key)
        position, more = _advance(text, position, "}")
    if wanted not in keys:
        raise DataError(f"{where}: no {wanted!r}; keys: {', '.join(keys[:12])}")
    return position


def _after_blanks(text: str, position: int) -> int:
    match = _BLANKS.match(text, position)
    return match.end() if match else position


def _value(text: str, position: int) -> tuple[Any, int]:
    value, position = _DECODER.raw_decode(text, position)
    return value, _after_blanks(text, position)


def _key(text: str, position: int) -> tuple[str, int]:
    """The key at `position`, and where its value begins."""
    key, after = _value(text, position)
    if not isinstance(key, str):
        raise json.JSONDecodeError("Expecting a key in double quotes", text, position)
    if text[after : after + 1] != ":":
        raise json.JSONDecodeError("Expecting ':'", text, after)
    return key, _after_blanks(text, after + 1)


def _enter(text: str, position: int, closing: str) -> tuple[int, bool]:
    """Steps past an opening bracket: where the first entry begins, and whether there is one."""
    position = _after_blanks(text, position + 1)
    if text[position : position + 1] == closing:
        return _after_blanks(text, position + 1), False
    return position, True


def _advance(text: str, position: int, closing: str) -> tuple[int, bool]:
    """Steps past what follows an entry: where the next begins, and whether there is one."""
    mark = text[position : position + 1]
    if mark not in (",", closing):
        raise json.JSONDecodeError(f"Expecting ',' or '{closing}'", text, position)
    return _after_blanks(text, position + 1), mark == ","


def _require(text: str, position: int, opening: str, message: str) -> None:
    if text[position : position + 1] != opening:
        found = text[position : position + 20]
        raise DataError(f"{message}, begins with {found!r}")


def _require_end(text: str, position: int) -> None:
    if position != len(text):
        raise json.JSONDecodeError("Extra data", text, position)
