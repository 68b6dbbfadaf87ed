"""Walks through a large JSON text one record at a time.

Once parsed, the official question files take several times the memory of their text (a million GQA
questions with their programs, ten answers to each VQA question), but only a few fields are kept.
Here only one record exists in parsed form at any time. The module accepts the same input as
`json.loads`, except that the key given to `elements` may not be repeated.

The `ijson` library needs a ninth of the memory, since it reads the file in pieces, and 1.2 times
the CPU (115 MB of VQA annotations: 28 and 252 MB, 2.7 and 2.2 s). But it reads other values (half a
surrogate pair becomes "?", NaN and long integers are errors), ignores a key that is missing,
repeated or holds no list, and 200 kB of "[[[..." make it use all memory.
"""

import contextlib
import json
import re
from collections.abc import Iterator
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
      The elements in order, as `json.loads` returns them. The text after an element is checked
      only when the next one is requested.

    Raises:
      DataError: not JSON, the outermost value or the one under `key` is of another type, or `key`
        is missing or repeated.
    """
    walk = _Walk(text, where)
    with walk.whole():
        if key is None:
            for _ in walk.entries("[]", "top level must be a list"):
                yield walk.value()
            return
        keys = []
        for _ in walk.entries("{}", "top level must be an object"):
            found = walk.key()
            if found != key:
                walk.value()
            elif found in keys:
                raise DataError(f"{where}: {key!r} occurs twice")
            else:
                for _ in walk.entries("[]", f"{key!r} must be a list"):
                    yield walk.value()
            keys.append(found)
        if key not in keys:
            raise DataError(f"{where}: no {key!r}; keys: {', '.join(keys[:12])}")


def members(text: str, where: str) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of the outermost object in order, repeated keys as often as they occur.

    Args:
      text: a whole JSON document.
      where: begins the messages of errors, usually the path.

    Raises:
      DataError: not JSON, or the outermost value is not an object.
    """
    walk = _Walk(text, where)
    with walk.whole():
        for _ in walk.entries("{}", "top level must be an object"):
            yield walk.key(), walk.value()


class _Walk:
    """A position in a text: everything before it is read, and no blanks follow it."""

    def __init__(self, text: str, where: str):
        self.text, self.where, self.at = text, where, 0
        self.step(0)

    def step(self, count: int) -> None:
        blanks = _BLANKS.match(self.text, self.at + count)
        self.at = blanks.end() if blanks else len(self.text)

    def next(self) -> str:
        return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        value, self.at = _DECODER.raw_decode(self.text, self.at)
        self.step(0)
        return value

    def key(self) -> str:
        start = self.at
        key = self.value()
        if not isinstance(key, str):
            raise json.JSONDecodeError("Expecting a key in double quotes", self.text, start)
        if self.next() != ":":
            raise json.JSONDecodeError("Expecting ':'", self.text, self.at)
        self.step(1)
        return key

    def entries(self, brackets: str, wanted: str) -> Iterator[None]:
        """Stops before each entry of the value that begins here; read it before the next step."""
        opening, closing = brackets
        if self.next() != opening:
            found = self.text[self.at : self.at + 20]
            raise DataError(f"{self.where}: {wanted}, begins with {found!r}")
        self.step(1)
        mark = closing if self.next() == closing else ","
        while mark == ",":
            yield
            mark = self.next()
            if mark not in (",", closing):
                raise json.JSONDecodeError(f"Expecting ',' or '{closing}'", self.text, self.at)
            if mark == ",":
                self.step(1)
        self.step(1)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """The text must end with the block; errors within it are reported for the file."""
        try:
            yield
            if self.at != len(self.text):
                raise json.JSONDecodeError("Extra data", self.text, self.at)
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.where}: not JSON: {error}") from error
