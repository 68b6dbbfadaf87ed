"""Builds datasets from their official files.

    python -m twelve_in_one.data.build vqa --manual_dir RAW --data_dir DATA --features lmdb:FEATURES
    python -m twelve_in_one.data.build all --manual_dir RAW --data_dir DATA --features pixels
    python -m twelve_in_one.data.build all --manual_dir RAW --data_dir DATA --check

RAW holds one folder a dataset (the recipes are in `data/builders/`) and, for --features pixels,
`images/` with one folder a collection of images. Killed and started again, the command goes on
where it was: datasets that are complete, and regions that were found, are kept.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from absl import logging

from twelve_in_one.data import finish, region_inputs, splits
from twelve_in_one.data.assemble import make_record, read_splits
from twelve_in_one.data.reader import (
    BUILD_INFO,
    built_folder,
    dataset_folder,
    open_split,
    read_build_info,
)
from twelve_in_one.data.records import DataError, Skipped
from twelve_in_one.data.sources import SOURCES, Source

_LOG_SECONDS = 2.0
_PIXELS = ("pixels", "photos")
_SHOWN_REASONS = 5


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.data.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=["all", *SOURCES], help="dataset, or all that RAW holds")
    parser.add_argument("--manual_dir", type=Path, required=True, help="RAW, the official files")
    parser.add_argument("--data_dir", type=Path, required=True, help="DATA, where to build")
    parser.add_argument(
        "--features",
        default="pixels",
        help="region features: lmdb:PATH, npy:DIR, tsv:FILE, hdf5:FILE, records:DIR, a path whose "
        "format can be told; pixels (found in the pictures, things on an even ground; the "
        "default), photos (the same for photos), or none",
    )
    parser.add_argument(
        "--annotated_features", help="features of annotated boxes, for visual7w and guesswhat"
    )
    parser.add_argument(
        "--name_of_features",
        help="what the features of stores are called; datasets that are trained together share it, "
        f"whatever stores they come from; default {region_inputs.STORED}",
    )
    parser.add_argument("--images", type=Path, help="pictures; default RAW/images")
    parser.add_argument(
        "--num_regions", type=int, help="most regions from pixels, default 16, or from photos, 36"
    )
    parser.add_argument("--vqa_answers", type=Path, help="answer vocabulary of vqa and vgqa")
    parser.add_argument("--gqa_answers", type=Path, help="answer vocabulary of gqa")
    parser.add_argument("--vocab", type=Path, help="WordPiece vocabulary, one token a line")
    parser.add_argument(
        "--max_skipped_share", type=float, default=0.05, help="of unusable records before giving up"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")
    parser.add_argument(
        "--check", action="store_true", help="only read everything and report what is wrong"
    )
    args = parser.parse_args(argv)
    args.images = args.images or args.manual_dir / "images"
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    if args.name_of_features and not args.name_of_features.isidentifier():
        parser.error(f"--name_of_features takes letters, digits and _, got {args.name_of_features}")
    if args.name_of_features and args.features in (*_PIXELS, "none"):
        parser.error(f"--name_of_features is for stores; --features is {args.features}")
    if not 0 <= args.max_skipped_share <= 1:
        parser.error(f"--max_skipped_share must be from 0 to 1, got {args.max_skipped_share}")
    return args


def log(line: str) -> None:
    """A line of progress; the report goes to stdout."""
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 if everything that was asked for is complete."""
    args = parse_arguments(argv)
    try:
        names = _names(args)
        if args.features in _PIXELS:
            for domain in dict.fromkeys(SOURCES[name].domain for name in names):
                log(f"regions of {domain}")
                source = next(s for s in SOURCES.values() if s.domain == domain)
                _regions(args, source)
        work = check_dataset if args.check else build_dataset
        # TensorFlow does not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(args.jobs, len(names)), mp_context=context) as pool:
            outcomes = list(pool.map(_guarded, names, [args] * len(names), [work] * len(names)))
        failed = [outcome for outcome in outcomes if "error" in outcome]
        _print_reports([outcome for outcome in outcomes if "error" not in outcome])
        for outcome in failed:
            log(f"error: {outcome['name']}: {outcome['error']}")
        if not args.check:
            _finish(args)
        return 1 if failed else 0
    except DataError as error:
        log(f"error: {error}")
        return 1


def _names(args: argparse.Namespace) -> list[str]:
    if not args.manual_dir.is_dir():
        raise DataError(f"--manual_dir {args.manual_dir}: no such folder")
    if args.name != "all":
        folder = args.manual_dir / SOURCES[args.name].folder
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; it should hold the files of {args.name}")
        return [args.name]
    there = [n for n, source in SOURCES.items() if (args.manual_dir / source.folder).is_dir()]
    absent = [name for name in SOURCES if name not in there]
    if absent:
        log(f"not in {args.manual_dir}, left out: {', '.join(absent)}")
    if not there:
        raise DataError(f"{args.manual_dir}: holds none of {', '.join(SOURCES)}")
    return there


def _regions(args: argparse.Namespace, source: Source) -> region_inputs.RegionInputs:
    if args.features == "none":
        return region_inputs.no_regions()
    if args.features in _PIXELS:
        return region_inputs.from_pixels(
            source,
            args.images,
            args.data_dir / "regions",
            cluttered=args.features == "photos",
            num_regions=args.num_regions,
            jobs=args.jobs,
        )
    return region_inputs.from_stores(
        source, args.features, args.annotated_features, _regions_name(args)
    )


