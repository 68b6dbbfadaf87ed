"""Turns records into batches: text to tokens, regions to padded rows, labels to targets.

Everything here is NumPy and a pure function of its arguments, so the trainer's pipeline,
predictions on single images and the tests against the released loaders share the code. The
batch contract is in `tasks/task.py`. Letters as there; N regions of an image, G annotated boxes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from twelve_in_one.data.builders.answers import soft_targets
from twelve_in_one.data.encode.pictures import PictureInput, empty_pictures, pixels_of
from twelve_in_one.data.encode.text import Tokenizer
from twelve_in_one.data.stored.image_rows import ImageRows, LoadedRecord
from twelve_in_one.data.stored.records import Annotation, DataError
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.metrics.boxes import iou, region_target
from twelve_in_one.tasks.task import Task

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the examples of one task become a batch.

    Attributes:
      task: shapes and kind of the batch.
      tokenizer: of the model.
      feature_dim: region feature size F of the model; 0 if it reads only the boxes of regions.
      answers: answer -> label, for kinds "answer" and "verdict".
      num_labels: L for kinds "answer" and "verdict".
      training: targets of regions are cut at IoU 0.5, and annotated boxes follow the detected ones
        (released code); otherwise targets are the plain IoU with detected regions.
      candidates: "annotated" scores the annotated boxes instead of detected regions in tasks of
        kind "region".
      feature_dtype: of `regions`; float16 halves the transfer to the device.
      official_pair_packing: put the rows of NLVR2's two images directly after each other before
        splitting them in the middle, as released, instead of padding each image.
      picture: how the pictures themselves are read; None if they are not.
    """

    task: Task
    tokenizer: Tokenizer
    feature_dim: int
    answers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    num_labels: int = 0
    training: bool = False
    candidates: Literal["detected", "annotated"] = "detected"
    feature_dtype: type[np.floating] = np.float32
    official_pair_packing: bool = False
    picture: PictureInput | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """One example, ready to be encoded.

    Attributes:
      record: with its image.
      annotation: its question.
      options: kind "match": image and caption of each of the k options, the right one first.
    """

    record: LoadedRecord
    annotation: Annotation
    options: tuple[tuple[LoadedRecord, str], ...] = ()


def encode_batch(encoding: Encoding, examples: Sequence[Example], batch_size: int) -> Batch:
    """A batch of `batch_size` rows: first the `examples`, then padding.

    Raises:
      DataError: an example does not fit its task (label out of range, unknown choice, feature size
        of another model, ...); names the task and the example.
    """
    batch, pixel_boxes = encode_inputs(encoding, examples, batch_size)
    return batch | _TARGETS[encoding.task.kind](encoding, examples, pixel_boxes, batch_size)


def encode_inputs(
    encoding: Encoding, examples: Sequence[Example], batch_size: int
) -> tuple[Batch, list[np.ndarray]]:
    """`encode_batch` without targets and choices, for examples with unknown answers.

    Returns:
      The batch, and float32[R, 4] for each example: its rows' boxes in pixels, 0 for padding (for
      a pair, those of the right image; none for pairs packed as released).

    Raises:
      DataError: the regions do not fit the task or the model; names the task and the example.
    """
    task = encoding.task
    num_rows = batch_size * task.rows_per_example
    texts = [text for example in examples for text in _texts(task, example)]
    batch = {
        **_empty_regions(encoding, num_rows),
        **encode_texts(encoding, texts, num_rows),
        "task_id": np.int32(task.task_id),
        "_mask": np.arange(batch_size) < len(examples),
        "example_id": np.array(
            [example.annotation.example_id for example in examples]
            + [""] * (batch_size - len(examples)),
            dtype=object,
        ),
    }
    pixel_boxes = _put_regions(encoding, examples, batch)
    batch |= _pictures(encoding, examples, num_rows)
    if task.rows_per_example > 1:
        for key in batch.keys() - {"task_id", "_mask", "example_id"}:
            folded = (batch_size, task.rows_per_example, *batch[key].shape[1:])
            batch[key] = batch[key].reshape(folded)
    return batch, pixel_boxes


def encode_texts(encoding: Encoding, texts: Sequence[str], num_rows: int) -> Batch:
    """`num_rows` rows of tokens and token_mask; the first are `texts`."""
    max_tokens = encoding.task.max_tokens
    tokens = np.full((num_rows, max_tokens), encoding.tokenizer.pad_id, np.int32)
    mask = np.zeros((num_rows, max_tokens), bool)
    if texts:
        tokens[: len(texts)], mask[: len(texts)] = encoding.tokenizer.encode_batch(
            texts, max_tokens
        )
    return {"tokens": tokens, "token_mask": mask}


