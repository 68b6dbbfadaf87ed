"""Atomic file writes: a file is complete or absent, whenever a process or the machine stops."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True, alone: bool = True) -> Iterator[Path]:
    """Yields a file next to `path`, with its suffix, which is renamed to it if the block succeeds.

    Otherwise `path` stays as it was, and the file is removed. The next process overwrites the
    remains of a killed one.

    Args:
      path: may exist; its folder must.
      sync: wait until the file is on disk, so that not even a power cut loses it.
      alone: no other process may be writing `path` now. Otherwise each has its own file, and
        those of killed processes remain.

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
    """Writes a file; text as UTF-8 with line ends unchanged. See `replacing`."""
    with replacing(path, sync=sync, alone=alone) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _sync(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
