"""LiT-decoder: its parameters have a place in every layout; numbers: tests/test_lit_decoder.py."""

import functools

import flax.linen as nn
import jax
import pytest

from twelve_in_one.models import lit_decoder
from twelve_in_one.models.decoder_block import TextDecoderConfig
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.parallel.sharding import make_mesh, param_shardings


@pytest.mark.parametrize("layout", ["dp", "fsdp", "fsdp_tp"])
def test_every_parameter_has_a_place(layout):
    """Also those of an encoder of questions, which has widths of both towers."""
    config = LitDecoderConfig(
        ViTConfig(8, 1, 2, 12, image_size=(4, 4), patch_size=2),
        TextDecoderConfig(6, 1, 2, 10, vocab_size=11, max_tokens=5, encoder_dim=8),
        question="encoder",
        conditioning="token",
        question_layers=1,
    )
    init = functools.partial(lit_decoder.init_params, config)
    shapes = jax.eval_shape(init, jax.random.key(0))
    places = param_shardings(shapes, make_mesh(model=2), layout)
    assert len(jax.tree.leaves(places)) == len(jax.tree.leaves(nn.unbox(shapes)))
