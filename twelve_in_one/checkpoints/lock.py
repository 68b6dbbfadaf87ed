"""Allows one process at a time in a folder: two would overwrite each other's files."""

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO

FILE = ".lock"
_log = logging.getLogger(__name__)


class Occupied(OSError):
    """Another process trains in the workdir."""


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir.

    The operating system releases the lock when the process ends, however it ends: a killed run
    leaves nothing behind that would prevent resuming it.

    Args:
      workdir: an existing folder. If its file system has no locks, this only warns.

    Raises:
      Occupied: another process holds it.
    """
    with (workdir / FILE).open("a") as file:
        if not _locked(file, wait=False):
            raise Occupied(
                f"another process trains in {workdir}: wait for it, stop it, or choose another "
                "--workdir"
            )
        yield


@contextlib.contextmanager
def awaited(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock, then holds it.

    Args:
      path: of the lock's file, made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not _locked(file, wait=False):
            _log.info("another process holds %s: waiting", path)
            _locked(file, wait=True)
        yield


def _locked(file: IO[str], *, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        _log.warning("%s has no file locks: nothing keeps two processes apart there", file.name)
    return True
