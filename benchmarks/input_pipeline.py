"""How fast batches are made, beside how fast the machine reads, all in one run.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --world_images 200 --stream_images 0   # a minute
    python benchmarks/input_pipeline.py --images   # pictures instead, see image_pipeline.py

Builds the twelve datasets of a generated world with random region features of the paper's size (100
regions of 2,048 numbers, which do not compress), then measures:

* memory while streaming a set that would not fit it (--stream_images of 0.8 MB each);
* every task, and all in turn, at the paper's shapes: examples/s, MB/s of regions handed to the
  trainer, and MB/s of records read for them, beside a plain sequential read of the same files;
* one record an image beside one record a question: bytes an epoch, examples/s.

Figures of MB are 10^6 bytes. The first epoch of a task reads files that were dropped from the page
cache.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import image_pipeline
import numpy as np
import psutil
import tensorflow_datasets as tfds
from absl import logging

from twelve_in_one.config.paths import local_path
from twelve_in_one.data.builders import finish, splits
from twelve_in_one.data.builders.base import BuildInputs
from twelve_in_one.data.builders.region_inputs import RegionInputs
from twelve_in_one.data.builders.sources import SOURCES, Source
from twelve_in_one.data.builders.twelve import BUILDERS
from twelve_in_one.data.mixture import Mixture
from twelve_in_one.data.pipeline import TaskStream, as_dataset
from twelve_in_one.data.stored.reader import built_folder
from twelve_in_one.data.stored.records import AnnotatedImage, Annotation, AnnotationSet, Regions
from twelve_in_one.data.streams import open_folder, open_stream
from twelve_in_one.tasks.twelve import TWELVE
from twelve_in_one.world.make import make

NUM_REGIONS, FEATURE_DIM = 100, 2048
WIDTH, HEIGHT = 160, 128  # of the world's pictures
NAME = "random"


def log(line: str) -> None:
    """Prints progress; figures go to stdout."""
    print(line, file=sys.stderr, flush=True)


def random_regions(compressible: bool) -> RegionInputs:
    """Regions of the paper's size; compressible ones exclude the disk from the measurement."""
    rng = np.random.default_rng(0)
    corner = rng.random((NUM_REGIONS, 2)) * 0.5
    boxes = np.concatenate([corner, corner + 0.4], axis=1) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    constant = np.zeros((NUM_REGIONS, FEATURE_DIM), np.float16)

    def features(count: int) -> np.ndarray:
        if compressible:
            return constant[:count]
        return rng.standard_normal((count, FEATURE_DIM), np.float32).astype(np.float16)

    def detected(image: AnnotatedImage) -> Regions:
        return Regions(boxes.astype(np.float32), features(NUM_REGIONS), WIDTH, HEIGHT)

    def annotated(image: AnnotatedImage) -> Regions:
        corners = np.asarray(image.boxes, np.float32).reshape(-1, 4)
        return Regions(corners, features(len(corners)), WIDTH, HEIGHT)

    return RegionInputs(NAME, NAME, lambda image_id: True, detected, annotated)


def build(source: Source, folder: Path, data_dir: Path, *, compressible: bool = False) -> None:
    """Builds a dataset with random regions."""
    base = BUILDERS[source.name]
    builder = type(base.__name__, (base,), {"source": source}, skip_registration=True)
    inputs = BuildInputs(folder, random_regions(compressible))
    tfds.disable_progress_bar()
    silence = contextlib.redirect_stdout(io.StringIO())
    with silence, tempfile.TemporaryDirectory() as downloads:
        builder(inputs=inputs, data_dir=str(data_dir)).download_and_prepare(download_dir=downloads)


def build_all(raw: Path, data_dir: Path) -> None:
    """Builds the twelve datasets and their shared files."""
    names = [task.name for task in TWELVE]
    for name in names:
        log(f"building {name}")
        build(SOURCES[name], raw / SOURCES[name].folder, data_dir)
    indexes = finish.built_indexes(data_dir, NAME)
    finish.write_answers(raw, data_dir, {}, names)
    finish.write_words(raw, data_dir, None)
    clean = splits.test_images(indexes)
    splits.write_clean_split(data_dir / finish.CLEAN_SPLIT, clean)
    finish.write_hard_negatives(data_dir, NAME, indexes, clean, log)


