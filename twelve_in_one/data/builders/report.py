"""Output of the build command: progress on stderr, tables and skipped records on stdout."""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from twelve_in_one.data.stored.reader import BUILD_INFO
from twelve_in_one.data.stored.records import DataError

_LOG_SECONDS = 2.0
_SHOWN_REASONS = 5


def log(line: str) -> None:
    """Prints a line of progress; the report goes to stdout."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Prints how far a dataset is, with rate and time left, every other second."""

    def __init__(self, name: str):
        self._name = name
        self._split = ""
        self._start = self._last = 0.0

    def __call__(self, split: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if split != self._split:
            self._split, self._start, self._last = split, now, now
        if done < total and now - self._last < _LOG_SECONDS:
            return
        self._last = now
        line = f"{self._name}/{split}  {done:,}/{total:,}"
        if now > self._start:  # the first call may be the last
            rate = done / (now - self._start)
            left = f"  ETA {(total - done) / rate:,.0f} s" if 0 < done < total else ""
            line += f"  {rate:,.1f}/s{left}"
        log(line)


def attempt(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `work` on a dataset, or its error, which must not stop the other datasets."""
    try:
        return work()
    except (DataError, OSError) as error:
        return {"name": name, "error": str(error)}
    except Exception as error:  # ours or a library's: its origin must be visible
        log(traceback.format_exc())
        return {"name": name, "error": f"{type(error).__name__}: {error}"}


def print_outcomes(outcomes: Sequence[dict[str, Any]]) -> bool:
    """Prints the reports of all datasets, then the errors; returns whether there are none."""
    failed = [outcome for outcome in outcomes if "error" in outcome]
    print_reports([outcome for outcome in outcomes if "error" not in outcome])
    for outcome in failed:
        log(f"error: {outcome['name']}: {outcome['error']}")
    return not failed


def print_reports(outcomes: Sequence[dict[str, Any]]) -> None:
    """Prints the result of `build_dataset` or `check_dataset` for each dataset."""
    print(
        f"{'dataset':<20} {'split':<6} {'records':>9} {'images':>9} {'examples':>11} {'skipped':>8}"
    )
    for outcome in outcomes:
        for split, report in outcome["splits"].items():
            print(
                f"{outcome['name']:<20} {split:<6} {report['records']:>9,} {report['images']:>9,} "
                f"{report['annotations']:>11,} {len(report['skipped']):>8,}"
                + ("  was there" if outcome["kept"] else "")
            )
    for outcome in outcomes:
        for split, reason in outcome["absent"].items():
            print(f"  absent: {outcome['name']}/{split}: {reason}")
        for split, reason in outcome.get("unofficial", {}).items():
            print(f"  no official score: {outcome['name']}/{split}: {reason}")
        for split, report in outcome["splits"].items():
            if report.get("empty"):
                print(
                    f"  without regions: {outcome['name']}/{split}: {report['empty']:,} of "
                    f"{report['images']:,} images, in which the detector found nothing"
                )
            for note in report.get("notes", ()):  # existing datasets may be older than notes
                print(f"  note: {outcome['name']}/{split}: {note}")
        for split, report in outcome["splits"].items():
            _print_skipped(f"{outcome['name']}/{split}", report["skipped"])
        _print_skipped(f"{outcome['name']}: regions", outcome["unreadable"])


def _print_skipped(what: str, skipped: Sequence[dict[str, str]]) -> None:
    for skip in skipped[:_SHOWN_REASONS]:
        print(f"  skipped: {what}: {skip['file']}: {skip['record']}: {skip['reason']}")
    if len(skipped) > _SHOWN_REASONS:
        print(f"  skipped: {what}: {len(skipped) - _SHOWN_REASONS:,} more; see {BUILD_INFO}")
