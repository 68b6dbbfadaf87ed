"""Outcomes as Markdown tables and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from twelve_in_one.experiments.comparison import (
    Averages,
    Outcome,
    differences,
    scores,
    updates,
)
from twelve_in_one.experiments.statistics import Estimate, estimate, show

Titles = Mapping[str, str]
_MARKERS = "osd^vPX*"


def by_task(
    outcomes: Sequence[Outcome],
    titles: Titles,
    averages: Averages,
    facts: Mapping[str, Mapping[str, str]] | None = None,
    begun_with: Mapping[str, str] | None = None,
) -> str:
    """One row per task: facts, the score of every variant, and each variant's gain on the first.

    The first variant has all tasks; what another lacks is left blank.

    Args:
      outcomes: one per seed.
      titles: variant -> title.
      averages: name -> tasks, one row each below the tasks.
      facts: title of a column -> task -> text, before the scores.
      begun_with: fine-tuned variant -> its starting variant, to show its gain on that, too.
    """
    variants, facts = list(outcomes[0].results), facts or {}
    first, *others = variants
    pairs = [(variant, first) for variant in others]
    pairs += [
        (variant, origin)
        for variant, origin in (begun_with or {}).items()
        if variant in others and origin in others
    ]
    header = ["task", *facts, *(titles[variant] for variant in variants)]
    header += [f"{titles[variant]} − {titles[origin]}" for variant, origin in pairs]
    per_variant = [scores(outcomes, variant, averages) for variant in variants]
    gains = [differences(outcomes, variant, origin, averages) for variant, origin in pairs]
    entries = outcomes[0].results[first]
    rows = [
        [
            entries[name]["title"] if name in entries else f"**{name}**",
            *(fact.get(name, "") for fact in facts.values()),
            *(show(estimate(found[name])) if name in found else "" for found in per_variant),
            *(marked(gain[name]) if name in gain else "" for gain in gains),
        ]
        for name in per_variant[0]
    ]
    blank = [""] * len(facts)
    counts = [updates(outcomes, variant) for variant in variants]
    if None not in counts:
        rows.append(["updates", *blank, *(f"{n:,.0f}" for n in counts), *[""] * len(gains)])
    parameters = [f"{outcomes[0].parameters[variant]:,}" for variant in variants]
    rows.append(["parameters", *blank, *parameters, *[""] * len(gains)])
    return markdown(header, rows)


def by_variant(outcomes: Sequence[Outcome], titles: Titles, averages: Averages) -> str:
    """One row per variant: its averages, and their differences from those of the first."""
    first = next(iter(outcomes[0].results))
    header = ["variant", *averages, *(f"Δ {name}" for name in averages), "updates"]
    rows = []
    for variant in outcomes[0].results:
        found, count = scores(outcomes, variant, averages), updates(outcomes, variant)
        gain = differences(outcomes, variant, first, averages)
        rows.append(
            [
                titles[variant],
                *(show(estimate(found[name])) for name in averages),
                *("" if variant == first else marked(gain[name]) for name in averages),
                "" if count is None else f"{count:,.0f}",
            ]
        )
    return markdown(header, rows)


def plot(
    outcomes: Sequence[Outcome],
    titles: Titles,
    averages: Averages,
    path: Path,
    *,
    only_averages: bool = False,
) -> None:
    """Gains of every variant on the first, one line per task, with confidence intervals.

    With only one variant there is nothing to draw, and no file is written.

    Args:
      outcomes: one per seed.
      titles: variant -> title.
      averages: name -> tasks, one line each below the tasks.
      path: of the PNG file.
      only_averages: leave the tasks out.
    """
    first, *others = outcomes[0].results
    if not others:
        return
    from matplotlib.figure import Figure

    names = list(averages if only_averages else scores(outcomes, first, averages))
    height = max(0.38, 0.12 * len(others))
    figure = Figure(figsize=(7, 1.4 + height * len(names)), layout="constrained")
    axes = figure.subplots()
    for i, variant in enumerate(others):
        gains = differences(outcomes, variant, first, averages)
        offset = 0.7 / len(others) * (i - (len(others) - 1) / 2)
        rows = [row for row, name in enumerate(names) if name in gains]
        axes.errorbar(
            [100 * gains[names[row]].mean for row in rows],
            [row + offset for row in rows],
            xerr=[100 * (gains[names[row]].half_width or 0.0) for row in rows],
            fmt=_MARKERS[i % len(_MARKERS)],
            capsize=2,
            label=titles[variant],
        )
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"points above {titles[first]} ({over_seeds(outcomes)})")
    axes.legend()
    figure.savefig(path, format="png", dpi=150)


def over_seeds(outcomes: Sequence[Outcome]) -> str:
    """How a plot shows several seeds, in words."""
    count = len(outcomes)
    return "one seed" if count == 1 else f"mean of {count} seeds, 95 % interval"


def about_tasks(entries: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, str]]:
    """Metric, chance and words of tasks, as facts for `by_task`."""
    return {
        "metric": {name: str(entry.get("metric", "")) for name, entry in entries.items()},
        "chance": {name: _percent(entry.get("chance")) for name, entry in entries.items()},
        "words": {name: _percent(entry.get("words")) for name, entry in entries.items()},
    }


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with its first column left-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def marked(gain: Estimate) -> str:
    """A difference, bold if its interval does not contain 0."""
    text = show(gain, signed=True)
    return f"**{text}**" if gain.excludes_zero else text


def _percent(value: object) -> str:
    return f"{100 * value:.1f}" if isinstance(value, float) else "–"
