"""The data of a workdir about its run so far."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from twelve_in_one.logs import metrics_writer
from twelve_in_one.report.results import Results, parse_results
from twelve_in_one.tasks.twelve import TASKS


class TaskName(NamedTuple):
    """Names of a task: `name` in records, `title` for display, `group` "G1" to "G4" or ""."""

    name: str
    title: str
    group: str


class Span(NamedTuple):
    """Rounds from `start` up to `end` in which a task was stopped, or was not."""

    start: int
    end: int
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, read from its workdir.

    Attributes:
      workdir: its folder.
      tasks: in the groups' order.
      start: newest record "start", or {}.
      train: records "train".
      validation: records "validation".
      results: of `results.json`, or None.
      config: text of `config.json`, or None.
      stops: whether tasks can stop: not by another schedule than stop-and-go.
    """

    workdir: Path
    tasks: tuple[TaskName, ...]
    start: dict[str, Any]
    train: tuple[dict[str, Any], ...]
    validation: tuple[dict[str, Any], ...]
    results: Results | None
    config: str | None
    stops: bool = True

    @property
    def last_round(self) -> int:
        """The last round of any record."""
        return max((record["round"] for record in (*self.train, *self.validation)), default=0)

    def validations(self, task: str) -> list[dict[str, Any]]:
        """Validation records of a task, by round."""
        return [record for record in self.validation if record["task"] == task]


def read_run(workdir: Path) -> Run:
    """Reads the existing files of a workdir.

    Raises:
      ValueError: no such folder, no run in it, or a file is damaged.
      OSError: a file cannot be read.
    """
    if not workdir.is_dir():
        raise ValueError(f"{workdir}: no such folder; --workdir is the one given to the trainer")
    metrics, results = workdir / metrics_writer.FILE, workdir / "results.json"
    if not metrics.exists() and not results.exists():
        raise ValueError(f"{workdir}: neither {metrics.name} nor {results.name}: no run to report")
    records = metrics_writer.read(metrics) if metrics.exists() else []
    by_event: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_event.setdefault(record["event"], []).append(record)
    parsed = parse_results(_json(results), str(results)) if results.exists() else None
    config = workdir / "config.json"
    for record in by_event.get("validation", ()):
        if not isinstance(record.get("task"), str):
            raise ValueError(f"{metrics}: a validation without 'task': {record}")
    start = by_event.get("start", [{}])[-1]
    train, validation = (tuple(by_event.get(name, ())) for name in ("train", "validation"))
    named = [*start.get("tasks", ()), *(name for r in train for name in r.get("loss", ()))]
    named += [record["task"] for record in validation]
    return Run(
        workdir=workdir,
        tasks=_task_names(named, parsed),
        start=start,
        train=train,
        validation=validation,
        results=parsed,
        config=config.read_text(encoding="utf-8") if config.exists() else None,
        stops=not config.exists() or _kind(_json(config)) in ("", "stop_and_go"),
    )


def _kind(config: Any) -> str:
    """The kind of schedule of a config, "" if it has none."""
    schedule = config.get("schedule") if isinstance(config, dict) else None
    return str(schedule.get("kind", "")) if isinstance(schedule, dict) else ""


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def _task_names(named: Sequence[str], results: Results | None) -> tuple[TaskName, ...]:
    """Titles as in the results, else of the twelve, else the name itself."""
    known = {task.name: TaskName(task.name, task.title, task.group) for task in TASKS.values()}
    order = list(known)
    if results is not None:
        known |= {task.name: TaskName(task.name, task.title, task.group) for task in results.tasks}
        named = [*(task.name for task in results.tasks), *named]
    found = [known.get(name, TaskName(name, name, "")) for name in dict.fromkeys(named)]
    # Stable: tasks outside the twelve keep their order, after them.
    found.sort(key=lambda task: order.index(task.name) if task.name in order else len(order))
    return tuple(sorted(found, key=lambda task: task.group or "~"))


def stop_spans(run: Run, task: str) -> list[Span]:
    """When a task was stopped and when it was not, from round 0 to the last one.

    Every task starts out going; a validation sets the state from its round on, unless the schedule
    heeds no controllers. Empty if the task has never been validated.
    """
    records = run.validations(task)
    if not records:
        return []
    stopped = [run.stops and bool(record.get("stopped")) for record in records]
    changes = [(0, False), *zip((record["round"] for record in records), stopped, strict=True)]
    ends = [*(round for round, _ in changes[1:]), run.last_round]
    spans: list[Span] = []
    for (start, stopped), end in zip(changes, ends, strict=True):
        if spans and spans[-1].stopped == stopped:
            spans[-1] = Span(spans[-1].start, end, stopped)
        elif end > start:
            spans.append(Span(start, end, stopped))
    return spans
