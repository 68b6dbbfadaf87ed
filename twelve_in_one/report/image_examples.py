"""Some examples of a task on pictures, with the model's answers, for the report."""

from typing import Any

import numpy as np

from twelve_in_one.data.images import clips
from twelve_in_one.data.images.image_set import ImageExample, examples
from twelve_in_one.data.images.load import load_bytes
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.images.stream import MIN_SIDE, ImageStream
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.evaluators.detections import DetectionOutcome
from twelve_in_one.evaluators.embeddings import nearest_captions
from twelve_in_one.evaluators.retrieval import Ranking
from twelve_in_one.report.pictures import ExamplePicture

_RIGHT = 0.5  # scores above it count as right
_STRIP_EDGE = 2  # pixels between the frames of a clip


def image_examples(stream: ImageStream, outcome: Any, count: int) -> list[ExamplePicture]:
    """Makes pictures of examples spread evenly over the predictions, always the same ones.

    Args:
      stream: the evaluated one.
      outcome: of `suite.evaluate_task`.
      count: of examples; all if there are fewer.

    Raises:
      DataError: an example cannot be read.
    """
    (part,) = stream.parts
    if isinstance(outcome, Ranking):
        return _retrieved(stream, outcome, count)
    if isinstance(outcome, DetectionOutcome):
        return _detected(stream, outcome, count)
    count = min(count, len(outcome.example_ids))
    made = []
    for i in range(count):
        at = (2 * i + 1) * len(outcome.example_ids) // (2 * count)
        wanted = outcome.example_ids[at]
        # Predictions are in stored order, but for unreadable pictures.
        for number in range(at, part.images.num_examples):
            known = part.images.read(number)
            if known.example_id == wanted:
                break
        else:
            raise DataError(f"{part.images.name}: no example {wanted}, which has a prediction")
        where = f"{part.images.name}: {wanted}"
        picture = _shown(known, part.preprocess, where)
        answer, expected = _texts(part.images.labels, known, outcome, at)
        made.append(
            ExamplePicture(
                stream.task.title,
                known.question or stream.task.title,
                answer,
                expected,
                bool(outcome.score[at] > _RIGHT),
                [picture],
            )
        )
    return made


def _retrieved(stream: ImageStream, ranking: Ranking, count: int) -> list[ExamplePicture]:
    """Pictures with the caption that scores highest, and their own."""
    (part,) = stream.parts
    nearest, made = nearest_captions(part.images, ranking), []
    count = min(count, len(ranking.image_ids))
    wanted = {
        ranking.image_ids[(2 * i + 1) * len(ranking.image_ids) // (2 * count)] for i in range(count)
    }
    for example in examples(part.images):
        name = example.image_id or example.example_id
        if name not in wanted:
            continue
        wanted.discard(name)
        where = f"{part.images.name}: {example.example_id}"
        text, right = nearest[name]
        picture = _shown(example, part.preprocess, where)
        title = stream.task.title
        made.append(ExamplePicture(title, title, text, " / ".join(example.texts), right, [picture]))
    return made


def _detected(stream: ImageStream, outcome: DetectionOutcome, count: int) -> list[ExamplePicture]:
    """Pictures with what is annotated and as many of the best detections."""
    (part,) = stream.parts
    names, frequencies = part.images.labels, part.images.frequencies
    at = {
        outcome.example_ids[(2 * i + 1) * len(outcome.found) // (2 * count)] for i in range(count)
    }
    places, made = {name: row for row, name in enumerate(outcome.example_ids)}, []
    for example in examples(part.images):
        if example.example_id not in at:
            continue
        at.discard(example.example_id)
        row = places[example.example_id]
        found, truth = outcome.found[row], outcome.truth[row]
        best = range(min(len(found.scores), max(len(truth.classes), 1)))
        novel = {number for number, how in enumerate(frequencies) if how == "r"}
        boxes = [(*map(float, box), "truth") for box in truth.boxes]
        boxes += [(*map(float, found.boxes[i]), "predicted") for i in best]
        where = f"{part.images.name}: {example.example_id}"
        made.append(
            ExamplePicture(
                stream.task.title,
                "Novel names have a star.",
                ", ".join(
                    f"{_starred(names, novel, found.classes[i])} {found.scores[i]:.2f}"
                    for i in best
                ),
                ", ".join(_starred(names, novel, number) for number in truth.classes),
                None,
                [load_bytes(example.data, where, min_side=MIN_SIDE)],
                boxes=boxes,
            )
        )
    return made


def _starred(names: tuple[str, ...], novel: set[int], number: int) -> str:
    return f"{names[number]}*" if int(number) in novel else names[number]


def _shown(example: ImageExample, recipe: Preprocess, where: str) -> np.ndarray:
    """uint8[Y, X, 3] of its picture, or of the frames that the model reads, side by side."""
    pictures = clips.frames_of(example, recipe.frames or 1, recipe.frame_stride)
    frames = [load_bytes(data, where, min_side=MIN_SIDE) for data in pictures]
    rows = min(len(frame) for frame in frames)
    edge = np.full((rows, _STRIP_EDGE, 3), 255, np.uint8)
    parts = [part for frame in frames for part in (edge, frame[:rows])]
    return np.concatenate(parts[1:], axis=1)


def _texts(labels: tuple[str, ...], example: Any, outcome: Any, at: int) -> tuple[str, str]:
    confidence = f"({outcome.confidence[at]:.2f})"
    if hasattr(outcome, "texts"):
        expected = ", ".join(dict.fromkeys(example.texts)) or labels[example.label]
        return f"{outcome.texts[at]} {confidence}", expected
    return f"{labels[outcome.prediction[at]]} {confidence}", labels[example.label]
