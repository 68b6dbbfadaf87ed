"""The TFDS builders of the twelve datasets, Conceptual Captions and OCR-VQA, by name."""

from twelve_in_one.data.builders.base import ImageMajorBuilder
from twelve_in_one.data.builders.captions import Coco, ConceptualCaptions, Flickr30k
from twelve_in_one.data.builders.grounding import (
    Guesswhat,
    Refcoco,
    Refcocog,
    RefcocoPlus,
    Visual7w,
)
from twelve_in_one.data.builders.question_answering import Gqa, OcrVqa, Vgqa, Vqa
from twelve_in_one.data.builders.verification import Nlvr2, SnliVe

BUILDERS: dict[str, type[ImageMajorBuilder]] = {
    builder.source.name: builder
    for builder in (
        *(Vqa, Vgqa, Gqa),
        *(Coco, Flickr30k),
        *(Refcoco, RefcocoPlus, Refcocog, Visual7w, Guesswhat),
        *(Nlvr2, SnliVe),
        ConceptualCaptions,
        OcrVqa,
    )
}
