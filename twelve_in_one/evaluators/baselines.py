"""Scores of a run's tasks without a model, by what its inputs are."""

from collections.abc import Callable, Mapping
from typing import Any

from twelve_in_one.evaluators import target, texts

Baselines = Callable[[Any, str], Mapping[str, float]]


def _of_regions(inputs: Any, max_examples: int) -> Baselines:
    candidates = {task.task.name: task.options.candidates for task in inputs.tasks}
    return target.baselines_of(inputs.folder, candidates, max_examples)


# `RunInputs.kind` -> (inputs, most examples of a split) -> (task, split) -> chance, majority, words
BASELINES: Mapping[str, Callable[[Any, int], Baselines]] = {
    "regions": _of_regions,
    "pictures": texts.baselines_of,
}
