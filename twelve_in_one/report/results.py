"""The results of a run: `results.json` checked, and as a table for the terminal."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
OFFICIAL = "official figures: by the rules of each benchmark's own program, in percent"
# With another example's picture, with one frame of a clip, and by the encoder's tokens alone; only
# of texts about pictures.
SOME = ("shuffled", "frame", "neighbour", "probe")
_BASELINES = ("chance", "words", "majority", *SOME)
_TEXTS = frozenset(("group", "task", "metric"))


@dataclasses.dataclass(frozen=True)
class Official:
    """The output of a benchmark's own program for a split.

    Attributes:
      program: its name; "" if it could not be run.
      examples: number scored.
      figures: by name, in percent except ranks and GQA's distribution.
      not_computed: figure -> why it is missing.
    """

    program: str
    examples: int
    figures: Mapping[str, float]
    not_computed: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Scores of one task, in the units of its metric (shares in [0, 1]).

    Attributes:
      name: short name, as in configs.
      title: display name.
      group: "G1" to "G4".
      metric: name of the score.
      score: the number to compare.
      chance: of a uniform guess; None if unknown, like the following fields.
      words: of a model that sees only the text.
      majority: of the best constant answer.
      shuffled: of the model with the pictures of other examples.
      frame: of the model with one frame of each clip.
      neighbour: of the text of the training example with the most similar tokens.
      probe: of a linear classifier on the tokens.
      examples: number scored.
      loss: mean over the examples.
      metrics: more scores by name, e.g. "r@5" or "oracle".
      official: split -> figures by the rules of the benchmark's own program, see `official.py`.
      trained_on: split -> how much of it the model has seen, see `data.pipeline.Seen`.
    """

    name: str
    title: str
    group: str
    metric: str
    score: float
    chance: float | None = None
    words: float | None = None
    majority: float | None = None
    shuffled: float | None = None
    frame: float | None = None
    neighbour: float | None = None
    probe: float | None = None
    examples: int | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    official: Mapping[str, Official] = dataclasses.field(default_factory=dict)
    trained_on: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def above(self) -> bool:
        """Whether the score is above chance and words, as far as they are known."""
        return all(self.score > bar for bar in (self.chance, self.words) if bar is not None)


@dataclasses.dataclass(frozen=True)
class Results:
    """The contents of a `results.json`.

    Attributes:
      tasks: in the groups' order, within a group in their given order.
      split: the scored one; None if unknown, like the following fields.
      round: rounds trained.
      updates: parameter updates.
      parameters: of the model.
      seconds: of the whole run.
      unscored: task -> examples with unpublished answers.
      trained_on_only: "task/split" -> number of records, all seen by the model in training.
    """

    tasks: tuple[TaskResult, ...]
    split: str | None = None
    round: int | None = None
    updates: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    unscored: Mapping[str, int] = dataclasses.field(default_factory=dict)
    trained_on_only: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def average(self, of: str) -> float | None:
        """Mean over the tasks of "score" or a column of baselines.

        None if a task lacks it: means over different tasks are not comparable.
        """
        values = [getattr(task, of) for task in self.tasks]
        return None if not values or None in values else math.fsum(values) / len(values)


def parse_results(raw: Any, where: str = "results") -> Results:
    """The contents of a `results.json`, checked.

    Raises:
      ValueError: a key is missing or of the wrong type; starts with `where`, names the key.
    """
    tasks = _get(raw, "tasks", Mapping, where, needed=True)
    parsed = [_parse_task(name, tasks[name], f"{where}: tasks.{name}") for name in tasks]
    return Results(
        tasks=tuple(sorted(parsed, key=lambda task: task.group)),
        split=_get(raw, "split", str, where),
        **{key: _get(raw, key, int, where) for key in ("round", "updates", "parameters")},
        seconds=_get(raw, "seconds", float, where),
        **{key: _counts(raw, key, where) for key in ("unscored", "trained_on_only")},
    )


def _counts(raw: Any, key: str, where: str) -> dict[str, int]:
    found = _get(raw, key, Mapping, where) or {}
    return {name: _get(found, name, int, f"{where}: {key}", needed=True) for name in found}


def _parse_task(name: str, raw: Any, where: str) -> TaskResult:
    more = _get(raw, "metrics", Mapping, where) or {}
    return TaskResult(
        name=name,
        title=_get(raw, "title", str, where, needed=True),
        group=_get(raw, "group", str, where, needed=True),
        metric=_get(raw, "metric", str, where, needed=True),
        score=_get(raw, "score", float, where, needed=True),
        **{key: _get(raw, key, float, where) for key in (*_BASELINES, "loss")},
        examples=_get(raw, "examples", int, where),
        metrics={key: _get(more, key, float, f"{where}.metrics", needed=True) for key in more},
        official=_by_split(raw, "official", where, _parse_official),
        trained_on=_by_split(raw, "trained_on", where, _parse_trained_on),
    )


def _by_split(raw: Any, key: str, where: str, parse: Callable[[Any, str], Any]) -> dict[str, Any]:
    found = _get(raw, key, Mapping, where) or {}
    return {split: parse(found[split], f"{where}.{key}.{split}") for split in found}


def _parse_official(raw: Any, where: str) -> Official:
    figures = _get(raw, "figures", Mapping, where, needed=True)
    missing = _get(raw, "not_computed", Mapping, where) or {}
    return Official(
        program=_get(raw, "program", str, where, needed=True),
        examples=_get(raw, "examples", int, where, needed=True),
        figures={key: _get(figures, key, float, where, needed=True) for key in figures},
        not_computed={key: _get(missing, key, str, where, needed=True) for key in missing},
    )


