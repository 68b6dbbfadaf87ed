"""Builds a data folder out of samples of real records, most of which have no pictures.

    python -m twelve_in_one.data.real_samples --samples SAMPLES --data_dir DATA
    python -m twelve_in_one.data.real_samples --samples SAMPLES --held_out MORE --data_dir DATA
    python -m twelve_in_one.data.real_samples --samples SAMPLES --photos 0/5 --data_dir DATA

SAMPLES holds vqav2/, gqa/, coco/, refcoco/ and snli_ve/, as far as there are any:

  vqa       vqav2/vqa_{questions,annotatons}_{train,valid}.gzip, with coco/annotations/vqav2_*
  gqa       gqa/testdev_balanced_questions.json and gqa/xgqa_en_train_48.json.gz
  coco      coco/annotations/captions_subset.json
  refcoco, refcoco+, refcocog   refcoco/NAME_val.json.gz, one row an expression
  snli_ve   snli_ve/esnlive_dev.csv.gz

vqa keeps the samples' split. Every other set is split by image: a hash of the image's id holds a
fifth out for validation, the same images in all sets. Photos in coco/images go through the pixel
extractor, and whatever is asked about them has their regions; all other images have none. RefCOCO's
candidates are the boxes that expressions refer to (Encoding.candidates = "annotated"). All sets are
built under one name of region features, "real".

Records that nobody has seen are tried by putting their files into any folder, MORE, which is
searched in depth. They become the split "test" ("testA" and "testB" of refcoco and refcoco+):

  vqa       vqa_questions_X with vqa_annotatons_X        snli_ve   esnlive_X or snli_ve_X
  gqa       X_balanced_questions or xgqa_X               refcocog  refcocog_test
  coco      captions_X, photos in MORE/coco/images       refcoco   refcoco_testA, refcoco_testB
                                                         refcoco+  refcoco+_testA, refcoco+_testB

each ending in .json, .jsonl, .csv, .gzip or .gz. Words and answers come from SAMPLES alone, so that
a model that was trained on DATA without MORE can be tested on DATA with it: run the command again
with --held_out, then evaluate the model on these splits.

--photos 0/5 takes only what is about the photos of coco/ and coco_more/, and validates on the first
of five parts of them: coco has their captions, vqa their questions (and ones made of COCO's labels,
as often answered yes as no, whether there is an object of a class), refcocog expressions (and
names of classes of which a photo has one object), whose candidates are the 24 largest labelled
objects. This needs {coco,coco_more}/annotations/instances*.json as well.
"""

import argparse
import dataclasses
import functools
import hashlib
import operator
import os
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one import extras
from twelve_in_one.config.paths import local_path
from twelve_in_one.data.builders import (
    finish,
    photo_sets,
    real_sets,
    region_inputs,
    report,
    splits,
)
from twelve_in_one.data.builders.real_sets import RealSet
from twelve_in_one.data.builders.region_inputs import RegionInputs
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.encode import text
from twelve_in_one.data.formats import files
from twelve_in_one.data.stored.reader import built_folder, read_build_info, region_names
from twelve_in_one.data.stored.records import AnnotationSet, DataError

