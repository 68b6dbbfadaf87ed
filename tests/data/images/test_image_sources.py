"""Pictures from archives, tables, TFRecord files and the TFDS catalogue."""

import gzip
import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from twelve_in_one.data.images.sources import open_image_stream, open_images
from twelve_in_one.data.stored.records import DataError


@pytest.fixture(scope="module")
def pictures(encode):
    """Seven files, all different."""
    kinds = ("JPEG", "PNG")
    return [encode(np.full((20, 24, 3), 30 * i, np.uint8), kinds[i % 2]) for i in range(7)]


def _examples(images):
    return [images.read(number) for number in range(images.num_examples)]


def _tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_archives(tmp_path, pictures):
    for shard, numbers in enumerate(((0, 1, 2), (3, 4), (5, 6))):
        members = []
        for i in numbers:
            members += [
                (f"part/{i:03}.jpg", pictures[i]),
                (f"part/{i:03}.txt", f"text {i} é\n".encode()),
                (f"part/{i:03}.cls", str(i).encode()),
                (f"part/{i:03}.json", b"{}"),
            ]
        _tar(tmp_path / f"x-{shard:04}.tar", [*members, (".hidden", b"")])
    images = open_images(f"tar:{tmp_path}/x-{{0000..0002}}.tar")
    assert images.shard_sizes == (3, 2, 2) and images.labels == ()
    found = _examples(images)
    assert [example.data for example in found] == pictures
    assert [example.texts for example in found] == [(f"text {i} é",) for i in range(7)]
    assert [example.label for example in found] == list(range(7))
    assert found[4].example_id == "part/004" and images.locate(4) == (1, 1)
    assert open_images(f"tar:{tmp_path}/x-*2.tar").num_examples == 2
    stream = open_image_stream(images, size=8, batch_size=7, training=False)
    batch = stream.batch(0)
    assert batch["targets"].tolist() == list(range(7)) and batch["_mask"].all()
    with pytest.raises(DataError, match="part/003: class 3 of 3"):
        open_image_stream(images, size=8, batch_size=7, training=False, num_labels=3).batch(0)


def test_unusable_archives(tmp_path, pictures):
    path = tmp_path / "x.tar"
    for members, message in (
        ([("1.txt", b"a")], "x.tar: 1 has no picture"),
        ([("1.jpg", pictures[0]), ("1.cls", b"cat")], "x.tar: 1: text or class cannot"),
        ([], "holds no example"),
    ):
        _tar(path, members)
        with pytest.raises(DataError, match=message):
            open_images(f"tar:{path}").read(0)
    _tar(path, [("1.jpg", pictures[0])])
    whole = path.read_bytes()
    for data in (gzip.compress(whole), whole[:600], b"text"):
        path.write_bytes(data)
        with pytest.raises(DataError, match="x.tar: "):
            open_images(f"tar:{path}")
    with pytest.raises(DataError, match="y-2.tar: no such file"):
        open_images(f"tar:{tmp_path}/y-{{2..3}}.tar")


