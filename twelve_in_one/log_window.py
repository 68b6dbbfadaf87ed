"""What has been trained since the last line of the log, summed on the host in order.

The devices' numbers are fetched when a line is due or a checkpoint is written, never in between. A
window that is still open goes into the checkpoint, so that a resumed run writes the same lines.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from twelve_in_one.steps import TaskMetrics

# Of what is finite, but for "updates", which counts all.
_FIELDS = ("loss", "score", "count", "grad_norm", "finite", "updates")


class LogWindow:
    """Sums by task."""

    def __init__(self, tasks: Sequence[str], saved: Mapping[str, Any] | None = None):
        """Begins empty, or where `to_json` left off."""
        self._totals = {task: dict.fromkeys(_FIELDS, 0.0) for task in tasks}
        for task, totals in (saved or {}).items():
            self._totals[task].update(totals)
        self._pending: list[tuple[str, int, TaskMetrics]] = []

    def add(self, task: str, step: int, metrics: TaskMetrics) -> None:
        """Notes what one update reports; nothing is fetched."""
        self._pending.append((task, step, metrics))

    def settle(self) -> list[str]:
        """Fetches what is pending; returns a line for every gradient that is not finite."""
        fetched = jax.device_get([metrics for *_, metrics in self._pending])
        bad = []
        for (task, step, _), (sums, norm) in zip(self._pending, fetched, strict=True):
            totals = self._totals[task]
            totals["updates"] += 1
            if not (np.isfinite(norm) and np.isfinite(sums.loss)):
                loss = float(sums.loss) / max(float(sums.count), 1)
                bad.append(f"{task}, update {step}: loss {loss}, gradient norm {float(norm)}")
                continue
            totals["finite"] += 1
            for name, value in (*sums._asdict().items(), ("grad_norm", norm)):
                totals[name] += float(value)
        self._pending = []
        return bad

    def to_json(self) -> dict[str, Any]:
        """What `settle` has summed."""
        return {task: dict(totals) for task, totals in self._totals.items() if totals["updates"]}

    def means(self) -> dict[str, dict[str, float]]:
        """{"loss", "score", "grad_norm"} by task, over the finite updates of tasks that had any."""
        used = {task: t for task, t in self._totals.items() if t["count"]}
        return {
            "loss": {task: t["loss"] / t["count"] for task, t in used.items()},
            "score": {task: t["score"] / t["count"] for task, t in used.items()},
            "grad_norm": {task: t["grad_norm"] / t["finite"] for task, t in used.items()},
        }

    @property
    def updates(self) -> dict[str, int]:
        """Updates by task."""
        return {task: int(t["updates"]) for task, t in self._totals.items() if t["updates"]}

    def clear(self) -> None:
        """Begins anew."""
        self._totals = {task: dict.fromkeys(_FIELDS, 0.0) for task in self._totals}
