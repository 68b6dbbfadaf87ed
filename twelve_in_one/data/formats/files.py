"""Reads strangers' annotation files: any fault in a file raises a `DataError`.

Files ending in .gz or .gzip are decompressed, and a leading byte-order mark, which some programs
write, is dropped. `field` and its companions extract values from parsed records and say
which key is missing or of the wrong type; readers turn their `RecordError` into a counted skip.
"""

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.data.stored.records import DataError, MissingFile

# The longest official record (a GuessWhat game with segments) is a line of under 1 MB.
MAX_LINE_BYTES = 64 << 20
PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
)


class RecordError(ValueError):
    """One record is unusable, the rest of its file is fine; names the key and the value."""


def find(folder: Path, *names: str) -> Path:
    """The first of `names` that exists in `folder`, also compressed (.gz).

    Raises:
      MissingFile: none exists; names all candidates.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise MissingFile(f"{folder}: no {' or '.join(names)} (also looked for .gz)")


def read_text(path: Path) -> str:
    """The whole file as UTF-8 text, without a byte-order mark at its beginning.

    Raises:
      DataError: missing, unreadable, not gzip despite its name, or not UTF-8.
    """
    try:
        data = path.read_bytes()
        if path.suffix in (".gz", ".gzip"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        hint = "; it seems to be UTF-16: save it as UTF-8" if utf16 else ""
        raise DataError(f"{path}: not UTF-8 at byte {error.start}{hint}") from error
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def parse_json(text: str, where: str) -> Any:
    """JSON text as Python values; `where` begins the error's message.

    Raises:
      DataError: not JSON, nested too deep, or a number too long to be one.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose top level must be of `kind` (dict or list).

    Raises:
      DataError: see `read_text` and `parse_json`; or the top level is something else.
    """
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, kind):
        raise DataError(f"{path}: top level must be a {kind.__name__}, is a {type(value).__name__}")
    return value


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | RecordError]]:
    """(line number from 1, record) of JSON lines; a line that is not an object is a RecordError.

    Blank lines are skipped. The file is streamed.

    Raises:
      DataError: see `read_lines`.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield number, _parse_line(line)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end) of a file, which is streamed.

    Byte-order marks at the beginning of any line are removed: files with marks may be joined.

    Raises:
      DataError: the file cannot be read, or a line is longer than any real one.
    """
    opened = gzip.open if path.suffix in (".gz", ".gzip") else open
    number = 0
    try:
        with opened(path, "rb") as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES:
                    raise DataError(f"{path}: line {number} exceeds {MAX_LINE_BYTES} bytes")
                yield number, line.removeprefix(codecs.BOM_UTF8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read after line {number}: {error}") from error


def _parse_line(line: bytes) -> dict[str, Any] | RecordError:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return RecordError(f"not JSON: {error}")
    if not isinstance(value, dict):
        return RecordError(f"must be an object, is a {type(value).__name__}")
    return value


_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def field(record: Any, key: str, kind: type) -> Any:
    """`record[key]`, which must be of `kind`; a bool is not an int, an int passes as float.

    Raises:
      RecordError: `record` is not a mapping, lacks the key, or holds something else under it.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"must be an object, is a {type(record).__name__}")
    if key not in record:
        raise RecordError(f"no {key!r}; keys: {', '.join(map(str, list(record)[:12]))}")
    value = record[key]
    wrong_bool = isinstance(value, bool) and kind is not bool
    if kind is float and isinstance(value, int) and not wrong_bool:
        try:
            return float(value)
        except OverflowError as error:
            raise RecordError(f"{key!r} is out of range") from error
    if wrong_bool or not isinstance(value, kind):
        wanted = _KINDS.get(kind, kind.__name__)
        raise RecordError(f"{key!r} must be {wanted}, is {shorten(value)}")
    if kind is str and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        # JSON can hold half a surrogate pair, which no file or record can store as text.
        raise RecordError(f"{key!r} is not valid Unicode: {shorten(ascii(value))}")
    return value


def text_id(record: Any, key: str) -> str:
    """The id under `key`, a number or a text in the file, as text.

    Raises:
      RecordError: missing, empty, or neither.
    """
    if isinstance(record, Mapping) and isinstance(record.get(key), str):
        value = field(record, key, str)
    else:
        number = field(record, key, int)
        # Python refuses to print integers of thousands of digits, and no id has that many.
        value = str(number) if abs(number) < 1 << 63 else ""
    if not value:
        raise RecordError(f"{key!r} is empty or out of range")
    return value


def box_from_xywh(record: Any, key: str) -> tuple[float, float, float, float]:
    """Corners in pixels of a box stored as [x, y, width, height], nothing subtracted.

    Raises:
      RecordError: not four finite numbers, or no positive size.
    """
    value = field(record, key, list)
    numbers = [v for v in value if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(value) != 4 or len(numbers) != 4 or not all(abs(v) < 1e9 for v in numbers):
        raise RecordError(f"{key!r} must be [x, y, width, height], is {shorten(value)}")
    x, y, width, height = map(float, numbers)
    if width <= 0 or height <= 0:
        raise RecordError(f"{key!r} {value} has no positive width and height")
    return x, y, x + width, y + height


def shorten(value: Any, limit: int = 60) -> str:
    """Formats `value` for a message, cut to `limit` characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def walk_files(folder: Path) -> Iterator[Path]:
    """Files below a folder in order of name; links are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        about = os.stat(parent)
        if (about.st_dev, about.st_ino) in seen:  # a loop, or a second link
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(parent, name)).is_file())


def stamp(path: Path) -> str:
    """Size and time of a file, or of the files in a folder; "" if neither exists.

    Locks are left out: readers change them.
    """
    try:
        entries = os.scandir(path) if path.is_dir() else [path]
        about = [entry.stat() for entry in entries if entry.name != "lock.mdb"]
    except OSError:
        return ""
    return f"{sum(a.st_size for a in about)}-{max((a.st_mtime_ns for a in about), default=0)}"
