"""Builders of questions: group G1, with an answer from a vocabulary, and OCR-VQA."""

from twelve_in_one.data.builders.base import ImageMajorBuilder
from twelve_in_one.data.builders.sources import DECODER_SOURCES, SOURCES


class Vqa(ImageMajorBuilder, skip_registration=True):
    """VQA v2 (Goyal et al., 2017): open questions about COCO photos, ten human answers each.

    Recipe: from visualqa.org, version 2 of the balanced real images, into `vqa/`:
    v2_OpenEnded_mscoco_{train,val}2014_questions.json,
    v2_mscoco_{train,val}2014_annotations.json and
    v2_OpenEnded_mscoco_test2015_questions.json. Released caches (`cache/*_target.pkl` with
    `cache/trainval_label2ans.pkl`) will do in place of the annotations.
    Splits: "train" is train2014 and val2014 without its last 3,000 questions, which are "val"
    ("minval" of the released code), or those of `val_question_ids.json` if it is there, a JSON
    list of ids; "test" is test2015, without answers.
    Licence: annotations CC-BY-4.0; COCO photos under their Flickr licences.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["vqa"]


class Vgqa(ImageMajorBuilder, skip_registration=True):
    """Visual Genome question answering (Krishna et al., 2017).

    Recipe: from visualgenome.org into `visual_genome/`: question_answers.json and image_data.json
    (which also says which photos are COCO's). Released caches will do.
    Splits: "val" is the last 5,000 questions by id, or those of `val_question_ids.json` as for VQA,
    "train" the others; answers share VQA's vocabulary.
    Licence: CC-BY-4.0.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["vgqa"]


class Gqa(ImageMajorBuilder, skip_registration=True):
    """GQA, balanced (Hudson and Manning, 2019): compositional questions about Visual Genome photos.

    Recipe: from the GQA site into `gqa/`: {train,val,testdev}_balanced_questions.json. Released
    caches will do for training.
    Splits: "train" is train and val without its last 3,000 questions by id (as text), which are
    "val", or those of `val_question_ids.json` as for VQA; "test" is testdev.
    Licence: CC-BY-4.0.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["gqa"]


class OcrVqa(ImageMajorBuilder, skip_registration=True):
    """OCR-VQA (Mishra et al., 2019): author, title and genre, read from covers of books.

    Recipe: from the dataset's site into `ocr_vqa/`: dataset.json and the folder images/ that the
    script of the release fills, ID.jpg, ID.gif or ID.png; the images may also be in
    `images/ocr_vqa/`. Build with --images keep; there are no region features unless asked for.
    Splits: by the numbers in the file, 1 "train", 2 "val", 3 "test". Books whose cover is missing
    are listed; covers vanish from the web, so a larger --max_skipped_share may be needed.
    Licence: as on the dataset's site; the covers belong to their publishers.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = DECODER_SOURCES["ocr_vqa"]