def encode_images(encoding: Encoding, examples: Sequence[Example]) -> Batch:
    """A row of regions, boxes and region_mask for the only image of every example.

    Raises:
      DataError: region features do not have the model's size, or a picture is missing.
    """
    batch = _empty_regions(encoding, len(examples))
    for row, example in enumerate(examples):
        (image,) = example.record.images
        _check_features(encoding, example, image)
        _put(list(batch.values()), row, image, 0)
    # Without options, which name other images.
    alone = [Example(example.record, example.annotation) for example in examples]
    return batch | _pictures(encoding, alone, len(examples))


def _empty_regions(encoding: Encoding, num_rows: int) -> Batch:
    shape = (num_rows, encoding.task.max_regions)
    return {
        "regions": np.zeros((*shape, encoding.feature_dim), encoding.feature_dtype),
        "boxes": np.zeros((*shape, 5), np.float32),
        "region_mask": np.zeros(shape, bool),
    }


def _pictures(encoding: Encoding, examples: Sequence[Example], num_rows: int) -> Batch:
    """The pixels of every row's image, for a model that reads them."""
    if encoding.picture is None:
        return {}
    pictures = []
    for example in examples:
        records = [record for record, _ in example.options] or [example.record]
        for record in records:
            if len(record.pictures) != len(record.images):
                raise _error(
                    encoding,
                    example,
                    "no picture, which this model reads: build the dataset with --images keep",
                )
            pictures += record.pictures
    batch = empty_pictures(encoding.picture, num_rows)
    for row, (pixels, size) in enumerate(pixels_of(encoding.picture, pictures, encoding.task.name)):
        batch["images"][row], batch["picture_size"][row] = pixels, size
    return batch


def _texts(task: Task, example: Example) -> list[str]:
    if KINDS[task.kind].ranked:
        return [text for _, text in example.options]
    return [example.annotation.text] * task.rows_per_example


def _put_regions(encoding: Encoding, examples: Sequence[Example], batch: Batch) -> list[np.ndarray]:
    """Fills the region rows; returns the pixel boxes of each example's (last) image."""
    task = encoding.task
    k = task.rows_per_example
    pixel_boxes = []
    for i, example in enumerate(examples):
        rows = slice(i * k, (i + 1) * k)
        targets = [batch[key][rows] for key in ("regions", "boxes", "region_mask")]
        if KINDS[task.kind].ranked:
            images = [record.images[0] for record, _ in example.options]
        else:
            images = list(example.record.images)
        if len(images) != k:
            raise _error(encoding, example, f"{len(images)} images where the task takes {k}")
        for image in images:
            _check_features(encoding, example, image)
        if encoding.official_pair_packing and k == 2:
            packed = [x.reshape(1, -1, *x.shape[2:]) for x in targets]
            end = _put(packed, 0, images[0], 0)
            _put(packed, 0, images[1], end)
            continue
        for row, image in enumerate(images):
            end = _put(targets, row, image, 0)
        pixel_boxes.append(_put_annotated(encoding, example, targets, end))
    return pixel_boxes


def _put_annotated(
    encoding: Encoding, example: Example, targets: list[np.ndarray], end: int
) -> np.ndarray:
    """Adds annotated boxes after detected regions; float32[R, 4] pixel boxes of all rows."""
    task, annotated = encoding.task, example.record.annotated
    kind = KINDS[task.kind]
    detected = example.record.images[-1]
    boxes = np.zeros((task.max_regions, 4), np.float32)
    if kind.choices:
        start, end = task.detected_slots, min(end, task.detected_slots)
    elif kind.protocols and encoding.candidates == "annotated":
        start = end = 1
    elif kind.protocols and encoding.training and annotated.features.shape[1]:
        start = end
    else:  # includes boxes without features, never meant as rows
        boxes[:end] = detected.boxes[:end]
        return boxes
    for target in targets:
        target[0, end:] = 0
    boxes[:end] = detected.boxes[:end]
    _check_features(encoding, example, annotated)
    widths = annotated.features.shape[1], detected.features.shape[1]
    if encoding.feature_dim and len(annotated) and widths[0] < widths[1]:
        raise _error(encoding, example, "annotated boxes without region features")
    stop = _put(targets, 0, annotated, start)
    boxes[start:stop] = annotated.boxes[: stop - start]
    if kind.choices and stop - start < len(annotated):
        raise _error(
            encoding,
            example,
            f"{len(annotated)} annotated boxes do not fit behind {start} detected slots in "
            f"max_regions {task.max_regions}",
        )
    return boxes


