"""How fast pictures are decoded and augmented, beside plain decoding in the same run.

    python benchmarks/input_pipeline.py --images
    python benchmarks/input_pipeline.py --images --folder PHOTOS   # a folder of class folders

Without --folder, pictures of ImageNet's usual size (500 x 375, about 100 kB) are made. Measured are

* plain: `tf.io.decode_jpeg` of bytes in memory, on all cores, and nothing else;
* operations: decoding, a random crop, flipped, resized to 224 pixels, of bytes in memory: what the
  same kernels take without a stream around them;
* files: the same by `open_image_stream` on the folder, in batches;
* records: the same of pictures that are known to be whole, as in built records, of which only the
  crop is decoded;
* evaluation: the shorter side to 256 pixels, the middle 224.

The share of Python is the processor time in which bytes are fetched (files read, headers seen),
of all processor time that an example takes. Other processes on the machine make figures useless.
"""

import dataclasses
import io
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from twelve_in_one.data.images import pipeline
from twelve_in_one.data.images.image_set import ImageSet
from twelve_in_one.data.images.sources import open_image_stream, open_images, recipe
from twelve_in_one.data.images.stream import ImageStream

_SIZE, _BATCH = 224, 32
_MADE, _HEIGHT, _WIDTH = 128, 375, 500


def make_photos(folder: Path) -> None:
    """Makes pictures with as much detail as photos, in two class folders."""
    rng = np.random.default_rng(0)
    for number in range(_MADE):
        pixels = np.zeros((_HEIGHT, _WIDTH, 3), np.float32)
        for side in (4, 16, 64, 256):
            coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
            pixels += np.asarray(coarse.resize((_WIDTH, _HEIGHT), Image.BICUBIC)) / side**0.15
        pixels *= 255 / pixels.max()
        data = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(data, "JPEG", quality=90)
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(data.getvalue())


@dataclasses.dataclass(frozen=True)
class Rate:
    """Pictures per second, and processor seconds per picture."""

    images: float
    processor: float


def _measure(batches: Iterable, count: Callable[[object], int], seconds: float) -> Rate:
    found = iter(batches)
    next(found)  # starts the threads
    images, start, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        images += count(next(found))
    elapsed, used = time.perf_counter() - start, time.process_time() - used
    return Rate(images / elapsed, used / images)


def bare_rate(images: ImageSet, work: Callable[[tf.Tensor], tf.Tensor], seconds: float) -> Rate:
    """Rate of some work on JPEG files in memory."""
    data = [images.read(number).data for number in range(min(images.num_examples, 512))]
    done = (
        tf.data.Dataset.from_tensor_slices(data)
        .repeat()
        .map(work, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(_BATCH)
        .prefetch(2)
    )
    return _measure(done, len, seconds)


def decode(data: tf.Tensor) -> tf.Tensor:
    """Decodes and drops the pixels."""
    return tf.shape(tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"))


def decode_and_augment(data: tf.Tensor) -> tf.Tensor:
    """Does the work of a training stream on a picture."""
    seed = tf.random.uniform([2], maxval=1 << 30, dtype=tf.int32)
    return pipeline.preprocess(pipeline.decode(data), seed, recipe(_SIZE, training=True))


def stream_rate(stream: ImageStream, seconds: float) -> Rate:
    """Rate of the batches that a trainer gets."""
    stop = 1 << 30 if stream.selection.training else None
    batches = stream.as_dataset(stop=stop)
    if not stream.selection.training:
        batches = batches.repeat()
    return _measure(
        batches, lambda batch: int(tf.reduce_sum(tf.cast(batch["_mask"], tf.int32))), seconds
    )


def python_seconds(stream: ImageStream) -> float:
    """Processor seconds to fetch a picture's bytes."""
    batches = max(min(stream.selection.num_batches, 20) - 1, 1)
    stream._fetch(0)
    start = time.thread_time()
    for number in range(batches):
        stream._fetch(number)
    return (time.thread_time() - start) / (batches * stream.selection.num_rows)


def run(folder: Path, seconds: float) -> None:
    """Prints the table."""
    images = open_images(folder)
    whole = dataclasses.replace(images, is_checked=True)
    options = {"size": _SIZE, "batch_size": _BATCH}
    streams = {
        "files": open_image_stream(images, training=True, **options),
        "records": open_image_stream(whole, training=True, **options),
        "evaluation": open_image_stream(images, training=False, **options),
    }
    sizes = [len(images.read(number).data) for number in range(min(images.num_examples, 200))]
    print(
        f"{images.num_examples:,} pictures of {np.mean(sizes) / 1e3:.0f} kB, {os.cpu_count()} "
        f"cores, batches of {_BATCH} at {_SIZE} pixels"
    )
    print(f"{'':<12} {'images/s':>9} {'of plain':>9} {'ms of a core':>13} {'of it Python':>13}")
    before = bare_rate(images, decode, seconds)
    bare = bare_rate(images, decode_and_augment, seconds)
    rates = {name: stream_rate(stream, seconds) for name, stream in streams.items()}
    after = bare_rate(images, decode, seconds)  # twice, as other load on the machine varies
    plain = (before.images + after.images) / 2
    for rate in (before, after):
        print(f"{'plain':<12} {rate.images:>9.0f} {'':>9} {1e3 * rate.processor:>13.2f}")
    for name, rate in ({"operations": bare} | rates).items():
        share = python_seconds(streams[name]) / rate.processor if name in streams else 0.0
        print(
            f"{name:<12} {rate.images:>9.0f} {rate.images / plain:>9.2f} "
            f"{1e3 * rate.processor:>13.2f} {share:>13.1%}",
            flush=True,
        )
