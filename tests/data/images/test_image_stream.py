"""Batches of pictures with labels: by number, by tf.data, by several hosts; odd files in them."""

import numpy as np
import pytest

from twelve_in_one.data.images.image_set import ImageExample, ImageSet, even_shards
from twelve_in_one.data.images.load import load_bytes
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.images.sources import open_image_stream, open_images
from twelve_in_one.data.pipeline import as_dataset
from twelve_in_one.data.stored.records import DataError

BROKEN = {b"ant/page.jpg", b"owl/marker.jpg"}
AUGMENTED = Preprocess(16, random_crop=True, flip=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, picture_files, broken_files):
    """Pictures in three class folders, two unreadable: a page, and one that is damaged."""
    root = tmp_path_factory.mktemp("classes")
    for number, (name, data) in enumerate(picture_files.items()):
        place = root / ("owl", "ant", "cat/deep")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    (root / "ant" / "page.jpg").write_bytes(broken_files["page.jpg"])
    (root / "owl" / "marker.jpg").write_bytes(broken_files["marker.jpg"])
    (root / "ant" / "note.txt").write_text("no picture")
    return root


def _open(folder, **options):
    fixed = {"size": 16, "batch_size": 6, "training": True, "max_unreadable_share": 0.1}
    return open_image_stream(folder, **fixed | options)


def _rows(batches):
    """example id -> its row, of rows that hold an example."""
    return {
        batch["example_id"][i]: {key: batch[key][i] for key in batch}
        for batch in batches
        for i in range(len(batch["_mask"]))
        if batch["example_id"][i]
    }


def test_classes_are_numbered_in_the_order_of_their_names(folder, picture_files):
    images = open_images(f"folder:{folder}")
    assert images.labels == ("ant", "cat", "owl")
    assert images.num_examples == len(picture_files) + len(BROKEN)
    for number in range(images.num_examples):
        example = images.read(number)
        assert images.labels[example.label] == example.example_id.split("/")[0]
        assert (folder / example.example_id).read_bytes() == example.data
    labels = [images.read(number).label for number in range(images.num_examples)]
    assert labels != sorted(labels)
    known = open_images(folder, ("zebra", "owl", "cat", "ant"))
    assert [known.read(i).label for i in range(5)] == [3 - label for label in labels[:5]]


def test_every_file_has_one_answer_everywhere(folder, picture_files, caplog):
    """Evaluation and training leave out the same rows; others are what `load_image` reads."""
    whole = _open(folder, training=False, preprocess=Preprocess(16))
    rows = _rows(whole.as_dataset().as_numpy_iterator())
    assert len(rows) == len(picture_files) + len(BROKEN)
    assert {key for key, row in rows.items() if not row["_mask"]} == BROKEN
    assert not any(rows[key]["images"].any() for key in BROKEN)
    named = {skip.record.encode(): skip.reason for skip in whole.unreadable.skipped()}
    assert named.keys() == BROKEN
    assert "ant/page.jpg: cannot be read as an image: it is a web page" in caplog.text
    assert "owl/marker.jpg: cannot be read as an image" in named[b"owl/marker.jpg"]
    # The same pictures, each loaded by Pillow before anything else sees it.
    png = {}
    for key in rows:
        if rows[key]["_mask"]:
            png[key.decode()] = load_bytes((folder / key.decode()).read_bytes(), "x")
    import tensorflow as tf

    from twelve_in_one.data.images import pipeline

    seed = tf.constant([0, 0])
    for key, pixels in png.items():
        wanted = pipeline.preprocess(tf.constant(pixels), seed, Preprocess(16))
        np.testing.assert_allclose(rows[key.encode()]["images"], wanted, atol=1e-6)
    training = _open(folder, batch_size=24, preprocess=AUGMENTED)
    for batch in training.as_dataset(stop=2).as_numpy_iterator():
        assert set(batch["example_id"][~batch["_mask"]].tolist()) == BROKEN
    assert len(training.unreadable) == len(BROKEN)


