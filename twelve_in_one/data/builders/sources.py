"""The datasets as data: the source of their images, their splits, and their readers.

Splits are named by role: "train", "val" and "test" ("testA" and "testB" for RefCOCO and RefCOCO+).
Each reader under `annotations/` says which official splits play which role.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from twelve_in_one.data.annotations import (
    conceptual_captions,
    gqa,
    guesswhat,
    nlvr2,
    ocr_vqa,
    refcoco,
    retrieval,
    snli_ve,
    visual7w,
    visual_genome_qa,
    vqa,
)
from twelve_in_one.data.official import OfficialFiles
from twelve_in_one.data.stored.records import AnnotationSet, Domain


@dataclasses.dataclass(frozen=True)
class Source:
    """One dataset.

    Attributes:
      name: as in `tasks/twelve.py`.
      domain: collection that its images come from.
      folder: of its annotation files, below the folder for all datasets.
      read: (folder, split) -> annotations.
      splits: all of them.
      test_splits: those whose images no dataset may train on (12-in-1 section 3.2). VQA and GQA
        have test images of their own, which no dataset trains on.
      cleaned_splits: those that lose other datasets' test images.
      scores_annotated_boxes: candidates are annotated boxes, so these need features.
      keeps_texts: retrieval and pretraining draw captions of other images.
      official: inputs of the official evaluation program beside the answers; None if there is
        no program, or the built dataset is enough.
      released_images: where the release has the images, below `folder`; looked into if the user's
        images have no folder of this domain.
    """

    name: str
    domain: Domain
    folder: str
    read: Callable[[Path, str], AnnotationSet]
    splits: tuple[str, ...] = ("train", "val", "test")
    test_splits: tuple[str, ...] = ("test",)
    cleaned_splits: tuple[str, ...] = ("train",)
    scores_annotated_boxes: bool = False
    keeps_texts: bool = False
    official: OfficialFiles | None = None
    released_images: str | None = None


def _refcoco(name: str, *test_splits: str) -> Source:
    def read(folder: Path, split: str) -> AnnotationSet:
        return refcoco.read(folder, name, split)

    return Source(
        name, "coco", "refcoco", read, ("train", "val", *test_splits), test_splits=test_splits
    )


_choice = functools.partial(Source, scores_annotated_boxes=True)
_captions = functools.partial(Source, keeps_texts=True)

# The datasets of 12-in-1.
SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "vqa",
            "coco",
            "vqa",
            vqa.read,
            test_splits=(),
            official=OfficialFiles("vqa", vqa.official_records),
        ),
        # Its 5,000 evaluated questions share images with its training questions, so "val" is
        # cleaned with them (released code).
        Source(
            "vgqa",
            "visual_genome",
            "visual_genome",
            visual_genome_qa.read,
            ("train", "val"),
            test_splits=(),
            cleaned_splits=("train", "val"),
        ),
        Source(
            "gqa",
            "visual_genome",
            "gqa",
            gqa.read,
            test_splits=(),
            official=OfficialFiles("gqa", gqa.official_records),
        ),
        _captions("coco", "coco", "coco", retrieval.read_coco),
        _captions("flickr30k", "flickr30k", "flickr30k", retrieval.read_flickr30k),
        _refcoco("refcoco", "testA", "testB"),
        _refcoco("refcoco+", "testA", "testB"),
        _refcoco("refcocog", "test"),
        _choice("visual7w", "visual_genome", "visual7w", visual7w.read),
        _choice("guesswhat", "coco", "guesswhat", guesswhat.read),
        Source("nlvr2", "nlvr2", "nlvr2", nlvr2.read),
        Source("snli_ve", "flickr30k", "snli_ve", snli_ve.read),
        _captions(
            "conceptual_captions",
            "conceptual_captions",
            "conceptual_captions",
            conceptual_captions.read,
            ("train", "val"),
            test_splits=(),
            cleaned_splits=(),  # its images come from the web
        ),
    )
}
# Further datasets, for text decoders. Their images are nobody else's, so that the clean split has
# nothing to do with them.
DECODER_SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "ocr_vqa",
            "ocr_vqa",
            "ocr_vqa",
            ocr_vqa.read,
            test_splits=(),
            cleaned_splits=(),
            released_images="images",
        ),
    )
}
ALL_SOURCES: dict[str, Source] = SOURCES | DECODER_SOURCES
