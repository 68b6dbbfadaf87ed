"""Sums of training since the last log line, added on the host in order.

The devices' numbers are fetched when a line is due or a checkpoint is written, never in between. An
open window is saved in the checkpoint, so that a resumed run writes the same lines.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from twelve_in_one.tasks.losses import Sums

# Over finite values, except "updates", which counts all. The first three are lists of three numbers
# if the loss has three parts.
_FIELDS = ("loss", "score", "count", "grad_norm", "finite", "updates")


class LogWindow:
    """Sums by training stream."""

    def __init__(
        self,
        parts: Mapping[str, Sequence[str]],
        saved: Mapping[str, Any] | None = None,
        mixed: Collection[str] = (),
    ):
        """Starts empty, or where `to_json` left off.

        Args:
          parts: stream -> names of the parts of its loss, none if it has one.
          saved: from `to_json`.
          mixed: streams whose parts are tasks.
        """
        self._parts, self._mixed = parts, frozenset(mixed)
        self._totals = {task: dict.fromkeys(_FIELDS, 0.0) for task in parts}
        for task, totals in (saved or {}).items():
            self._totals[task].update({name: _number(value) for name, value in totals.items()})
        self._pending: list[tuple[str, int, Sums, Any]] = []

    def add(self, task: str, step: int, sums: Sums, grad_norm: Any) -> None:
        """Records the metrics of one update; fetches nothing.

        Args:
          task: of the update.
          step: number of the update.
          sums: loss and score, without the loss scale.
          grad_norm: float32[] global norm of the gradient, before clipping.
        """
        self._pending.append((task, step, sums, grad_norm))

    def settle(self) -> list[str]:
        """Fetches pending numbers; returns one line per gradient that is not finite."""
        fetched = jax.device_get([numbers for _, _, *numbers in self._pending])
        bad = []
        for (task, step, *_), (sums, norm) in zip(self._pending, fetched, strict=True):
            totals = self._totals[task]
            totals["updates"] += 1
            if not (np.isfinite(norm) and np.all(np.isfinite(sums.loss))):
                loss = float(np.sum(sums.loss / np.maximum(sums.count, 1)))
                bad.append(f"{task}, update {step}: loss {loss}, gradient norm {float(norm)}")
                continue
            totals["finite"] += 1
            for name, value in (*sums._asdict().items(), ("grad_norm", norm)):
                totals[name] = totals[name] + np.asarray(value, np.float64)
        self._pending = []
        return bad

    def to_json(self) -> dict[str, Any]:
        """The sums of `settle`."""
        return {
            task: {name: np.asarray(value).tolist() for name, value in totals.items()}
            for task, totals in self._totals.items()
            if totals["updates"]
        }

    def means(self) -> dict[str, dict[str, float]]:
        """{"loss", "score", "grad_norm"} by task, over the finite updates of tasks that had any.

        Of a mixed stream, loss and score are those of each task's rows, whose number is under
        "rows", and the norm is under the name of the stream.

        Loss and score of the parts of pretraining are also under "task/part"; the task's own are
        the sum of the losses and the score of the first, as in `Sums`.
        """
        found: dict[str, dict[str, float]] = {"loss": {}, "score": {}, "grad_norm": {}}
        for task, totals in self._totals.items():
            if not totals["finite"]:
                continue
            counts = np.maximum(np.ravel(totals["count"]), 1)
            losses, scores = (np.ravel(totals[name]) / counts for name in ("loss", "score"))
            if task in self._mixed:
                rows = np.ravel(totals["count"]).astype(int).tolist()
                found["grad_norm"][task] = float(totals["grad_norm"] / totals["finite"])
                found["rows"] = dict(zip(self._parts[task], rows, strict=True))
                for part, loss, score, count in zip(
                    self._parts[task], losses, scores, rows, strict=True
                ):
                    if count:
                        found["loss"][part], found["score"][part] = float(loss), float(score)
                continue
            found["loss"][task], found["score"][task] = float(losses.sum()), float(scores[0])
            found["grad_norm"][task] = float(totals["grad_norm"] / totals["finite"])
            if len(losses) > 1:
                for part, loss, score in zip(self._parts[task], losses, scores, strict=True):
                    found["loss"][f"{task}/{part}"] = float(loss)
                    found["score"][f"{task}/{part}"] = float(score)
        return found

    @property
    def updates(self) -> dict[str, int]:
        """Updates by task."""
        return {task: int(t["updates"]) for task, t in self._totals.items() if t["updates"]}

    def clear(self) -> None:
        """Starts again, empty."""
        self._totals = {task: dict.fromkeys(_FIELDS, 0.0) for task in self._totals}


def _number(saved: Any) -> Any:
    return np.asarray(saved, np.float64) if isinstance(saved, list) else saved