SAMPLES_VARIABLE = "TWELVE_IN_ONE_SAMPLES"
REGIONS = "real"  # name of the region features of all sets
_PIXELS = "pixels"
_HELD_OUT = "held out: "  # prefix of file names in a dataset's list of sources
_NUM_WORDS = 8000


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.data.real_samples",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--samples",
        type=local_path,
        default=os.environ.get(SAMPLES_VARIABLE),
        help=f"SAMPLES; default ${SAMPLES_VARIABLE}",
    )
    parser.add_argument("--held_out", type=local_path, help="MORE, files to be tested on")
    parser.add_argument("--data_dir", type=local_path, required=True, help="DATA, where to build")
    parser.add_argument(
        "--words", type=int, default=_NUM_WORDS, help=f"of the tokenizer; default {_NUM_WORDS:,}"
    )
    parser.add_argument("--vocab", type=local_path, help="WordPiece vocabulary to use instead")
    parser.add_argument(
        "--lower_case",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="lower-case texts (the default); --no-lower_case for cased vocabularies",
    )
    parser.add_argument(
        "--photos", type=_part, metavar="PART/PARTS", help="only what is about photos"
    )
    parser.add_argument(
        "--features",
        default=_PIXELS,
        help="of the photos: pixels (rules, the default), none, or of a detector: small, "
        "small:PATH or KIND:FILE, as data.regions.extract --help lists them",
    )
    parser.add_argument(
        "--regions", type=local_path, help="where regions of photos are kept; default DATA/regions"
    )
    parser.add_argument(
        "--num_regions", type=int, default=36, help="most of a photo, of pixels; default 36"
    )
    parser.add_argument(
        "--max_skipped_share", type=float, default=0.05, help="of unusable records before giving up"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")
    args = parser.parse_args(argv)
    if args.samples is None:
        parser.error(f"pass --samples, or set {SAMPLES_VARIABLE}")
    for name in ("samples", "held_out"):
        folder = getattr(args, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} {folder}: no such folder")
    for name in ("jobs", "num_regions", "words"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.photos and args.held_out:
        parser.error("--photos holds a part out by itself: leave --held_out away")
    if args.vocab is not None and not args.vocab.is_file():
        parser.error(f"--vocab {args.vocab}: no such file")
    if not 0 <= args.max_skipped_share <= 1:
        parser.error(f"--max_skipped_share must be from 0 to 1, got {args.max_skipped_share}")
    return args


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts) > 1):
        raise argparse.ArgumentTypeError(f"{text!r} should be like 0/5, 1/5, ... 4/5")
    return int(part), int(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if everything could be built."""
    args = parse_arguments(argv)
    try:
        extras.require("building datasets", "data")
        return 0 if _run(args) else 1
    except (ValueError, OSError, ImportError) as error:
        report.log(f"error: {error}")
        return 1


def _run(args: argparse.Namespace) -> bool:
    """Returns whether all sets could be built."""
    if args.photos:
        found = photo_sets.read(args.samples, *args.photos)
    else:
        found = real_sets.read_samples(args.samples)
    tests: dict[str, RealSet] = {}
    if args.held_out is not None:
        tests, unknown = real_sets.read_held_out(args.held_out)
        for path in unknown:
            report.log(f"{path}: not used, its name is none of those that --help lists")
    _print_read([*found.values(), *tests.values()])
    _print_seen(found, tests)
    # Inputs of the last step first, before anything that takes minutes.
    words, answers = _words(args, found.values()), _answers(args.samples, {*found, *tests})
    regions = _regions(args, found)
    outcomes = []
    for name in SOURCES:
        parts = [sets[name] for sets in (found, tests) if name in sets]
        hashes = _hashes(found[name].files, args.samples) if name in found else {}
        if name in tests:
            hashes |= _hashes(tests[name].files, args.held_out, _HELD_OUT)
        if parts:
            real = functools.reduce(operator.or_, parts)
            work = functools.partial(_build, args, real, hashes, regions)
            outcomes.append(report.attempt(name, work))
    print()
    complete = report.print_outcomes(outcomes)
    _finish(args, words, answers)
    return complete


def _print_read(sets: Iterable[RealSet]) -> None:
    print(f"{'dataset':<10} {'split':<6} {'read':>8} {'kept':>8} {'repeated':>8} {'skipped':>8}")
    for real in sets:
        repeated = real.repeated
        for split, annotations in real.splits.items():
            kept, skipped = len(annotations.annotations), len(annotations.skipped)
            print(
                f"{real.name:<10} {split:<6} {kept + repeated + skipped:>8,} {kept:>8,} "
                f"{repeated:>8,} {skipped:>8,}"
            )
            repeated = 0
    print()


def _print_seen(sets: Mapping[str, RealSet], tests: Mapping[str, RealSet]) -> None:
    """How much of the tests is in the training data."""
    for name, test in tests.items():
        for split, annotations in test.splits.items():
            for role, own in sets[name].splits.items() if name in sets else ():
                images = annotations.images.keys() & own.images.keys()
                ids = {a.example_id for a in own.annotations}
                records = sum(a.example_id in ids for a in annotations.annotations)
                print(
                    f"{name}/{split}: {len(images):,} of {len(annotations.images):,} images and "
                    f"{records:,} of {len(annotations.annotations):,} records are also in {role}"
                    + (", and are left out of scores" if records and role == "train" else "")
                )


def _words(args: argparse.Namespace, sets: Iterable[RealSet]) -> tuple[str, ...]:
    """Words of the tokenizer: given, or made from the training texts.

    Raises:
      DataError: the data folder has other words, or --words leaves no room for all characters.
    """
    if args.vocab is not None:
        words = text.load_tokenizer(args.vocab, lower_case=args.lower_case).vocabulary
    else:
        texts = (a.text for real in sets for a in real.splits["train"].annotations)
        try:
            words = text.train_tokenizer(texts, args.words, lower_case=args.lower_case)
        except ValueError as error:
            raise DataError(f"--words: {error}") from error
    path = args.data_dir / finish.WORDS
    if path.is_file() and not args.overwrite:
        there = finish.read_tokenizer(args.data_dir)
        if (there.vocabulary, there.lower_case) != (words, args.lower_case):
            raise DataError(
                f"{path}: other words than these samples give, or another lower_case, so that "
                "models trained on it would not fit; pass another --data_dir, or --overwrite to "
                "replace it"
            )
    return words


def _answers(samples: Path, names: Container[str]) -> dict[str, Path]:
    """Answer lists of the sets that need one."""
    folders = {"vqa": "vqav2", "gqa": "gqa"}
    return {
        name: files.find(samples / folder, "trainval_label2ans.json")
        for name, folder in folders.items()
        if name in names
    }


def _regions(args: argparse.Namespace, found: Mapping[str, RealSet]) -> RegionInputs:
    """Regions of the available photos; all other images have none."""
    none = region_inputs.no_regions()
    if args.features == "none":
        return dataclasses.replace(none, name=REGIONS)
    source = dataclasses.replace(SOURCES["coco"], scores_annotated_boxes=True)
    extractor, jobs = _extractor(args)
    cache = args.regions or args.data_dir / "regions"
    options = {"jobs": jobs, "overwrite": args.overwrite}
    if args.photos:
        annotated = [
            image
            for real in found.values()
            for split in real.splits.values()
            for image in split.images.values()
        ]
        pictures = photo_sets.photo_files(args.samples)
        return region_inputs.from_pictures(
            source, pictures, cache, extractor, REGIONS, annotated=annotated, **options
        )
    photos = [
        region_inputs.from_folder(source, folder, kept, extractor, REGIONS, **options)
        for folder, kept in (
            (args.samples, cache),
            (args.held_out, cache.with_name(f"{cache.name}_held_out")),
        )
        if folder is not None and (folder / "coco/images").is_dir()
    ]

    def of(image_id: str) -> RegionInputs:
        return next((found for found in photos if found.has(image_id)), none)

    return RegionInputs(
        REGIONS,
        photos[0].describes if photos else none.describes,
        none.has,
        detected=lambda image: of(image.image_id).detected(image),
        annotated=lambda image: of(image.image_id).annotated(image),
        extractor=photos[0].extractor if photos else "",
        stamp=lambda image_id: of(image_id).stamp(image_id),
        unreadable=tuple(skip for found in photos for skip in found.unreadable),
    )


def _extractor(args: argparse.Namespace) -> tuple[Any, int]:
    """What finds the photos' regions, and in how many processes.

    Raises:
      ValueError, OSError, ImportError: see `open_detector`.
    """
    if args.features == _PIXELS:
        count = args.num_regions
        return region_inputs.pixel_extractor(cluttered=True, num_regions=count), args.jobs
    from twelve_in_one.convert.detectors import open_detector

    return open_detector(args.features), 1


def _build(
    args: argparse.Namespace, real: RealSet, hashes: Mapping[str, str], regions: RegionInputs
) -> dict[str, Any]:
    """Builds a dataset; rebuilds it if only the held-out files have changed."""
    from twelve_in_one.data.builders.base import BuildInputs, build_with
    from twelve_in_one.data.builders.twelve import BUILDERS

    def read(folder: Path, split: str) -> AnnotationSet:
        return real.splits[split]

    official = BUILDERS[real.name]
    source = dataclasses.replace(
        official.source, read=read, splits=tuple(real.splits), official=real.official
    )
    about = {"source": source, "__doc__": f"Samples of real records. {official.__doc__}"}
    kind = type(official.__name__, (official,), about, skip_registration=True)
    progress, skipped = report.Progress(real.name), args.max_skipped_share
    inputs = BuildInputs(args.samples, regions, hashes, progress, skipped)
    overwrite = args.overwrite or _differs_in_held_out(args.data_dir, real.name, hashes)
    return build_with(kind, inputs, args.data_dir, overwrite=overwrite)


def _hashes(paths: Iterable[Path], folder: Path, prefix: str = "") -> dict[str, str]:
    hashes = {}
    for path in paths:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        hashes[f"{prefix}{path.relative_to(folder)}"] = digest
    return hashes


def _differs_in_held_out(data_dir: Path, name: str, hashes: Mapping[str, str]) -> bool:
    """Returns whether a dataset exists with the same samples but other held-out files."""
    if REGIONS not in region_names(data_dir, name):
        return False
    there = read_build_info(built_folder(data_dir, name, REGIONS))["made_of"]["files"]
    samples = [{k: v for k, v in x.items() if not k.startswith(_HELD_OUT)} for x in (there, hashes)]
    return there != hashes and samples[0] == samples[1]


def _finish(args: argparse.Namespace, words: Sequence[str], answers: Mapping[str, Path]) -> None:
    """Writes the files that all sets share: the clean split, hard negatives, words and answers."""
    indexes = finish.built_indexes(args.data_dir, REGIONS)
    clean = splits.test_images(indexes)
    finish.write_clean_split(args.data_dir, clean)
    if args.held_out is not None:
        print(f"\n{splits.format_removed(splits.removed(indexes, clean))}")
    finish.write_hard_negatives(args.data_dir, REGIONS, indexes, clean, report.log)
    finish.write_tokenizer(args.data_dir, words, args.lower_case)
    print(f"\n{finish.WORDS}: {len(words):,} words")
    for line in finish.write_answers(args.samples, args.data_dir, answers, indexes):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