def test_tables(tmp_path, pictures):
    (tmp_path / "photos").mkdir()
    for i, data in enumerate(pictures):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(data)
    table = tmp_path / "pairs.tsv"
    lines = [f'{i}.jpg\ta "text" {i}' for i in (0, 1, 1, 2)]
    table.write_text("\n".join(["Filepath\tTitle", *lines, "", "3.jpg", "\tnone", "9.jpg\tx"]))
    images = open_images(f"tsv:{table},{tmp_path / 'photos'}")
    assert [skip.record for skip in images.skipped] == ["line 7", "line 8"]
    assert images.num_examples == 5
    found = [images.read(number) for number in range(4)]
    assert [example.texts for example in found] == [(f'a "text" {i}',) for i in (0, 1, 1, 2)]
    assert [example.example_id for example in found] == ["0.jpg", "1.jpg", "1.jpg:4", "2.jpg"]
    assert found[2].data == pictures[1] and found[2].label == -1
    with pytest.raises(DataError, match="9.jpg: no such file"):
        images.read(4)
    table.write_text("image\tlabel\n0.jpg\towl\n1.jpg\tant\n")
    images = open_images(f"tsv:{table},{tmp_path / 'photos'}")
    assert images.labels == ("ant", "owl") and images.read(0).label == 1
    for text, message in (
        ("0.jpg\towl\n", "line 1 must name the columns"),
        ("", "line 1 must name the columns"),
        ("image\ttext\nx\n", "no line that can be used, 1 skipped: line 2: has 1 cells"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=f"pairs.tsv: {message}"):
            open_images(f"tsv:{table}")
    table.write_text("image\tlabel\n0.jpg\towl\n")
    with pytest.raises(DataError, match="class 'owl' is none of the 1 that are known"):
        open_images(f"tsv:{table}", ("ant",))


def _record(**features):
    kinds = {bytes: "bytes_list", int: "int64_list"}
    feature = {
        key.replace("__", "/"): tf.train.Feature(**{kinds[type(value)]: {"value": [value]}})
        for key, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def test_tfrecord_files(tmp_path, pictures):
    for shard, numbers in enumerate(((0, 1, 2, 3), (4, 5, 6))):
        with tf.io.TFRecordWriter(f"{tmp_path}/x-{shard}") as writer:
            for i in numbers:
                fields = {"image__encoded": pictures[i], "caption": f"text {i}".encode()}
                writer.write(_record(**fields, label=i, height=3))
    images = open_images(f"tfrecord:{tmp_path}/x-?")
    assert images.shard_sizes == (4, 3)
    found = _examples(images)
    assert [example.data for example in found] == pictures
    assert [(x.texts, x.label) for x in found] == [((f"text {i}",), i) for i in range(7)]
    assert found[5].example_id == "x-1:1"
    whole = (tmp_path / "x-0").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-9])
    with pytest.raises(DataError, match="cut: record 3 reaches beyond the end"):
        open_images(f"tfrecord:{tmp_path}/cut")
    (tmp_path / "packed").write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match="packed: record 0 .* or compressed: unpack it"):
        open_images(f"tfrecord:{tmp_path}/packed")
    for content, message in (
        (_record(text=b"a"), "other:0 has no picture under .*; it has text"),
        (b"\xff\xff", "other:0 is no tf.train.Example"),
    ):
        with tf.io.TFRecordWriter(f"{tmp_path}/other") as writer:
            writer.write(content)
        with pytest.raises(DataError, match=message):
            open_images(f"tfrecord:{tmp_path}/other")


class _Dots(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set as the catalogue has them."""

    VERSION = tfds.core.Version("1.0.0")
    name = "dots"
    classes = ("owl", "ant")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=self.classes),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": np.full((18, 20, 3), 9 * i, np.uint8), "label": i % 2}


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_catalogue(tmp_path, monkeypatch, kind, capfd):
    tfds.disable_progress_bar()
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    _Dots(data_dir=str(tmp_path), file_format=kind).download_and_prepare()
    images = open_images("tfds:dots[train]")
    assert images.labels == ("owl", "ant") and images.num_examples == 6
    found = {}
    for example in _examples(images):
        found[tf.io.decode_png(example.data)[0, 0, 0].numpy()] = example.label
    assert found == {9 * i: i % 2 for i in range(6)}
    part = open_images("tfds:dots[train[2:5]]", ("ant", "cat", "owl"))
    assert part.num_examples == 3
    assert [x.label for x in _examples(part)] == [(2, 0)[x.label] for x in _examples(images)[2:5]]
    for place, labels, message in (
        ("dots", None, r"name the split in brackets: tfds:dots\[train\]"),
        ("dots[val]", None, "dots: split 'val'"),
        ("dots[train]", ("ant",), "class 'owl' is none of the 1 known ones"),
        ("no_such_set[train]", None, "no_such_set: cannot be opened"),
        ("mnist[train]", None, "mnist: not prepared .*file_format='array_record'"),
    ):
        with pytest.raises(DataError, match=message):
            open_images(f"tfds:{place}", labels)
