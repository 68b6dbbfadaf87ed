"""Makes a world: scenes, their pictures under all their names, and the datasets about them."""

import dataclasses
import json
import multiprocessing
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twelve_in_one.data.builders.processes import end_with_parent
from twelve_in_one.world import class_scenes, contact_sheet, covers, tested
from twelve_in_one.world.collections import Collections, make_collections
from twelve_in_one.world.render import render
from twelve_in_one.world.scene import Scene
from twelve_in_one.world.scenes import sample_scene
from twelve_in_one.world.splits import Splits, make_splits
from twelve_in_one.world.writers import (
    captions,
    classes,
    clips,
    guesswhat,
    nlvr2,
    ocr_vqa,
    questions,
    references,
    snli_ve,
    visual7w,
)
from twelve_in_one.world.writers.output import Counts, Item, Result, Run, write_picture

MIN_IMAGES, MAX_IMAGES = 50, 50_000
# Version of the output for the same arguments; raise it with every change of the output.
VERSION = 3
ABOUT = "world.json"

_LOG_SECONDS = 1.0
_CHUNK = 32  # most items handed to a process at a time

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class DecoderSets:
    """Sets for a text decoder, in addition to the datasets of 12-in-1, which they do not change.

    Attributes:
      class_pictures: of each class of the sets in `classes/`; 0 for no such sets.
      covers: books of OCR-VQA; 0 for none.
      cover_side: of a cover, pixels.
      cover_words: of each list of words that titles and names are made of: with more of them,
        reading is harder to learn.
      clips: short videos with questions and captions, as MSRVTT; 0 for none.
    """

    class_pictures: int = 0
    covers: int = 0
    cover_side: int = 64
    cover_words: int = 16
    clips: int = 0

    def __post_init__(self) -> None:
        for name, least, most, zero in (
            ("class_pictures", classes.MIN_PICTURES, MAX_IMAGES, True),
            ("covers", ocr_vqa.MIN_COVERS, MAX_IMAGES, True),
            ("clips", clips.MIN_CLIPS, MAX_IMAGES, True),
            ("cover_side", 48, 1024, False),
            ("cover_words", 4, covers.MAX_WORDS, False),
        ):
            value = getattr(self, name)
            if not least <= value <= most and not (zero and not value):
                either = "0, or " if zero else ""
                raise ValueError(f"{name} must be {either}from {least} to {most:,}, got {value}")
        if not self.covers:
            for name in ("cover_side", "cover_words"):
                if getattr(self, name) != getattr(DecoderSets, name):
                    raise ValueError(f"{name} is of covers, and there are none: covers is 0")

    def arguments(self) -> dict[str, int]:
        """What differs from making none of these sets."""
        made = {"class_pictures": self.class_pictures} if self.class_pictures else {}
        if self.covers:
            made |= {n: getattr(self, n) for n in ("covers", "cover_side", "cover_words")}
        if self.clips:
            made["clips"] = self.clips
        return made


_NO_DECODER_SETS = DecoderSets()


class _Chunk(NamedTuple):
    function: Callable[[Any, np.random.Generator], Any]
    seed: int
    name: str
    start: int
    items: Sequence[Any]


