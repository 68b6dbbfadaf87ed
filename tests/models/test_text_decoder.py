"""The text decoder: its sizes, its beginning, what it reads. Numbers are in the parity tests."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.models import decoder_block, text_decoder
from twelve_in_one.models.pre_norm import stack_blocks
from twelve_in_one.models.text_decoder import TextDecoder, TextDecoderConfig, shift_right
from twelve_in_one.parallel.sharding import make_mesh, param_shardings
from twelve_in_one.tasks.losses import sequence_loss

CONFIG = TextDecoderConfig(12, 2, 3, 20, vocab_size=11, max_tokens=6, encoder_dim=8)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, inputs, encoder, **options):
    return TextDecoder(config).apply({"params": params}, inputs, encoder, **options)


def scrambled(config, seed=0):
    """Parameters in which nothing is zero or one."""
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(text_decoder.abstract_params(config))
    return jax.tree.map(lambda x: rng.normal(0.0, 0.4, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return scrambled(CONFIG)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    encoder = rng.normal(size=(3, 4, 8)).astype(np.float32)
    return rng.integers(2, 11, (3, 6)).astype(np.int32), encoder


@pytest.mark.parametrize(
    ("layers", "millions"), [(1, 58.7), (2, 68.1), (6, 105.9), (12, 162.5)]
)  # spec of CapPa: B, 32,000 pieces, 64 tokens
def test_published_sizes(layers, millions):
    config = decoder_block.named_decoder("B", layers, block_biases=False, scan_layers=True)
    shapes = jax.tree.leaves(text_decoder.abstract_params(config))
    assert round(sum(math.prod(x.shape) for x in shapes) / 1e6, 1) == millions


def test_the_first_loss_is_that_of_a_guess(inputs):
    """Whatever the image: the kernel of the logits starts at zero."""
    start = nn.unbox(
        jax.jit(functools.partial(text_decoder.init_params, CONFIG))(jax.random.key(0))
    )
    logits, _ = run(CONFIG, start, shift_right(inputs[0]), inputs[1])
    loss = sequence_loss(logits, inputs[0], np.ones((3, 6), bool), np.ones(3, bool)).mean_loss()
    np.testing.assert_allclose(loss, math.log(11), rtol=2e-7)


def test_nothing_is_read_ahead(params, inputs):
    """But in a prompt with prefix-LM, where all is read, prepended embeddings too."""
    tokens, encoder = inputs
    ahead = np.random.default_rng(2).normal(size=(3, 2, 12)).astype(np.float32)
    changed = tokens.copy()
    changed[:, 3] = (changed[:, 3] - 1) % 9 + 2
    causal, prefix = ({} if n is None else {"prefix_length": np.full(3, n)} for n in (None, 3))
    for options, first in ((causal, 3), (prefix, 0)):
        options = options | {"prepended": ahead}
        before, after = (run(CONFIG, params, x, encoder, **options)[0] for x in (tokens, changed))
        assert before.shape == (3, 6, 11)
        differ = np.any(np.asarray(before) != after, axis=(0, 2))
        assert differ.tolist() == [i >= first for i in range(6)]


def test_prefix_of_length_zero_is_causal(params, inputs):
    causal, _ = run(CONFIG, params, *inputs)
    prefix, _ = run(CONFIG, params, *inputs, prefix_length=np.zeros(3, int))
    np.testing.assert_array_equal(causal, prefix)


def test_padding_of_the_encoder_is_not_read(params, inputs):
    tokens, encoder = inputs
    noise = np.concatenate([encoder, 9.0 * encoder[:, :2]], axis=1)
    mask = np.arange(6)[None] < np.full((3, 1), 4)
    padded, _ = run(CONFIG, params, tokens, noise, encoder_mask=mask)
    exact, _ = run(CONFIG, params, tokens, encoder)
    np.testing.assert_allclose(padded, exact, atol=1e-5)
    blind, aux = run(CONFIG, params, tokens, None)
    assert "block_0/cross_attention" not in aux
    assert np.max(np.abs(blind - exact)) > 0.01


def test_scanned_blocks_give_the_same(params, inputs):
    config = dataclasses.replace(CONFIG, scan_layers=True, remat="full")
    ours, _ = run(config, stack_blocks(CONFIG, params), *inputs)
    np.testing.assert_allclose(ours, run(CONFIG, params, *inputs)[0], atol=1e-5)


def test_other_forms(inputs):
    """Cross-attention in every second block, all biases, normed tokens, logits from the table."""
    config = TextDecoderConfig(
        12, 3, 3, 20, vocab_size=11, max_tokens=6, encoder_dim=8, cross_every=2,
        attention_biases=True, norm_encoder=True, tied_logits=True,
    )  # fmt: skip
    params = scrambled(config)
    assert "cross_attention" not in params["block_1"]
    assert set(params["block_2"]["cross_attention"]["key"]) == {"kernel", "bias"}
    assert "logits" not in params
    logits, aux = run(config, params, *inputs)
    table = params["token"]["embedding"]
    expected = np.asarray(aux["states"]) @ table.T + params["logits_bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    # A norm does not see a token's scale.
    scaled, _ = run(config, params, inputs[0], 100.0 * inputs[1])
    np.testing.assert_allclose(scaled, logits, atol=1e-4)


def test_dropout_is_that_of_its_key(params, inputs):
    config = dataclasses.replace(CONFIG, dropout_rate=0.5, drop_path_rate=0.2)
    # This kind of key compiles in a fraction of the default kind's time.
    keys = (jax.random.key(seed, impl="unsafe_rbg") for seed in (0, 0, 1))
    one, same, two = (run(config, params, *inputs, dropout_key=key)[0] for key in keys)
    np.testing.assert_array_equal(one, same)
    assert np.any(one != two) and np.any(one != run(CONFIG, params, *inputs)[0])


def test_every_parameter_has_a_place_on_a_mesh():
    config = dataclasses.replace(CONFIG, scan_layers=True, hidden_dim=16, num_heads=4)
    boxed = text_decoder.abstract_params(config)
    shardings = param_shardings(boxed, make_mesh(model=2), "fsdp_tp")
    assert shardings["token"]["embedding"].spec == jax.sharding.PartitionSpec(None, "data")
    key = shardings["blocks"]["cross_attention"]["key"]["kernel"]
    assert key.spec == jax.sharding.PartitionSpec(None, "data", "model", None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(vocab_size=0), "vocab_size must be positive"),
        (dict(cross_every=0), "cross_every must be positive"),
        (dict(num_heads=5), "num_heads 5 does not divide"),
        (dict(cross_every=2, scan_layers=True), "cross_every=1"),
    ],
)
def test_impossible_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)
    with pytest.raises(ValueError, match="no decoder 'XXL'"):
        decoder_block.named_decoder("XXL")


def test_inputs_that_do_not_fit(params):
    encoder = jnp.zeros((1, 4, 8))
    with pytest.raises(ValueError, match="texts of 7 tokens, the decoder is for 6"):
        run(CONFIG, params, jnp.zeros((1, 7), int), encoder)
    with pytest.raises(ValueError, match="9 wide, the decoder reads encoder_dim=8"):
        run(CONFIG, params, jnp.zeros((1, 6), int), jnp.zeros((1, 4, 9)))
