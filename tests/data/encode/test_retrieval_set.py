"""Captions and images of a split for retrieval: whole, in order, and as batches encode them."""

import dataclasses

import numpy as np
import pytest

from twelve_in_one.data.encode.retrieval import read_retrieval_set
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.streams import open_folder, open_stream
from twelve_in_one.tasks.twelve import TWELVE

TASKS = {task.name: dataclasses.replace(task, max_tokens=12, max_regions=9) for task in TWELVE}


@pytest.fixture(scope="module")
def open_test(small_world):
    folder = open_folder(small_world.data, "pixels")

    def run(name="coco", split="test", **options):
        return open_stream(folder, TASKS[name], split, batch_size=4, training=False, **options)

    return run


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_rows_are_those_of_the_batches(open_test, name):
    """The first of a batch's four options is the caption with its own image."""
    stream = open_test(name, encoding_options={"feature_dtype": np.float16})
    found = read_retrieval_set(stream)
    batches = [stream.batch(n) for n in range(stream.selection.num_batches)]
    expected = {
        key: np.concatenate([batch[key][batch["_mask"]][:, 0] for batch in batches])
        for key in ("tokens", "token_mask", "regions", "boxes", "region_mask")
    }
    ids = np.concatenate([batch["example_id"][batch["_mask"]] for batch in batches])
    assert found.caption_ids == tuple(ids)
    assert found.images["regions"].dtype == np.float16
    for key in ("tokens", "token_mask"):
        np.testing.assert_array_equal(found.captions[key], expected[key])
    for key in ("regions", "boxes", "region_mask"):
        np.testing.assert_array_equal(found.images[key][found.image_of_caption], expected[key])
    assert found.task_id == TASKS[name].task_id


def test_every_image_once_with_all_its_captions(open_test, census):
    found = read_retrieval_set(open_test())
    images = [images[0] for images in census.examples["coco"]["test"]]
    assert sorted(found.image_ids) == sorted(set(images))
    named = [found.image_ids[i] for i in found.image_of_caption]
    assert sorted(named) == sorted(images)
    assert all(i.startswith(f"{n}#") for i, n in zip(found.caption_ids, named, strict=True))


@pytest.mark.parametrize("host", [0, 1])
def test_every_process_reads_all(open_test, host):
    found = read_retrieval_set(open_test(host=host, num_hosts=2))
    whole = read_retrieval_set(open_test())
    assert found.caption_ids == whole.caption_ids
    np.testing.assert_array_equal(found.images["regions"], whole.images["regions"])


@pytest.mark.parametrize("limit", [1, 5, 6, 10**6])
def test_a_limit_keeps_images_whole(open_test, limit):
    """5 captions an image: a sixth brings in the second image with all of its own."""
    whole = read_retrieval_set(open_test())
    found = read_retrieval_set(open_test(), max_captions=limit)
    count = min(-(-limit // 5), len(whole.image_ids))
    assert found.image_ids == whole.image_ids[:count]
    assert len(found.images["regions"]) == count and len(found.captions["tokens"]) == 5 * count
    assert found.image_of_caption.tolist() == sorted(list(range(count)) * 5)


def test_progress(open_test):
    calls = []
    found = read_retrieval_set(open_test(), progress=lambda *numbers: calls.append(numbers))
    assert calls[-1] == (len(found.image_ids),) * 2


def test_refused(open_test):
    with pytest.raises(ValueError, match="snli_ve has no captions to rank images for"):
        read_retrieval_set(open_test("snli_ve"))
    with pytest.raises(DataError, match="coco: example .* features have size 186, the model takes"):
        read_retrieval_set(open_test(feature_dim=7))
