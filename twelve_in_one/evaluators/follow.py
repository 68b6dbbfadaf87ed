"""Evaluates the checkpoints of a running job one by one, alongside it.

The job deletes checkpoints while this reads them, and either may be killed and restarted:
`evaluation.jsonl` in the workdir, one line per round, records the finished rounds.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from twelve_in_one.checkpoints import state
from twelve_in_one.checkpoints.weights import DamagedError
from twelve_in_one.parallel import processes

FILE = "evaluation.jsonl"
RESULTS = "results.json"


def follow(
    workdir: Path,
    split: str,
    restore: Callable[[int], Any],
    evaluate: Callable[[int, Any], dict[str, Any]],
    *,
    last_round: int,
    idle_seconds: float,
    poll_seconds: float = 10.0,
) -> int:
    """Evaluates every checkpoint that appears, until the run is complete or no more appear.

    With several processes, all of them call this and evaluate the same rounds.

    Args:
      workdir: of the run.
      split: to evaluate; rounds evaluated on another split do not count as done.
      restore: round -> parameters.
      evaluate: (round, parameters) -> the line to append, which holds "round" and "split".
      last_round: of the whole run.
      idle_seconds: how long to wait for a next checkpoint.
      poll_seconds: between two checks of the workdir.

    Returns:
      The number of checkpoints evaluated.

    A damaged checkpoint is reported and skipped, unless the run replaces it.

    Raises:
      ValueError: a checkpoint is of another model, or the file is damaged.
    """
    path, count = workdir / FILE, 0
    damaged: dict[int, int] = {}  # until its run has rewritten it
    done = set(seen_by_first(lambda: sorted(read_rounds(path, split))))
    waited_since = time.monotonic()
    while True:
        rounds = seen_by_first(lambda: state.all_rounds(workdir))
        fresh = []
        for round in rounds:
            version = seen_by_first(lambda round=round: _version(workdir, round))
            if round in done or version == damaged.get(round):
                continue
            fresh.append(round)
            try:
                params = _restored(workdir, round, restore)
            except DamagedError as error:
                damaged[round] = version
                _say(f"round {round}: damaged checkpoint, left out: {error}")
                continue
            done.add(round)
            if params is None:
                _say(f"round {round}: deleted before it could be read")
                continue
            line = evaluate(round, params)
            if jax.process_index() == 0:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            count += 1
        if fresh:
            waited_since = time.monotonic()
            continue
        waited = time.monotonic() - waited_since
        ended = ""
        if seen_by_first(lambda: is_complete(workdir, last_round)):
            ended = "the run is complete"
        elif processes.broadcast(waited > idle_seconds):
            ended = f"no checkpoint for {idle_seconds:,.0f} s"
        if ended:
            _say(f"{ended}: evaluated {count} checkpoints")
            return count
        time.sleep(poll_seconds)


def is_complete(workdir: Path, last_round: int) -> bool:
    """Whether the run has ended. A prolonged run has an old model, and continues."""
    has_model = (workdir / RESULTS).is_file() or (workdir / state.MODEL).is_dir()
    return has_model and max(state.all_rounds(workdir), default=0) >= last_round


def read_rounds(path: Path, split: str) -> set[int]:
    """Rounds evaluated on the split; cuts off a partial line left by a killed process.

    Raises:
      ValueError: a line is unreadable; names it.
    """
    if not path.is_file():
        return set()
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        with path.open("r+b") as file:
            file.truncate(len(whole.encode()))
    rounds = set()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            if entry["split"] == split:
                rounds.add(int(entry["round"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number} cannot be read: {error!r}") from error
    return rounds


def _restored(workdir: Path, round: int, restore: Callable[[int], Any]) -> Any:
    """The parameters, or None if the checkpoint disappeared; the same on all processes.

    Raises:
      DamagedError: it is still there, and damaged.
      ValueError: it is still there, and of another model.
    """
    params, failure = None, None
    try:
        params = restore(round)
    except (ValueError, OSError) as error:
        failure = [isinstance(error, DamagedError), str(error) or repr(error)]
    failures = [failure for failure in processes.gather(failure) if failure]
    if not failures:
        return params
    if round in seen_by_first(lambda: state.all_rounds(workdir)):
        is_damaged, message = failures[0]
        raise DamagedError(message) if is_damaged else ValueError(message)
    return None


def _version(workdir: Path, round: int) -> int:
    """A number that changes when the checkpoint is replaced; 0 if it disappeared."""
    try:
        return (workdir / state.CHECKPOINTS / str(round)).stat().st_mtime_ns
    except OSError:
        return 0


def seen_by_first(look: Callable[[], Any]) -> Any:
    """Process 0's view, on every process: file systems show a change to one machine first.

    Args:
      look: returns a value that JSON can write.

    Raises:
      ValueError: `look` raised it, or an OSError, on process 0.
    """
    found, message = None, ""
    if jax.process_index() == 0:
        try:
            found = look()
        except (ValueError, OSError) as error:
            message = str(error) or repr(error)
    found, message = processes.broadcast([found, message])
    if message:
        raise ValueError(message)
    return found


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
