"""RefCOCO, RefCOCO+ and RefCOCOg: which object of a picture does an expression mean?

Official files (refer, Apache-2.0, by lichengunc; no licence of the expressions is stated; boxes
are COCO's, CC-BY-4.0), one folder per set: `refcoco/refs(unc).p`, `refcoco+/refs(unc).p` and
`refcocog/refs(umd).p` with an `instances.json` each. The pickles, lists of references to an object
with several expressions each, are read without running anything in them. Checksums: unknown.
`refs(google).p` divides the same expressions differently; the paper does not report on it.
"""

import dataclasses
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.data.annotations.retrieval import text_of
from twelve_in_one.data.formats import files, json_stream, safe_pickle
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    MissingFile,
    Skipped,
)

# By set: the file of references, and their splits.
_UNC = ("train", "val", "testA", "testB")
_SETS = {
    "refcoco": ("refs(unc).p", _UNC),
    "refcoco+": ("refs(unc).p", _UNC),
    "refcocog": ("refs(umd).p", ("train", "val", "test")),
}

Box = tuple[float, float, float, float]
# Corners by annotation id, by image id.
Boxes = dict[int, dict[int, Box]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Reference:
    ref_id: int
    image_id: int
    box_id: int
    sentences: list[Any]


def read(folder: Path, name: str, split: str) -> AnnotationSet:
    """Expressions of a split, one annotation each, in the order of the pickled list.

    Text is the raw expression, `box` the annotated box with corners x + w and y + h, nothing
    subtracted, and the example id "<ref_id>/<sent_id>". An image has all its usable boxes in
    `instances.json`, referred to or not; boxes without size or outside the image are unusable.

    Args:
      folder: holds the folders "refcoco", "refcoco+" and "refcocog".
      name: of the set, one of these.
      split: "train", "val" or "test"; for "refcoco" and "refcoco+" also "testA" and "testB"; "test"
        joins the references of both, still in the order of the list (REFER tool).

    Raises:
      MissingFile: one of the two files is not there.
      DataError: one cannot be read, or is not what it should be.
      ValueError: unknown name or split.
    """
    if name not in _SETS:
        raise ValueError(f"name must be one of {', '.join(_SETS)}, got {name!r}")
    file_name, parts = _SETS[name]
    if split not in (*parts, "test"):
        allowed = ", ".join(dict.fromkeys((*parts, "test")))
        raise ValueError(f"split of {name} must be one of {allowed}, got {split!r}")
    path = folder / name / file_name
    if not path.is_file():
        raise MissingFile(f"{folder / name}: no {file_name}; other divisions are not read")
    instances = files.find(folder / name, "instances.json")
    text = files.read_text(instances)

    references, skipped = _references(path, parts, split)
    wanted = {reference.image_id for reference in references}
    images, skipped_images = _images(text, instances, wanted)
    boxes, skipped_boxes = _boxes(text, instances, images)
    skipped += skipped_images + skipped_boxes
    annotations: dict[str, Annotation] = {}
    for reference in references:
        for place, sentence in enumerate(reference.sentences):
            example_id = f"{reference.ref_id}/sentence {place}"
            try:
                example_id = f"{reference.ref_id}/{_whole(sentence, 'sent_id')}"
                if example_id in annotations:
                    raise RecordError("an earlier expression has the same ids")
                expression = text_of(sentence, "raw")
                box = _box_of(reference, boxes)
            except ValueError as error:  # see `_references`
                skipped.append(Skipped(str(path), example_id, str(error)))
                continue
            annotations[example_id] = Annotation(
                example_id, str(reference.image_id), expression, box=box
            )
    needed = dict.fromkeys(int(annotation.image_id) for annotation in annotations.values())
    return AnnotationSet(
        tuple(annotations.values()),
        {str(image_id): _with_boxes(images[image_id], boxes[image_id]) for image_id in needed},
        skipped=tuple(skipped),
    )


def _references(
    path: Path, parts: Container[str], split: str
) -> tuple[list[_Reference], list[Skipped]]:
    """References of a split in a file that is divided into `parts`."""
    content = safe_pickle.load(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: must be a list of references, is a {type(content).__name__}")
    references, skipped = [], []
    for place, record in enumerate(content):
        try:
            part = files.field(record, "split", str)
            if part not in parts:
                raise RecordError(f"'split' must be in {parts}, is {files.shorten(part)}")
            if part != split and not (split == "test" and part in ("testA", "testB")):
                continue
            references.append(
                _Reference(
                    _whole(record, "ref_id"),
                    _whole(record, "image_id"),
                    _whole(record, "ann_id"),
                    files.field(record, "sentences", list),
                )
            )
        except ValueError as error:  # also a key that is an integer too long to be printed
            skipped.append(Skipped(str(path), f"record {place}", str(error)))
    return references, skipped


def _images(
    text: str, path: Path, wanted: Container[int]
) -> tuple[dict[int, AnnotatedImage], list[Skipped]]:
    images: dict[int, AnnotatedImage] = {}
    skipped = []
    for place, record in enumerate(json_stream.elements(text, str(path), "images")):
        try:
            image_id = _whole(record, "id")
            if image_id not in wanted:
                continue
            if image_id in images:
                raise RecordError(f"image {image_id} has a record already")
            images[image_id] = AnnotatedImage(
                str(image_id),
                text_of(record, "file_name"),
                _whole(record, "width", low=1, high=1 << 31),
                _whole(record, "height", low=1, high=1 << 31),
                coco_id=image_id,
            )
        except RecordError as error:
            skipped.append(Skipped(str(path), f"record {place} of images", str(error)))
    return images, skipped


def _boxes(
    text: str, path: Path, images: Mapping[int, AnnotatedImage]
) -> tuple[Boxes, list[Skipped]]:
    boxes: Boxes = {image_id: {} for image_id in images}
    skipped = []
    for place, record in enumerate(json_stream.elements(text, str(path), "annotations")):
        name = f"record {place} of annotations"
        try:
            image_id = _whole(record, "image_id")
            if image_id not in images:
                continue
            box_id = _whole(record, "id")
            name = f"annotation {box_id}"
            if box_id in boxes[image_id]:
                raise RecordError("the image has an annotation of this id already")
            box = x1, y1, x2, y2 = files.box_from_xywh(record, "bbox")
            width, height = images[image_id].width, images[image_id].height
            if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
                raise RecordError(f"box {box} lies outside of the image, {width} x {height}")
            boxes[image_id][box_id] = box
        except RecordError as error:
            skipped.append(Skipped(str(path), name, str(error)))
    return boxes, skipped


def _box_of(reference: _Reference, boxes: Boxes) -> Box:
    if reference.image_id not in boxes:
        raise RecordError(f"no usable image {reference.image_id} in instances.json")
    if reference.box_id not in boxes[reference.image_id]:
        raise RecordError(
            f"no usable annotation {reference.box_id} of image {reference.image_id} in "
            "instances.json"
        )
    return boxes[reference.image_id][reference.box_id]


def _with_boxes(image: AnnotatedImage, boxes: Mapping[int, Box]) -> AnnotatedImage:
    box_ids = tuple(sorted(boxes))
    return dataclasses.replace(image, box_ids=box_ids, boxes=tuple(boxes[i] for i in box_ids))


def _whole(record: Any, key: str, low: int = 0, high: int = 1 << 63) -> int:
    value = files.field(record, key, int)
    if not low <= value < high:
        raise RecordError(f"{key!r} is out of range: {files.shorten(value)}")
    return value
