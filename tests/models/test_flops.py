"""Counted work against the products that XLA finds in the compiled model."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from twelve_in_one.models import text_decoder, vit
from twelve_in_one.models.detection import c4, fpn
from twelve_in_one.models.flops import (
    decoder_forward_flops,
    forward_flops,
    traced_flops,
    vit_forward_flops,
)
from twelve_in_one.models.two_stream.config import ALL_HEADS
from twelve_in_one.models.two_stream.trunk import TwoStreamModel, abstract_params


def product_flops(jaxpr):
    """2 x (size of the result) x (size of what is summed over), of every product in a jaxpr."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            summed = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * summed
        if eqn.primitive.name == "conv_general_dilated":
            *kernel, _ = eqn.invars[1].aval.shape  # outputs come last
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel)
        for inner in jaxprs_in_params(eqn.params):
            total += product_flops(inner)
    return total


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(dynamic_attention=True),
        dict(with_coattention=False, num_tasks=0),
        dict(heads=ALL_HEADS, text=dict(num_layers=5), text_connections=(1, 4)),
    ],
)
def test_every_product_is_counted(tiny_config, random_batch, fields):
    config = tiny_config(**fields)
    rows, tokens, regions = 4, 6, 5
    batch = random_batch(config, rows=rows, tokens=tokens, regions=regions)

    def run(params):
        return TwoStreamModel(config).apply({"params": params}, **batch, heads=config.heads)[0]

    counted = product_flops(jax.make_jaxpr(run)(nn.unbox(abstract_params(config))).jaxpr)
    ours = rows * forward_flops(config, tokens, regions, config.heads)
    assert counted == pytest.approx(ours, rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        dict(pool="class", class_token=True, num_registers=2, representation=True),
        dict(pool="attention"),
        dict(pool="none", window=2, global_layers=(1,)),
        dict(stem="convolutions", hidden_dim=48, patch_size=4),
    ],
)
def test_every_product_of_a_vit_is_counted(fields):
    config = vit.ViTConfig(12, 3, 3, 20, image_size=(8, 12), patch_size=2, num_classes=5)
    config = dataclasses.replace(config, **fields)
    images = jnp.zeros((4, *config.image_size, 3))
    params = nn.unbox(vit.abstract_params(config))
    run = jax.make_jaxpr(lambda p: vit.ViT(config).apply({"params": p}, images))(params)
    assert product_flops(run.jaxpr) == 4 * vit_forward_flops(config)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(cross_every=2, tied_logits=True),
        dict(cross_every=2, cross_mlp="own"),
        dict(cross_every=2, cross_mlp="second", norm_encoder=True),
    ],
)
def test_every_product_of_a_decoder_is_counted(fields):
    config = text_decoder.TextDecoderConfig(
        12, 3, 3, 20, vocab_size=31, max_tokens=9, encoder_dim=10, **fields
    )
    inputs, encoder = jnp.zeros((2, 9), jnp.int32), jnp.zeros((2, 5, 10))

    def run(params):
        return text_decoder.TextDecoder(config).apply({"params": params}, inputs, encoder)[0]

    abstract = nn.unbox(text_decoder.abstract_params(config))
    counted = product_flops(jax.make_jaxpr(run)(abstract).jaxpr)
    assert counted == 2 * decoder_forward_flops(config, 9, 5)

    def read(params):
        decoder = text_decoder.TextDecoder(config)
        return decoder.apply({"params": params}, inputs, None, None, method="read")[0]

    counted = product_flops(jax.make_jaxpr(read)(abstract).jaxpr)
    assert counted == 2 * decoder_forward_flops(config, 9, 0, logits=False)


def test_detectors_cost_what_their_layers_sum_up_to():
    """GMAC of the published networks, added up layer by layer elsewhere."""

    def giga(network, params, *arguments, method):
        run = functools.partial(network.apply, method=method)
        return traced_flops(lambda p, *a: run({"params": p}, *a), params, *arguments) / 2e9

    def shape(*sides, dtype="float32"):
        return jax.ShapeDtypeStruct(sides, dtype)

    sizes = shape(1, 2, dtype="int32")
    network, params = fpn.FpnNetwork(fpn.X152), fpn.abstract_params(fpn.X152)
    body_and_pyramid = giga(network, params, shape(1, 800, 1344, 3), sizes, method="pyramid")
    assert body_and_pyramid == pytest.approx(2.5 + 27.9 + 87 + 368.3 + 36.7 + 227.1, abs=0.3)
    cells = sum((200 * 336, 100 * 168, 50 * 84, 25 * 42, 13 * 21))
    proposing = giga(network, params, shape(1, cells, 1, 512), sizes, method="region_proposals")
    assert proposing == pytest.approx(211.9, abs=0.1)
    head = giga(network, params, shape(1000, 7, 7, 512), method="head")
    assert head == pytest.approx(72, abs=0.5)

    network, params = c4.C4Network(c4.R101), c4.abstract_params(c4.R101)
    once = giga(network, params, shape(1, 600, 1000, 3), sizes, method="map")
    once += giga(network, params, shape(1, 38, 63, 1024), sizes, method="region_proposals")
    assert once == pytest.approx(94, abs=1)
    assert giga(network, params, shape(1, 14, 14, 1024), method="head") == pytest.approx(
        2.93, abs=0.02
    )
