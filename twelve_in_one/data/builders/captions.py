"""Builders of group G2, images and captions, and of the pretraining corpus."""

from twelve_in_one.data.builders.base import ImageMajorBuilder
from twelve_in_one.data.builders.sources import SOURCES


class Coco(ImageMajorBuilder, skip_registration=True):
    """COCO captions (Chen et al., 2015) in Karpathy's split.

    Recipe: into `coco/`: Karpathy's dataset_coco.json; or captions_{train,val}2014.json from
    cocodataset.org with karpathy_{train,val,test}_images.txt; or the released
    all_data_final_*_2014.jsonline.
    Splits: "train" includes restval (113,287 images); "val" and "test" have 5,000 each.
    Licence: annotations CC-BY-4.0; photos under their Flickr licences.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["coco"]


class Flickr30k(ImageMajorBuilder, skip_registration=True):
    """Flickr30k captions (Young et al., 2014) in Karpathy's split.

    Recipe: into `flickr30k/`: Karpathy's dataset_flickr30k.json; or results_20130124.token, or
    Kaggle's results.csv, with the official {train,val,test}.txt; or the released JSON lines.
    Splits: 29,000 (29,783 officially), 1,014 (1,000) and 1,000 images.
    Licence: for non-commercial research and education, by the terms of the dataset's site.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["flickr30k"]


class ConceptualCaptions(ImageMajorBuilder, skip_registration=True):
    """Conceptual Captions (Sharma et al., 2018): 3.3 million web images with cleaned alt texts.

    Recipe: from the dataset's site into `conceptual_captions/`: Train_GCC-training.tsv and
    Validation_GCC-1.1.0-Validation.tsv; images by the number of their line, counted from 0. Region
    features with class probabilities are needed for masked region classification; the released
    LMDB files hold both captions and features.
    Licence: free for any purpose with acknowledgement of Google LLC; images belong to their owners.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["conceptual_captions"]
