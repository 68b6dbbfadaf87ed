"""Regions of a folder of images, in parallel, into a store of shards (see `records`).

To resume an interrupted run, start it again. Each shard has a list of its
images with the size and time of their files: images that were added or changed since are read, and
those that could not be read before are tried again; regions of all others are kept. The output
is the same for any number of interruptions and processes.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one import atomic
from twelve_in_one.data.builders.processes import end_with_parent
from twelve_in_one.data.formats.files import PICTURE_SUFFIXES, read_json, stamp
from twelve_in_one.data.images.load import load_image, orientation
from twelve_in_one.data.regions.extractor import BatchExtractor, Found, RegionExtractor
from twelve_in_one.data.regions.records import (
    MAX_SHARDS,
    PARAMETERS,
    RecordStore,
    is_shard_name,
    missing_shards,
    write_shard,
)
from twelve_in_one.data.stored.records import DataError, Regions, Skipped

_LISTS = "images-*.json"

_DECODERS = 8  # threads that read images ahead of a detector
_SECONDS = 5.0  # between lines of progress, at least, within a shard

Images = Mapping[str, Path]
Boxes = Mapping[str, np.ndarray]  # float32[N, 4] by image id
# Takes the id and the file of an image, and what was found in it.
Watch = Callable[[str, Path, Found], None]


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
    watch: Watch | None = None,
    boxes: Boxes | None = None,
) -> tuple[Skipped, ...]:
    """Extracts the regions of images that are not yet in `out`. Progress goes to stderr.

    Args:
      images: files by image id, in any order. Regions of other images are removed.
      out: folder of the store; created if missing.
      extractor: must be picklable if there are several jobs.
      jobs: number of processes; one for a detector, which has threads and devices of its own.
      shard_size: approximate images per shard, which must fit in memory.
      upright: turned as EXIF data say, or as they are stored.
      overwrite: read all images, regardless of `out`.
      watch: called for every image that is read; picklable as the extractor.
      boxes: of every image: these are described, and no others are looked for.

    Returns:
      Images that could not be read, by ascending id.

    Raises:
      DataError: no images, or `out` was started with another extractor, frame or shard size, or
        with other boxes.
      ValueError: `jobs` or `shard_size` is not positive, or an id cannot be stored.
      OSError: `out` cannot be written.
    """
    if jobs < 1 or shard_size < 1:
        raise ValueError(f"jobs {jobs} and shard_size {shard_size} must be positive")
    if jobs > 1 and isinstance(extractor, BatchExtractor):
        raise ValueError(f"jobs is {jobs}: a detector runs in one process, on all its devices")
    if not images:
        raise DataError(f"{out}: no images to extract regions from")
    for image_id in images:
        if not image_id or "/" in image_id:
            raise ValueError(f"image id {image_id!r} must not be empty or contain '/'")
    if overwrite:
        _clear(out)
    parameters = {
        "extractor": extractor.name,
        "feature_dim": extractor.feature_dim,
        "num_regions": extractor.num_regions,
        "upright": upright,
        "shard_size": shard_size,
    }
    if boxes is not None:
        parameters["boxes"] = fingerprint(boxes)
    count = _begin(out, parameters, -(-len(images) // shard_size))
    shards: list[dict[str, Path]] = [{} for _ in range(count)]
    for image_id, path in sorted(images.items()):
        shards[_shard_of(image_id, count)][image_id] = path
    missing = set(missing_shards(out, count))
    plan = [_work(out, index, shards[index], index in missing) for index in range(count)]
    works = [work for work in plan if work is not None]
    progress = _Progress(len(images), sum(len(work.new) for work in works))
    task = functools.partial(_extract_shard, out, count, extractor, upright, watch, boxes)
    for read, unreadable, ended in _extracted(task, works, jobs):
        progress.add(read, unreadable, ended)
    return tuple(
        Skipped(str(images[image_id]), image_id, noted.reason)
        for image_id, noted in sorted(_noted(out).items())
        if noted.reason
    )


def fingerprint(boxes: Boxes) -> str:
    """Twelve hexadecimal digits that tell sets of boxes of images apart."""
    digest = hashlib.sha256()
    for image_id, corners in sorted(boxes.items()):
        digest.update(f"{image_id} {len(corners)} ".encode())
        digest.update(np.asarray(corners, np.float32).tobytes())
    return digest.hexdigest()[:12]


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


# Images read, those of them without regions, and whether a shard has been written with them.
_Step = tuple[int, int, bool]


class _Progress:
    """Prints a line for each shard, and in long ones now and then: rate and time left."""

    def __init__(self, images: int, total: int):
        self._before, self._images, self._total = images - total, images, total
        self._done = self._unreadable = 0
        self._start = self._last = time.monotonic()

    def add(self, read: int, unreadable: int, ended: bool) -> None:
        """Counts images; prints if a shard has ended or the last line is old."""
        self._done, self._unreadable = self._done + read, self._unreadable + unreadable
        now = time.monotonic()
        if not ended and now - self._last < _SECONDS:
            return
        self._last = now
        rate = self._done / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else 0
        unreadable_count = f"{self._unreadable} unreadable, " if self._unreadable else ""
        print(
            f"{self._before + self._done}/{self._images} images, {unreadable_count}"
            f"{rate:.1f} a second, {left // 60:.0f}:{left % 60:02.0f} left",
            file=sys.stderr,
        )


def _extracted(
    task: Callable[[_Work], Iterator[_Step]], works: Sequence[_Work], jobs: int
) -> Iterator[_Step]:
    """Writes shards; yields what has been done, in order of completion."""
    jobs = min(jobs, len(works))
    if jobs <= 1:
        for work in works:
            yield from task(work)
        return
    # A forked child of a process that runs threads, as those of JAX, may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=end_with_parent) as pool:
        futures = [pool.submit(_whole, task, work) for work in works]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _whole(task: Callable[[_Work], Iterator[_Step]], work: _Work) -> _Step:
    reads, unreadable, _ = zip(*task(work), strict=True)
    return sum(reads), sum(unreadable), True


def _extract_shard(
    out: Path,
    count: int,
    extractor: RegionExtractor,
    upright: bool,
    watch: Watch | None,
    boxes: Boxes | None,
    work: _Work,
) -> Iterator[_Step]:
    noted = _read_list(out, work.index)
    kept = [image_id for image_id in work.images if image_id not in work.new]
    items: dict[str, Regions] = {}
    if kept:
        with RecordStore(out, only=work.index) as store:
            items = {image_id: store.get(image_id) for image_id in kept if image_id in store}
    found = {i: noted[i] for i in kept if i in items or noted[i].reason}
    again = {i: path for i, path in work.images.items() if i not in found}
    stamps: dict[str, str] = {}
    for image_id, result in _results(again, extractor, boxes, upright, stamps):
        path = again[image_id]
        if isinstance(result, str):
            found[image_id] = _Noted(stamps[image_id], reason=result)
        else:
            found[image_id] = _Noted(stamps[image_id], orientation(path))
            items[image_id] = result.regions
            if watch is not None:
                watch(image_id, path, result)
        yield 1, int(isinstance(result, str)), False
    # The shard first: a list older than its shard only causes files to be read again.
    write_shard(out, work.index, count, dict(sorted(items.items())))
    listed = {image_id: dataclasses.astuple(x) for image_id, x in sorted(found.items())}
    atomic.write(_list_path(out, work.index), json.dumps(listed, indent=1) + "\n", alone=False)
    # Images that were new and could still be taken from the old shard count as read.
    yield len(work.new) - len(again), 0, True


def _results(
    images: Images,
    extractor: RegionExtractor,
    boxes: Boxes | None,
    upright: bool,
    stamps: dict[str, str],
) -> Iterator[tuple[str, Found | str]]:
    """What is in each image, or why it cannot be said; fills `stamps` when a file is read."""

    def load(item: tuple[str, Path]) -> tuple[str, np.ndarray | str]:
        image_id, path = item
        stamps[image_id] = stamp(path)
        try:
            return image_id, load_image(path, upright=upright)
        except DataError as error:
            return image_id, str(error)

    failed: list[tuple[str, str]] = []
    sizes: dict[str, tuple[int, int]] = {}

    def readable(loaded: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
        for image_id, image in loaded:
            if isinstance(image, str):
                failed.append((image_id, image))
            else:
                sizes[image_id] = image.shape[1], image.shape[0]
                yield image_id, image

    if not isinstance(extractor, BatchExtractor):
        found = _one_by_one(readable(map(load, images.items())), extractor, boxes)
    else:
        loaded = readable(_ahead(load, list(images.items())))
        if boxes is None:
            found = extractor.find(loaded)
        else:
            found = extractor.describe_each((i, image, boxes[i]) for i, image in loaded)
    for image_id, result in found:
        if isinstance(result, str):
            yield image_id, f"{images[image_id]}: {result}"
        elif isinstance(result, Found):
            yield image_id, result
        else:
            yield image_id, _nameless(Regions(boxes[image_id], result, *sizes[image_id]))
    yield from failed


def _one_by_one(
    images: Iterable[tuple[str, np.ndarray]], extractor: RegionExtractor, boxes: Boxes | None
) -> Iterator[tuple[str, Found | np.ndarray | str]]:
    for image_id, image in images:
        if boxes is None:
            yield image_id, _nameless(extractor.extract(image))
            continue
        try:
            yield image_id, extractor.describe(image, boxes[image_id])
        except ValueError as error:
            yield image_id, str(error)


def _nameless(regions: Regions) -> Found:
    number = len(regions.boxes)
    return Found(regions, np.zeros(number, np.float32), ("",) * number)


def _ahead(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """`map` by threads, a few items ahead."""
    with ThreadPoolExecutor(_DECODERS) as pool:
        waiting = collections.deque(pool.submit(function, x) for x in items[:_DECODERS])
        for number in range(len(items)):
            result = waiting.popleft().result()
            if number + _DECODERS < len(items):
                waiting.append(pool.submit(function, items[number + _DECODERS]))
            yield result


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


def _begin(out: Path, parameters: Mapping[str, Any], num_shards: int) -> int:
    """Records the settings of a new folder; returns the number of shards, of an old one unchanged.

    Raises:
      DataError: an old folder was made with other settings.
    """
    path = out / PARAMETERS
    for partial in out.glob(".*.partial*"):  # a run that was killed while it wrote
        partial.unlink(missing_ok=True)
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out}: not empty, but without {PARAMETERS}; use another folder")
        out.mkdir(parents=True, exist_ok=True)
        atomic.write(
            path,
            json.dumps({**parameters, "num_shards": num_shards}, indent=1) + "\n",
            alone=False,
        )
        return num_shards
    recorded = read_json(path, dict)
    for name, value in ({"boxes": None} | dict(parameters)).items():
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
