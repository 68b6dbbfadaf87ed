"""Some examples of an evaluation, with the model's predictions, for the report.

Missing parts stay blank: a job that has trained for days must not fail because of a picture.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twelve_in_one.data.builders.region_inputs import picture_files
from twelve_in_one.data.encode.examples import Encoding, Example, encode_inputs
from twelve_in_one.data.pipeline import Selection, TaskStream
from twelve_in_one.data.stored.records import Annotation, DataError
from twelve_in_one.evaluators.retrieval import Ranking
from twelve_in_one.evaluators.rows import Outcome
from twelve_in_one.report.pictures import Box, ExamplePicture
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.metrics.boxes import iou
from twelve_in_one.tasks.task import names_of_labels

_BEST_IMAGES = 5  # a row of thumbnails
_BEST_ANSWERS = 3
_RIGHT = 0.5  # soft scores and IoU above it count as right
_log = logging.getLogger(__name__)
# Six of the twelve tasks share COCO's folder, which is slow to list.
_listed = functools.lru_cache(maxsize=4)(lambda folder: picture_files(folder)[0])


class _Photo(NamedTuple):
    """An image of a record; its size in pixels is that of the boxes."""

    image_id: str
    size: tuple[int, int]


def example_pictures(
    stream: TaskStream, predictions: Outcome | Ranking, files: Mapping[str, Path], count: int
) -> list[ExamplePicture]:
    """Makes pictures of examples spread evenly over the predictions, always the same ones.

    | kind | shown |
    |---|---|
    | answer | the answer, and the three most frequent ones of people |
    | verdict | the label, and the right one |
    | region | predicted and right box among all candidates; their IoU, and the best possible one |
    | choice | chosen and right box among the choices |
    | match | the five best images for a caption, then the right one if it is none of them |

    Brackets hold the model's probability of its answer, see `EvalOutput.confidence`. An answer is
    right if its score is above one half; if none is published or agreed on, `right` is None.

    Only records and pictures of these examples are read, so that one process of several can call
    this alone. Missing or unreadable pictures are None, and a warning names them.

    Args:
      stream: the evaluated one.
      predictions: for it, from `suite.evaluate_task`, perhaps of the first examples only.
      files: pictures by image id, see `pictures_of`; empty if there are none.
      count: of examples; all if there are fewer.

    Raises:
      ValueError: the predictions are of another stream or kind of task.
    """
    selection, encoding = stream.selection, stream.encoding
    ranked, kind = isinstance(predictions, Ranking), KINDS[encoding.task.kind]
    if ranked != kind.ranked:
        raise ValueError(
            f"{encoding.task.name}: predictions of kind {encoding.task.kind!r} are of type "
            f"{'Outcome' if ranked else 'Ranking'}, these are of type {type(predictions).__name__}"
        )
    ids = predictions.caption_ids if ranked else predictions.example_ids
    count = min(count, len(ids))
    made = []
    for i in range(count):
        number = (2 * i + 1) * len(ids) // (2 * count)  # the middle of each of `count` parts
        example = _example(selection, number, ids[number])
        if ranked:
            photos, fields = _ranking(selection, predictions, number)
        else:
            photos = _photos(selection, selection.locate(number)[0])
            fields = _answered(encoding, example, predictions, number)
        images = [_pixels(files, photo, kind.located) for photo in photos]
        fields["boxes"] = _fitted(fields.get("boxes", ()), photos[0].size, images[0])
        made.append(
            ExamplePicture(
                task=encoding.task.title,
                text=example.annotation.text,
                images=images,
                sizes=[photo.size for photo in photos],
                **fields,
            )
        )
    return made


def _example(selection: Selection, number: int, example_id: str) -> Example:
    place, which = selection.locate(number)
    record = selection.reader.record(int(selection.records[place]))
    found = record.annotations[which]
    _check_id(selection, "example", found.example_id, example_id)
    return Example(record, found)


def _check_id(selection: Selection, what: str, found: str, predicted: str) -> None:
    if found != predicted:
        raise ValueError(
            f"{selection.reader.name}: the prediction for {what} {found} is one for {predicted}; "
            "were they made from these data?"
        )


def _photos(selection: Selection, place: int) -> list[_Photo]:
    """The images of a record, given by its position among the selected ones."""
    position = int(selection.records[place])
    images = selection.reader.record(position).images
    ids = selection.reader.index.image_ids[position]
    # The size may be unknown, if neither region features nor annotations state it.
    sizes = ((max(1, int(image.boxes[0, 2])), max(1, int(image.boxes[0, 3]))) for image in images)
    return [_Photo(str(image_id), size) for image_id, size in zip(ids, sizes, strict=True)]


def _ranking(
    selection: Selection, ranking: Ranking, number: int
) -> tuple[list[_Photo], dict[str, Any]]:
    """The best images for a caption and the right one; images of equal score keep their order."""
    order = np.argsort(-ranking.scores[number], kind="stable").tolist()
    true = int(ranking.image_of_caption[number])
    rank, shown = order.index(true), order[:_BEST_IMAGES]
    if true not in shown:
        shown.append(true)
    photos = [_photos(selection, place)[0] for place in shown]
    for place, photo in zip(shown, photos, strict=True):
        _check_id(selection, "image", photo.image_id, ranking.image_ids[place])
    return photos, {
        "answer": f"rank {rank + 1:,} of {len(order):,}",
        "expected": "",
        "right": rank == 0,
        "true_image": shown.index(true),
        "chosen_image": 0,
    }


def _answered(
    encoding: Encoding, example: Example, outcome: Outcome, number: int
) -> dict[str, Any]:
    """Answer, expected, right and boxes of an example without a ranking."""
    task, annotation = encoding.task, example.annotation
    chosen = int(outcome.prediction[number])
    right = bool(outcome.score[number] > _RIGHT)
    confidence = f"({outcome.confidence[number]:.2f})"
    kind = KINDS[task.kind]
    if kind.noun:
        words = names_of_labels(task, encoding.answers)
        if kind.noun == "answer":
            known, expected = bool(annotation.answers), _best_answers(annotation)
        else:
            known, expected = annotation.label in words, words.get(annotation.label, "")
        # A head may have more labels than there are answers.
        answer = f"{words.get(chosen, f'label {chosen}, which is no answer')} {confidence}"
        return {"answer": answer, "expected": expected, "right": right if known else None}
    if kind.protocols:
        batch, (rows,) = encode_inputs(encoding, [example], 1)
        candidates, role = rows[batch["region_mask"][0]], "region"
        overlap = iou(candidates, np.asarray(annotation.box, np.float32))
        answer = f"IoU {overlap[chosen]:.2f} of at most {overlap.max():.2f}"
    else:
        places = np.searchsorted(example.record.box_ids, annotation.choice_ids)
        candidates, role = example.record.annotated.boxes[places], "choice"
        answer = f"box {annotation.choice_ids[chosen]}, one of {len(candidates)}"
    boxes = [
        Box(*corners, "predicted" if i == chosen else role)
        for i, corners in enumerate(candidates.tolist())
    ]
    boxes.append(Box(*annotation.box, "truth"))
    return {"answer": f"{answer} {confidence}", "expected": "", "right": right, "boxes": boxes}


def _best_answers(annotation: Annotation) -> str:
    """The most frequent answers, with their scores if below 1."""
    scored = zip(annotation.answers, annotation.scores, strict=True)
    best = sorted(scored, key=lambda pair: -pair[1])[:_BEST_ANSWERS]
    return ", ".join(text if score == 1 else f"{text} ({score:.2g})" for text, score in best)


def _fitted(boxes: Sequence[Box], size: tuple[int, int], image: np.ndarray | None) -> list[Box]:
    """Boxes in pixels of the available picture, which may have been resized."""
    height, width = (size[1], size[0]) if image is None else image.shape[:2]
    x, y = width / size[0], height / size[1]
    return [Box(b.x1 * x, b.y1 * y, b.x2 * x, b.y2 * y, b.role) for b in boxes]


def pictures_of(domain: str, raw_dir: Path | None) -> Mapping[str, Path]:
    """Pictures of a collection by image id, as far as they exist.

    Args:
      domain: the collection.
      raw_dir: holds `images/<collection>/`; None if there are no pictures.
    """
    if raw_dir is None:
        return {}
    try:
        return _listed(raw_dir / "images" / domain)
    except DataError as error:
        _log.warning("examples are shown without pictures: %s", error)
        return {}


def _pixels(files: Mapping[str, Path], photo: _Photo, has_boxes: bool) -> np.ndarray | None:
    image_id = photo.image_id
    if image_id not in files:
        if files:
            beside = next(iter(files.values()))
            _log.warning("no picture of image %s among those like %s", image_id, beside)
        return None
    from twelve_in_one.data.images.load import load_image, means_stored  # needs pillow

    path = files[image_id]
    try:
        return load_image(path, upright=not means_stored(path, photo.size, has_boxes))
    except DataError as error:
        _log.warning("a picture is left blank: %s", error)
        return None