def _put(targets: Sequence[np.ndarray], row: int, image: ImageRows, start: int) -> int:
    """Writes as many of an image's rows as fit from slot `start`; returns the slot after them."""
    regions, boxes, mask = (target[row] for target in targets)
    stop = min(start + len(image), len(mask))
    count = stop - start
    boxes[start:stop] = image.locations[:count]
    mask[start:stop] = True
    if image.features.shape[1] and regions.shape[1]:
        num_mean = min(len(image.mean_feature), count)
        regions[start : start + num_mean] = image.mean_feature[:num_mean]
        regions[start + num_mean : stop] = image.features[: count - num_mean]
    return stop


def _answer_targets(
    encoding: Encoding, examples: Sequence[Example], pixel_boxes: list[np.ndarray], batch_size: int
) -> Batch:
    width = encoding.num_labels
    targets = np.zeros((batch_size, width), np.float32)
    for i, example in enumerate(examples):
        given = example.annotation
        try:
            targets[i] = soft_targets(given.answers, given.scores, encoding.answers, width)
        except ValueError as error:
            raise _error(encoding, example, str(error)) from error
    return {"targets": targets}


def _verdict_targets(
    encoding: Encoding, examples: Sequence[Example], pixel_boxes: list[np.ndarray], batch_size: int
) -> Batch:
    width = encoding.num_labels
    targets = np.zeros((batch_size, width), np.float32)
    for i, example in enumerate(examples):
        label = example.annotation.label
        if not -1 <= label < width:
            raise _error(encoding, example, f"label {label} of {width} classes")
        if label >= 0:
            targets[i, label] = 1.0
    return {"targets": targets}


def _match_targets(
    encoding: Encoding, examples: Sequence[Example], pixel_boxes: list[np.ndarray], batch_size: int
) -> Batch:
    return {"targets": np.zeros(batch_size, np.int32)}


def _region_targets(
    encoding: Encoding, examples: Sequence[Example], pixel_boxes: list[np.ndarray], batch_size: int
) -> Batch:
    targets = np.zeros((batch_size, encoding.task.max_regions), np.float32)
    for i, example in enumerate(examples):
        targets[i] = _overlap(encoding, example, pixel_boxes[i])
    return {"targets": targets}


def _overlap(encoding: Encoding, example: Example, boxes: np.ndarray) -> np.ndarray:
    """float32[R], IoU of every row with the target box; 0 for padding."""
    if example.annotation.box is None:
        raise _error(encoding, example, "no box")
    real = boxes.any(axis=1)
    overlap = np.where(real, iou(boxes, np.asarray(example.annotation.box, np.float32)), 0)
    cut = encoding.training or KINDS[encoding.task.kind].choices
    return region_target(overlap) if cut else overlap


def _choice_targets(
    encoding: Encoding, examples: Sequence[Example], pixel_boxes: list[np.ndarray], batch_size: int
) -> Batch:
    task = encoding.task
    # A slot without a choice points at the last region, as released; its mask excludes it.
    choices = np.full((batch_size, task.num_choices), task.max_regions - 1, np.int32)
    mask = np.zeros((batch_size, task.num_choices), bool)
    targets = np.zeros((batch_size, task.num_choices), np.float32)
    for i, example in enumerate(examples):
        wanted = np.asarray(example.annotation.choice_ids, np.int64)
        count = len(wanted)
        if count > task.num_choices:
            raise _error(encoding, example, f"{count} choices, the task takes {task.num_choices}")
        known = example.record.box_ids  # sorted
        places = np.searchsorted(known, wanted)
        found = (places < len(known)) & (np.append(known, 0)[places] == wanted)
        if not found.all():
            raise _error(
                encoding, example, f"choice {wanted[~found][0]} is no annotated box of its image"
            )
        rows = task.detected_slots + places
        choices[i, :count], mask[i, :count] = rows, True
        targets[i, :count] = _overlap(encoding, example, pixel_boxes[i])[rows]
    return {"choices": choices, "choice_mask": mask, "targets": targets}


# By kind of task; see `tasks/task.py`.
_TARGETS = {
    "answer": _answer_targets,
    "verdict": _verdict_targets,
    "match": _match_targets,
    "region": _region_targets,
    "choice": _choice_targets,
}


def _check_features(encoding: Encoding, example: Example, image: ImageRows) -> None:
    size = image.features.shape[1]
    if encoding.feature_dim and size not in (0, encoding.feature_dim):
        raise _error(
            encoding,
            example,
            f"region features have size {size}, the model takes {encoding.feature_dim}",
        )


def _error(encoding: Encoding, example: Example, reason: str) -> DataError:
    return DataError(f"{encoding.task.name}: example {example.annotation.example_id}: {reason}")
