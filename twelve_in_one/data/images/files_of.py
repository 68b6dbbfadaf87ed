"""Names of a set's files, as users state them."""

import glob
import re
from pathlib import Path

from twelve_in_one.data.stored.records import DataError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def files_of(pattern: str) -> tuple[Path, ...]:
    """Files in sorted order.

    Args:
      pattern: a file, a pattern with * and ?, or with a range of numbers ("x-{000..127}.tar"), of
        which none may be missing.

    Raises:
      DataError: there is none, or one of a range is missing.
    """
    spans = _RANGE.search(pattern)
    if spans:
        first, last, width = int(spans[1]), int(spans[2]), len(spans[1])
        names = [
            f"{pattern[: spans.start()]}{number:0{width}}{pattern[spans.end() :]}"
            for number in range(first, last + 1)
        ]
        return tuple(path for name in names for path in files_of(name))
    found = tuple(Path(name) for name in sorted(glob.glob(pattern)) if Path(name).is_file())
    if not found:
        raise DataError(f"{pattern}: no such file")
    return found