def is_made(
    out: Path,
    images: int,
    seed: int,
    more_captions: int = 0,
    decoder_sets: DecoderSets = _NO_DECODER_SETS,
) -> bool:
    """Returns whether `out` already holds the world of these arguments.

    Raises:
      ValueError: an argument is out of range; or `out` holds something else, which is never
        overwritten.
    """
    if not MIN_IMAGES <= images <= MAX_IMAGES:
        raise ValueError(f"images must be from {MIN_IMAGES} to {MAX_IMAGES:,}, got {images}")
    if not 0 <= more_captions <= MAX_IMAGES:
        raise ValueError(f"more_captions must be from 0 to {MAX_IMAGES:,}, got {more_captions}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        about = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        found = {"version": about["version"], **about["arguments"]}
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(f"{out} is not empty and no generated world; choose another") from None
    wanted = {"version": VERSION} | _arguments(images, seed, more_captions, decoder_sets)
    if found != wanted:
        raise ValueError(f"{out} holds another world, {found}, not {wanted}; choose another")
    return True


def make(
    out: Path,
    images: int,
    seed: int,
    jobs: int,
    log: Log,
    more_captions: int = 0,
    decoder_sets: DecoderSets = _NO_DECODER_SETS,
) -> dict[str, Counts]:
    """Makes a world in a temporary folder beside `out`, and renames it to `out` when complete.

    The same images, seed and `VERSION` make the same bytes for any number of jobs (with the
    same release of Pillow and numpy).

    Args:
      out: a folder that does not exist or is empty.
      images: number of different pictures; many have several names. Pictures for testing only
        (see `tested.py`) are extra.
      seed: not negative.
      jobs: number of processes.
      log: receives progress, with rate and time left.
      more_captions: further pictures, for Conceptual Captions alone; they do not change the other
        datasets.
      decoder_sets: further sets; they do not change the datasets either.

    Returns:
      Dataset -> split -> records and pictures.

    Raises:
      ValueError: see `is_made`; also if the world already exists, or `jobs` is below 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if is_made(out, images, seed, more_captions, decoder_sets):
        raise ValueError(f"{out} holds this world already")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        arguments = images, seed, more_captions, decoder_sets
        if jobs == 1:
            counts = _fill(folder, *arguments, _Runner(seed, None, 1, log))
        else:
            # A fork of a process with threads, like those of JAX and TensorFlow, may hang.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=end_with_parent)
            try:
                counts = _fill(folder, *arguments, _Runner(seed, pool, jobs, log))
            finally:
                pool.shutdown(cancel_futures=True)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    return counts


def table(counts: dict[str, Counts]) -> str:
    """Records and pictures of each split."""
    lines = [f"{'dataset':<20} {'split':<10} {'records':>9} {'pictures':>9}"]
    for dataset, splits in counts.items():
        for split, count in splits.items():
            lines.append(f"{dataset:<20} {split:<10} {count.records:>9,} {count.pictures:>9,}")
    return "\n".join(lines)


def _arguments(
    images: int, seed: int, more_captions: int, decoder_sets: DecoderSets
) -> dict[str, int]:
    more = {"more_captions": more_captions} if more_captions else {}
    return {"images": images, "seed": seed} | more | decoder_sets.arguments()


def _fill(
    folder: Path,
    images: int,
    seed: int,
    more_captions: int,
    decoder_sets: DecoderSets,
    run: Run,
) -> dict[str, Counts]:
    scenes = tuple(run("scenes", _sample, range(images + more_captions)))
    collections = make_collections(scenes, _rng(seed, "collections"), more_captions=more_captions)
    splits = make_splits(collections, _rng(seed, "splits"))
    further = run("scenes/tested", _sample, range(tested.count(images)))
    collections, splits = tested.add(
        collections, splits, further, len(scenes), _rng(seed, "tested")
    )
    _draw_pictures(folder / "images", collections, run)
    least = tested.EXAMPLES if further else 0
    counts = _write_datasets(folder, collections, splits, run, least)
    counts |= _write_decoder_sets(folder, seed, decoder_sets, run)
    contact_sheet.draw(folder)
    about = {
        "version": VERSION,
        "arguments": _arguments(images, seed, more_captions, decoder_sets),
        "counts": {
            dataset: {split: count._asdict() for split, count in found.items()}
            for dataset, found in counts.items()
        },
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return counts


def _write_datasets(
    folder: Path, collections: Collections, splits: Splits, run: Run, least: int
) -> dict[str, Counts]:
    """Writes everything, with at least `least` test captions."""
    flickr_captions = captions.describe(
        "flickr30k", collections.flickr30k, run, splits.flickr30k["test"], least
    )
    refer = folder / "refcoco"
    return {
        "vqa": questions.write_vqa(folder / "vqa", collections.coco, run),
        "visual_genome": questions.write_visual_genome(
            folder / "visual_genome", collections.visual_genome, collections.pointed_at, run
        ),
        "gqa": questions.write_gqa(folder / "gqa", splits.gqa, run),
        "coco": captions.write_coco(folder / "coco", splits.karpathy, run, least),
        "flickr30k": captions.write_flickr30k(
            folder / "flickr30k", splits.flickr30k, flickr_captions
        ),
        "refcoco": references.write(refer, "refcoco", splits.refcoco, run),
        "refcoco+": references.write(refer, "refcoco+", splits.refcoco, run),
        "refcocog": references.write(refer, "refcocog", splits.refcocog, run),
        "visual7w": visual7w.write(folder / "visual7w", splits.visual7w, run),
        "guesswhat": guesswhat.write(folder / "guesswhat", splits.guesswhat, run),
        "nlvr2": nlvr2.write(folder / "nlvr2", collections.nlvr2, run),
        "snli_ve": snli_ve.write(folder / "snli_ve", splits.snli_ve, flickr_captions, run),
        "conceptual_captions": captions.write_conceptual_captions(
            folder / "conceptual_captions", collections.conceptual_captions, run
        ),
    }


def _write_decoder_sets(folder: Path, seed: int, sets: DecoderSets, run: Run) -> dict[str, Counts]:
    counts = {}
    if sets.class_pictures:
        for name in class_scenes.SETS:
            place = folder / "classes" / name
            counts[f"classes/{name}"] = classes.write(place, name, sets.class_pictures, run)
    if sets.covers:
        counts["ocr_vqa"] = ocr_vqa.write(
            folder / "ocr_vqa",
            folder / "images/ocr_vqa",
            folder / "classes/genres",
            sets.covers,
            sets.cover_side,
            sets.cover_words,
            _rng(seed, "books"),
            run,
        )
    if sets.clips:
        counts["msrvtt"] = clips.write(folder / "msrvtt", sets.clips, run)
    return counts


def _sample(_: int, rng: np.random.Generator) -> Scene:
    return sample_scene(rng)


def _draw_pictures(folder: Path, collections: Collections, run: Run) -> None:
    """Draws every scene once, and stores it under all its names."""
    scenes: dict[int, Scene] = {}
    files: dict[int, list[Path]] = {}
    for picture in collections.all():
        scenes[picture.position] = picture.scene
        files.setdefault(picture.position, []).append(folder / picture.file)
    for parent in {file.parent for names in files.values() for file in names}:
        parent.mkdir(parents=True, exist_ok=True)
    further = {picture.position for picture in collections.all() if picture.only_tested}
    for name, positions in (("pictures", scenes.keys() - further), ("pictures/tested", further)):
        run(name, _draw, [(scenes[i], files[i]) for i in sorted(positions)])


def _draw(item: tuple[Scene, list[Path]], rng: np.random.Generator) -> None:
    scene, files = item
    write_picture(render(scene, rng), files)


class _Runner:
    """See `Run`; in this process if there is no pool."""

    def __init__(self, seed: int, pool: ProcessPoolExecutor | None, jobs: int, log: Log):
        self._seed, self._pool, self._jobs, self._log = seed, pool, jobs, log

    def __call__(
        self,
        name: str,
        function: Callable[[Item, np.random.Generator], Result],
        items: Sequence[Item],
    ) -> list[Result]:
        size = max(1, min(_CHUNK, len(items) // (4 * self._jobs)))
        chunks = [
            _Chunk(function, self._seed, name, start, items[start : start + size])
            for start in range(0, len(items), size)
        ]
        results: list[Result] = []
        begin = last = time.perf_counter()
        for found in map(_call, chunks) if self._pool is None else self._pool.map(_call, chunks):
            results += found
            now = time.perf_counter()
            if len(results) == len(items) or now - last >= _LOG_SECONDS:
                last = now
                rate = len(results) / max(now - begin, 1e-9)
                left = (len(items) - len(results)) / rate
                self._log(
                    f"{name}  {len(results):,}/{len(items):,}  {rate:,.0f}/s  ETA {left:,.0f} s"
                )
        return results


def _call(chunk: _Chunk) -> list[Any]:
    return [
        chunk.function(item, _rng(chunk.seed, chunk.name, position))
        for position, item in enumerate(chunk.items, chunk.start)
    ]


def _rng(seed: int, name: str, position: int = 0) -> np.random.Generator:
    """Randomness of one item of one step, wherever and whenever it is processed."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), position])
