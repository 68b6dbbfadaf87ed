"""Regions of a folder of images, in parallel, into a store of shards (see `records`).

    python -m twelve_in_one.data.regions.extract --images photos --out regions --jobs 8 --cluttered

To resume an interrupted run, start it again. Each shard has a list of its
images with the size and time of their files: images that were added or changed since are read, and
those that could not be read before are tried again; regions of all others are kept. The output
is the same for any number of interruptions and processes.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from twelve_in_one import atomic
from twelve_in_one.config.paths import local_path
from twelve_in_one.data.builders.processes import end_with_parent
from twelve_in_one.data.formats.files import PICTURE_SUFFIXES, read_json, stamp
from twelve_in_one.data.images.load import load_image, orientation
from twelve_in_one.data.regions.extractor import PixelExtractor, RegionExtractor
from twelve_in_one.data.regions.records import (
    MAX_SHARDS,
    RecordStore,
    is_shard_name,
    missing_shards,
    write_shard,
)
from twelve_in_one.data.stored.records import DataError, Regions, Skipped

PARAMETERS = "extraction.json"  # settings of a folder, beside its shards
_LISTS = "images-*.json"

Images = Mapping[str, Path]


@dataclasses.dataclass(frozen=True)
class _Noted:
    """An image's file `stamp`, EXIF orientation, and the reason if it has no regions."""

    stamp: str
    orientation: int = 1
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class _Work:
    """A shard to write: its images, and which of them to read again."""

    index: int
    images: Images
    new: tuple[str, ...]


def extract_folder(
    images: Images,
    out: Path,
    extractor: RegionExtractor,
    *,
    jobs: int = 1,
    shard_size: int = 256,
    upright: bool = True,
    overwrite: bool = False,
) -> tuple[Skipped, ...]:
    """Extracts the regions of images that are not yet in `out`. Progress goes to stderr.

    Args:
      images: files by image id, in any order. Regions of other images are removed.
      out: folder of the store; created if missing.
      extractor: must be picklable if there are several jobs.
      jobs: number of processes.
      shard_size: approximate images per shard, which must fit in memory.
      upright: turned as EXIF data say, or as they are stored.
      overwrite: read all images, regardless of `out`.

    Returns:
      Images that could not be read, by ascending id.

    Raises:
      DataError: no images, or `out` was started with another extractor, frame or shard size.
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
    if overwrite:
        _clear(out)
    count = _begin(out, extractor, shard_size, upright, -(-len(images) // shard_size))
    shards: list[dict[str, Path]] = [{} for _ in range(count)]
    for image_id, path in sorted(images.items()):
        shards[_shard_of(image_id, count)][image_id] = path
    missing = set(missing_shards(out, count))
    plan = [_work(out, index, shards[index], index in missing) for index in range(count)]
    works = [work for work in plan if work is not None]
    total, done, start = sum(len(work.new) for work in works), 0, time.monotonic()
    for number in _extracted(out, count, works, extractor, upright, jobs):
        done += number
        rate = done / max(time.monotonic() - start, 1e-9)
        left = (total - done) / rate if rate else 0
        print(
            f"{len(images) - total + done}/{len(images)} images, {rate:.1f} a second, "
            f"{left // 60:.0f}:{left % 60:02.0f} left",
            file=sys.stderr,
        )
    return tuple(
        Skipped(str(images[image_id]), image_id, noted.reason)
        for image_id, noted in sorted(_noted(out).items())
        if noted.reason
    )


def turned_images(out: Path) -> frozenset[str]:
    """Ids of the images in a store that EXIF data say to turn or mirror."""
    return frozenset(image_id for image_id, x in _noted(out).items() if x.orientation != 1)


def _shard_of(image_id: str, count: int) -> int:
    """The place of an image, independent of the other images."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8]) % count


def _work(out: Path, index: int, images: Images, missing: bool) -> _Work | None:
    """The work on a shard; None if there is none."""
    if missing:
        return _Work(index, images, tuple(images))
    noted = _read_list(out, index)
    new = tuple(image_id for image_id, path in images.items() if _is_new(path, noted.get(image_id)))
    return _Work(index, images, new) if new or noted.keys() != images.keys() else None


def _is_new(path: Path, noted: _Noted | None) -> bool:
    if noted is None or noted.stamp != stamp(path):
        return True
    if not noted.reason:
        return False
    with contextlib.suppress(DataError):
        load_image(path)
        return True
    return False


