"""Scanned, unrolled and rematerialised encoders are the same function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.models.two_stream.encoder import Encoder, stack_layers, unstack_layers
from twelve_in_one.models.two_stream.order import order_string, segments
from twelve_in_one.models.two_stream.trunk import abstract_params

B, S, R = 3, 5, 4


@pytest.fixture(scope="module")
def make_config(tiny_config):
    """make_config(text layers, visual layers, connections): with dropout and gates."""
    noisy = dict(dropout_rate=0.1, attention_dropout_rate=0.1)

    def make(text, visual, text_connections, visual_connections):
        return tiny_config(
            text=dict(num_layers=text, hidden_dim=8, mlp_dim=12) | noisy,
            visual=dict(num_layers=visual, hidden_dim=12, num_heads=2, mlp_dim=10) | noisy,
            text_connections=text_connections,
            visual_connections=visual_connections,
            coattention_dim=6,
            coattention_heads=3,
            dynamic_attention=True,
            heads=("three_way",),
        )

    return make


@pytest.fixture(scope="module")
def config(make_config):
    """T0 T1 | C0 | T2 V0 C1 T3 V1 C2 | V2 | T4: two stretches to scan."""
    config = make_config(5, 3, (2, 3, 4), (0, 1, 2))
    assert order_string(config) == "T0 T1 C0 T2 V0 C1 T3 V1 C2 V2 T4"
    assert sum(segment.repeats > 1 for segment in segments(config)) == 2
    return config


@pytest.fixture(scope="module")
def short(make_config):
    """T0 C0 V0 T1: a layer of every kind, which is enough where nothing is scanned."""
    config = make_config(2, 1, (1,), (0,))
    assert order_string(config) == "T0 C0 V0 T1"
    return config


@pytest.fixture(scope="module")
def params_of(random_params):
    """Unrolled parameters of a config; those of the encoder are what counts here."""
    return lambda config: {"trunk": {"encoder": random_params(config)["trunk"]["encoder"]}}


@pytest.fixture(scope="module")
def params(config, params_of):
    return params_of(config)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    lengths = np.array([[S], [3], [2]]), np.array([[2], [R], [3]])
    return dict(
        text=rng.normal(size=(B, S, 8)).astype(np.float32),
        visual=rng.normal(size=(B, R, 12)).astype(np.float32),
        text_mask=np.arange(S) < lengths[0],
        region_mask=np.arange(R) < lengths[1],
    )


def run(config, params, inputs, key=None, **options):
    encoder = params["trunk"]["encoder"]
    return Encoder(config).apply({"params": encoder}, **inputs, dropout_key=key, **options)


@pytest.fixture(scope="module")
def loss_and_gradients(params_of, inputs):
    """Loss with dropout, and its gradients in the unrolled layout, of a variant of a config."""

    def loss(variant, params, key):
        text, visual, _ = run(variant, params, inputs, key)
        return jnp.sum(text[..., :4] ** 2) + jnp.sum(visual[..., :6] ** 2)

    @functools.cache
    def compute(config, **fields):
        variant, layout = dataclasses.replace(config, **fields), params_of(config)
        if variant.scan_layers:
            layout = stack_layers(config, layout)
        function = jax.jit(jax.value_and_grad(functools.partial(loss, variant)))
        # This kind of key compiles in a fraction of the default kind's time.
        value, grads = function(layout, jax.random.key(7, impl="unsafe_rbg"))
        if variant.scan_layers:
            grads = unstack_layers(config, grads)
        return value, flatten(grads)

    return compute


@pytest.mark.parametrize(
    ("scan_layers", "remat"), [(True, "none"), (False, "full"), (True, "dots")]
)
def test_scan_and_remat_change_no_number(loss_and_gradients, config, short, scan_layers, remat):
    """With dropout: every layer draws the same masks wherever it runs, and when it runs again."""
    order = config if scan_layers else short
    value, grads = loss_and_gradients(order)
    ours_value, ours = loss_and_gradients(order, scan_layers=scan_layers, remat=remat)
    np.testing.assert_allclose(ours_value, value, rtol=1e-6)
    assert set(ours) == set(grads)
    largest = max(np.abs(grad).max() for grad in grads.values())
    for path, grad in grads.items():
        np.testing.assert_allclose(ours[path], grad, atol=1e-6 * largest, err_msg=str(path))
        if path[-2:] != ("key", "bias"):  # shifts all scores of a query alike: truly 0
            assert np.abs(grad).max() > 1e-5 * largest, path


def test_scanned_intermediates_are_those_of_the_layers(config, params, inputs):
    """All of them, attention maps too, under the names of the unrolled layers."""

    def compute(variant, params):
        return jax.jit(functools.partial(run, variant, return_attention=True))(params, inputs)

    text, visual, aux = compute(config, params)
    scanned = dataclasses.replace(config, scan_layers=True)
    ours_text, ours_visual, ours = compute(scanned, stack_layers(config, params))
    np.testing.assert_allclose(ours_text, text, atol=1e-6)
    np.testing.assert_allclose(ours_visual, visual, atol=1e-6)
    assert len(aux) == 5 * 2 + 3 * 2 + 3 * 4
    assert set(ours) == set(aux)
    for name, expected in aux.items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-6, err_msg=name)


def count_loops_and_remats(config, params, inputs):
    def grads(params):
        return jax.grad(lambda p: sum(x.sum() for x in run(config, p, inputs)[:2]))(params)

    text = str(jax.make_jaxpr(grads)(params))
    remats = sum(text.count(f" {name}[") for name in ("remat2", "checkpoint"))  # old, new name
    return text.count(" scan["), remats


def test_scan_and_remat_really_happen(config, params, inputs):
    """Or else the comparisons above would compare a program with itself."""
    scanned = dataclasses.replace(config, scan_layers=True)
    stacked = stack_layers(config, params)
    # Two segments repeat; each is one loop forward and one backward.
    assert count_loops_and_remats(scanned, stacked, inputs) == (4, 0)
    assert count_loops_and_remats(config, params, inputs) == (0, 0)
    for remat in ("full", "dots"):
        variant = dataclasses.replace(config, remat=remat)
        assert count_loops_and_remats(variant, params, inputs) == (0, 11), remat


def test_stack_and_unstack_are_inverse(config, params):
    stacked = stack_layers(config, params)
    back = unstack_layers(config, stacked)
    assert set(flatten(back)) == set(flatten(params))
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(flatten(back)[path], value)


def test_stacked_parameters_are_those_of_a_scanned_model(config, params):
    """Names and shapes; the stacked axis has a logical name of its own."""
    scanned = abstract_params(dataclasses.replace(config, scan_layers=True))
    expected = traverse_util.flatten_dict(scanned["trunk"]["encoder"])
    ours = flatten(stack_layers(config, params)["trunk"]["encoder"])
    assert set(ours) == set(expected)
    for path, leaf in expected.items():
        assert ours[path].shape == leaf.value.shape, path
        stacked = path[0].startswith("segment_")
        assert (leaf.names[0] == "layers") == stacked, path
    assert {path[0] for path in ours if path[0].startswith("segment_")} == {
        "segment_0",
        "segment_2",
    }
