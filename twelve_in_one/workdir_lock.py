"""One training at a time in a workdir: two would overwrite each other's checkpoints and metrics."""

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

FILE = ".lock"
_log = logging.getLogger(__name__)


class Occupied(OSError):
    """Another process trains in the workdir."""


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir.

    The operating system lets go of the lock when the process ends, however it ends: a killed run
    leaves nothing behind that would keep it from going on.

    Args:
      workdir: an existing folder. Where its file system has no locks, a warning is all.

    Raises:
      Occupied: another process holds it.
    """
    with (workdir / FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Occupied(
                f"another process trains in {workdir}: wait for it, stop it, or choose another "
                "--workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            _log.warning("%s has no file locks: do not train there twice at once", workdir)
        yield
