"""A split in memory instead of a built one: every example has its own text and picture."""

import numpy as np

from twelve_in_one.data.encode.text import SPECIALS, Tokenizer
from twelve_in_one.data.stored.image_rows import LoadedRecord, image_rows
from twelve_in_one.data.stored.index import SplitIndex
from twelve_in_one.data.stored.reader import SplitReader
from twelve_in_one.data.stored.records import Annotation, Regions

NUM_WORDS = 120
TOKENIZER = Tokenizer((*SPECIALS, *(f"word{i}" for i in range(NUM_WORDS))))
WIDTH, HEIGHT = 64, 48


def text_of(example):
    """The unique text of an example number, one to four words."""
    return " ".join(f"word{(example + i) % NUM_WORDS}" for i in range(1 + example % 4))


def regions_of(rng, count, feature_dim, num_classes=None):
    """Random regions; float16 features as in storage."""
    low = rng.uniform(0, 0.6, (count, 2))
    high = low + rng.uniform(0.1, 0.4, (count, 2))
    scale = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    probs = None
    if num_classes is not None:
        probs = rng.random((count, num_classes)) + 0.01
        probs = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float16)
    return Regions(
        (np.concatenate([low, high], axis=1) * scale).astype(np.float32),
        rng.normal(size=(count, feature_dim)).astype(np.float16),
        WIDTH,
        HEIGHT,
        probs,
    )


def no_annotated(feature_dim):
    """Rows of an image without annotated boxes."""
    rows = image_rows(Regions(np.zeros((0, 4)), np.zeros((0, feature_dim)), WIDTH, HEIGHT))
    zero = np.zeros((0, feature_dim), np.float32)
    return type(rows)(zero, zero, rows.locations[1:], rows.boxes[1:], rows.class_probs)


def memory_split(
    counts, *, feature_dim=6, num_classes=None, images=1, most_regions=7, annotation=None
):
    """A reader with one record for each of `counts`, the number of its examples.

    `annotation(example_id, image_id, text)` makes the annotations.
    """
    rng = np.random.default_rng(99)
    annotation = annotation or (lambda *args: Annotation(*args, label=0))
    records, example = [], 0
    for position, count in enumerate(counts):
        key = f"record-{position}"
        regions = [
            regions_of(rng, int(rng.integers(most_regions + 1)), feature_dim, num_classes)
            for _ in range(images)
        ]
        examples = range(example, example + count)
        example += count
        annotations = tuple(annotation(f"example-{e}", key, text_of(e)) for e in examples)
        records.append(
            LoadedRecord(
                tuple(map(image_rows, regions)),
                no_annotated(feature_dim),
                np.zeros(0, np.int64),
                annotations,
            )
        )
    ids = np.array([f"record-{i}" for i in range(len(counts))], str)
    index = SplitIndex(
        record_ids=ids,
        image_ids=np.repeat(ids[:, None], images, axis=1),
        coco_ids=np.full((len(ids), images), -1),
        counts=np.array(counts, np.int64),
        texts=tuple(map(text_of, range(example))),
        mean_features=np.zeros((0, 0), np.float16),
    )
    return SplitReader("memory/train", index, records.__getitem__)
