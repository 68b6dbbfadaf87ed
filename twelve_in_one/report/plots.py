"""Plots of a run. Figures are made without pyplot, so matplotlib's state stays untouched."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twelve_in_one.report.results import FLAG, Results
from twelve_in_one.report.workdir import Run, TaskName, stop_spans

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_GROUP_COLOURS = {"G1": "#3b6fb6", "G2": "#c8702b", "G3": "#33865b", "G4": "#8a56a8"}
_OTHER = "#5a6068"
_STOPPED = "#d9dbdf"
# Colours, lines and markers differ, so that a grey copy is readable too.
_BARS = {
    "chance": ("#6d737b", ":", "|"),
    "words": ("#c0392b", "--", "d"),
    "majority": ("#a07800", "-.", "s"),
}
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e7ea",
    "grid.linewidth": 0.6,
    "figure.dpi": 110,
    "text.parse_math": False,  # a title may contain a dollar sign
}
_LINES = ("-", "--", ":")  # beyond ten colours
# With fewer points a mean would hide more than it shows.
_SMOOTH_FROM = 60


def all_plots(run: Run) -> Iterator[tuple[str, "Figure | str"]]:
    """(name, figure) of every plot; a sentence instead if a run has nothing to show yet.

    Figures are made one at a time, so that only one is in memory.
    """
    from matplotlib import rc_context

    plots: tuple[tuple[str, Callable[[Run], Figure | str]], ...] = (
        ("results", results_plot),
        ("loss", loss_plot),
        ("validation", validation_plot),
        ("stop_and_go", stop_and_go_plot),
    )
    for name, plot in plots:
        with rc_context(_STYLE):
            yield name, plot(run)


def loss_plot(run: Run) -> "Figure | str":
    """Training loss of every task, with its running mean."""
    if not any(record.get("loss") for record in run.train):
        return "No training loss yet."
    figure, grid = _small_multiples(run.tasks)
    for task, axes in grid:
        trained = [record for record in run.train if task.name in record.get("loss", ())]
        rounds, losses = _columns([(r["round"], r["loss"][task.name]) for r in trained])
        many = len(rounds) >= _SMOOTH_FROM
        colour = _GROUP_COLOURS.get(task.group, _OTHER)
        axes.plot(rounds, losses, color=colour, linewidth=1, alpha=0.3 if many else 1)
        if many:
            axes.plot(*_running_mean(rounds, losses), color=colour, linewidth=1.4)
        seen = losses[np.isfinite(losses)]
        if len(seen) and seen.min() > 0 and seen.max() > 20 * seen.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # powers of ten would need parsed formulas
        _shade_stops(run, task, axes)
        if not len(seen):
            _say(axes, "no loss yet")
    return figure


def validation_plot(run: Run) -> "Figure | str":
    """Validation score of every task, and the scores possible without looking."""
    if not run.validation:
        return "No validation yet."
    # Other names in the records are of parts of a loss.
    named = {*run.start.get("tasks", ()), *(record["task"] for record in run.validation)}
    figure, grid = _small_multiples([task for task in run.tasks if task.name in named])
    tested = {task.name: task for task in run.results.tasks} if run.results else {}
    drawn = set()
    for task, axes in grid:
        points = [(r["round"], r.get("score")) for r in run.validations(task.name)]
        rounds, scores = _columns(points)
        colour = _GROUP_COLOURS.get(task.group, _OTHER)
        axes.plot(rounds, scores, color=colour, linewidth=1.2, marker=".", markersize=3)
        for bar, (bar_colour, line, _) in _BARS.items():
            value = getattr(tested.get(task.name), bar, None)
            if value is not None and np.isfinite(value):
                axes.axhline(value, color=bar_colour, linestyle=line, linewidth=1)
                drawn.add(bar)
        _shade_stops(run, task, axes)
        if not np.isfinite(scores).any():
            _say(axes, "not validated yet")
    if drawn:
        _legend(figure, [bar for bar in _BARS if bar in drawn])
    return figure


def stop_and_go_plot(run: Run) -> "Figure | str":
    """When each task trained and when it was stopped: one bar per task over the rounds.

    Of a run whose batches mix tasks also the share of the rows that each task had.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    learnt = {name for record in run.train for name in record.get("loss", ())}
    tasks = [task for task in run.tasks if task.name in learnt or not learnt]
    spans = {task: stop_spans(run, task.name) for task in tasks}
    spans = {task: found for task, found in spans.items() if found}
    if not spans:
        return "No validation yet, so no task can have been stopped."
    mixed = [record for record in run.train if record.get("rows")]
    bars, shares = 0.9 + 0.28 * len(spans), 1.8 if mixed else 0.0
    figure = Figure(figsize=(10, 0.3 + bars + shares), layout="constrained")
    if mixed:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(bars, shares))
        _shares(mixed, list(spans), below)
    else:
        axes = figure.subplots()
    for row, (task, found) in enumerate(spans.items()):
        for span in found:
            axes.broken_barh(
                [(span.start, span.end - span.start)],
                (row - 0.36, 0.72),
                facecolors=_STOPPED if span.stopped else _GROUP_COLOURS.get(task.group, _OTHER),
                edgecolor="white",
                hatch="////" if span.stopped else None,
                linewidth=0.4,
            )
        total = sum(span.end - span.start for span in found)
        going = sum(span.end - span.start for span in found if not span.stopped)
        # In units of the axes' width, so that the text stays next to the bars for any rounds.
        axes.text(
            1.01, row, f"{going / total:.0%}", transform=axes.get_yaxis_transform(), va="center"
        )
    axes.text(1.01, -1, "goes", transform=axes.get_yaxis_transform(), va="center")
    axes.set(xlim=(0, max(run.last_round, 1)), ylim=(len(spans) - 0.4, -0.8))
    (below if mixed else axes).set_xlabel("round")
    axes.set_yticks(range(len(spans)), [_heading(task) for task in spans])
    axes.grid(axis="y", visible=False)
    patches = [
        Patch(facecolor=_OTHER, label="goes"),
        Patch(facecolor=_STOPPED, edgecolor="white", hatch="////", label="stopped"),
    ]
    figure.legend(handles=patches, loc="outside lower right", ncols=2, frameon=False)
    return figure


