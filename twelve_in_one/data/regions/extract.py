"""Regions of a folder of images, in parallel, into a store of shards (see `records`).

    python -m twelve_in_one.data.regions.extract --images photos --out regions --jobs 8 --cluttered

A run that was interrupted is resumed by starting it again: shards that exist are kept, and what is
written is the same however often that happens and however many processes take part.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from twelve_in_one.data.files import read_json
from twelve_in_one.data.processes import end_with_parent
from twelve_in_one.data.records import DataError, Regions, Skipped
from twelve_in_one.data.regions.extractor import PixelExtractor, RegionExtractor, load_image
from twelve_in_one.data.regions.records import missing_shards, write_shard
from twelve_in_one.paths import local_path

PARAMETERS = "extraction.json"  # what a folder was made with, beside its shards
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})

Shard = list[tuple[str, Path]]


def extract_folder(
    images: Mapping[str, Path],
    out: Path,
    extractor: RegionExtractor,
    *,
    jobs: int = 1,
    shard_size: int = 256,
) -> tuple[Skipped, ...]:
    """Extracts the regions of images that `out` does not hold yet. Progress goes to stderr.

    Args:
      images: files by image id, in any order.
      out: folder of the store; is made if missing.
      extractor: must be picklable where there are several jobs.
      jobs: processes.
      shard_size: images a shard, which must fit in memory.

    Returns:
      Images that could not be read, also those of earlier runs, by ascending id.

    Raises:
      DataError: no images, or `out` was begun with other images, extractor or shard size.
      ValueError: `jobs` or `shard_size` is not positive, or an id cannot be stored.
      OSError: `out` cannot be written.
    """
    if jobs < 1 or shard_size < 1:
        raise ValueError(f"jobs {jobs} and shard_size {shard_size} must be positive")
    if not images:
        raise DataError(f"{out}: no images to extract regions from")
    for image_id in images:
        if not image_id or "/" in image_id:
            raise ValueError(f"image id {image_id!r} must not be empty or contain '/'")
    ordered = sorted(images.items())
    shards = [ordered[i : i + shard_size] for i in range(0, len(ordered), shard_size)]
    _check_parameters(out, _parameters([name for name, _ in ordered], extractor, shard_size))
    missing = missing_shards(out, len(shards))
    total = sum(len(shards[index]) for index in missing)
    done, start = 0, time.monotonic()
    for number in _extracted(out, shards, missing, extractor, jobs):
        done += number
        rate = done / max(time.monotonic() - start, 1e-9)
        left = (total - done) / rate
        print(
            f"{len(ordered) - total + done}/{len(ordered)} images, {rate:.1f} a second, "
            f"{left // 60:.0f}:{left % 60:02.0f} left",
            file=sys.stderr,
        )
    return tuple(skip for i in range(len(shards)) for skip in _read_skipped(out, i))


def _extracted(
    out: Path, shards: Sequence[Shard], missing: list[int], extractor: RegionExtractor, jobs: int
) -> Iterator[int]:
    """Writes the missing shards; how many images each has, in the order in which they are done."""
    count, jobs = len(shards), min(jobs, len(missing))
    if jobs <= 1:
        for index in missing:
            yield _extract_shard(out, index, count, shards[index], extractor)
        return
    # A forked child of a process that runs threads, as those of JAX, may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=end_with_parent) as pool:
        futures = [
            pool.submit(_extract_shard, out, index, count, shards[index], extractor)
            for index in missing
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _extract_shard(
    out: Path, index: int, count: int, shard: Shard, extractor: RegionExtractor
) -> int:
    items: dict[str, Regions] = {}
    skipped: list[Skipped] = []
    for image_id, path in shard:
        try:
            image = load_image(path)
        except DataError as error:
            skipped.append(Skipped(str(path), image_id, str(error)))
        else:
            items[image_id] = extractor.extract(image)
    # Before the shard: where there is a shard, the list of what it lacks is complete.
    path = _skipped_path(out, index)
    if skipped:
        _write_json(path, [[skip.file, skip.record, skip.reason] for skip in skipped])
    else:
        path.unlink(missing_ok=True)
    write_shard(out, index, count, items)
    return len(shard)


def _skipped_path(out: Path, index: int) -> Path:
    return out / f"skipped-{index:05d}.json"


def _read_skipped(out: Path, index: int) -> list[Skipped]:
    path = _skipped_path(out, index)
    if not path.exists():
        return []
    try:
        return [Skipped(file, record, reason) for file, record, reason in read_json(path, list)]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: not a list of skipped images: {error}; delete {out}") from error


def _parameters(ids: list[str], extractor: RegionExtractor, shard_size: int) -> dict[str, Any]:
    """What must not change between the runs that fill a folder; images may move elsewhere."""
    return {
        "extractor": extractor.name,
        "feature_dim": extractor.feature_dim,
        "num_regions": extractor.num_regions,
        "shard_size": shard_size,
        "num_images": len(ids),
        "image_ids_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
    }


def _check_parameters(out: Path, parameters: dict[str, Any]) -> None:
    """Records what a new folder is made with; raises DataError where an old one differs."""
    path = out / PARAMETERS
    for partial in out.glob(".*.partial"):  # a run that was killed while it wrote
        partial.unlink()
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out}: not empty, but without {PARAMETERS}; use another folder")
        out.mkdir(parents=True, exist_ok=True)
        _write_json(path, parameters)
        return
    recorded = read_json(path, dict)
    for name, value in parameters.items():
        if recorded.get(name) != value:
            raise DataError(
                f"{path}: begun with {name} {recorded.get(name)!r}, not {value!r}; use another "
                "folder, or delete this one"
            )


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_images(folder: Path) -> dict[str, Path]:
    """Image files directly in a folder, by name without suffix.

    Raises:
      DataError: no such folder, no images in it, or two of one name.
    """
    found: dict[str, Path] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in _SUFFIXES or not path.is_file():
                continue
            if path.stem in found:
                raise DataError(f"{path}: same id as {found[path.stem].name}; rename one of them")
            found[path.stem] = path
    if not found:
        raise DataError(f"{folder}: no folder with images ({', '.join(sorted(_SUFFIXES))})")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.data.regions.extract",
        description="Finds regions in a folder of images by rules about pixels.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--images",
        type=local_path,
        required=True,
        help="folder; file names without suffix are the ids",
    )
    add("--out", type=local_path, required=True, help="folder for the shards; resumed where begun")
    add("--jobs", type=int, default=1, help="processes (default: 1)")
    add("--num_regions", type=int, default=16, help="an image, at most (default: 16)")
    add("--cluttered", action="store_true", help="photos: look everywhere, not only on the ground")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 1 where nothing could be done."""
    args = _parser().parse_args(argv)
    try:
        extractor = PixelExtractor(args.num_regions, args.cluttered)
        images = find_images(args.images)
        skipped = extract_folder(images, args.out, extractor, jobs=args.jobs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for skip in skipped:
        print(f"skipped {skip.record}: {skip.reason}", file=sys.stderr)
    print(f"{args.out}: {len(images) - len(skipped)} images, {len(skipped)} skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