def _guarded(name: str, args: argparse.Namespace, work: Any) -> dict[str, Any]:
    """Runs a worker; one dataset's bad file must not stop the others."""
    try:
        return work(name, args)
    except DataError as error:
        return {"name": name, "error": str(error)}


def _build_inputs(name: str, args: argparse.Namespace) -> Any:
    from twelve_in_one.data.builders.base import BuildInputs

    folder = args.manual_dir / SOURCES[name].folder
    return BuildInputs(
        folder,
        _regions(args, SOURCES[name]),
        file_hashes(folder),
        Progress(name),
        args.max_skipped_share,
    )


def build_dataset(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Builds one dataset, unless it is there, made of the same files.

    Raises:
      DataError: see the readers, the region stores and `BuildInputs`.
    """
    import tensorflow_datasets as tfds

    from twelve_in_one.data.builders import BUILDERS
    from twelve_in_one.data.builders.base import made_of

    inputs = _build_inputs(name, args)
    regions = inputs.regions.name
    if is_built(args.data_dir, name, regions) and not args.overwrite:
        there = built_folder(args.data_dir, name, regions)
        info = read_build_info(there)
        if info["made_of"] != made_of(inputs):
            raise DataError(f"{there}: built from other files; pass --overwrite to replace it")
        return info | {"name": name, "kept": True}
    modes = tfds.GenerateMode
    mode = modes.REUSE_CACHE_IF_EXISTS if args.overwrite else modes.REUSE_DATASET_IF_EXISTS
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    # TFDS announces downloads of unknown size, of which there are none, on stdout.
    silence = contextlib.redirect_stdout(io.StringIO())
    with silence, tempfile.TemporaryDirectory() as downloads:
        builder = BUILDERS[name](inputs=inputs, data_dir=str(args.data_dir))
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(download_mode=mode),
        )
    return read_build_info(Path(builder.data_dir)) | {"name": name, "kept": False}


def check_dataset(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Reads annotations, regions and, where it is built, every record of a dataset.

    Raises:
      DataError: the annotation files are unusable.
    """
    from twelve_in_one.data.builders.base import SplitReport

    inputs = _build_inputs(name, args)
    reports = {}
    sets, absent = read_splits(SOURCES[name], inputs.folder)
    for split, found in sets.items():
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
            SplitReport(records, len(found.images), len(found.annotations), tuple(skipped), seconds)
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


def is_built(data_dir: Path, name: str, regions: str) -> bool:
    """Whether a complete build is there."""
    return any((data_dir / dataset_folder(name) / regions).glob(f"*/{BUILD_INFO}"))


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder of annotations."""
    hashes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        hashes[str(path.relative_to(folder))] = digest
    return hashes


class Progress:
    """Prints how far a dataset is, with rate and time left, every other second."""

    def __init__(self, name: str):
        self._name = name
        self._split = ""
        self._start = self._last = 0.0

    def __call__(self, split: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if split != self._split:
            self._split, self._start, self._last = split, now, now
        if done < total and now - self._last < _LOG_SECONDS:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-9)
        left = f"  ETA {(total - done) / rate:,.0f} s" if 0 < done < total else ""
        log(f"{self._name}/{split}  {done:,}/{total:,}  {rate:,.1f}/s{left}")


def _print_reports(outcomes: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'dataset':<20} {'split':<6} {'records':>9} {'images':>9} {'examples':>11} {'skipped':>8}"
    )
    for outcome in outcomes:
        for split, report in outcome["splits"].items():
            print(
                f"{outcome['name']:<20} {split:<6} {report['records']:>9,} {report['images']:>9,} "
                f"{report['annotations']:>11,} {len(report['skipped']):>8,}"
                + ("  was there" if outcome["kept"] else "")
            )
    for outcome in outcomes:
        for split, reason in outcome["absent"].items():
            print(f"  absent: {outcome['name']}/{split}: {reason}")
        for split, report in outcome["splits"].items():
            _print_skipped(f"{outcome['name']}/{split}", report["skipped"])
        _print_skipped(f"{outcome['name']}: pictures", outcome["unreadable"])


def _print_skipped(what: str, skipped: Sequence[dict[str, str]]) -> None:
    for skip in skipped[:_SHOWN_REASONS]:
        print(f"  skipped: {what}: {skip['file']}: {skip['record']}: {skip['reason']}")
    if len(skipped) > _SHOWN_REASONS:
        print(f"  skipped: {what}: {len(skipped) - _SHOWN_REASONS:,} more; see {BUILD_INFO}")


def _finish(args: argparse.Namespace) -> None:
    """Vocabularies, the clean split and hard negatives, over everything that is built by now."""
    regions = _regions_name(args)
    indexes = finish.built_indexes(args.data_dir, regions)
    if not indexes:
        return
    given = {"vqa": args.vqa_answers, "gqa": args.gqa_answers}
    lines = finish.write_answers(args.manual_dir, args.data_dir, given, indexes)
    lines += finish.write_words(args.manual_dir, args.data_dir, args.vocab, indexes)
    clean = splits.test_images(indexes)
    splits.write_clean_split(args.data_dir / finish.CLEAN_SPLIT, clean)
    print("\n" + splits.format_removed(splits.removed(indexes, clean)))
    print("\n" + splits.format_overlap(*splits.overlap_matrix(indexes)) + "\n")
    finish.write_hard_negatives(args.data_dir, regions, indexes, clean, log)
    print("\n".join(lines))


def _regions_name(args: argparse.Namespace) -> str:
    if args.features in (*_PIXELS, "none"):
        return args.features
    return args.name_of_features or region_inputs.STORED


if __name__ == "__main__":
    sys.exit(main())