def _extracted(
    out: Path,
    count: int,
    works: Sequence[_Work],
    extractor: RegionExtractor,
    upright: bool,
    jobs: int,
) -> Iterator[int]:
    """Writes shards; yields the number of images read for each, in order of completion."""
    jobs = min(jobs, len(works))
    if jobs <= 1:
        for work in works:
            yield _extract_shard(out, count, work, extractor, upright)
        return
    # A forked child of a process that runs threads, as those of JAX, may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=end_with_parent) as pool:
        futures = [
            pool.submit(_extract_shard, out, count, work, extractor, upright) for work in works
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _extract_shard(
    out: Path, count: int, work: _Work, extractor: RegionExtractor, upright: bool
) -> int:
    noted = _read_list(out, work.index)
    kept = [image_id for image_id in work.images if image_id not in work.new]
    items: dict[str, Regions] = {}
    if kept:
        with RecordStore(out, only=work.index) as store:
            items = {image_id: store.get(image_id) for image_id in kept if image_id in store}
    found = {i: noted[i] for i in kept if i in items or noted[i].reason}
    for image_id in work.images.keys() - found.keys():
        path = work.images[image_id]
        before = stamp(path)
        try:
            image = load_image(path, upright=upright)
        except DataError as error:
            found[image_id] = _Noted(before, reason=str(error))
        else:
            found[image_id] = _Noted(before, orientation(path))
            items[image_id] = extractor.extract(image)
    # The shard first: a list older than its shard only causes files to be read again.
    write_shard(out, work.index, count, dict(sorted(items.items())))
    listed = {image_id: dataclasses.astuple(x) for image_id, x in sorted(found.items())}
    atomic.write(_list_path(out, work.index), json.dumps(listed, indent=1) + "\n", alone=False)
    return len(work.new)


def _list_path(out: Path, index: int) -> Path:
    return out / f"images-{index:05d}.json"


def _read_list(out: Path, index: int) -> dict[str, _Noted]:
    path = _list_path(out, index)
    if not path.exists():
        return {}
    try:
        return {image_id: _Noted(*values) for image_id, values in read_json(path, dict).items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: not a list of images: {error}; delete {out}") from error


def _noted(out: Path) -> dict[str, _Noted]:
    lists = (int(path.stem.rpartition("-")[2]) for path in out.glob(_LISTS))
    return {key: value for index in lists for key, value in _read_list(out, index).items()}


def _clear(out: Path) -> None:
    """Removes the output of earlier runs."""
    ours = {PARAMETERS, *(path.name for path in out.glob(_LISTS))}
    for path in list(out.iterdir()) if out.is_dir() else []:
        if path.name in ours or is_shard_name(path.name):
            path.unlink()


def _begin(
    out: Path, extractor: RegionExtractor, shard_size: int, upright: bool, num_shards: int
) -> int:
    """Records the settings of a new folder; returns the number of shards, of an old one unchanged.

    Raises:
      DataError: an old folder was made with other settings.
    """
    path = out / PARAMETERS
    parameters = {
        "extractor": extractor.name,
        "feature_dim": extractor.feature_dim,
        "num_regions": extractor.num_regions,
        "upright": upright,
        "shard_size": shard_size,
    }
    for partial in out.glob(".*.partial*"):  # a run that was killed while it wrote
        partial.unlink(missing_ok=True)
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out}: not empty, but without {PARAMETERS}; use another folder")
        out.mkdir(parents=True, exist_ok=True)
        atomic.write(
            path, json.dumps(parameters | {"num_shards": num_shards}, indent=1) + "\n", alone=False
        )
        return num_shards
    recorded = read_json(path, dict)
    for name, value in parameters.items():
        if recorded.get(name) != value:
            raise DataError(
                f"{path}: begun with {name} {recorded.get(name)!r}, not {value!r}; use another "
                "folder, or pass --overwrite"
            )
    count = recorded.get("num_shards")
    if type(count) is not int or not 0 < count <= MAX_SHARDS:
        raise DataError(f"{path}: num_shards is {count!r}; pass --overwrite to replace it")
    return count


def find_images(folder: Path) -> dict[str, Path]:
    """Image files directly in a folder, by name without suffix.

    Raises:
      DataError: no such folder, no images in it, or two with one name.
    """
    found: dict[str, Path] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in PICTURE_SUFFIXES or not path.is_file():
                continue
            if path.stem in found:
                raise DataError(f"{path}: same id as {found[path.stem].name}; rename one of them")
            found[path.stem] = path
    if not found:
        raise DataError(f"{folder}: no folder with images ({', '.join(sorted(PICTURE_SUFFIXES))})")
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
    add("--overwrite", action="store_true", help="read all images again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 1 if nothing could be done."""
    args = _parser().parse_args(argv)
    try:
        extractor = PixelExtractor(args.num_regions, args.cluttered)
        images = find_images(args.images)
        skipped = extract_folder(
            images, args.out, extractor, jobs=args.jobs, overwrite=args.overwrite
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for skip in skipped:
        print(f"skipped {skip.record}: {skip.reason}", file=sys.stderr)
    print(f"{args.out}: {len(images) - len(skipped)} images, {len(skipped)} skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
