"""Parts of a dataset, before any tensor: annotations, images, regions, and skipped records.

Readers of official files (`data/annotations/`) produce an `AnnotationSet` per split, readers of
region features (`data/regions/`) produce `Regions` per image, and builders join the two into one
record per image. Letters: N detected regions, G annotated boxes, F feature size, C region classes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

# Datasets with images from one collection use the same ids for them: "coco",
# "visual_genome", "flickr30k", "nlvr2", "conceptual_captions", or a user's own folder.
Domain = str


class DataError(ValueError):
    """A file or record that cannot be used; the message names file, record, value and the fix."""


class MissingFile(DataError):
    """None of the possible files of a split exists."""


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """One example of one task, as its official file states it.

    One type serves all datasets; fields that a kind of task does not use keep their defaults.

    Attributes:
      example_id: unique within the split; the official id if there is one.
      image_id: key of the image, or of the pair of images, within the split.
      text: question, caption, expression, sentence, hypothesis or whole dialogue.
      answers: kind "answer": distinct answers in the order of their first mention, in a vocabulary
        or not.
      scores: kind "answer": soft score of each answer.
      label: kind "verdict": class, -1 where people did not agree.
      box: kinds "region" and "choice": the target, corners x1, y1, x2, y2 in pixels.
      choice_ids: kind "choice": ids of the candidates among the image's annotated boxes, ascending.
      target_id: kind "choice": id of the right one.
    """

    example_id: str
    image_id: str
    text: str
    answers: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    label: int = -1
    box: tuple[float, float, float, float] | None = None
    choice_ids: tuple[int, ...] = ()
    target_id: int = -1


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """Data on an image from the annotation files.

    Attributes:
      image_id: as in `Annotation.image_id`, or one of a pair's.
      file_name: of the picture in the official files; "" if they do not name it.
      width: pixels, 0 if unknown.
      height: pixels, 0 if unknown.
      coco_id: id of the same photo in COCO, -1 if there is none.
      box_ids: ids of the annotated boxes, ascending, without repetition.
      boxes: corners x1, y1, x2, y2 in pixels, in that order.
    """

    image_id: str
    file_name: str = ""
    width: int = 0
    height: int = 0
    coco_id: int = -1
    box_ids: tuple[int, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was left out.

    Attributes:
      file: path of the file.
      record: id of the record, or its position ("record 17", "line 17") if it has none.
      reason: the fault, with the value.
    """

    file: str
    record: str
    reason: str


_SHOWN_SKIPPED = 3


def none_usable(path: Path, what: str, skipped: Sequence[Skipped]) -> DataError:
    """The error for a file with no usable record, with the reasons."""
    why = f": {shown_reasons(skipped)}" if skipped else ""
    return DataError(f"{path}: no {what} that can be used, {len(skipped)} skipped{why}")


def shown_reasons(skipped: Sequence[Skipped]) -> str:
    """The first few skipped records, with their reasons."""
    shown = "; ".join(f"{skip.record}: {skip.reason}" for skip in skipped[:_SHOWN_SKIPPED])
    more = len(skipped) - _SHOWN_SKIPPED
    return f"{shown}; {more} more" if more > 0 else shown


@dataclasses.dataclass(frozen=True)
class AnnotationSet:
    """All annotations of one split.

    Attributes:
      annotations: in the order in which the released loaders list them.
      images: by image id; both images of a pair under their own ids.
      pairs: pair key -> (left image id, right image id); empty if examples have one image.
      skipped: records that were left out.
      notes: note for the user on how records were interpreted -> ids of the examples that it
        concerns; none if it concerns the file.
      next_image_id: if images are identified by line number, the id that would follow
        the last one; "" otherwise.
    """

    annotations: tuple[Annotation, ...]
    images: Mapping[str, AnnotatedImage]
    pairs: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    notes: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    next_image_id: str = ""

    def by_image(self) -> Iterator[tuple[str, tuple[Annotation, ...]]]:
        """Annotations of each image (or pair), images in the order of their first annotation."""
        grouped: dict[str, list[Annotation]] = {}
        for annotation in self.annotations:
            grouped.setdefault(annotation.image_id, []).append(annotation)
        for image_id, annotations in grouped.items():
            yield image_id, tuple(annotations)


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture that `images.pipeline.decode` reads.

    Attributes:
      data: a JPEG or PNG file.
      converted: the original kind ("GIF of mode P") if its own bytes were unsuitable; else "".
    """

    data: bytes
    converted: str = ""


@dataclasses.dataclass(frozen=True)
class Regions:
    """Regions that a detector found in an image, without the global region.

    Attributes:
      boxes: float32[N, 4], corners x1, y1, x2, y2 in pixels.
      features: float32[N, F] or float16[N, F]; F = 0 if there are none (text and boxes only).
      width: of the image, pixels.
      height: of the image, pixels.
      class_probs: float32[N, C], a distribution over region classes; None if unknown.
    """

    boxes: np.ndarray
    features: np.ndarray
    width: int
    height: int
    class_probs: np.ndarray | None = None
