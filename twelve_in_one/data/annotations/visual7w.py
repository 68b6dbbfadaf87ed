"""Visual7W pointing: which of four boxes of a picture does a question mean?

Official file (Visual7W toolkit, MIT; no licence of the questions is stated):
`dataset_v7w_pointing.json`, all splits in one, possibly gzipped. Its pictures are those of Visual
Genome, whose `image_data.json` (CC-BY-4.0) adds sizes and COCO ids. Checksums: unknown.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.data.annotations.question_answering import number_id, record_name
from twelve_in_one.data.formats import files, json_stream
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    MissingFile,
    Skipped,
)

_FILE, _IMAGE_DATA = "dataset_v7w_pointing.json", "image_data.json"
_SPLITS = ("train", "val", "test")
# Larger than any picture; larger values do not fit the type they are stored in.
_MAX_PIXELS = 10**9

Box = tuple[float, float, float, float]


def feature_key(image_id: str) -> str:
    """Key of an image in the feature stores that the released code reads."""
    return f"v7w_{image_id}"


def read(folder: Path, split: str, image_data: Path | None = None) -> AnnotationSet:
    """Questions of a split in file order, with the boxes of their images.

    The image id is Visual Genome's, the example id is `qa_id`. An image's boxes are all that its
    questions mention, sorted by box id; the released code expects their features in that order.
    The four candidates of a question are sorted by box id, too, so the position of the right one
    reveals nothing; a box named twice stays twice.

    Args:
      folder: where the file is.
      split: "train", "val" or "test".
      image_data: Visual Genome's `image_data.json`, for sizes and COCO ids. By default the one in
        `folder` or in `folder/../visual_genome`; without it, these stay unknown.

    Raises:
      MissingFile: no such file.
      DataError: a file cannot be read, or lacks its lists of boxes and images.
      ValueError: unknown split.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    path = files.find(folder, _FILE)
    text = files.read_text(path)
    boxes, skipped = _read_boxes(text, path)

    annotations: dict[str, Annotation] = {}
    file_names: dict[str, str] = {}
    box_ids: dict[str, set[int]] = {}
    for image in _read_images(text, path):
        if isinstance(image, Skipped):
            skipped.append(image)
            continue
        mentioned = box_ids.setdefault(image.image_id, set())
        for position, question in enumerate(image.questions, 1):
            try:
                target_id, choice_ids = _candidates(question, boxes)
                # An image may have questions in other splits, too.
                mentioned.update(choice_ids)
                if image.split != split:
                    continue
                annotation = Annotation(
                    files.text_id(question, "qa_id"),
                    image.image_id,
                    files.field(question, "question", str),
                    box=boxes[target_id],
                    choice_ids=choice_ids,
                    target_id=target_id,
                )
                if annotation.example_id in annotations:
                    raise RecordError("its question id occurs twice")
            except RecordError as error:
                if image.split == split:
                    place = f"image {image.image_id}, question {position}"
                    name = record_name(question, "qa_id", place)
                    skipped.append(Skipped(str(path), name, str(error)))
                continue
            annotations[annotation.example_id] = annotation
            file_names.setdefault(image.image_id, image.file_name)

    if image_data is None:
        image_data = _find_image_data(folder)
    known, skipped_sizes = _read_image_data(image_data, file_names) if image_data else ({}, [])
    images = {}
    for image_id, file_name in file_names.items():
        ids = tuple(sorted(box_ids[image_id]))
        images[image_id] = dataclasses.replace(
            known.get(image_id, AnnotatedImage(image_id)),
            file_name=file_name,
            box_ids=ids,
            boxes=tuple(boxes[box_id] for box_id in ids),
        )
    return AnnotationSet(tuple(annotations.values()), images, skipped=(*skipped, *skipped_sizes))


@dataclasses.dataclass(frozen=True, slots=True)
class _Image:
    image_id: str
    split: str
    file_name: str
    questions: list[Any]


def _read_images(text: str, path: Path) -> Iterator[_Image | Skipped]:
    for position, record in enumerate(json_stream.elements(text, str(path), "images"), 1):
        try:
            image_id = files.text_id(record, "image_id")
            split = files.field(record, "split", str)
            if split not in _SPLITS:
                raise RecordError(f"'split' is {files.shorten(split)}, must be one of {_SPLITS}")
            file_name = files.field(record, "filename", str) if "filename" in record else ""
            yield _Image(image_id, split, file_name, files.field(record, "qa_pairs", list))
        except RecordError as error:
            name = f"image {record_name(record, 'image_id', f'record {position}')}"
            yield Skipped(str(path), name, str(error))


def _candidates(question: Any, boxes: Mapping[int, Box]) -> tuple[int, tuple[int, ...]]:
    """Box id of the answer, and those of all candidates, ascending."""
    distractors = files.field(question, "multiple_choices", list)
    if len(distractors) != 3:
        raise RecordError(f"'multiple_choices' must be 3 box ids, are {len(distractors)}")
    answer = number_id(question, "answer")
    choices = [
        answer,
        *(number_id({"multiple_choices": i}, "multiple_choices") for i in distractors),
    ]
    for box_id in choices:
        if box_id not in boxes:
            raise RecordError(f"box {box_id} is not among the usable boxes")
    return answer, tuple(sorted(choices))


def _read_boxes(text: str, path: Path) -> tuple[dict[int, Box], list[Skipped]]:
    """Box id -> corners."""
    boxes: dict[int, Box] = {}
    skipped = []
    for position, record in enumerate(json_stream.elements(text, str(path), "boxes"), 1):
        try:
            box_id = number_id(record, "box_id")
            sides = [files.field(record, key, float) for key in ("x", "y", "width", "height")]
            box = files.box_from_xywh({"x, y, width, height": sides}, "x, y, width, height")
            if boxes.setdefault(box_id, box) != box:
                raise RecordError(f"corners {box}, but {boxes[box_id]} earlier in the file")
        except RecordError as error:
            name = f"box {record_name(record, 'box_id', f'record {position}')}"
            skipped.append(Skipped(str(path), name, str(error)))
    return boxes, skipped


def _find_image_data(folder: Path) -> Path | None:
    try:
        return files.find(folder, _IMAGE_DATA, f"../visual_genome/{_IMAGE_DATA}")
    except MissingFile:
        return None


def _read_image_data(
    path: Path, wanted: Collection[str]
) -> tuple[dict[str, AnnotatedImage], list[Skipped]]:
    """Sizes and COCO ids of the wanted images, as far as they are known."""
    images: dict[str, AnnotatedImage] = {}
    skipped = []
    for position, record in enumerate(json_stream.elements(files.read_text(path), str(path)), 1):
        try:
            image_id = files.text_id(record, "image_id")
            if image_id not in wanted:
                continue
            width, height = (number_id(record, key) for key in ("width", "height"))
            if not (0 < width < _MAX_PIXELS and 0 < height < _MAX_PIXELS):
                raise RecordError(f"size {width} x {height} is out of range")
            in_coco = record.get("coco_id") is not None
            coco_id = number_id(record, "coco_id") if in_coco else -1
            images[image_id] = AnnotatedImage(image_id, width=width, height=height, coco_id=coco_id)
        except RecordError as error:
            name = record_name(record, "image_id", f"record {position}")
            skipped.append(Skipped(str(path), name, str(error)))
    return images, skipped
