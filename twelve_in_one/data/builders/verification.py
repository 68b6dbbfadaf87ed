"""Builders of group G4: whether a sentence holds."""

from twelve_in_one.data.builders.base import ImageMajorBuilder
from twelve_in_one.data.builders.sources import SOURCES


class Nlvr2(ImageMajorBuilder, skip_registration=True):
    """NLVR2 (Suhr et al., 2019): is a sentence true of a pair of photos.

    Recipe: from the NLVR repository into `nlvr2/`: train.json, dev.json, test1.json (JSON lines).
    A record is a pair of photos.
    Splits: "val" is dev, "test" the public test1.
    Licence: sentences and labels CC-BY-4.0; photos belong to their owners.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["nlvr2"]


class SnliVe(ImageMajorBuilder, skip_registration=True):
    """SNLI-VE (Xie et al., 2019): does a Flickr30k photo entail a sentence.

    Recipe: from the SNLI-VE repository into `snli_ve/`: snli_ve_{train,dev,test}.jsonl. The photo
    is the premise; the caption in the files is not read.
    Splits: "val" is dev.
    Licence: text CC-BY-SA-4.0 (SNLI), repository BSD-2; photos as Flickr30k.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["snli_ve"]