def record_files(data_dir: Path, name: str) -> list[Path]:
    """Files with the training records of a dataset."""
    return sorted(built_folder(data_dir, name, NAME).glob("*-train.array_record*"))


def drop_from_page_cache(paths: list[Path]) -> None:
    """Makes the next read of the files come from disk."""
    for path in paths:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sequential_rate(paths: list[Path]) -> float:
    """MB/s of reading files from front to back, not from the page cache."""
    drop_from_page_cache(paths)
    start, size = time.perf_counter(), 0
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while chunk := stream.read(8 << 20):
                size += len(chunk)
    return size / 1e6 / (time.perf_counter() - start)


def task_stream(data_dir: Path, name: str, batch_size: int) -> TaskStream:
    """Training batches of a task at the paper's shapes."""
    task = next(task for task in TWELVE if task.name == name)
    return open_stream(
        open_folder(data_dir, NAME),
        task,
        "train",
        batch_size=batch_size,
        training=True,
    )


@dataclasses.dataclass(frozen=True)
class Rate:
    """Rates of one task: examples/s, MB/s handed over, MB/s of records read for them."""

    examples: float
    delivered: float
    read: float


def measure(stream: TaskStream, files: list[Path], seconds: float) -> Rate:
    """Streams at least `seconds`, at most one epoch, from files not in the page cache."""
    selection = stream.selection
    drop_from_page_cache(files)
    batches = iter(as_dataset(stream, stop=selection.num_batches).as_numpy_iterator())
    examples = delivered = 0
    # The first batch starts the threads; its records still count as read in the epoch.
    next(batches)
    start = time.perf_counter()
    for batch in batches:
        examples += len(batch["_mask"])
        delivered += batch["regions"].nbytes
        if time.perf_counter() - start > seconds:
            break
    elapsed = time.perf_counter() - start
    share = examples / selection.num_examples
    size = sum(path.stat().st_size for path in files)
    return Rate(examples / elapsed, delivered / 1e6 / elapsed, share * size / 1e6 / elapsed)


def one_record_a_question(source: Source) -> Source:
    """The same dataset with its image's regions stored again for every question."""

    def read(folder: Path, split: str) -> AnnotationSet:
        found = source.read(folder, split)
        annotations, images = [], {}
        for number, annotation in enumerate(found.annotations):
            key = f"{annotation.image_id}-{number}"
            images[key] = dataclasses.replace(found.images[annotation.image_id], image_id=key)
            annotations.append(dataclasses.replace(annotation, image_id=key))
        return AnnotationSet(tuple(annotations), images)

    return dataclasses.replace(source, read=read, splits=("train",))


def compare_layouts(raw: Path, data_dir: Path, scratch: Path, args: argparse.Namespace) -> None:
    """Compares one record per image with one record per question, on VQA."""
    log("building vqa with one record a question")
    source = one_record_a_question(SOURCES["vqa"])
    build(source, raw / source.folder, scratch)
    for name in (finish.VQA_ANSWERS, finish.WORDS, finish.CLEAN_SPLIT):
        shutil.copy(data_dir / name, scratch / name)
    rows = {}
    for layout, folder in (("image", data_dir), ("question", scratch)):
        files = record_files(folder, "vqa")
        rate = measure(task_stream(folder, "vqa", args.batch_size), files, args.seconds)
        rows[layout] = (sum(path.stat().st_size for path in files) / 1e6, rate.examples)
        print(
            f"one record a {layout:<9} {rows[layout][0]:>8.0f} MB/epoch {rate.examples:>8.0f} ex/s"
        )
    size, speed = (rows["question"][i] / rows["image"][i] for i in (0, 1))
    print(f"a record a question takes {size:.1f} times the bytes, at {speed:.2f} times the speed")


