"""The checkpointed rounds of a run: which exist, the progress of each, which to read.

A checkpoint damaged by a crash, a full disk or a broken copy is named, and the next best is taken.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one import atomic
from twelve_in_one.checkpoints.weights import DamagedError
from twelve_in_one.parallel import processes

CHECKPOINTS, PROGRESS = "checkpoints", "progress"
_METRICS = "metrics"  # Orbax's name for the scores that rank checkpoints
# Damaged checkpoints are moved here when their run resumes from an older one.
_DAMAGED = "damaged"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run; JSON-able.

    Attributes:
      round: rounds done.
      positions: training stream -> batches used.
      controllers: of stop-and-go, as `stop_and_go.to_json` writes them.
      scores: task -> last validation score.
      window: sums since the last line of the log.
      seconds: time spent training, over all restarts.
      frozen: hash of the frozen parameters, see `frozen.py`; "" if there are none.
      stages: (first batch, weights) of a mixed stream, see `mixing/mixed.py`.
    """

    round: int
    positions: Mapping[str, int]
    controllers: Mapping[str, Any]
    scores: Mapping[str, float]
    window: Mapping[str, Any]
    seconds: float
    frozen: str = ""
    stages: Sequence[Any] = dataclasses.field(default_factory=list)

    @property
    def mean_score(self) -> float | None:
        """Mean of the validation scores, which ranks checkpoints.

        None until every task has a score: means over different tasks are not comparable.
        """
        if not self.scores or set(self.controllers or self.positions) - set(self.scores):
            return None
        return sum(self.scores.values()) / len(self.scores)


def all_rounds(workdir: str | os.PathLike[str]) -> list[int]:
    """Rounds of the complete checkpoints, ascending; the job may still be running."""
    folder = Path(workdir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def choose_rounds(workdir: str | os.PathLike[str], name: str) -> list[int]:
    """The rounds to try for a name, in order; each only if all before it are damaged.

    Args:
      workdir: of a run that has a checkpoint.
      name: "latest"; "best", the best mean validation score, the newest of equals; or a number,
        for that round alone.

    Raises:
      ValueError: there is no such round, or nothing was validated.
    """
    rounds = all_rounds(workdir)
    if name == "latest" and rounds:
        return rounds[::-1]
    if name == "best" and rounds:
        ranked = _ranked(workdir, rounds)
        if not ranked:
            raise ValueError(f"{workdir}: no checkpoint was validated yet; take --round latest")
        return ranked
    if not name.isdecimal() or int(name) not in rounds:
        there = ", ".join(map(str, rounds)) or "none"
        raise ValueError(
            f"{workdir} has no checkpoint of round {name}; there are {there}, latest and best"
        )
    return [int(name)]


def _ranked(workdir: str | os.PathLike[str], rounds: Sequence[int]) -> list[int]:
    """Rounds in which every task has been validated, best first."""
    scored = []
    for round in rounds:
        try:
            scored.append((read_progress(workdir, round).mean_score, round))
        except DamagedError as error:
            _warn(f"a damaged checkpoint is not among those compared: {error}")
    return [r for _, r in sorted((pair for pair in scored if pair[0] is not None), reverse=True)]


def first_readable(
    workdir: str | os.PathLike[str], rounds: Sequence[int], read: Callable[[int], Any]
) -> tuple[int, Any]:
    """The first readable one of `rounds` and its contents; warns of damaged ones before it.

    With several processes, all of them call this; a round that one cannot read is damaged for all.

    Args:
      workdir: of the run.
      rounds: to try, in order; at least one.
      read: reads one; raises `DamagedError` if it is damaged.

    Raises:
      DamagedError: none is readable; names each, and the other rounds.
    """
    damage: dict[int, str] = {}
    for round in rounds:
        found, message = None, ""
        try:
            found = read(round)
        except DamagedError as error:
            message = str(error)
        messages = [text for text in processes.gather(message) if text]
        if not messages:
            for text in damage.values():
                _warn(f"damaged checkpoint: {text}; going on from round {round}")
            return round, found
        damage[round] = messages[0]
    others = [str(round) for round in all_rounds(workdir) if round not in damage]
    reasons = "; ".join(damage.values())
    rest = f"; other rounds there: {', '.join(others)}" if others else ""
    raise DamagedError(f"{workdir}: no checkpoint to go on from: {reasons}{rest}")


def _warn(line: str) -> None:
    if jax.process_index() == 0:
        _log.warning("%s", line)


def set_aside(path: Path) -> None:
    """Moves a checkpoint out of the way, without replacing any moved before."""
    folder, number = path.with_name(_DAMAGED), 1
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    while target.exists():
        number += 1
        target = folder / f"{path.name}-{number}"
    path.rename(target)
    _log.warning("%s is now %s", path, target)


def mend_scores(workdir: Path) -> None:
    """Rewrites damaged files of the scores that Orbax ranks checkpoints by.

    Otherwise no checkpoint could be opened; progress holds the same scores.
    """
    for round in all_rounds(workdir):
        path = workdir / CHECKPOINTS / str(round) / _METRICS / _METRICS
        try:
            if not path.parent.is_dir() or isinstance(json.loads(path.read_bytes()), dict):
                continue
        except (OSError, ValueError):
            pass
        try:
            score = read_progress(workdir, round).mean_score
        except DamagedError as error:
            _warn(f"damaged checkpoint: {error}")
            set_aside(workdir / CHECKPOINTS / str(round))
            continue
        atomic.write(path, json.dumps({} if score is None else {"score": score}))
        _warn(f"{path} was damaged, and is written anew from the progress beside it")


def read_progress(workdir: str | os.PathLike[str], round: int) -> Progress:
    """The progress of the run at a checkpoint.

    Raises:
      DamagedError: it cannot be read; names the file.
    """
    path = Path(workdir) / CHECKPOINTS / str(round) / PROGRESS / "metadata"
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"{path}: {error}") from error
