"""Builds datasets from their official files.

    python -m twelve_in_one.data.build vqa --manual_dir RAW --data_dir DATA --features lmdb:FEATURES
    python -m twelve_in_one.data.build all --manual_dir RAW --data_dir DATA --features pixels
    python -m twelve_in_one.data.build all --manual_dir RAW --data_dir DATA --features small
    python -m twelve_in_one.data.build all --manual_dir RAW --data_dir DATA --check

RAW holds one folder a dataset (the recipes are in `data/builders/`) and, for --features pixels or a
detector, `images/` with one folder a collection of images. Killed and started again, the command
goes on where it was: datasets that are complete, and regions that were found, are kept. Pictures
that were added or changed since, or could not be read, are read again; datasets that were built
without them are named, to be built again with --overwrite.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from twelve_in_one import extras
from twelve_in_one.config.paths import local_path
from twelve_in_one.data.builders import finish, processes, region_inputs, report, splits
from twelve_in_one.data.builders.answers import read_vocabulary
from twelve_in_one.data.builders.assemble import (
    make_record,
    notes_of,
    read_splits,
    splits_without_regions,
)
from twelve_in_one.data.builders.sources import ALL_SOURCES, DECODER_SOURCES, SOURCES, Source
from twelve_in_one.data.formats import files
from twelve_in_one.data.stored.reader import (
    built_folder,
    is_built,
    open_split,
    read_build_info,
    region_names,
)
from twelve_in_one.data.stored.records import AnnotatedImage, DataError, Skipped

_PIXELS = ("pixels", "photos")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.data.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", choices=["all", *ALL_SOURCES], help="dataset, or all of 12-in-1 that RAW holds"
    )
    parser.add_argument(
        "--manual_dir", type=local_path, required=True, help="RAW, the official files"
    )
    parser.add_argument("--data_dir", type=local_path, required=True, help="DATA, where to build")
    parser.add_argument(
        "--features",
        action="append",
        help="region features: lmdb:PATH, npy:DIR, tsv:FILE, hdf5:FILE, records:DIR, a path whose "
        "format can be told (may be given several times: the first that has an image gives it); "
        "pixels (found in the pictures, things on an even ground; the default), photos (the same "
        "for photos), a detector that finds them in the pictures: small, small:PATH or KIND:FILE "
        "as data.regions.extract --help lists them, which runs on all devices and is used alone; "
        f"or none (the default of {', '.join(DECODER_SOURCES)})",
    )
    parser.add_argument(
        "--annotated_features",
        action="append",
        help="features of annotated boxes, for visual7w and guesswhat; also several",
    )
    parser.add_argument(
        "--official_sizes",
        action="store_true",
        help="accept that stores and annotations state different sizes of a picture, as the "
        "released loader does; an error otherwise",
    )
    parser.add_argument(
        "--name_of_features",
        help="what the features of stores or of a detector are called; datasets that are trained "
        f"together share it, whatever stores they come from; default {region_inputs.STORED}",
    )
    parser.add_argument(
        "--images",
        type=_pictures_option,
        default=(False, None),
        help="pictures; default RAW/images. keep, or keep:PATH, puts them into the records, beside "
        "the regions or, with --features none, instead: the files' own bytes, but what is no "
        "upright RGB or grey picture of eight bits is encoded again without loss",
    )
    parser.add_argument(
        "--num_regions", type=int, help="most regions from pixels, default 16, or from photos, 36"
    )
    parser.add_argument("--vqa_answers", type=local_path, help="answer vocabulary of vqa and vgqa")
    parser.add_argument("--gqa_answers", type=local_path, help="answer vocabulary of gqa")
    parser.add_argument("--vocab", type=local_path, help="WordPiece vocabulary, one token a line")
    parser.add_argument(
        "--lower_case",
        action=argparse.BooleanOptionalAction,
        help="lower-case texts and take the accents off, as BERT's uncased vocabularies need it "
        "(the default); --no-lower_case for cased ones. It goes with the data and with models "
        "trained on it",
    )
    parser.add_argument(
        "--max_skipped_share", type=float, default=0.05, help="of unusable records before giving up"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="build again what is there, also regions from pictures",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only read everything and report what is wrong; exit code 1 if anything is",
    )
    args = parser.parse_args(argv)
    args.keep_images, pictures = args.images
    args.images = pictures or args.manual_dir / "images"
    default = "none" if args.name in DECODER_SOURCES else "pixels"
    args.features = ",".join(args.features or [default])
    args.annotated_features = ",".join(args.annotated_features or []) or None
    for name in ("jobs", "num_regions"):
        number = getattr(args, name)
        if number is not None and number < 1:
            parser.error(f"--{name} must be at least 1, got {number}")
    for name in ("vqa_answers", "gqa_answers", "vocab"):
        file = getattr(args, name)
        if file is not None and not file.is_file():
            parser.error(f"--{name} {file}: no such file")
    if args.name_of_features and not args.name_of_features.isidentifier():
        parser.error(f"--name_of_features takes letters, digits and _, got {args.name_of_features}")
    if args.name_of_features and args.features in (*_PIXELS, "none"):
        parser.error(f"--name_of_features is for stores; --features is {args.features}")
    args.detector = _is_detector(args.features)
    if args.detector and args.annotated_features:
        parser.error("--annotated_features: the detector of --features describes annotated boxes")
    if args.detector and args.num_regions:
        parser.error("--num_regions is for pixels and photos; a detector has its own number")
    if args.official_sizes and (args.detector or args.features in (*_PIXELS, "none")):
        parser.error(f"--official_sizes is for stores; --features is {args.features}")
    if not 0 <= args.max_skipped_share <= 1:
        parser.error(f"--max_skipped_share must be from 0 to 1, got {args.max_skipped_share}")
    return args


def _is_detector(features: str) -> bool:
    from twelve_in_one.convert import detectors  # imports much that workers need not

    return detectors.is_detector(features)


@functools.cache
def _open_detector(spec: str) -> Any:
    from twelve_in_one.convert import detectors

    return detectors.open_detector(spec)


def _pictures_option(text: str) -> tuple[bool, Path | None]:
    """Returns whether pictures are kept, and where they are."""
    keep, _, path = text.partition(":")
    if keep == "keep":
        return True, local_path(path) if path else None
    return False, local_path(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if everything requested is complete."""
    args = parse_arguments(argv)
    try:
        extras.require("building datasets", "data")
        names = _names(args)
        _check_vocabularies(args)
        if args.detector:
            _open_detector(args.features)  # whose faults are those of all datasets
        if args.features in _PIXELS:
            for domain in dict.fromkeys(ALL_SOURCES[name].domain for name in names):
                report.log(f"regions of {domain}")
                source = next(s for s in ALL_SOURCES.values() if s.domain == domain)
                with contextlib.suppress(ValueError, OSError):  # its datasets say it below
                    _regions(args, source, overwrite=args.overwrite and not args.check)
        outcomes = _outcomes(check_dataset if args.check else build_dataset, names, args)
        complete = report.print_outcomes(outcomes)
        if args.check:
            return 0 if complete and not any(map(_has_problem, outcomes)) else 1
        if args.name not in DECODER_SOURCES:  # which share nothing
            _finish(args)
        return 0 if complete else 1
    except BrokenProcessPool:
        report.log("error: a process was killed, perhaps for want of memory; try fewer --jobs")
        return 1
    except (ValueError, OSError, ImportError) as error:
        report.log(f"error: {error}")
        return 1