def test_batches_are_functions_of_their_number(folder):
    stream = _open(folder, batch_size=5, preprocess=AUGMENTED, task_id=4, seed=(3, 1))
    batches = list(stream.as_dataset(stop=7).as_numpy_iterator())
    assert batches[0]["images"].shape == (5, 16, 16, 3)
    assert batches[0]["targets"].shape == (5, 3) and batches[0]["task_id"].tolist() == [4] * 5
    labels = np.array([stream.labels[row.argmax()].encode() for row in batches[2]["targets"]])
    assert [example.split(b"/")[0] for example in batches[2]["example_id"]] == labels.tolist()
    again = _open(folder, batch_size=5, preprocess=AUGMENTED, task_id=4, seed=(3, 1))
    resumed = list(as_dataset(again, start=3, stop=7, prefetch=1).as_numpy_iterator())
    for number, batch in [(3, resumed[0]), (6, resumed[3]), (5, again.batch(5))]:
        for key, value in batch.items():
            np.testing.assert_array_equal(value, batches[number][key])
    # 24 examples an epoch: the fifth batch begins the next one. Pictures change, the set does not.
    seen = np.concatenate([batch["example_id"] for batch in batches])[:24]
    assert len(set(seen.tolist())) == 24
    first, second = _rows(batches[:4]), _rows(batches[5:])
    shared = [key for key in first.keys() & second.keys() if first[key]["_mask"]]
    changed = [not np.array_equal(first[k]["images"], second[k]["images"]) for k in shared]
    assert shared and all(changed)
    other = _open(folder, batch_size=5, preprocess=AUGMENTED, seed=(3, 2)).selection.rows(0)[1]
    assert other.tolist() != stream.selection.rows(0)[1].tolist()


def test_hosts_fill_the_rows_of_one_batch(folder):
    options = {"training": False, "num_labels": 0, "batch_size": 10, "preprocess": Preprocess(16)}
    one = _open(folder, **options)
    two = [_open(folder, **options, host=host, num_hosts=2) for host in (0, 1)]
    assert one.selection.num_batches == two[0].selection.num_batches == 3
    for number in (0, 2):  # the last one holds nothing of the second host
        whole, halves = one.batch(number), [stream.batch(number) for stream in two]
        for key, value in whole.items():
            np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), value)
    assert whole["example_id"].tolist().count(b"") == 6 and whole["targets"].dtype == np.int32
    with pytest.raises(IndexError, match="batch 3 of 3"):
        one.batch(3)


def _numbers(count, shard_size):
    read = lambda number: ImageExample(b"", str(number))  # noqa: E731
    return ImageSet("numbers", even_shards(count, shard_size), read)


def test_large_sets_go_by_shards_and_windows():
    images = _numbers(50, 7)
    options = dict(size=8, batch_size=10, training=True, permuted_examples=49, window=12)
    options["max_unreadable_share"] = 1.0
    seen = []
    with pytest.raises(
        DataError, match="32 of 32 pictures that were tried.*numbers: 0: .* it is empty"
    ):
        open_image_stream(images, **options)
    images = ImageSet("numbers", images.shard_sizes, images.read, is_checked=True)
    for host in (0, 1):
        selection = open_image_stream(images, **options, host=host, num_hosts=2).selection
        rows = [selection.rows(batch) for batch in range(5)]
        epochs, numbers = (np.concatenate(part) for part in zip(*rows, strict=True))
        own = numbers[epochs == 0]
        assert len(set(own.tolist())) == len(own) >= 22
        assert not set(own.tolist()) & set(seen)
        seen += own.tolist()
    # 28 examples are one host's and 22 the other's, which has begun anew.
    assert len(seen) >= 47
    with pytest.raises(DataError, match="numbers: 8 shards cannot be divided among 10 hosts"):
        open_image_stream(images, **options, host=0, num_hosts=10)


def test_unusable_folders(tmp_path, folder, encode):
    picture = encode(np.zeros((16, 16, 3), np.uint8), "PNG")
    with pytest.raises(DataError, match="nowhere: no such folder; other kinds .*folder"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="one folder for each class is needed.* there is none"):
        open_images(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(picture)
    with pytest.raises(DataError, match="there is only 'a'"):
        open_images(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b: a class without a picture"):
        open_images(tmp_path)
    (tmp_path / "c.png").write_bytes(picture)
    with pytest.raises(DataError, match="c.png: in no class folder"):
        open_images(tmp_path)
    with pytest.raises(DataError, match="owl: none of the 2 classes that are known"):
        open_images(folder, ("ant", "cat"))
    with pytest.raises(DataError, match="3 classes, but the model has 2 labels"):
        _open(folder, num_labels=2)
    with pytest.raises(ValueError, match="batch size 6 does not divide among 4 hosts"):
        _open(folder, num_hosts=4)
    with pytest.raises(ValueError, match="pictures of 16 pixels, not 32"):
        _open(folder, size=32, preprocess=AUGMENTED)