def _parse_trained_on(raw: Any, where: str) -> dict[str, Any]:
    names = ("records", "of_records", "images", "of_images")
    found: dict[str, Any] = {key: _get(raw, key, int, where, needed=True) for key in names}
    found["left_out"] = _get(raw, "left_out", bool, where, needed=True)
    found["unknown"] = tuple(map(str, _get(raw, "unknown", Sequence, where) or ()))
    return found


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
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: {key!r} must be {kind.__name__}, is {value!r}")
    return float(value) if kind is float else value


def number(value: float | None) -> str:
    """A score as text, with three decimals."""
    return NOTHING if value is None else f"{value:.3f}"


def columns(results: Results) -> tuple[str, ...]:
    """Names of the columns of the table: those of `SOME` only if a task has them."""
    some = [x for x in SOME if any(getattr(task, x) is not None for task in results.tasks)]
    shown = [name for name in _BASELINES if name not in SOME or name in some]
    return ("group", "task", "metric", "score", *shown, "examples")


def cells(task: TaskResult, columns: Sequence[str]) -> tuple[str, ...]:
    """A task's row of the table: texts in the order of the columns."""
    texts = {
        "group": task.group,
        "task": task.title,
        "metric": task.metric,
        "score": f"{number(task.score)} {' ' if task.above() else FLAG}",
        "examples": NOTHING if task.examples is None else f"{task.examples:,}",
    }
    return tuple(texts[x] if x in texts else number(getattr(task, x)) for x in columns)


def average_cells(results: Results, columns: Sequence[str]) -> tuple[str, ...]:
    """The row of means below the tasks."""
    empty = {"group": "", "task": "average", "metric": "", "examples": ""}
    means = {x: number(results.average(x)) for x in columns if x not in empty}
    return tuple((empty | means | {"score": f"{means['score']}  "})[x] for x in columns)


def results_table(results: Mapping[str, Any]) -> str:
    """The results as text: one row per task in the groups' order, and their average.

    Args:
      results: the contents of a `results.json`.

    Returns:
      Lines, without a newline at the end. A task whose score is not above both chance and words is
      marked `FLAG`, with a footnote.

    Raises:
      ValueError: see `parse_results`.
    """
    parsed = parse_results(results)
    names = columns(parsed)
    rows = [cells(task, names) for task in parsed.tasks]
    header = tuple(f"{name}  " if name == "score" else name for name in names)  # room for a flag
    lines = _aligned([header, *rows, average_cells(parsed, names)], names)
    rule = "-" * max(map(len, lines))
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    if not all(task.above() for task in parsed.tasks):
        lines.append(FOOTNOTE)
    lines += _official_block(parsed)
    lines += [*seen_lines(parsed), *unscored_lines(parsed)]
    return "\n".join(lines)


def _official_block(results: Results) -> list[str]:
    rows = [
        (f"{title} ({split})", f"{official.program}, {official.examples:,}", figure_text(official))
        for title, split, official in officials(results)
        if official.figures
    ]
    if not rows:
        return [f"not computed: {line}" for line in missing_lines(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
    missing = [f"not computed: {line}" for line in missing_lines(results)]
    return ["", OFFICIAL, *lines, *missing]


def officials(results: Results) -> Iterator[tuple[str, str, Official]]:
    """(title, split, official figures) of all splits that have any."""
    for task in results.tasks:
        for split, official in task.official.items():
            yield task.title, split, official


def figure_text(official: Official, between: str = "  ") -> str:
    """The figures of a split, as "accuracy 61.23  yes/no 78.10"."""
    return between.join(f"{name} {value:.2f}" for name, value in official.figures.items())


def missing_lines(results: Results) -> list[str]:
    """The official figures that could not be computed, and the files they need."""
    return [
        f"{title} ({split}): {name}: {reason}"
        for title, split, official in officials(results)
        for name, reason in official.not_computed.items()
    ]


def seen_lines(results: Results) -> list[str]:
    """How much of the scored data the model has, or may have, seen in training."""
    lines, unknown = [], {}
    for task in results.tasks:
        for split, seen in task.trained_on.items():
            for what in seen["unknown"]:
                unknown.setdefault(what)
            if not seen["images"] and not seen["records"]:
                continue
            line = (
                f"{task.title} ({split}): training saw {seen['images']:,} of {seen['of_images']:,} "
                f"images"
            )
            if seen["records"]:
                fate = "left out of the score" if seen["left_out"] else "scored all the same"
                line += (
                    f" and {seen['records']:,} of {seen['of_records']:,} records, which are {fate}"
                )
            else:
                line += ", with none of these records"
            lines.append(line)
    return [*lines, *(f"not known: {what}" for what in unknown)]


def unscored_lines(results: Results) -> list[str]:
    """The tasks and splits that were not scored, and why."""
    lines = [
        f"{name}: {count:,} examples without public answers: not scored"
        for name, count in results.unscored.items()
    ]
    return lines + [
        f"{name}: all {count:,} records were trained on: not scored, unless with keep_trained_on"
        for name, count in results.trained_on_only.items()
    ]


def _aligned(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> list[str]:
    """Columns of equal width, numbers right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        parts = [
            text.ljust(width) if name in _TEXTS else text.rjust(width)
            for text, width, name in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return lines
