"""The costs of the tests: core-minutes and memory, of all workers and the processes they start.

The last lines of a run show them; `pytest --costs` adds one line per module.
"""

import os
import resource
import sys
from pathlib import Path

import pytest

_TOTAL = pytest.StashKey[dict]()
_MODULES = pytest.StashKey[dict]()
_PER_WORKER = 2 << 30  # bytes of memory that a worker and its processes may need


def pytest_addoption(parser):
    parser.addoption("--costs", action="store_true", help="list core-seconds, memory by module")


def pytest_configure(config):
    config.stash[_TOTAL] = {"megabytes": 0.0, "workers": 0}
    config.stash[_MODULES] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    before = _core_seconds()
    try:
        return (yield)
    finally:
        seconds, megabytes = item.config.stash[_MODULES].get(item.location[0], (0.0, 0.0))
        item.config.stash[_MODULES][item.location[0]] = (
            seconds + _core_seconds() - before,
            max(megabytes, _megabytes_now()),
        )


def pytest_sessionfinish(session):
    config = session.config
    found = dict(megabytes=_largest_megabytes(), workers=1)
    if hasattr(config, "workeroutput"):  # in a worker: read by the process that writes the summary
        config.workeroutput["costs"] = [found, config.stash[_MODULES]]
    else:
        _add(config, found, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    if costs := getattr(node, "workeroutput", {}).get("costs"):  # none from a crashed worker
        _add(node.config, *costs)


def pytest_terminal_summary(terminalreporter, config):
    total, modules = config.stash[_TOTAL], config.stash[_MODULES]
    if config.getoption("--costs"):
        terminalreporter.section("core-seconds, and MB of memory at the end of a test")
        for name, (seconds, megabytes) in sorted(modules.items(), key=lambda item: -item[1][0]):
            terminalreporter.write_line(f"{seconds:8.1f} {megabytes:8,.0f}  {name}")
    # The workers have ended by now: the time of each is included in that of our children.
    terminalreporter.write_line(
        f"{_core_seconds() / 60:.2f} core-minutes in {total['workers']} processes; "
        f"the largest had {total['megabytes']:,.0f} MB"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """For `-n auto`: one worker per core, if there is enough memory."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, _available_bytes() // _PER_WORKER))


def _add(config, found, modules):
    total = config.stash[_TOTAL]
    total["workers"] += found["workers"]
    total["megabytes"] = max(total["megabytes"], found["megabytes"])
    for name, (seconds, megabytes) in modules.items():
        before = config.stash[_MODULES].get(name, (0.0, 0.0))
        config.stash[_MODULES][name] = (before[0] + seconds, max(before[1], megabytes))


def _core_seconds():
    own, started = (
        resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + started.ru_utime + started.ru_stime


def _largest_megabytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _megabytes_now():
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux
        return _largest_megabytes()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _available_bytes():
    """Memory that is free or can be freed, within the container's limit."""
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found = 1024 * int(lines["MemAvailable"].split()[0])
    else:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(found, int(text)) if text.isdecimal() else found
