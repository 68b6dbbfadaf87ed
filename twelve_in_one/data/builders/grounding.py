"""Builders of group G3: which region of the image is meant."""

from twelve_in_one.data.builders.base import ImageMajorBuilder
from twelve_in_one.data.builders.sources import SOURCES


class Refcoco(ImageMajorBuilder, skip_registration=True):
    """RefCOCO (Kazemzadeh et al., 2014; Yu et al., 2016), UNC split: expressions from a game.

    Recipe: from the REFER toolkit into `refcoco/refcoco/`: refs(unc).p and instances.json.
    Splits: "train", "val", "testA" (people), "testB" (other things).
    Licence: toolkit Apache-2.0; COCO annotations CC-BY-4.0.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["refcoco"]


class RefcocoPlus(ImageMajorBuilder, skip_registration=True):
    """RefCOCO+ (Yu et al., 2016), UNC split: expressions without words of location.

    Recipe: from the REFER toolkit into `refcoco/refcoco+/`: refs(unc).p and instances.json.
    Splits: "train", "val", "testA" (people), "testB" (other things).
    Licence: toolkit Apache-2.0; COCO annotations CC-BY-4.0.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["refcoco+"]


class Refcocog(ImageMajorBuilder, skip_registration=True):
    """RefCOCOg (Mao et al., 2016), UMD split: longer expressions, written without a game.

    Recipe: from the REFER toolkit into `refcoco/refcocog/`: refs(umd).p and instances.json.
    Splits: "train", "val", "test".
    Licence: toolkit Apache-2.0; COCO annotations CC-BY-4.0.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["refcocog"]


class Visual7w(ImageMajorBuilder, skip_registration=True):
    """Visual7W pointing (Zhu et al., 2016): "which" questions with four boxes to choose from.

    Recipe: from the Visual7W site into `visual7w/`: dataset_v7w_pointing.json; Visual Genome's
    image_data.json in `visual_genome/` tells which photos are COCO's, which cleaning needs. Region
    features of the annotated boxes come in the order of their sorted ids.
    Splits: official.
    Licence: toolkit MIT; Visual Genome CC-BY-4.0.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["visual7w"]


class Guesswhat(ImageMajorBuilder, skip_registration=True):
    """GuessWhat?! (de Vries et al., 2017), the guesser: which object was the dialogue about.

    Recipe: from the GuessWhat?! site into `guesswhat/`: guesswhat.{train,valid,test}.jsonl.gz.
    Region features of the annotated boxes come in the order of their sorted ids.
    Splits: official; games of every status.
    Licence: of the games, none is stated (code Apache-2.0); COCO annotations CC-BY-4.0.
    Checksums: none are published; `build.json` records SHA-256 of the files that were read.
    """

    source = SOURCES["guesswhat"]
