"""Files that are there whole or not at all, whenever a process or the machine stops."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True, alone: bool = True) -> Iterator[Path]:
    """A file beside `path`, of the same suffix, that takes its name when the block ends well.

    Otherwise `path` is as it was, and the file is removed; what a killed process leaves of it, the
    next one writes over.

    Args:
      path: may exist; its folder must.
      sync: wait until the disk has it, so that not even a power cut loses it.
      alone: no other process may be writing `path` now. Without, each has a file of its own, and
        those of killed ones stay.

    Raises:
      OSError: it cannot be written; names `path`.
    """
    own = "" if alone else f".{os.getpid()}"
    temporary = path.with_name(f".{path.stem}{own}.partial{path.suffix}")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)
        if sync:
            _sync(path.parent)
    except OSError as error:
        if error.filename not in (None, str(temporary)) or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: str | bytes, *, sync: bool = True, alone: bool = True) -> None:
    """Writes a file; text as UTF-8 with its line ends as they are. See `replacing`."""
    with replacing(path, sync=sync, alone=alone) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _sync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
