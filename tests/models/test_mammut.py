"""MaMMUT: its published sizes, what its two passes read. Numbers are in the parity tests."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.models import mammut
from twelve_in_one.models.mammut import Mammut, held_between
from twelve_in_one.models.mammut_sizes import cross_spacing, named_mammut, paper_form
from twelve_in_one.models.text_decoder import TextDecoder, readable
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.parallel.sharding import make_mesh, param_shardings

CONFIG = paper_form(
    ViTConfig(10, 1, 2, 12, image_size=(4, 4), patch_size=2),
    (8, 2, 2, 12),
    dict(vocab_size=13, max_tokens=7),
)
# Two texts of 3 and 5 tokens with their ends (1), then padding.
TOKENS = np.array([[5, 7, 1, 0, 0, 0], [3, 4, 9, 8, 1, 0]], np.int32)


def scrambled(config):
    rng = np.random.default_rng(0)
    shapes = nn.unbox(mammut.abstract_params(config))
    return jax.tree.map(lambda x: rng.normal(0.0, 0.5, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return scrambled(CONFIG)


@functools.partial(jax.jit, static_argnums=0)
def embed(config, params, tokens):
    return Mammut(config).apply({"params": params}, tokens, method="embed_text")


@pytest.mark.parametrize(
    ("name", "total", "vision", "cross"),
    [
        ("large", 2005.9, 630.9, 424.7),  # the paper's: 2 B, 630 M and 420 M
        ("ablation", 303.4, 85.8, 50.4),
        ("open-S/16", 84.8, 22, 11),
        ("open-M/32", 134.7, 39.4, 19),
        ("open-B/14", 181.3, 86, 19),
        ("open-B/16", 290.5, 86, 43),
        ("open-B/32", 183.0, 88, 19),
        ("open-L/14", 508.3, 304, 43),
        ("open-H/14", 1188.1, 632, 151),
    ],
)
def test_published_sizes(name, total, vision, cross):
    """In millions of parameters; of the decoder, one pair of blocks stands for all."""
    config = named_mammut(name, encoder={"scan_layers": True})
    pairs = config.decoder.num_layers // 2
    assert config.decoder.cross_layers == tuple(range(0, 2 * pairs, 2))
    one = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=2))
    shapes = flatten(nn.unbox(mammut.abstract_params(one)))

    def millions(*parts):
        of = {"/".join(path): math.prod(x.shape) for path, x in shapes.items()}
        of = {path: size for path, size in of.items() if any(part in path for part in parts)}
        blocks = sum(size for path, size in of.items() if "decoder/block_" in path)
        return (sum(of.values()) + (pairs - 1) * blocks) / 1e6

    np.testing.assert_allclose(millions(""), total, atol=0.06)
    np.testing.assert_allclose(millions("encoder/", "image_map"), vision, atol=0.5)
    np.testing.assert_allclose(millions("/cross_", "encoder_norm"), cross, atol=0.51)


def test_unknown_sizes_are_refused():
    for name in ("open-L/15", "open-XL/14", "huge"):
        with pytest.raises(ValueError, match=f"no MaMMUT {name!r}: one of large, ablation, open-S"):
            named_mammut(name)


def test_spacing_of_cross_attentions():
    """Those that open_clip accepts: ratio -> layers from one to the next."""
    assert [cross_spacing(12, ratio) for ratio in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert cross_spacing(8, 3) == 4
    assert cross_spacing(5, 3) == 5
    for layers, ratio in ((5, 2), (11, 2), (7, 3), (10, 3), (4, 5), (4, 0)):
        with pytest.raises(ValueError, match=f"cross_attn_ratio {ratio} cannot be spread"):
            cross_spacing(layers, ratio)


def test_the_contrastive_pass_skips_what_reads_images(params):
    """With its feed-forward blocks; and its vectors have length 1."""

    def loss(params):
        vectors = Mammut(CONFIG).apply({"params": params}, TOKENS, method="embed_text")
        return jax.numpy.sum(vectors[0] * vectors[1]), vectors

    slopes, vectors = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)
    used = {"/".join(path) for path, x in flatten(slopes).items() if np.any(x)}
    unused = {"/".join(path) for path in flatten(params)} - used
    crossing = ("cross", "encoder_norm", "decoder/logits", "encoder/", "bridge", "log_scale")
    for name in unused:
        # Of a key's bias the softmax sees nothing.
        assert any(part in name for part in crossing) or name.endswith("key/bias"), name
    assert not any("cross" in name or "encoder_norm" in name for name in used)
    assert {"decoder/block_0/mlp/up/kernel", "decoder/block_1/mlp/up/kernel"} <= used


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_not_read(params, causal):
    """Each text has the vector of its own states, read in both directions or backwards."""
    config = dataclasses.replace(CONFIG, causal_contrast=causal)

    @jax.jit
    def alone(params):
        vectors = []
        for row, length in zip(TOKENS, (3, 5), strict=True):
            inputs = np.concatenate([[0], row[:length]])[None]
            mask = readable(length + 1) if causal else None
            decoder = TextDecoder(CONFIG.decoder).bind({"params": params["decoder"]})
            mean = jax.numpy.mean(decoder.read(inputs, None, mask)[0][0], axis=0)
            vectors.append(mean / jax.numpy.linalg.norm(mean))
        return jax.numpy.stack(vectors)

    np.testing.assert_allclose(embed(config, params, TOKENS), alone(params), atol=1e-6)


def test_padding_may_be_read(params):
    """As open_clip reads it; and a token with the number of padding is one before the end."""
    masked = embed(CONFIG, params, TOKENS)
    reads = dataclasses.replace(CONFIG, mask_padding=False)
    assert np.abs(embed(reads, params, TOKENS) - masked).max(axis=1).min() > 1e-3
    other = embed(CONFIG, params, np.where(TOKENS == 7, 0, TOKENS))
    assert np.abs(other[0] - masked[0]).max() > 1e-3


def test_the_scale_returns_from_its_limits():
    slope = jax.jit(jax.grad(lambda x, way: way * held_between(x, 0.0, 4.0)))
    assert [slope(5.0, way).item() for way in (-1.0, 1.0)] == [0.0, 1.0]
    assert [slope(-1.0, way).item() for way in (-1.0, 1.0)] == [-1.0, 0.0]
    assert [slope(2.0, way).item() for way in (-1.0, 1.0)] == [-1.0, 1.0]
    assert held_between(5.0, 0.0, 4.0) == 4.0


def test_pixels_are_those_of_the_weights(params):
    """The weights of CLIP see (pixel - mean) / std of pixels in 0 ... 1."""
    rng = np.random.default_rng(1)
    pixels = rng.uniform(size=(1, 4, 4, 3)).astype(np.float32)
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
    config = dataclasses.replace(CONFIG, pixel_mean=mean, pixel_std=std)
    given = Mammut(config).bind({"params": params})._pixels(2 * pixels - 1)
    np.testing.assert_allclose(given, (pixels - mean) / np.float32(std), atol=1e-5)
    assert Mammut(CONFIG).bind({"params": params})._pixels(pixels) is pixels


@pytest.mark.parametrize("layout", ["dp", "fsdp", "fsdp_tp"])
def test_every_parameter_has_a_place(layout):
    config = dataclasses.replace(CONFIG, image_projection=True, text_projection=True)
    mesh = make_mesh(model=2)
    places = param_shardings(mammut.abstract_params(config), mesh, layout)
    assert len(jax.tree.leaves(places)) == len(flatten(nn.unbox(mammut.abstract_params(config))))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(embed_dim=9), "without image_projection embed_dim 9 .* without text_projection"),
        (dict(contrast="hinge"), "contrast 'hinge' is none of focal, softmax"),
        (dict(scale_limits=(2.0, 100.0)), "scale_limits .* around the initial factor .* = 1"),
        (dict(contrast_weight=0.0, caption_weight=0.0), "there is no loss"),
        (dict(temperature=0.0), "temperature 0.0 should be positive"),
        (dict(pixel_std=(0.5, 0.5, 0.0)), "three numbers each, std above 0"),
        (dict(encoder=ViTConfig(10, 1, 2, 12, pool="none")), 'pool "none" gives no vector'),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)


def test_texts_that_are_too_long_are_refused(params):
    with pytest.raises(ValueError, match="texts of 7 tokens, the model is for 6 behind the start"):
        embed(CONFIG, params, np.ones((1, 7), np.int32))
