"""Counted work against the products that XLA finds in the compiled model."""

import math

import flax.linen as nn
import jax
import pytest
from jax.extend.core import jaxprs_in_params

from twelve_in_one.models.flops import forward_flops
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
