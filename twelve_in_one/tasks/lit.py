"""The tasks of LiT-decoder, as fields of `ImageTaskOptions`.

Beyer et al. 2023 and the papers that say they follow its protocol (CapPa, SoViT). Prompts are in
the family's style; those of the paper are not known. Pictures are flipped only where neither left
and right nor letters matter. Splits that a set lacks are cut from its training split.
"""

from collections.abc import Mapping
from typing import Any

# name, title, group, source, prompt, flip
_TABLE = (
    ("imagenet", "ImageNet-1k", "classify", "tfds:imagenet2012[{split}]", "imagenet:", True),
    ("sun397", "SUN397", "classify", "tfds:sun397/tfds[{split}]", "sun397:", True),
    ("food101", "Food101", "classify", "tfds:food101[{split}]", "food101:", True),
    ("resisc45", "RESISC45", "classify", "tfds:resisc45[{split}]", "resisc45:", True),
    ("pets", "Oxford-IIIT Pet", "classify", "tfds:oxford_iiit_pet[{split}]", "pets:", True),
    ("coco", "COCO captions", "caption", "captions:coco/{split}", "coco:", False),
    ("flickr30k", "Flickr30k captions", "caption", "captions:flickr30k/{split}", "flickr:", False),
    ("ocr_vqa", "OCR-VQA", "ocr", "questions:ocr_vqa/{split}", "ocrvqa:", False),
    ("vqa", "VQAv2", "vqa", "questions:vqa/{split}", "vqav2:", False),
    ("gqa", "GQA", "vqa", "questions:gqa/{split}", "gqa:", False),
)
# train, validation, test; others have splits of these names.
_SPLITS = {
    "imagenet": ("train[:99%]", "train[99%:]", "validation"),
    "sun397": ("train", "validation", "test"),
    "food101": ("train[:95%]", "train[95%:]", "validation"),
    "resisc45": ("train[:70%]", "train[70%:80%]", "train[80%:]"),
    "pets": ("train[:90%]", "train[90%:]", "test"),
    # Only its server knows VQAv2's test answers.
    "vqa": ("train", "val", "val"),
}
# Pairs and images of the training sets as published; 0 is not published.
PUBLISHED_SIZES: Mapping[str, tuple[int, int]] = {
    "imagenet": (1_281_167, 1_281_167),
    "sun397": (76_128, 76_128),
    "food101": (75_750, 75_750),
    "resisc45": (22_050, 22_050),
    "pets": (3_312, 3_312),
    "coco": (566_435, 113_287),
    "flickr30k": (145_000, 29_000),
    "ocr_vqa": (801_673, 0),
    "vqa": (443_757, 82_783),
    "gqa": (943_000, 72_140),
}


def _options(name: str, title: str, group: str, source: str, prompt: str, flip: bool) -> Any:
    train, val, test = _SPLITS.get(name, ("train", "val", "test"))
    return dict(
        title=title,
        group=group,
        source=source,
        prompt=prompt,
        flip=flip,
        train_split=train,
        val_split=val,
        test_splits=(test,),
    )


LIT_TASKS: Mapping[str, Mapping[str, Any]] = {row[0]: _options(*row) for row in _TABLE}
