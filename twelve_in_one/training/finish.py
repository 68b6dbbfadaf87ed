"""The end of a run: test scores, example pictures, the report, and readable results."""

import html
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from twelve_in_one import atomic
from twelve_in_one.checkpoints import state
from twelve_in_one.config.check import MIXTURE
from twelve_in_one.evaluators import suite
from twelve_in_one.logs import metrics_writer
from twelve_in_one.report.write import FILE as REPORT
from twelve_in_one.training import programs
from twelve_in_one.training.job import Job
from twelve_in_one.training.loop import Position

RESULTS = "results.json"
_log = logging.getLogger(__name__)


class Results(dict[str, Any]):
    """The contents of a `results.json`; prints as a table, in a notebook as an HTML table.

    Attributes:
      workdir: of the run.
    """

    def __init__(self, values: Mapping[str, Any], workdir: Path):
        super().__init__(values)
        self.workdir = workdir

    def __str__(self) -> str:
        from twelve_in_one.report import results_table

        return "\n".join((results_table(self), *self.get("cut_texts", ()), self._summary()))

    def _repr_html_(self) -> str:
        from twelve_in_one.report.page import results_html
        from twelve_in_one.report.results import parse_results

        return f"{results_html(parse_results(self))}<p>{html.escape(self._summary())}</p>"

    def _summary(self) -> str:
        return (
            f"one model of {self['parameters']:,} parameters, {self['updates']:,} updates, "
            f"{self['seconds']:.0f} s; report: {self.workdir / REPORT}, "
            f"model: {self.workdir / state.MODEL}"
        )


def finish(
    job: Job,
    compiled: programs.Programs,
    params: Any,
    position: Position,
    updates: Mapping[str, int],
    writer: metrics_writer.MetricsWriter,
) -> Results:
    """Scores the model on `TaskOptions.test_splits`, and writes the results of the run.

    Args:
      job: the run.
      compiled: its programs.
      params: of the model, at the end of the run.
      position: of the run, at its end.
      updates: task name -> batches trained on.
      writer: of the run.

    Returns:
      The contents of `results.json`.

    Raises:
      OSError: a file cannot be written.
    """
    from twelve_in_one.data.builders import report
    from twelve_in_one.evaluators.baselines import BASELINES
    from twelve_in_one.report.run_examples import EXAMPLES

    run = job.run
    tasks = {task.task.name: task for task in job.tasks}
    inputs = job.inputs.for_tests(job.serving.trained_on, run.evaluation.keep_trained_on)
    splits = {}
    for name, task in tasks.items():
        wanted = task.options.test_splits
        splits[name] = inputs.splits(task, wanted)
        missing = set(wanted) - set(splits[name])
        if missing:
            _log.warning("%s: not built, and left out: %s", name, ", ".join(sorted(missing)))
        if not splits[name]:  # a score on the validation split, marked in the table, beats none
            splits[name] = (task.options.val_split,)
    pictures: list[Any] = []

    def keep(stream: Any, split: str, predictions: Any) -> None:
        if jax.process_index():
            return
        try:
            pictures.extend(EXAMPLES[inputs.kind](inputs, stream, predictions))
        except ValueError as error:  # the other processes continue, so this one must too
            _log.warning("no example pictures of %s: %s", split, error)

    limit = run.evaluation.max_test_examples
    baselines = BASELINES[inputs.kind](inputs, limit) if run.evaluation.text_baselines else None
    found = suite.evaluate_all(
        job.system,
        job.placement,
        params,
        splits,
        lambda name, split: inputs.evaluation_stream(tasks[name], split, job.system),
        options=run.evaluation,
        max_examples=limit,
        prefetch=run.data.prefetch,
        compiled=compiled.evaluate,
        baselines=baselines,
        keep=keep if run.evaluation.pictures else None,
        progress=report.Progress("test") if jax.process_index() == 0 else None,
    )
    evaluation_seconds = found.pop("seconds")
    scored = {name: "+".join(splits[name]) for name in found["tasks"]}
    results = Results(
        {
            "split": _describe(
                scored, {name: task.options.val_split for name, task in tasks.items()}
            ),
            "round": position.round,
            "updates": sum(updates.values()),
            **found,
            "seconds": position.seconds + evaluation_seconds,
        },
        job.workdir,
    )
    for name, entry in results["tasks"].items():
        entry |= {
            "updates": updates[MIXTURE if job.mixed else name],
            "validation": position.scores.get(name),
        }
        numbers = {key: entry[key] for key in ("score", "metrics", "examples")}
        writer.write(
            {
                "event": "result",
                "round": position.round,
                "split": scored[name],
                "task": name,
                **numbers,
            }
        )
    writer.flush()
    if jax.process_index() == 0:
        _write(job.workdir, results, pictures)
    return results


def _describe(scored: Mapping[str, str], validated: Mapping[str, str]) -> str:
    """The tasks scored on each split: "test of gqa, nlvr2; val (also validated on) of vqa"."""
    groups: dict[str, list[str]] = {}
    for name, split in scored.items():
        seen = " (also validated on)" if split == validated[name] else ""
        groups.setdefault(split + seen, []).append(name)
    return "; ".join(f"{split} of {', '.join(names)}" for split, names in groups.items())


def _write(workdir: Path, results: Results, pictures: list[Any]) -> None:
    from twelve_in_one.report import write_report

    atomic.write(workdir / RESULTS, json.dumps(results, indent=2) + "\n")
    write_report(workdir, pictures)
