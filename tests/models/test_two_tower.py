"""Two towers: what goes in, what comes out, and how they begin. Numbers are in the parity tests."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.models import two_tower
from twelve_in_one.models.two_tower import TextTower, TextTowerConfig, TwoTower, TwoTowerConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.parallel.sharding import make_mesh, param_shardings
from twelve_in_one.tasks.losses import sigmoid_contrast_loss

IMAGE = ViTConfig(12, 1, 3, 20, image_size=(4, 6), patch_size=2)
TEXT = TextTowerConfig(8, 1, 2, 14, vocab_size=17, max_tokens=5, out_dim=12)
CONFIG = TwoTowerConfig(IMAGE, TEXT)
init_params = jax.jit(two_tower.init_params, static_argnums=0)


def _inputs():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 4, 6, 3)).astype(np.float32)
    return images, rng.integers(0, 17, (3, 5)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return nn.unbox(init_params(CONFIG, jax.random.key(0)))


def test_logits_are_cosines_scaled_and_shifted(params):
    images, tokens = _inputs()
    vectors, aux = jax.jit(TwoTower(CONFIG).apply)({"params": params}, images, tokens)
    pooled, vector = (np.asarray(aux[name], np.float64) for name in ("image/pooled", "text/vector"))
    lengths = np.linalg.norm(pooled, axis=1)[:, None] * np.linalg.norm(vector, axis=1)
    np.testing.assert_allclose(vectors.logits(), 10 * pooled @ vector.T / lengths - 10, atol=1e-5)
    encode = functools.partial(TwoTower(CONFIG).apply, method="encode_texts")
    alone, _ = jax.jit(encode)({"params": params}, tokens)
    np.testing.assert_array_equal(alone, vectors.text)


@pytest.mark.parametrize("fields", [{}, dict(num_classes=9)])
def test_gradients_of_a_new_model_reach_both_towers(fields):
    """Also through an image tower's linear map, which as a classifier would begin at zero."""
    width = fields.get("num_classes", 12)
    config = TwoTowerConfig(
        dataclasses.replace(IMAGE, **fields), dataclasses.replace(TEXT, out_dim=width)
    )
    start = nn.unbox(init_params(config, jax.random.key(0)))
    images, tokens = _inputs()

    @jax.jit
    @jax.grad
    def gradients(params):
        vectors, _ = TwoTower(config).apply({"params": params}, images, tokens)
        return sigmoid_contrast_loss(vectors.logits(), jnp.ones(3, bool)).mean_loss()

    grads = gradients(start)
    for leaf in (
        grads["image"]["patch_embedding"]["kernel"],
        grads["text"]["token"]["embedding"],
        grads["log_temperature"],
        grads["bias"],
    ):
        assert np.isfinite(leaf).all() and np.any(leaf != 0)


@pytest.mark.parametrize("pool", two_tower.TEXT_POOLS)
def test_texts_are_pooled(params, pool):
    config = dataclasses.replace(TEXT, pool=pool)
    text = params["text"]
    if pool == "attention":
        text = nn.unbox(jax.jit(TextTower(config).init)(jax.random.key(1), _inputs()[1]))["params"]
    states, aux = jax.jit(TextTower(config).apply)({"params": text}, _inputs()[1])
    if pool == "attention":
        assert aux["pooled"].shape == (3, 8)
        return
    expected = {"last": states[:, -1], "first": states[:, 0], "mean": jnp.mean(states, axis=1)}
    np.testing.assert_allclose(aux["pooled"], expected[pool], atol=1e-6)


def test_every_parameter_has_a_place_on_a_mesh():
    shapes = two_tower.abstract_params(CONFIG)
    mesh = make_mesh(devices=jax.devices()[:1])
    for layout in ("dp", "fsdp_tp"):
        assert len(jax.tree.leaves(param_shardings(shapes, mesh, layout))) == len(
            jax.tree.leaves(nn.unbox(shapes))
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwoTowerConfig(IMAGE, dataclasses.replace(TEXT, out_dim=0)), "12 wide, texts' 8"),
        (lambda: dataclasses.replace(CONFIG, temperature=0.0), "temperature must be positive"),
        (
            lambda: TwoTowerConfig(dataclasses.replace(IMAGE, pool="none"), TEXT),
            'pool "none" gives no vector',
        ),
        (lambda: dataclasses.replace(TEXT, pool="max"), "pool 'max' is none of last, first"),
        (lambda: dataclasses.replace(TEXT, vocab_size=0), "vocab_size must be positive"),
    ],
)
def test_impossible_configs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_texts_of_another_length_are_refused(params):
    with pytest.raises(ValueError, match=r"shape \(4,\), the model is for \(5,\): pad or cut"):
        TextTower(TEXT).apply({"params": params["text"]}, jnp.zeros((1, 4), jnp.int32))
