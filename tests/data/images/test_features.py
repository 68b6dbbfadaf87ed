"""Stored tokens: computed once for each picture, found again, and computed anew where they must."""

import dataclasses
import logging
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.data.images import features, pipeline
from twelve_in_one.data.images.features import FrozenEncoder, frozen_encoder, open_features
from twelve_in_one.data.images.image_set import ImageExample, ImageSet
from twelve_in_one.data.images.load import load_bytes
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.models.efficientnet import named_efficientnet
from twelve_in_one.models.vit import ViTConfig

BROKEN = ("cut.jpg", "page.jpg")


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    """Of an encoder whose tokens are the colours of patches of 4 x 4 pixels, scaled."""

    patch: int = 4


def _encode(params, images):
    means = images.reshape(-1, 2, 4, 2, 4, 3).mean((2, 4)).reshape(-1, 4, 3)
    return means * params["scale"]


def _encoder(scale=1.0, **fields):
    preprocess = Preprocess(8, **dict(short_side=9) | fields)
    return FrozenEncoder(PatchConfig(), {"scale": jnp.float32(scale)}, _encode, preprocess)


@pytest.fixture(scope="module")
def examples(picture_files, broken_files):
    files = [*picture_files.items(), *((name, broken_files[name]) for name in BROKEN)]
    return [ImageExample(data, name) for name, data in files]


def _set(examples):
    return ImageSet("pictures", (len(examples),), lambda number: examples[number])


def _open(examples, folder, encoder=None, **options):
    options = {"batch_size": 4, "max_unreadable_share": 0.1} | options
    return open_features(_set(examples), encoder or _encoder(), folder, **options)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def found(examples, stored):
    """Of all examples."""
    return _open(examples, stored)


def test_tokens_are_those_of_the_evaluation_pictures(examples, found):
    assert found.shape == (4, 3)
    for number, example in enumerate(examples):
        assert found.has(number) == (example.example_id not in BROKEN)
        if found.has(number):
            tokens = found.read(number)
            assert tokens.dtype == np.float16 and not tokens.flags.writeable
            pixels = load_bytes(example.data, "", min_side=1)
            image = pipeline.preprocess(pixels, (0, 0), _encoder().preprocess).numpy()
            expected = image.reshape(2, 4, 2, 4, 3).mean((1, 3)).reshape(4, 3)
            np.testing.assert_allclose(tokens, expected, atol=1e-3)
    assert sorted(skipped.record for skipped in found.unreadable) == sorted(BROKEN)
    assert found.num_computed == len({example.data for example in examples}) - len(BROKEN)
    reason = next(skipped.reason for skipped in found.unreadable if skipped.record == "page.jpg")
    assert reason.startswith("pictures: page.jpg: cannot be read as an image: it is a web page")
    with pytest.raises(DataError, match=f"picture {len(examples) - 1} could not be read"):
        found.read(len(examples) - 1)
    with pytest.raises(IndexError, match="of 24"):
        found.read(24)


def test_only_what_changed_is_computed_again(examples, found, stored, tmp_path, encode, photo):
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    parts = []
    turned = [*examples[4::-1], examples[4]]
    again = _open(turned, tmp_path, progress=lambda part, *_: parts.append(part))
    assert again.num_computed == 0 and set(parts) == {"hash"}
    for number in range(5):
        np.testing.assert_array_equal(again.read(number), found.read(4 - number))
    np.testing.assert_array_equal(again.read(5), found.read(4))
    changed = ImageExample(encode(photo, "PNG"), examples[2].example_id)
    mixed = _open([*examples[:2], changed, *examples[3:5]], tmp_path)
    assert mixed.num_computed == 1
    np.testing.assert_array_equal(mixed.read(4), found.read(4))
    assert not np.array_equal(mixed.read(2), found.read(2))


def test_what_tells_encoders_apart():
    encoder = _encoder()
    assert _encoder().description == encoder.description
    bigger = dataclasses.replace(encoder, config=PatchConfig(5))
    others = [bigger, _encoder(1.0001), _encoder(short_side=None), _encoder(low=0.0)]
    descriptions = [str(other.description) for other in [encoder, *others]]
    assert len(set(descriptions)) == 5


def test_a_killed_run_goes_on_after_its_last_shard(examples, found, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD_SIZE", 4)

    def killed(part, done, total):
        if part == "encode" and done == 12:
            raise KeyboardInterrupt

    good = examples[:14]
    with pytest.raises(KeyboardInterrupt):
        _open(good, tmp_path, progress=killed)
    resumed = _open(good, tmp_path)
    assert 2 <= resumed.num_computed <= 6  # of 14
    for number in range(14):
        np.testing.assert_array_equal(resumed.read(number), found.read(number))
    assert not list(tmp_path.rglob("*partial*"))


def test_a_damaged_shard_is_computed_again(examples, found, stored, tmp_path, caplog):
    good = examples[:3]
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    (shard,) = tmp_path.rglob("*.npy")
    shard.write_bytes(shard.read_bytes()[:-2])
    with caplog.at_level(logging.WARNING):
        again = _open(good, tmp_path)
    assert f"{shard}: damaged" in caplog.text and again.num_computed == 3
    np.testing.assert_array_equal(again.read(1), found.read(1))
    assert _open(good, tmp_path).num_computed == 0


def test_what_cannot_be_stored(examples, tmp_path, monkeypatch):
    good = examples[:2]
    with pytest.raises(DataError, match="picture 0: tokens beyond the range of float16"):
        _open(good, tmp_path, _encoder(1e6))
    with pytest.raises(ValueError, match="the same picture every time"):
        _encoder(flip=True)
    with pytest.raises(DataError, match="pictures that were tried cannot be read"):
        _open([*good, *examples[-2:]], tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DataError, match="the tokens of 2 pictures take 0.0 GB, 0.0 GB are free"):
        _open(good, tmp_path)


def test_models_bring_their_own_range_and_size():
    encoder = frozen_encoder(named_efficientnet("lite1"), {})
    assert (encoder.preprocess.size, encoder.preprocess.short_side) == (240, 274)
    black = Preprocess(low=encoder.preprocess.low, high=encoder.preprocess.high)
    assert (black.low, black.high) == ((0 - 127) / 128, (255 - 127) / 128)
    vit = frozen_encoder(ViTConfig(8, 1, 2, 16, image_size=(32, 32)), {})
    assert (vit.preprocess.low, vit.preprocess.high, vit.preprocess.size) == (-1.0, 1.0, 32)
    with pytest.raises(ValueError, match="squares, the model is for 32 x 48"):
        frozen_encoder(ViTConfig(8, 1, 2, 16, image_size=(32, 48)), {})
