"""The report as one HTML file: no scripts, nothing to load, for light and dark screens."""

import base64
import itertools
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

from twelve_in_one.report.results import (
    FLAG,
    FOOTNOTE,
    GROUPS,
    OFFICIAL,
    Results,
    TaskResult,
    average_cells,
    cells,
    columns,
    figure_text,
    missing_lines,
    number,
    officials,
    seen_lines,
    unscored_lines,
)
from twelve_in_one.report.workdir import Run

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --faint: #62666d; --paper: #fafaf8;
  --line: #dcdde0; --band: #f0f0ed; --flag: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --faint: #a3a7ae; --paper: #17181a;
  --line: #36383c; --band: #222427; --flag: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1150px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6em; margin: 0 0 .2em; overflow-wrap: anywhere; }
h2 { font-size: 1.2em; margin: 2em 0 .6em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 4px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th.text, td.text { text-align: left; }
td.figures, td.more { white-space: normal; text-align: left; }
td.more { color: var(--faint); font-size: .87em; }
tr.group th { text-align: left; background: var(--band); padding-top: 7px; }
tr.average td { font-weight: 600; border-top: 2px solid var(--line); }
.flag { color: var(--flag); font-weight: 700; }
.faint { color: var(--faint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 22px; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
figcaption { color: var(--faint); font-size: .92em; }
pre { background: var(--band); padding: 12px; border-radius: 6px; overflow-x: auto; }
"""
_TEXT_COLUMNS = frozenset(("task", "metric"))


class Picture(NamedTuple):
    """An image file with its caption; `media_type` is as in "image/png"."""

    caption: str
    media_type: str
    data: bytes


def page(run: Run, plots: Sequence[Picture | str], sheets: Sequence[Picture]) -> str:
    """The whole page.

    Args:
      run: the reported run.
      plots: pictures, or sentences that say why there is none.
      sheets: contact sheets of examples, with the tasks as captions.
    """
    title = f"Report of {run.workdir.resolve().name}"
    parts = [f"<h1>{escape(title)}</h1>", _facts(run), "<h2>Results</h2>"]
    parts.append(results_html(run.results) if run.results else _note("No results yet."))
    parts += ["<h2>Training</h2>", *map(_figure, plots)]
    parts.append("<h2>Examples</h2>")
    parts += [f"<h3>{escape(sheet.caption)}</h3>{_figure(sheet)}" for sheet in sheets]
    if not sheets:
        parts.append(_note("No pictures of examples."))
    if run.config is not None:
        config = f"<pre>{escape(run.config)}</pre>"
        parts.append(f"<h2>Config</h2><details><summary>config.json</summary>{config}</details>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def duration(seconds: float) -> str:
    """Readable time: "42 s", "5 min 03 s", "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def _facts(run: Run) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts(run))
    return f"<dl>{rows}</dl>"


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """The known facts about a run: (heading, text)."""
    results, last = run.results, run.train[-1] if run.train else {}
    timing = last.get("timing", {})

    def first(*values: Any) -> Any:
        return next((value for value in values if value is not None), None)

    parameters = first(results and results.parameters, run.start.get("parameters"))
    if parameters is not None:
        yield "parameters", f"{parameters:,}"
    rounds = first(results and results.round, run.last_round)
    updates = first(results and results.updates, last.get("updates"))
    yield "rounds", f"{rounds:,}" + ("" if results else " so far")
    if updates is not None:
        yield "updates", f"{updates:,}"
    if results and results.split:
        yield "scored on", results.split
    seconds = first(results and results.seconds, timing.get("elapsed_s"))
    if seconds is not None:
        yield "time", duration(seconds) + ("" if results else " so far")
    if "examples_per_s" in timing:
        yield "speed", f"{timing['examples_per_s']:,.0f} examples/s"
    if "data_wait" in timing:
        yield "waited for data", f"{timing['data_wait']:.1%} of the time"
    if last.get("skipped"):
        yield "skipped updates", f"{last['skipped']:,}, their gradients were not finite"
    if "devices" in run.start:
        yield "devices", str(run.start["devices"])
    if "command" in run.start.get("timing", {}):
        yield "command", str(run.start["timing"]["command"])


def results_html(results: Results) -> str:
    """The table of results, one row per task below its group, and their average."""
    everything = columns(results)
    names = everything[1:]
    header = "".join(_cell("th", name, name) for name in names)
    rows = [f'<thead><tr>{header}<th class="text">more</th></tr></thead>']
    span = len(names) + 1
    for group, tasks in itertools.groupby(results.tasks, key=lambda task: task.group):
        heading = f"{group} · {GROUPS[group]}" if group in GROUPS else group
        rows.append(
            f'<tr class="group"><th colspan="{span}" scope="rowgroup">{escape(heading)}</th></tr>'
        )
        rows += [_row(task, everything) for task in tasks]
    average = zip(names, average_cells(results, everything)[1:], strict=True)
    last = "".join(_cell("td", name, text.strip()) for name, text in average)
    rows.append(f'<tr class="average">{last}<td></td></tr>')
    footnote = "" if all(task.above() for task in results.tasks) else _note(FOOTNOTE)
    table = f'<div class="scroll"><table>{"".join(rows)}</table></div>{footnote}'
    notes = map(_note, (*seen_lines(results), *unscored_lines(results)))
    return table + _official(results) + "".join(notes)


def _official(results: Results) -> str:
    """The official figures, one row per split, and the missing ones."""
    rows = []
    for title, split, official in officials(results):
        if official.figures:
            figures = escape(figure_text(official, ", "))
            columns = (
                f'<td class="text">{escape(f"{title} ({split})")}</td>',
                f'<td class="figures">{figures}</td>',
                f'<td class="text">{escape(official.program)}</td><td>{official.examples:,}</td>',
            )
            rows.append(f"<tr>{''.join(columns)}</tr>")
    notes = "".join(_note(f"Not computed: {line}.") for line in missing_lines(results))
    if not rows:
        return notes
    heading = f"<h3>{escape(OFFICIAL[:1].upper() + OFFICIAL[1:])}</h3>"
    return f'{heading}<div class="scroll"><table>{"".join(rows)}</table></div>{notes}'


def _row(task: TaskResult, names: Sequence[str]) -> str:
    more = [f"{name} {number(value)}" for name, value in task.metrics.items()]
    if task.loss is not None:
        more.append(f"loss {task.loss:.4f}")
    values = dict(zip(names, cells(task, names), strict=True))
    texts = [_cell("td", name, values[name]) for name in names if name != "group"]
    return f'<tr>{"".join(texts)}<td class="more">{escape(", ".join(more))}</td></tr>'


def _cell(tag: str, column: str, text: str) -> str:
    if column in _TEXT_COLUMNS:
        return f'<{tag} class="text">{escape(text)}</{tag}>'
    shown = escape(text.strip())
    if column == "score" and tag == "td":
        shown = shown.replace(FLAG, f'<span class="flag">{FLAG}</span>')
    return f"<{tag}>{shown}</{tag}>"


def _figure(picture: Picture | str) -> str:
    if isinstance(picture, str):
        return _note(picture)
    data = base64.b64encode(picture.data).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:{picture.media_type};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _note(text: str) -> str:
    return f'<p class="faint">{escape(text)}</p>'
