"""What a run of tests says that it cost is what the system charges for it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import time

def test_burns():
    end = time.process_time() + 0.4
    while time.process_time() < end:
        pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_core_minutes_are_counted_once(workers, tmp_path):
    for number in range(2):
        (tmp_path / f"test_{number}.py").write_text(TEST)
    options = ["-p", "reference.costs", f"-n{workers}", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", *options, "."]
    output = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=output, text=True) as run:
        said = run.stdout.read()
        *_, used = os.wait4(run.pid, 0)
        run.returncode = 0  # it has been waited for
    minutes, processes = re.search(r"([\d.]+) core-minutes in (\d+) processes", said).groups()
    assert int(processes) == workers + 1
    # The rest is the end of the process, and rounding; the workers twice would be over a second.
    assert float(minutes) * 60 == pytest.approx(used.ru_utime + used.ru_stime, abs=0.7)
