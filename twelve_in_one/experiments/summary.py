"""Outcomes of several seeds as a table, a JSON file and a plot."""

from collections.abc import Sequence
from pathlib import Path

from twelve_in_one.experiments.main import TITLES, Outcome
from twelve_in_one.experiments.statistics import Estimate, estimate, show

AVERAGE = "average"


def scores(outcomes: Sequence[Outcome], model: str) -> dict[str, list[float]]:
    """Task -> score of each seed, with the average of the tasks as one more."""
    found = {
        name: [outcome.results[model][name]["score"] for outcome in outcomes]
        for name in outcomes[0].results[model]
    }
    columns = zip(*found.values(), strict=True)
    return {**found, AVERAGE: [sum(column) / len(column) for column in columns]}


def differences(outcomes: Sequence[Outcome], model: str, other: str) -> dict[str, Estimate]:
    """Task -> score of one model less that of another, paired by seed."""
    ours, theirs = scores(outcomes, model), scores(outcomes, other)
    return {
        name: estimate([a - b for a, b in zip(ours[name], theirs[name], strict=True)])
        for name in ours
    }


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table: chance, words, every model, and each model's gain on the first."""
    models = list(outcomes[0].results)
    first, *others = models
    header = ["task", "metric", "chance", "words", *(TITLES[m] for m in models)]
    header += [f"{TITLES[m]} − {TITLES[first]}" for m in others]
    rows = [header, ["---"] * 2 + ["---:"] * (len(header) - 2)]
    per_model = {model: scores(outcomes, model) for model in models}
    gains = [differences(outcomes, model, first) for model in others]
    for name in per_model[first]:
        entry = outcomes[0].results["all"].get(name, {})
        rows.append(
            [
                entry.get("title", f"**{name}**"),
                entry.get("metric", ""),
                *(_percent(entry.get(key)) for key in ("chance", "words")),
                *(show(estimate(per_model[model][name])) for model in models),
                *(_marked(gain[name]) for gain in gains),
            ]
        )
    parameters = [f"{outcomes[0].parameters[model]:,}" for model in models]
    rows.append(["parameters", "", "", "", *parameters, *[""] * len(gains)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Gains of every model on the first, a line a task, with confidence intervals."""
    from matplotlib.figure import Figure

    first, *others = outcomes[0].results
    names = list(scores(outcomes, first))
    figure = Figure(figsize=(7, 1.2 + 0.38 * len(names)), layout="constrained")
    axes = figure.subplots()
    markers = "osd^"
    for i, model in enumerate(others):
        gains = differences(outcomes, model, first)
        offset = 0.22 * (i - (len(others) - 1) / 2)
        axes.errorbar(
            [100 * gains[name].mean for name in names],
            [row + offset for row in range(len(names))],
            xerr=[100 * (gains[name].half_width or 0.0) for name in names],
            fmt=markers[i],
            capsize=2,
            label=TITLES[model],
        )
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"points above {TITLES[first]} (mean of {len(outcomes)} seeds, 95 % interval)")
    axes.legend()
    figure.savefig(path, format="png", dpi=150)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _marked(gain: Estimate) -> str:
    text = show(gain, signed=True)
    return f"**{text}**" if gain.excludes_zero else text
