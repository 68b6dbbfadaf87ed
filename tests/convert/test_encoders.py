"""Image encoders of others as the beginning of a run."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest
from flax.linen import unbox

from twelve_in_one.checkpoints import weights
from twelve_in_one.convert import big_vision, efficientnet, encoders
from twelve_in_one.convert.__main__ import main
from twelve_in_one.models import vit
from twelve_in_one.models.efficientnet import abstract_params, named_efficientnet
from twelve_in_one.models.vit import ViT, ViTConfig

CONFIG = ViTConfig(16, 1, 2, 24, image_size=(16, 16), patch_size=8, num_classes=5)


@pytest.fixture(scope="module")
def params():
    """Random everywhere, also where weights start at zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        unbox(vit.abstract_params(CONFIG)),
    )


def _tokens(config, params, images):
    return jax.jit(ViT(config).apply)({"params": params}, images)[0]


@pytest.mark.parametrize("patch_bias", [True, False])
def test_means_and_deviations_are_folded_in(params, patch_bias):
    config = dataclasses.replace(CONFIG, patch_bias=patch_bias, num_classes=0)
    params = {name: value for name, value in params.items() if name != "classifier"}
    if not patch_bias:
        params["patch_embedding"] = {"kernel": params["patch_embedding"]["kernel"]}
    mean, std = np.array([0.48, 0.46, 0.41]), np.array([0.27, 0.26, 0.28])
    pixels = np.random.default_rng(1).uniform(size=(2, 16, 16, 3))
    wanted = _tokens(config, params, ((pixels - mean) / std).astype(np.float32))
    ours, folded = encoders.with_pixels(config, params, mean, std)
    found = _tokens(ours, folded, (2 * pixels - 1).astype(np.float32))
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    with pytest.raises(ValueError, match="three numbers each"):
        encoders.with_pixels(config, params, [0.5], std)


@pytest.mark.parametrize("prefix", ["", "img/"])
def test_the_command_writes_what_a_run_begins_with(params, tmp_path, capsys, prefix):
    arrays = big_vision.to_big_vision(CONFIG, params)
    extra = {"txt/head/bias": np.zeros(3)} if prefix else {}
    np.savez(tmp_path / "vit.npz", **{prefix + k: v for k, v in arrays.items()}, **extra)
    arguments = [str(tmp_path / "vit.npz"), str(tmp_path / "encoder"), "--to", "encoder"]
    assert main([*arguments, "--image_size", "24"]) == 0
    assert "wrote" in capsys.readouterr().out
    found, system, _ = weights.load_params(tmp_path / "encoder")
    assert system.config.encoder.image_size == (24, 24) and not system.config.classes
    assert found["encoder"]["position"].shape == (9, 16)
    np.testing.assert_array_equal(
        found["encoder"]["final_norm"]["scale"], params["final_norm"]["scale"]
    )


def test_what_is_no_encoder(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("no")
    assert main([str(tmp_path / "a.txt"), str(tmp_path / "b"), "--to", "encoder"]) == 1
    assert "a.txt: an encoder is an .npz" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert main([str(tmp_path), str(tmp_path / "b"), "--to", "encoder"]) == 1
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(
    importlib.util.find_spec(efficientnet.PACKAGE) is None, reason="needs the extra 'photos'"
)
def test_the_encoder_of_the_package(tmp_path, capsys):
    folder = tmp_path / "lite0"
    command = [encoders.PACKAGED, str(folder), "--to", "encoder"]
    assert main([*command, "--image_size", "96"]) == 1
    assert "has a size and pixels of its own" in capsys.readouterr().err
    assert main(command) == 0
    params, system, _ = weights.load_params(folder)
    assert system.config.encoder == named_efficientnet("lite0", num_classes=0)
    shapes = jax.tree.map(lambda leaf: leaf.shape, unbox(abstract_params(system.config.encoder)))
    assert jax.tree.map(np.shape, params) == {"encoder": shapes}
    assert np.abs(params["encoder"]["head"]["kernel"]).max() > 0.1
