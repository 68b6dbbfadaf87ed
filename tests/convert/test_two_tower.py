"""SigLIP's files in and out: big_vision's, and Hugging Face's against what it computed itself.

`tests/reference/hf_siglip.npz` holds random weights of a `SiglipModel` and its outputs, recorded
from transformers 5.24 and torch 2.13 in float32.
"""

import json

import jax
import numpy as np
import pytest

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.convert import big_vision, two_tower
from twelve_in_one.models.two_tower import TwoTower


@pytest.fixture(scope="module")
def recorded(hf_recorded):
    return hf_recorded("hf_siglip")


@pytest.fixture(scope="module")
def model(recorded):
    tensors = {k.removeprefix("param/"): v for k, v in recorded.items() if k.startswith("param/")}
    return json.loads(str(recorded["config_json"])), tensors


@pytest.fixture(scope="module")
def loaded(model):
    return two_tower.from_hf(*model)


@pytest.fixture(scope="module")
def theirs(loaded):
    """The same weights as big_vision saves them."""
    return two_tower.to_big_vision(loaded.config, loaded.params)


def test_outputs_are_those_of_the_original(recorded, loaded):
    images = np.transpose(recorded["image"], (0, 2, 3, 1))
    with jax.default_matmul_precision("highest"):
        run = jax.jit(TwoTower(loaded.config).apply)
        vectors, _ = run({"params": loaded.params}, images, recorded["tokens"])
    np.testing.assert_allclose(vectors.image, recorded["image_embeds"], atol=1e-6)
    np.testing.assert_allclose(vectors.text, recorded["text_embeds"], atol=1e-6)
    np.testing.assert_allclose(vectors.logits(), recorded["logits_per_image"], atol=5e-6)
    assert not loaded.report.unused


def test_there_and_back_is_bit_for_bit(model, loaded, theirs, tmp_path):
    settings, tensors = model
    back = two_tower.to_hf(loaded.config, loaded.params)
    assert set(back) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    np.savez(tmp_path / "siglip.npz", **{f"params/{k}": v for k, v in theirs.items()})
    again = two_tower.from_big_vision(big_vision.read_npz(tmp_path / "siglip.npz"))
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    assert again.config == loaded.config


def test_a_folder_is_written_and_read_for_another_image_size(model, loaded, tmp_path):
    settings, _ = model
    folder = tmp_path / "siglip"
    two_tower.write_hf(folder, loaded.config, loaded.params)
    again = two_tower.read_hf(folder)
    assert again.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    loaded = two_tower.read_hf(folder, image_size=(24, 40))
    assert loaded.params["image"]["position"].shape == (15, 12)
    assert loaded.config.image.grid == (3, 5)
    assert loaded.report.notes == ("positions resized from 2 x 2 to 3 x 5 patches",)
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "clip"}))
    with pytest.raises(ValueError, match="config.json: model_type 'clip' is not siglip"):
        two_tower.read_hf(folder)


def test_scanned_and_old_layouts_are_read(loaded, theirs):
    scanned = {k: v for k, v in theirs.items() if "encoderblock" not in k}
    for name in theirs:
        above, block, rest = name.partition("/encoderblock_0/")
        if block:
            layers = [theirs[f"{above}/encoderblock_{i}/{rest}"] for i in range(2)]
            scanned[f"{above}/encoderblock/{rest}"] = np.stack(layers)
    table = scanned.pop("txt/pos_embedding")
    half = np.round(table * 4) / 8  # so that the sum has no rounding
    scanned |= {"txt/pos_embedding": half, "txt/Encoder_0/pos_embedding": half + half}
    again = two_tower.from_big_vision(scanned)
    np.testing.assert_array_equal(again.params["text"].pop("position"), 3 * half[0])
    expected = {k: v for k, v in loaded.params["text"].items() if k != "position"}
    jax.tree.map(np.testing.assert_array_equal, again.params["text"], expected)
    jax.tree.map(np.testing.assert_array_equal, again.params["image"], loaded.params["image"])


def test_a_model_without_a_bias_has_none(theirs):
    loaded = two_tower.from_big_vision({k: v for k, v in theirs.items() if k != "b"})
    assert loaded.config.bias is None and "bias" not in loaded.params
    with pytest.raises(ValueError, match="it needs bias"):
        two_tower.to_hf(loaded.config, loaded.params)


def test_every_entry_is_accounted_for(theirs):
    spoilt = dict(theirs, extra=np.zeros(1))
    spoilt["txt/Encoder_0/encoder_norm/scales"] = spoilt.pop("txt/Encoder_0/encoder_norm/scale")
    spoilt["txt/head/bias"] = np.zeros(13, np.float32)
    with pytest.raises(StateDictError) as caught:
        two_tower.from_big_vision(spoilt)
    report = caught.value.report
    assert report.missing == ("txt/Encoder_0/encoder_norm/scale",)
    assert set(report.unexpected) == {"extra", "txt/Encoder_0/encoder_norm/scales"}
    assert report.wrong_shape == (("txt/head/bias", "(13,)", "(12,)"),)


def test_something_else_is_refused(theirs):
    image = {k: v for k, v in theirs.items() if k.startswith("img/")}
    with pytest.raises(ValueError, match="not a text tower of big_vision: there is no Embed_0/emb"):
        two_tower.from_big_vision(image)
