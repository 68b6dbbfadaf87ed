"""Two trainings in one workdir: the second is refused, and a killed one is in nobody's way."""

import contextlib
import errno
import fcntl
import logging
import subprocess
import sys
import threading

import pytest

from twelve_in_one.checkpoints import lock

HOLD = """
import pathlib, sys, time
from twelve_in_one.checkpoints import lock
with lock.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def other_process(workdir):
    """One that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(workdir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_other_processes_are_refused_until_this_one_is_killed(tmp_path):
    with other_process(tmp_path) as process:
        with (
            pytest.raises(lock.Occupied, match=f"another process trains in {tmp_path}"),
            lock.held(tmp_path),
        ):
            pytest.fail("held by two")
        process.kill()
        process.wait()
        with lock.held(tmp_path):
            pass


def test_waits_for_another_process(tmp_path):
    path = tmp_path / "made" / "later" / lock.FILE
    with lock.awaited(path):
        pass
    with other_process(path.parent) as process:
        threading.Timer(0.2, process.kill).start()
        with lock.awaited(path):
            assert process.wait() < 0


def test_lock_is_let_go_of_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock.held(tmp_path):
        raise KeyError
    with (
        lock.held(tmp_path),
        pytest.raises(lock.Occupied),
        lock.held(tmp_path),
    ):
        pytest.fail("held twice")


def test_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), lock.held(tmp_path):
        assert "has no file locks" in caplog.text
