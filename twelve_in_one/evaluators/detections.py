"""Scores of detectors: average precision by LVIS's protocol or COCO's, and recall of proposals.

Chance is what a detector would score that finds the same boxes and knows nothing of their names:
names of novel classes are exchanged among themselves, and those of base classes too.

Letters: N pictures, K detections and G true boxes of a picture, C classes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from twelve_in_one.data.images.boxes import truth_of
from twelve_in_one.data.images.letterbox import covered
from twelve_in_one.evaluators import rows, texts
from twelve_in_one.tasks.metrics import detection
from twelve_in_one.tasks.metrics.detection import Detections, Evaluation, Truth

_EXCHANGES, _DRAWS = 5, 100
_RECALLED = 0.5  # overlap from which on a proposal counts

Step = Callable[[Any, Mapping[str, Any]], Any]


@dataclasses.dataclass(frozen=True)
class DetectionOutcome:
    """Detections of a split, in pixels of the pictures.

    Attributes:
      example_ids: N of them.
      found: of each picture, best first.
      truth: of each picture.
      category_ids: official number of each class.
    """

    example_ids: tuple[str, ...]
    found: tuple[Detections, ...]
    truth: tuple[Truth, ...]
    category_ids: tuple[int, ...]

    def results(self) -> list[dict[str, Any]]:
        """Detections as COCO's and LVIS's programs read them."""
        return [
            {
                "image_id": int(name),
                "category_id": self.category_ids[number],
                "bbox": [*map(float, box[:2]), *map(float, box[2:] - box[:2])],
                "score": float(score),
            }
            for name, found in zip(self.example_ids, self.found, strict=True)
            for box, score, number in zip(*found, strict=True)
        ]


def evaluate_stream(
    step: Step,
    params: Any,
    batches: Iterable[Any],
    stream: Any,
    place: Callable[[Any], Any],
    *,
    thorough: bool,
    max_examples: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], DetectionOutcome]:
    """Scores the pictures of a stream.

    Args:
      step: `System.detect`, compiled.
      params: see `rows.collect`, like the other arguments.
      batches: of the stream.
      stream: a `data.images.stream.ImageStream`.
      place: see above.
      thorough: also chance and intervals.
      max_examples: see above.
      progress: see above.

    Returns:
      The summary, see `rows.summarise`, and the detections.

    Raises:
      ValueError: see `rows.collect`; or a score is not finite.
      DataError: an example cannot be read again.
    """
    collected = rows.collect(
        step, params, batches, place, max_examples=max_examples, progress=progress
    )
    columns = collected.columns
    if not np.isfinite(columns["scores"]).all():
        raise ValueError("scores of boxes are not finite: the model's weights are not usable")
    (part,) = stream.parts
    examples = texts.examples_of(part.images, collected.example_ids)
    found, truth, recalled = [], [], np.zeros(2)
    for row, example in enumerate(examples):
        size = np.tile(example.objects.size, 2)
        factors = size / np.tile(covered(example.objects.size, part.encode.side), 2)
        real = columns["valid"][row]
        found.append(
            Detections(
                columns["boxes"][row][real].astype(np.float64) * factors,
                columns["scores"][row][real].astype(np.float64),
                columns["classes"][row][real],
            )
        )
        truth.append(truth_of(example.objects))
        proposals = columns["proposals"][row] * factors
        true = truth[-1].boxes[~truth[-1].crowd]
        recalled += detection.recall_of(proposals, true, _RECALLED)
    outcome = DetectionOutcome(
        collected.example_ids, tuple(found), tuple(truth), part.images.category_ids
    )
    summary = summarise(outcome, part.images.labels, part.images.frequencies, thorough=thorough)
    recall = recalled[0] / max(recalled[1], 1)
    summary["metrics"][f"proposal_recall_{_RECALLED:g}"] = float(recall)
    return summary, outcome


def summarise(
    outcome: DetectionOutcome,
    names: Sequence[str],
    frequencies: Sequence[str],
    *,
    thorough: bool,
) -> dict[str, Any]:
    """See `rows.summarise`; the score is AP of rare classes if some are, else AP of all.

    Measures that are not defined, as of classes without a true box, are left out.
    """
    count = len(names)
    evaluation = Evaluation(outcome.truth, outcome.found, count)
    found = detection.average_precision(evaluation, frequencies)
    metric = "AP_r" if found.get("AP_r", -1) >= 0 else "AP"
    summary = {
        "score": max(found[metric], 0.0),
        "metric": metric,
        "loss": None,
        "examples": len(outcome.example_ids),
        "metrics": {name: value for name, value in found.items() if value >= 0},
    }
    if thorough:
        summary["chance"] = _chance(outcome, count, frequencies, metric)
        intervals = detection.bootstrap(evaluation, frequencies, _DRAWS)
        for name in dict.fromkeys((metric, "AP")):
            low, high = intervals[name]
            summary["metrics"] |= {f"{name}_low": max(low, 0.0), f"{name}_high": max(high, 0.0)}
    return summary


def _chance(
    outcome: DetectionOutcome, count: int, frequencies: Sequence[str], metric: str
) -> float:
    """The mean over some exchanges of names; see above."""
    rare = np.array([x == "r" for x in frequencies] or [False] * count)
    groups = [group for group in (np.flatnonzero(rare), np.flatnonzero(~rare)) if len(group)]
    scores = []
    for shift in range(1, min(_EXCHANGES, min(map(len, groups)) - 1) + 1):
        other = np.arange(count)
        for group in groups:
            other[group] = np.roll(group, shift)
        found = [one._replace(classes=other[one.classes]) for one in outcome.found]
        evaluation = Evaluation(outcome.truth, found, count)
        scores.append(max(detection.average_precision(evaluation, frequencies)[metric], 0.0))
    return float(np.mean(scores)) if scores else 0.0
