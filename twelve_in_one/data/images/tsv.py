"""A table that names pictures with a text or a class each, and the folder of the pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from twelve_in_one.data.formats import files
from twelve_in_one.data.images.image_set import ImageExample, ImageSet, even_shards
from twelve_in_one.data.images.load import read_file
from twelve_in_one.data.stored.records import DataError, Skipped, none_usable

_IMAGES = ("image", "filepath", "file", "path", "filename")
_TEXTS = ("text", "caption", "title")
_LABELS = ("label", "class")
_SHARD_SIZE = 1024


def open_tsv(place: str, labels: Sequence[str] | None = None) -> ImageSet:
    """Opens a tab-separated table whose first line names its columns: image, and text or label.

    Examples are in the order of the lines; their ids are the pictures' names, with the line
    number if a name is repeated. Lines whose number of cells differs from the first one's are left
    out and counted.

    Args:
      place: the file, and after a comma the folder of the pictures if it is not the file's.
      labels: names of the classes in the order of their numbers; None for those of the table,
        sorted.

    Raises:
      DataError: the file cannot be read, its first line lacks a column, no line can be used, or a
        class is not in `labels`.
    """
    name, _, folder = place.partition(",")
    table, root = Path(name), Path(folder) if folder else Path(name).parent
    lines = ((n, line.decode("utf-8", "replace").rstrip("\r\n")) for n, line in _lines(table))
    header = next(lines, (1, ""))[1].split("\t")
    image, text, label = (_column(header, names) for names in (_IMAGES, _TEXTS, _LABELS))
    if image is None or (text is None and label is None):
        raise DataError(
            f"{table}: line 1 must name the columns, image and text or label, with tabs between "
            f"them; it is {files.shorten(header)}"
        )
    paths, texts, classes, ids, skipped = [], [], [], [], []
    seen: set[str] = set()
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            reason = f"has {len(cells)} cells, line 1 has {len(header)}"
        elif not cells[image].strip():
            reason = "names no picture"
        else:
            called = cells[image].strip()
            paths.append(called)
            ids.append(f"{called}:{number}" if called in seen else called)
            seen.add(called)
            texts.append(cells[text] if text is not None else "")
            classes.append(cells[label] if label is not None else "")
            continue
        skipped.append(Skipped(str(table), f"line {number}", reason))
    if not paths:
        raise none_usable(table, "line", skipped)
    known = tuple(sorted(set(classes)) if labels is None else labels) if label is not None else ()
    numbers = {called: number for number, called in enumerate(known)}
    if label is not None and (unknown := set(classes) - numbers.keys()):
        raise DataError(
            f"{table}: class {min(unknown)!r} is none of the {len(known)} that are known"
        )
    label_of = np.array([numbers.get(called, -1) for called in classes], np.int32)

    def read_row(row: int) -> ImageExample:
        data = read_file(root / paths[row])
        words = (texts[row],) if texts[row] else ()
        return ImageExample(data, ids[row], int(label_of[row]), texts=words)

    sizes = even_shards(len(paths), _SHARD_SIZE)
    return ImageSet(str(table), sizes, read_row, known, skipped=tuple(skipped))


def _lines(table: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of non-empty lines."""
    return ((number, line) for number, line in files.read_lines(table) if line.strip())


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    found = [cell.strip().lower() for cell in header]
    return next((found.index(name) for name in names if name in found), None)
