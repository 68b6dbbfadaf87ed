"""One answer to every file: the pixels of `load_image`, or a named error."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from twelve_in_one.data.images import encoded, pipeline
from twelve_in_one.data.images.load import load_bytes, load_image
from twelve_in_one.data.stored.records import DataError


def _decoded(data):
    try:
        return pipeline.decode(tf.constant(data)).numpy()
    except tf.errors.InvalidArgumentError:
        return None


def test_every_file_decodes_to_the_pixels_of_load_image(picture_files, tmp_path):
    for name, data in picture_files.items():
        path = tmp_path / name
        path.write_bytes(data)
        wanted = load_image(path)
        np.testing.assert_array_equal(load_bytes(data, name), wanted)
        picture, size = encoded.picture_of(data, name)
        np.testing.assert_array_equal(pipeline.decode(tf.constant(picture.data)), wanted)
        assert size == wanted.shape[1::-1]
        odd = name.startswith("odd")
        assert encoded.is_plain(data) is not odd, name
        # What headers say nothing good of may be kept all the same.
        assert not picture.converted or odd, name
        assert (picture.data == data) is not bool(picture.converted), name
        if encoded.is_plain(data):
            np.testing.assert_array_equal(pipeline.decode(tf.constant(data)), wanted)


def test_what_files_were_is_told(picture_files):
    kept = {name: encoded.picture_of(data, name)[0] for name, data in picture_files.items()}
    told = {name: picture.converted for name, picture in kept.items()}
    assert told["odd-alpha.png"] == "PNG of mode RGBA"
    assert told["odd-turned.jpg"] == "JPEG of mode RGB, turned as its EXIF data say"
    assert told["odd-animated.gif"] == "GIF of mode P"
    assert told["odd-trailer.jpg"] == told["plain.jpg"] == ""


def test_a_picture_may_be_kept_as_it_is_stored(picture_files, waves):
    picture, _ = encoded.picture_of(picture_files["odd-turned.png"], "x", upright=False)
    assert picture.data == picture_files["odd-turned.png"] and not picture.converted
    np.testing.assert_array_equal(pipeline.decode(tf.constant(picture.data)), waves)


def test_files_without_a_picture_are_named(broken_files):
    for name, data in broken_files.items():
        with pytest.raises(DataError, match=name):
            encoded.picture_of(data, name)
        assert not encoded.is_plain(data) or _decoded(data) is None, name
    with pytest.raises(
        DataError, match="page.jpg: cannot .*: it is a web page and begins with b'<!DOC"
    ):
        encoded.picture_of(broken_files["page.jpg"], "page.jpg")
    with pytest.raises(
        DataError, match="empty.jpg: cannot be read as an image: it is empty; replace"
    ):
        encoded.picture_of(b"", "empty.jpg")


def test_random_damage_has_one_answer(picture_files):
    """Where headers are plain and TensorFlow decodes, Pillow has the same pixels."""
    rng, agreed = np.random.default_rng(1), 0
    for name in ("plain.jpg", "progressive.jpg", "plain.png"):
        whole = np.frombuffer(picture_files[name], np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[rng.integers(0, len(data), 2)] = rng.integers(0, 256, 2)
            data = data.tobytes()[: None if rng.random() < 0.7 else rng.integers(len(data))]
            if not encoded.is_plain(data):
                continue
            image = _decoded(data)
            if image is not None:
                np.testing.assert_array_equal(image, load_bytes(data, name))
                agreed += 1
    assert agreed > 30


def test_sides_have_a_least_size(encode):
    data = encode(Image.new("RGB", (8, 8)), "PNG")
    with pytest.raises(DataError, match="x: 8 x 8 pixels; sides must have 16"):
        encoded.picture_of(data, "x")
    assert encoded.picture_of(data, "x", min_side=1)[1] == (8, 8)
