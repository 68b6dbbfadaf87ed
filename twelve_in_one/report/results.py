"""The results of a run: `results.json` checked, and as a table for the terminal."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

GROUPS = {
    "G1": "Vocabulary-based VQA",
    "G2": "Image retrieval",
    "G3": "Referring expressions",
    "G4": "Multi-modal verification",
}
NOTHING = "–"
FLAG = "!"
FOOTNOTE = (
    f"{FLAG} not above both chance and words, the score of a model that reads the text and sees "
    "no picture"
)
COLUMNS = ("group", "task", "metric", "score", "chance", "words", "majority", "examples")
_NUMBERS = frozenset(COLUMNS[3:])


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Scores of one task, in the units of its metric (shares in [0, 1]).

    Attributes:
      name: short name, as in configs.
      title: name for people.
      group: "G1" to "G4".
      metric: name of the score.
      score: the number that is compared.
      chance: of a uniform guess; None if not known, as are the following.
      words: of a model that sees the text alone.
      majority: of the one best constant answer.
      examples: scored.
      loss: mean over the examples.
      metrics: more scores by name, e.g. "r@5" or "oracle".
    """

    name: str
    title: str
    group: str
    metric: str
    score: float
    chance: float | None = None
    words: float | None = None
    majority: float | None = None
    examples: int | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def above(self) -> bool:
        """Whether the score is above chance and words, as far as these are known."""
        return all(self.score > bar for bar in (self.chance, self.words) if bar is not None)


@dataclasses.dataclass(frozen=True)
class Results:
    """All of a `results.json`.

    Attributes:
      tasks: in the groups' order, within a group as they were given.
      split: that was scored; None if not told, as are the following.
      round: rounds trained.
      updates: parameter updates.
      parameters: of the model.
      seconds: the whole run took.
    """

    tasks: tuple[TaskResult, ...]
    split: str | None = None
    round: int | None = None
    updates: int | None = None
    parameters: int | None = None
    seconds: float | None = None

    def average(self, of: str) -> float | None:
        """Mean over the tasks of "score", "chance", "words" or "majority".

        None where a task lacks it: a mean over other tasks could not be compared.
        """
        values = [getattr(task, of) for task in self.tasks]
        return None if not values or None in values else math.fsum(values) / len(values)


def parse_results(raw: Any, where: str = "results") -> Results:
    """The contents of a `results.json`, checked.

    Raises:
      ValueError: something is missing or of the wrong type; begins with `where`, names the key.
    """
    tasks = _get(raw, "tasks", Mapping, where, needed=True)
    parsed = [_parse_task(name, tasks[name], f"{where}: tasks.{name}") for name in tasks]
    return Results(
        tasks=tuple(sorted(parsed, key=lambda task: task.group)),
        split=_get(raw, "split", str, where),
        **{key: _get(raw, key, int, where) for key in ("round", "updates", "parameters")},
        seconds=_get(raw, "seconds", float, where),
    )


def _parse_task(name: str, raw: Any, where: str) -> TaskResult:
    more = _get(raw, "metrics", Mapping, where) or {}
    return TaskResult(
        name=name,
        title=_get(raw, "title", str, where, needed=True),
        group=_get(raw, "group", str, where, needed=True),
        metric=_get(raw, "metric", str, where, needed=True),
        score=_get(raw, "score", float, where, needed=True),
        **{key: _get(raw, key, float, where) for key in ("chance", "words", "majority", "loss")},
        examples=_get(raw, "examples", int, where),
        metrics={key: _get(more, key, float, f"{where}.metrics", needed=True) for key in more},
    )


def _get(record: Any, key: str, kind: type, where: str, *, needed: bool = False) -> Any:
    """`record[key]`, of `kind`; None if it is missing or null and not needed."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: must be an object, is a {type(record).__name__}")
    value = record.get(key)
    if value is None and not needed:
        return None
    if kind is float and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    kinds = (float, int) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{where}: {key!r} must be {kind.__name__}, is {value!r}")
    return float(value) if kind is float else value


def number(value: float | None) -> str:
    """A score as text, three decimals."""
    return NOTHING if value is None else f"{value:.3f}"


def cells(task: TaskResult) -> tuple[str, ...]:
    """A task's row of the table: texts in the order of `COLUMNS`."""
    return (
        task.group,
        task.title,
        task.metric,
        f"{number(task.score)} {' ' if task.above() else FLAG}",
        number(task.chance),
        number(task.words),
        number(task.majority),
        NOTHING if task.examples is None else f"{task.examples:,}",
    )


def average_cells(results: Results) -> tuple[str, ...]:
    """The row of means below the tasks."""
    means = [number(results.average(of)) for of in ("score", "chance", "words", "majority")]
    return ("", "average", "", f"{means[0]}  ", *means[1:], "")


def results_table(results: Mapping[str, Any]) -> str:
    """The results as text: a row a task in the groups' order, and their average.

    Args:
      results: the contents of a `results.json`.

    Returns:
      Lines, without a newline at the end. A task whose score is not above both chance and words is
      marked `FLAG`, with a footnote.

    Raises:
      ValueError: see `parse_results`.
    """
    parsed = parse_results(results)
    rows = [cells(task) for task in parsed.tasks]
    header = tuple(f"{name}  " if name == "score" else name for name in COLUMNS)  # room for a flag
    lines = _aligned([header, *rows, average_cells(parsed)])
    rule = "-" * max(map(len, lines))
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    if not all(task.above() for task in parsed.tasks):
        lines.append(FOOTNOTE)
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        parts = [
            text.rjust(width) if name in _NUMBERS else text.ljust(width)
            for text, width, name in zip(row, widths, COLUMNS, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return lines