def stream_more_than_memory(scratch: Path, num_images: int, batch_size: int) -> None:
    """Prints resident memory ten times while streaming `num_images` records."""
    task = next(task for task in TWELVE if task.name == "vqa")

    def read(folder: Path, split: str) -> AnnotationSet:
        annotations = tuple(
            Annotation(str(i), str(i), "what is this", ("yes",), (1.0,)) for i in range(num_images)
        )
        return AnnotationSet(
            annotations, {str(i): AnnotatedImage(str(i)) for i in range(num_images)}
        )

    log(f"building {num_images:,} records")
    source = dataclasses.replace(SOURCES["vqa"], read=read, splits=("train",))
    build(source, scratch, scratch, compressible=True)
    finish.answers.write_vocabulary(scratch / finish.VQA_ANSWERS, ("yes",))
    finish.text.write_vocabulary(
        scratch / finish.WORDS, finish.text.train_tokenizer(["what is this"], 100)
    )
    stream = open_stream(
        open_folder(scratch, NAME, clean=False),
        task,
        "train",
        batch_size=batch_size,
        training=True,
    )
    total = stream.selection.num_batches
    process, start = psutil.Process(), time.perf_counter()
    images = 0
    size = NUM_REGIONS * FEATURE_DIM * 4
    memory = psutil.virtual_memory().total
    print(
        f"streaming {num_images:,} images of {size / 1e6:.2f} MB, together "
        f"{num_images * size / 1e9:.1f} GB, on a machine of {memory / 1e9:.1f} GB"
    )
    for number, batch in enumerate(as_dataset(stream, stop=total).as_numpy_iterator(), 1):
        images += len(batch["_mask"])
        if number % max(total // 10, 1) == 0:
            print(
                f"  {images:>8,} images  {images * size / 1e9:>6.1f} GB passed  "
                f"{images / (time.perf_counter() - start):>6.0f} images/s  "
                f"RSS {process.memory_info().rss / 1e9:.2f} GB",
                flush=True,
            )


def mixture_rate(streams: dict[str, TaskStream], seconds: float) -> tuple[float, float]:
    """Examples/s and MB/s of regions of all tasks in turn."""
    mixture = Mixture(streams)
    for name in streams:
        mixture.next(name)
    start = time.perf_counter()
    examples = delivered = 0
    for _, batch in mixture.follow(itertools.cycle(streams)):
        examples += len(batch["_mask"])
        delivered += batch["regions"].nbytes
        if time.perf_counter() - start > seconds:
            break
    elapsed = time.perf_counter() - start
    return examples / elapsed, delivered / 1e6 / elapsed


def main() -> None:
    """Builds, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", action="store_true", help="decoding pictures, and no more")
    parser.add_argument("--folder", type=local_path, help="of class folders, for --images")
    parser.add_argument("--world_images", type=int, default=1000, help="pictures of the world")
    parser.add_argument("--batch_size", type=int, default=16, help="examples a batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="of streaming, each task")
    parser.add_argument("--stream_images", type=int, default=40_000, help="0 leaves this part out")
    parser.add_argument("--scratch", type=local_path, help="where to build; a temporary folder")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        if args.images:
            photos = args.folder or Path(scratch) / "photos"
            if args.folder is None:
                image_pipeline.make_photos(photos)
            image_pipeline.run(photos, args.seconds)
            return
        if args.stream_images:
            folder = Path(scratch) / "stream"
            folder.mkdir()
            stream_more_than_memory(folder, args.stream_images, args.batch_size)
        raw, data_dir = Path(scratch) / "raw", Path(scratch) / "data"
        make(raw, args.world_images, 0, os.cpu_count() or 1, log)
        build_all(raw, data_dir)
        all_files = [path for task in TWELVE for path in record_files(data_dir, task.name)]
        peak = sequential_rate(all_files)
        print(f"sequential read of the same files: {peak:.0f} MB/s")
        columns = f"{'examples/s':>10} {'regions MB/s':>13} {'records MB/s':>13} {'of read':>8}"
        print(f"{'task':<10} {columns}")
        streams = {}
        for task in TWELVE:
            streams[task.name] = task_stream(data_dir, task.name, args.batch_size)
            files = record_files(data_dir, task.name)
            rate = measure(streams[task.name], files, args.seconds)
            print(
                f"{task.name:<10} {rate.examples:>10.0f} {rate.delivered:>13.0f} "
                f"{rate.read:>13.0f} {rate.delivered / peak:>8.2f}",
                flush=True,
            )
        examples, delivered = mixture_rate(streams, 2 * args.seconds)
        print(f"{'all':<10} {examples:>10.0f} {delivered:>13.0f} {'':>13} {delivered / peak:>8.2f}")
        compare_layouts(raw, data_dir, Path(scratch) / "by_question", args)


if __name__ == "__main__":
    main()