def _check_vocabularies(args: argparse.Namespace) -> None:
    """Reads given or existing vocabularies early: they are needed last, perhaps after hours.

    Raises:
      DataError: one cannot be used.
    """
    for file in (args.vqa_answers, args.gqa_answers):
        if file is not None:
            read_vocabulary(file)
    finish.known_tokenizer(args.data_dir, args.vocab, args.lower_case)


def _outcomes(work: Any, names: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each dataset, the result of `build_dataset` or `check_dataset`, or an error."""
    arguments = names, [args] * len(names), [work] * len(names)
    if args.jobs == 1 or len(names) == 1 or args.detector:  # which all processes would load
        return list(map(_attempt, *arguments))
    with ProcessPoolExecutor(
        min(args.jobs, len(names)),
        # TensorFlow does not survive a fork.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=processes.end_with_parent,
    ) as pool:
        return list(pool.map(_attempt, *arguments))


def _has_problem(outcome: dict[str, Any]) -> bool:
    skipped = any(split["skipped"] for split in outcome["splits"].values())
    return skipped or bool(outcome["unreadable"])


def _names(args: argparse.Namespace) -> list[str]:
    if not args.manual_dir.is_dir():
        raise DataError(f"--manual_dir {args.manual_dir}: no such folder")
    if args.name != "all":
        folder = args.manual_dir / ALL_SOURCES[args.name].folder
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; it should hold the files of {args.name}")
        return [args.name]
    there = [n for n, source in SOURCES.items() if (args.manual_dir / source.folder).is_dir()]
    absent = [name for name in SOURCES if name not in there]
    if absent:
        report.log(f"not in {args.manual_dir}, left out: {', '.join(absent)}")
    for name, source in DECODER_SOURCES.items():
        if (args.manual_dir / source.folder).is_dir():
            report.log(f"{name} is no dataset of 12-in-1, left out: build it by its name")
    if not there:
        raise DataError(f"{args.manual_dir}: holds none of {', '.join(SOURCES)}")
    return there


def _regions(
    args: argparse.Namespace, source: Source, *, overwrite: bool = False
) -> region_inputs.RegionInputs:
    """Regions of a dataset's images, and the pictures themselves if they are kept."""
    inputs = _only_regions(args, source, overwrite)
    if not args.keep_images:
        return inputs
    pictures, left_out = region_inputs.picture_files(_pictures_folder(args, source))
    known = {skip.file for skip in inputs.unreadable}
    unreadable = (*inputs.unreadable, *(skip for skip in left_out if skip.file not in known))
    return region_inputs.with_pictures(dataclasses.replace(inputs, unreadable=unreadable), pictures)


def _pictures_folder(args: argparse.Namespace, source: Source) -> Path:
    folder = args.images / source.domain
    if source.released_images and not folder.is_dir():
        beside = args.manual_dir / source.folder / source.released_images
        return beside if beside.is_dir() else folder
    return folder


def _only_regions(
    args: argparse.Namespace, source: Source, overwrite: bool
) -> region_inputs.RegionInputs:
    if args.features == "none":
        return region_inputs.no_regions()
    folders = args.images, args.data_dir / "regions"
    if args.features in _PIXELS:
        cluttered, count = args.features == "photos", args.num_regions
        extractor = region_inputs.pixel_extractor(cluttered=cluttered, num_regions=count)
        options = {"jobs": args.jobs, "overwrite": overwrite}
        return region_inputs.from_folder(source, *folders, extractor, args.features, **options)
    if args.detector:
        annotated: list[AnnotatedImage] = []
        if source.scores_annotated_boxes:
            sets, _ = read_splits(source, args.manual_dir / source.folder)
            annotated = [image for found in sets.values() for image in found.images.values()]
        extractor = _open_detector(args.features)
        return region_inputs.from_folder(
            source,
            *folders,
            extractor,
            _regions_name(args),
            annotated=annotated,
            overwrite=overwrite,
        )
    return region_inputs.from_stores(
        source,
        args.features,
        args.annotated_features,
        _regions_name(args),
        official_sizes=args.official_sizes,
    )


def _attempt(name: str, args: argparse.Namespace, work: Any) -> dict[str, Any]:
    return report.attempt(name, lambda: work(name, args))


def _build_inputs(name: str, args: argparse.Namespace) -> Any:
    from twelve_in_one.data.builders.base import BuildInputs

    folder = args.manual_dir / ALL_SOURCES[name].folder
    return BuildInputs(
        folder,
        _regions(args, ALL_SOURCES[name]),
        file_hashes(folder),
        report.Progress(name),
        args.max_skipped_share,
    )


def build_dataset(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Builds one dataset, unless it already exists, built from the same files.

    Raises:
      DataError: see the readers, the region stores and `BuildInputs`.
    """
    from twelve_in_one.data.builders.base import build_with
    from twelve_in_one.data.builders.twelve import BUILDERS

    inputs = _build_inputs(name, args)
    return build_with(BUILDERS[name], inputs, args.data_dir, overwrite=args.overwrite)


def check_dataset(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Reads annotations, regions and, if the dataset is built, all its records.

    Raises:
      DataError: the annotation files are unusable.
    """
    from twelve_in_one.data.builders.base import SplitReport

    inputs = _build_inputs(name, args)
    reports = {}
    sets, absent = read_splits(ALL_SOURCES[name], inputs.folder)
    absent |= splits_without_regions(ALL_SOURCES[name], sets, inputs.regions)
    for split, found in sets.items():
        if split in absent:
            continue
        start = time.perf_counter()
        skipped, records = [*found.skipped], 0
        grouped = list(found.by_image())
        for done, (key, examples) in enumerate(grouped):
            inputs.progress(split, done, len(grouped))
            images = [found.images[i] for i in found.pairs.get(key, (key,))]
            try:
                make_record(key, images, examples, inputs.regions)
                records += 1
            except DataError as error:
                skipped.append(Skipped(split, key, str(error)))
        inputs.progress(split, len(grouped), len(grouped))
        seconds = time.perf_counter() - start
        reports[split] = dataclasses.asdict(
            SplitReport(
                records,
                len(found.images),
                len(found.annotations),
                tuple(skipped),
                seconds,
                notes=notes_of(found, inputs.regions),
            )
        )
    if is_built(args.data_dir, name, inputs.regions.name):
        folder = built_folder(args.data_dir, name, inputs.regions.name)
        for split in read_build_info(folder)["splits"]:
            reader = open_split(folder, split)
            for position in range(len(reader.index.counts)):
                inputs.progress(f"built {split}", position, len(reader.index.counts))
                reader.record(position)
    unreadable = [dataclasses.asdict(skip) for skip in inputs.regions.unreadable]
    return {
        "name": name,
        "splits": reports,
        "absent": absent,
        "unreadable": unreadable,
        "kept": False,
    }


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder of annotations, but not of pictures."""
    hashes = {}
    for path in files.walk_files(folder):
        if path.suffix.lower() in files.PICTURE_SUFFIXES:
            continue
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        hashes[str(path.relative_to(folder))] = digest
    return hashes


def _finish(args: argparse.Namespace) -> None:
    """Makes the clean split, hard negatives and vocabularies, over everything built so far.

    No dataset may train on another's test images, whichever region features the two are built
    with.
    """
    own = _regions_name(args)
    names = {name for dataset in SOURCES for name in region_names(args.data_dir, dataset)}
    built = {name: finish.built_indexes(args.data_dir, name) for name in sorted(names - {own})}
    built[own] = finish.built_indexes(args.data_dir, own)
    indexes = {name: index for found in built.values() for name, index in found.items()}
    if not indexes:
        return
    indexes = {name: indexes[name] for name in SOURCES if name in indexes}
    clean = splits.test_images(indexes)
    finish.write_clean_split(args.data_dir, clean)
    print("\n" + splits.format_removed(splits.removed(indexes, clean)))
    print("\n" + splits.format_overlap(*splits.overlap_matrix(indexes)) + "\n")
    for regions, found in built.items():
        finish.write_hard_negatives(args.data_dir, regions, found, clean, report.log)
    given = {"vqa": args.vqa_answers, "gqa": args.gqa_answers}
    print(finish.write_words(args.manual_dir, args.data_dir, args.vocab, args.lower_case))
    for line in finish.write_answers(args.manual_dir, args.data_dir, given, indexes):
        print(line)


def _regions_name(args: argparse.Namespace) -> str:
    if args.features in (*_PIXELS, "none"):
        return args.features
    return args.name_of_features or region_inputs.STORED


if __name__ == "__main__":
    sys.exit(main())
