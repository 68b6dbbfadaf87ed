"""A batch's pictures: those of every row's image, as all systems see them, or whole in a square."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from reference.memory_split import TOKENIZER, no_annotated, regions_of

from twelve_in_one.data.encode.examples import Encoding, Example, encode_batch, encode_images
from twelve_in_one.data.encode.pictures import PictureInput, pixels_of
from twelve_in_one.data.images import pipeline
from twelve_in_one.data.stored.image_rows import LoadedRecord, image_rows
from twelve_in_one.data.stored.records import Annotation, DataError, Picture
from twelve_in_one.tasks.twelve import TASKS

SIDE = 8
SQUARE, BOXED = PictureInput(SIDE), PictureInput(SIDE, low=0.0, letterbox=True)


def _picture(rng, rows=6, columns=10):
    pixels = rng.integers(0, 256, (rows, columns, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(file.getvalue()), pixels


def test_squeezed_pictures_are_those_of_systems_of_pictures():
    picture, pixels = _picture(np.random.default_rng(0))
    ((found, size),) = pixels_of(SQUARE, [picture], "here")
    seed = tf.constant([0, 0])
    expected = pipeline.preprocess(tf.constant(pixels), seed, pipeline.Preprocess(SIDE))
    np.testing.assert_array_equal(found, expected)
    assert size == (SIDE, SIDE) and found.dtype == np.float32


@pytest.mark.parametrize(
    ("rows", "columns", "size"),
    [
        (4, 8, (4, 8)),
        (8, 6, (8, 6)),
        (8, 8, (8, 8)),
        (8, 1, (8, 1)),
        (2, 40, (1, 8)),
        (4, 2, (8, 4)),
    ],
)
def test_whole_pictures_keep_their_proportions(rows, columns, size):
    picture, pixels = _picture(np.random.default_rng(1), rows, columns)
    ((found, shown),) = pixels_of(BOXED, [picture], "here")
    assert shown == size
    if (rows, columns) == size:  # as large as the square: no pixel changes
        np.testing.assert_allclose(found[: size[0], : size[1]], pixels / 255, atol=1e-6)
    beside = np.ones((SIDE, SIDE), bool)
    beside[: size[0], : size[1]] = False
    np.testing.assert_allclose(found[beside], 128 / 255, atol=1e-6)


def test_a_damaged_picture_is_named():
    with pytest.raises(DataError, match="vqa: its picture cannot be decoded.*build the dataset"):
        pixels_of(SQUARE, [Picture(b"\x89PNG nothing")], "vqa")


def _record(rng, images=1, feature_dim=5, pictures=True):
    rows = tuple(image_rows(regions_of(rng, 2, feature_dim)) for _ in range(images))
    found = tuple(_picture(rng)[0] for _ in range(images)) if pictures else ()
    return LoadedRecord(rows, no_annotated(feature_dim), np.zeros(0, int), (), found)


def _encoding(name, **fields):
    task = dataclasses.replace(TASKS[name], max_tokens=6, max_regions=4)
    return Encoding(task, TOKENIZER, 0, {"yes": 0}, 2, picture=SQUARE, **fields)


def _pixels(*pictures):
    return np.stack([pixels for pixels, _ in pixels_of(SQUARE, pictures, "")])


def test_rows_hold_the_picture_of_their_image():
    rng = np.random.default_rng(2)
    left, right = _record(rng), _record(rng)
    a, b = left.pictures[0], right.pictures[0]
    question = Annotation("1", "i", "word1", answers=("yes",), scores=(1.0,))
    batch = encode_batch(_encoding("vqa"), [Example(left, question), Example(right, question)], 3)
    np.testing.assert_array_equal(batch["images"][:2], _pixels(a, b))
    assert not batch["images"][2].any() and (batch["picture_size"] == SIDE).all()
    # Boxes alone: regions have no features, and keep their places.
    assert batch["regions"].shape == (3, 4, 0) and batch["region_mask"][0].sum() == 3
    options = ((left, "word1"), (left, "word2"), (right, "word1"), (left, "word3"))
    batch = encode_batch(_encoding("coco"), [Example(left, question, options)], 1)
    np.testing.assert_array_equal(batch["images"][0], _pixels(a, a, b, a))
    images = encode_images(_encoding("coco"), [Example(right, question, options)])
    np.testing.assert_array_equal(images["images"], _pixels(b))
    pair = _record(rng, images=2)
    verdict = Annotation("1", "i", "word1", label=1)
    batch = encode_batch(_encoding("nlvr2"), [Example(pair, verdict)], 1)
    np.testing.assert_array_equal(batch["images"][0], _pixels(*pair.pictures))
    assert batch["picture_size"].shape == (1, 2, 2)


def test_records_without_pictures_are_refused():
    record = _record(np.random.default_rng(3), pictures=False)
    with pytest.raises(DataError, match="example 7: no picture.*--images keep"):
        encode_batch(_encoding("vqa"), [Example(record, Annotation("7", "i", "word1"))], 1)
