"""The tasks of MaMMUT, as fields of `ImageTaskOptions` (Kuo et al. 2023).

It learns pairs of pictures and alt texts, and is then scored without further training on retrieval
and on classes by their names. Questions and captions are fine-tuned in the generative pass alone;
its texts have no prompts but questions. `VIDEO_TASKS` are those of clips.
"""

from collections.abc import Mapping
from typing import Any

# Of CLIP's paper, the shortest list it gives.
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

MAMMUT_TASKS: Mapping[str, Mapping[str, Any]] = {
    "alt_text": dict(
        title="Pairs of pictures and texts",
        group="pairs",
        source="captions:conceptual_captions/{split}",
        test_splits=("val",),
    ),
    "coco": dict(
        title="COCO retrieval, zero-shot",
        group="pairs",
        source="captions:coco/{split}",
        train=False,
    ),
    "flickr30k": dict(
        title="Flickr30k retrieval, zero-shot",
        group="pairs",
        source="captions:flickr30k/{split}",
        train=False,
    ),
    "imagenet": dict(
        title="ImageNet-1k, zero-shot",
        group="zero_shot",
        source="tfds:imagenet2012[{split}]",
        templates=TEMPLATES,
        train_split="train[:99%]",
        val_split="train[99%:]",
        test_splits=("validation",),
    ),
    "captions": dict(
        title="COCO captions",
        group="caption",
        source="captions:coco/{split}",
    ),
    "vqa": dict(
        title="VQAv2",
        group="vqa",
        source="questions:vqa/{split}",
        # Only its server knows VQAv2's test answers.
        val_split="val",
        test_splits=("val",),
    ),
}


# Questions about clips have one right answer, so they are of the group that is scored by
# exact matches. MSRVTT's and MSVD's pictures are not flipped: answers may name left and right.
VIDEO_TASKS: Mapping[str, Mapping[str, Any]] = {
    "msrvtt_qa": dict(title="MSRVTT-QA", group="ocr", source="msrvtt_qa:{raw_dir}/msrvtt[{split}]"),
    "msvd_qa": dict(title="MSVD-QA", group="ocr", source="msvd_qa:{raw_dir}/msvd[{split}]"),
    "msrvtt_captions": dict(
        title="MSRVTT captions", group="caption", source="msrvtt_captions:{raw_dir}/msrvtt[{split}]"
    ),
    "msvd_captions": dict(
        title="MSVD captions", group="caption", source="msvd_captions:{raw_dir}/msvd[{split}]"
    ),
}
