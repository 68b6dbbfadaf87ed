"""Some examples of a task on pictures, with the model's answers, for the report."""

from typing import Any

from twelve_in_one.data.images.load import load_bytes
from twelve_in_one.data.images.stream import MIN_SIDE, ImageStream
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.report.pictures import ExamplePicture

_RIGHT = 0.5  # scores above it count as right


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
        picture = load_bytes(known.data, where, min_side=MIN_SIDE)
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


def _texts(labels: tuple[str, ...], example: Any, outcome: Any, at: int) -> tuple[str, str]:
    confidence = f"({outcome.confidence[at]:.2f})"
    if hasattr(outcome, "texts"):
        expected = ", ".join(dict.fromkeys(example.texts)) or labels[example.label]
        return f"{outcome.texts[at]} {confidence}", expected
    return f"{labels[outcome.prediction[at]]} {confidence}", labels[example.label]
