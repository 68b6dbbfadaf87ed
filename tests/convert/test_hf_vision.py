"""Hugging Face's vision models against what they themselves computed.

`tests/reference/hf_vision.npz` holds random weights of four families and their outputs, recorded
from transformers 5.24 and torch 2.13 in float32.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.convert import hf_vision
from twelve_in_one.models.vit import ViT

FAMILIES = ("vit", "siglip", "clip", "dinov2", "dinov2_with_registers")


@pytest.fixture(scope="module")
def recorded(hf_recorded):
    return hf_recorded("hf_vision")


def _model(recorded, name):
    prefix = f"{name}/param/"
    tensors = {k[len(prefix) :]: v for k, v in recorded.items() if k.startswith(prefix)}
    return json.loads(str(recorded[f"{name}/config_json"])), tensors


def _outputs(loaded, recorded):
    images = np.transpose(recorded["image"], (0, 2, 3, 1))
    with jax.default_matmul_precision("highest"):
        return jax.jit(ViT(loaded.config).apply)({"params": loaded.params}, images)


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_those_of_the_original(recorded, name):
    loaded = hf_vision.from_hf(*_model(recorded, name))
    tokens, aux = _outputs(loaded, recorded)
    pooled = aux.get("representation", aux["pooled"])
    np.testing.assert_allclose(pooled, recorded[f"{name}/pooler_output"], atol=5e-6)
    if name != "clip":  # whose tokens come out before the last norm
        np.testing.assert_allclose(tokens, recorded[f"{name}/last_hidden_state"], atol=5e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back_computes_the_same(recorded, name, tmp_path):
    settings, tensors = _model(recorded, name)
    loaded = hf_vision.from_hf(settings, tensors)
    family = hf_vision.family_of(settings)
    hf_vision.write(tmp_path / "model", family, loaded.config, loaded.params)
    written = hf_vision.read(tmp_path / "model")
    assert written.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, written.params, loaded.params)
    back = hf_vision.to_hf(family, loaded.config, loaded.params)
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in tensors.items() if k != "embeddings.mask_token"
    }
    again = hf_vision.from_hf(settings, back)
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


def test_a_folder_is_read_and_an_image_tower_found(recorded, tmp_path):
    settings, tensors = _model(recorded, "clip")
    whole = {f"vision_model.{k}": v for k, v in tensors.items()}
    save_file(whole | {"logit_scale": np.float32([1.0])}, tmp_path / "model.safetensors")
    text = json.dumps({"model_type": "clip", "vision_config": settings})
    (tmp_path / "config.json").write_text(text)
    loaded = hf_vision.read(tmp_path)
    expected = hf_vision.from_hf(settings, tensors)
    assert loaded.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)


def test_another_image_size_resizes_the_patches_positions(recorded):
    loaded = hf_vision.from_hf(*_model(recorded, "vit"), image_size=(24, 40))
    assert loaded.config.grid == (3, 5)
    assert loaded.params["position"].shape == (15, 12)
    assert loaded.report.notes == ("positions resized from 2 x 2 to 3 x 5 patches",)


def test_every_entry_is_accounted_for(recorded):
    settings, tensors = _model(recorded, "siglip")
    tensors = dict(tensors)
    tensors["post_layernorm.wait"] = tensors.pop("post_layernorm.weight")
    tensors["head.mlp.fc1.bias"] = np.zeros(3, np.float32)
    with pytest.raises(StateDictError) as caught:
        hf_vision.from_hf(settings, tensors)
    report = caught.value.report
    assert report.missing == ("post_layernorm.weight",)
    assert report.unexpected == ("post_layernorm.wait",)
    assert report.wrong_shape == (("head.mlp.fc1.bias", "(3,)", "(20,) as ours"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="bert"), "model_type 'bert' is none of vit, clip, siglip, dinov2"),
        (dict(use_swiglu_ffn=True), "gated feed-forward blocks"),
        (dict(hidden_act="mish"), "hidden_act 'mish' is none of gelu"),
        (dict(qkv_bias=False), "attention without biases"),
    ],
)
def test_variants_that_are_not_known_are_named(recorded, tmp_path, change, message):
    settings, tensors = _model(recorded, "dinov2")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(ValueError, match=rf"config.json: .*{message}"):
        hf_vision.read(tmp_path)


def test_models_of_another_form_are_refused(recorded):
    loaded = hf_vision.from_hf(*_model(recorded, "dinov2_with_registers"))
    with pytest.raises(ValueError, match="not of the form of a siglip model"):
        hf_vision.to_hf("siglip", loaded.config, loaded.params)
    oblong = dataclasses.replace(loaded.config, image_size=(8, 16))
    with pytest.raises(ValueError, match="one image_size, not 8 x 16"):
        hf_vision.settings_of("dinov2", oblong)