def _shares(records: Sequence[dict[str, Any]], tasks: Sequence[TaskName], axes: "Axes") -> None:
    """Share of each task in the rows between one record and the next, as steps."""
    rounds = np.array([0, *(record["round"] for record in records)], float)
    # [records, tasks]; other names in the records are of losses that tasks share.
    rows = np.array([[record["rows"].get(task.name, 0) for task in tasks] for record in records])
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    for number, task in enumerate(tasks):
        line = _LINES[number // 10 % len(_LINES)]
        colour = f"C{number % 10}"
        axes.stairs(
            shares[:, number], rounds, baseline=None, color=colour, linestyle=line, label=task.title
        )
    axes.set(ylim=(0, None), ylabel="share of rows")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def results_plot(run: Run) -> "Figure | str":
    """Final scores as bars, with marks for the scores possible without looking."""
    from matplotlib.figure import Figure

    if run.results is None or not run.results.tasks:
        return "No results yet."
    results: Results = run.results
    count = len(results.tasks)
    figure = Figure(figsize=(10, 1.1 + 0.3 * count), layout="constrained")
    axes = figure.subplots()
    scores = [task.score if np.isfinite(task.score) else 0.0 for task in results.tasks]
    ends = list(scores)  # right ends of the marks of each row, to place its text
    colours = [_GROUP_COLOURS.get(task.group, _OTHER) for task in results.tasks]
    axes.barh(range(count), scores, color=colours, height=0.66, alpha=0.85)
    for row, task in enumerate(results.tasks):
        for bar, (colour, _, marker) in _BARS.items():
            value = getattr(task, bar)
            if value is not None and np.isfinite(value):
                line = marker == "|"
                axes.plot(
                    value,
                    row,
                    marker=marker,
                    markersize=11 if line else 5,
                    markeredgewidth=2 if line else 0.8,
                    color=colour,
                    markeredgecolor=colour if line else "white",
                )
                ends[row] = max(ends[row], value)
        text = f"{task.score:.3f}{'' if task.above() else f' {FLAG}'}"
        axes.annotate(text, (ends[row], row), (6, 0), textcoords="offset points", va="center")
    right = max(1.0, *ends)
    axes.set(xlim=(0, 1.06 * right), ylim=(count - 0.4, -0.6), xlabel="score")
    axes.set_yticks(range(count), [_heading(task) for task in results.tasks])
    axes.grid(axis="y", visible=False)
    drawn = [bar for bar in _BARS if any(getattr(task, bar) is not None for task in results.tasks)]
    if drawn:
        _legend(figure, drawn, markers=True)
    return figure


def _heading(task: Any) -> str:
    return f"{task.group} · {task.title}" if task.group else task.title


def _small_multiples(
    tasks: Sequence[TaskName],
) -> tuple["Figure", list[tuple[TaskName, "Axes"]]]:
    """A figure with one small plot per task, row by row."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    width, height = 2.6 * columns, 1.75 * rows + 0.5
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=True,
        # Margins in inches; a layout engine would take as long as all the drawing.
        gridspec_kw=dict(
            left=0.45 / width,
            right=1 - 0.15 / width,
            bottom=0.75 / height,
            top=1 - 0.3 / height,
            wspace=0.24,
            hspace=0.32,
        ),
    ).flat
    for spare in axes[len(tasks) :]:
        spare.remove()
    grid = list(zip(tasks, axes[: len(tasks)], strict=True))
    for i, (task, one) in enumerate(grid):
        one.set_title(_heading(task), color=_GROUP_COLOURS.get(task.group, _OTHER), loc="left")
        if i + columns >= len(tasks):  # the lowest of its column
            one.set_xlabel("round")
            one.tick_params(labelbottom=True)
    return figure, grid


def _columns(points: Sequence[tuple[int, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(rounds, values); values that are not finite leave gaps in the line."""
    rounds = np.array([x for x, _ in points], float)
    values = np.array([np.nan if y is None else y for _, y in points], float)
    return rounds, np.where(np.isfinite(values), values, np.nan)


def _running_mean(rounds: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of a thirtieth of the points, at the middle of their rounds."""
    finite = np.isfinite(values)
    rounds, values = rounds[finite], values[finite]
    width = max(1, min(len(values), len(finite) // 30))
    window = np.ones(width) / width
    if not len(values):
        return rounds, values
    return tuple(np.convolve(column, window, mode="valid") for column in (rounds, values))


def _shade_stops(run: Run, task: TaskName, axes: "Axes") -> None:
    for span in stop_spans(run, task.name):
        if span.stopped:
            axes.axvspan(span.start, span.end, color=_STOPPED, alpha=0.5, linewidth=0)


def _say(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_OTHER)


def _legend(figure: "Figure", bars: Sequence[str], *, markers: bool = False) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=colour,
            linestyle="none" if markers else line,
            marker=marker if markers else "none",
            label=bar,
        )
        for bar, (colour, line, marker) in _BARS.items()
        if bar in bars
    ]
    outside = "outside " if figure.get_layout_engine() else ""
    figure.legend(handles=handles, loc=f"{outside}lower right", ncols=len(handles), frameon=False)
