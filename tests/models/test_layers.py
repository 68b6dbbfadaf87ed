"""Building blocks against plain NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.models import layers
from twelve_in_one.models.two_stream.config import Numerics, StreamConfig

FLOAT32 = Numerics(dtype="float32", layer_norm_eps=1e-12, initializer_range=0.02)
BFLOAT16 = Numerics(dtype="bfloat16", layer_norm_eps=1e-12, initializer_range=0.02)


def generator(seed):
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def normal():
    """Draws arrays of a shape, the same ones in every run of a test."""
    return generator(0)


# ------------------------------------------------------------------------------- activations


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        ("relu", lambda x: max(x, 0.0)),
        ("swish", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_activation(name, formula):
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    expected = [formula(float(v)) for v in x]
    np.testing.assert_allclose(layers.activation(name)(x), expected, atol=1e-6)


# --------------------------------------------------------------------------------- layer norm


def test_layer_norm_takes_the_biased_variance_and_epsilon_inside_the_root(normal):
    eps = 0.1
    norm = layers.layer_norm("x", Numerics("float32", eps, 0.02))
    x, scale, bias = normal(3, 4), normal(4), normal(4)
    ours = norm.apply({"params": {"scale": scale, "bias": bias}}, x)
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    np.testing.assert_allclose(ours, (x - mean) / np.sqrt(variance + eps) * scale + bias, atol=1e-6)


def test_layer_norm_of_nearly_constant_input_is_accurate():
    """A variance taken as E[x^2] - E[x]^2 would have no correct digit here."""
    x = np.float32(1000.0) + np.array([[0.0, 0.25, 0.5, 0.75]], np.float32)
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    ours = layers.layer_norm("x", FLOAT32).apply({"params": {"scale": one, "bias": zero}}, x)
    np.testing.assert_allclose(ours[0], np.array([-1.5, -0.5, 0.5, 1.5]) / math.sqrt(1.25), 1e-4)


# ----------------------------------------------------------------------------------- dropout


def test_dropout_zeroes_a_share_and_scales_the_rest():
    x = jnp.full((200, 500), 3.0)
    y = np.asarray(layers.dropout(x, 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(y), [0.0, 4.0])
    # 100,000 draws: the share's standard deviation is 0.0014
    assert abs((y == 0).mean() - 0.25) < 0.01
    assert abs(y.mean() - 3.0) < 0.03


def test_dropout_averages_out_over_keys(normal):
    x = jnp.asarray(normal(3, 5))
    keys = jax.random.split(jax.random.key(1), 20_000)
    mean = jax.jit(jax.vmap(lambda key: layers.dropout(x, 0.5, key)))(keys).mean(0)
    # a dropped-out value deviates by |x|, its mean over 20,000 keys by |x| / 141
    np.testing.assert_array_less(np.abs(mean - x), 5 / 141 * np.abs(x))


def test_no_key_or_no_rate_is_no_dropout(normal):
    x = jnp.asarray(normal(3, 5))
    assert layers.dropout(x, 0.5, None) is x
    assert layers.dropout(x, 0.0, jax.random.key(0)) is x


def test_no_key_stays_no_key():
    assert layers.fold_key(None, 1, 2) is None
    assert layers.split_key(None, 3) == (None, None, None)


def test_keys_differ_by_every_id_and_by_order():
    key = jax.random.key(0)
    data = [
        jax.random.key_data(k).tolist()
        for k in (
            key,
            layers.fold_key(key, 0, 1),
            layers.fold_key(key, 1, 0),
            layers.fold_key(key, 1, 1),
            *layers.split_key(key, 3),
        )
    ]
    assert len({tuple(d) for d in data}) == len(data)
    traced = jax.jit(lambda i: jax.random.key_data(layers.fold_key(key, 0, i)))(1)
    assert traced.tolist() == data[1]  # in a scan layer ids are traced


# --------------------------------------------------------------------------------- attention

HEADS, HEAD_DIM, OUT = 3, 4, 5


def attention(numerics=FLOAT32, rate=0.0):
    return layers.Attention(
        num_heads=HEADS,
        qkv_dim=HEADS * HEAD_DIM,
        out_dim=OUT,
        dropout_rate=rate,
        numerics=numerics,
        q_axis="text_embed",
        kv_axis="visual_embed",
    )


def attend(params, *arguments, **options):
    """Output and map, by one program."""
    return jax.jit(attention(**options).apply)({"params": params}, *arguments)


@pytest.fixture(scope="module")
def params():
    normal = generator(1)
    widths = dict(query=7, key=6, value=6)
    tree = {
        name: {"kernel": normal(width, HEADS, HEAD_DIM), "bias": normal(HEADS, HEAD_DIM)}
        for name, width in widths.items()
    }
    return tree | {"out": {"kernel": normal(HEADS, HEAD_DIM, OUT), "bias": normal(OUT)}}


INPUTS = (generator(2)(2, 4, 7), generator(3)(2, 3, 6))
MASK = np.array([[True, True, False], [False, False, False]])[:, None, None, :]


def brute_force(params, q_input, kv_input, mask, gates=(1.0, 1.0), weights_of=lambda p: p):
    """Loops over batch, head and query; a query without keys reads all of them alike."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    out = np.zeros((2, 4, OUT))
    maps = np.zeros((2, HEADS, 4, 3))
    for b in range(2):
        q, k, v = (
            np.einsum("ld,dnh->lnh", x[b].astype(np.float64), p[name]["kernel"]) + p[name]["bias"]
            for x, name in ((q_input, "query"), (kv_input, "key"), (kv_input, "value"))
        )
        q, k = (
            q * np.broadcast_to(gates[0], (2, 1, HEADS, HEAD_DIM))[b],
            (k * np.broadcast_to(gates[1], (2, 1, HEADS, HEAD_DIM))[b]),
        )
        readable = mask[b, 0, 0] if mask[b].any() else np.ones(3, bool)
        for n in range(HEADS):
            for i in range(4):
                scores = np.array([q[i, n] @ k[j, n] / math.sqrt(HEAD_DIM) for j in range(3)])
                e = np.where(readable, np.exp(scores - scores.max()), 0.0)
                maps[b, n, i] = e / e.sum() if mask[b].any() else 1 / 3
        context = np.einsum("nqk,knh->qnh", weights_of(maps)[b], v)
        out[b] = np.einsum("qnh,nhd->qd", context, p["out"]["kernel"]) + p["out"]["bias"]
    return out, maps


def test_attention(params):
    ours = attend(params, *INPUTS, MASK)
    for mine, theirs in zip(ours, brute_force(params, *INPUTS, MASK), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_masked_keys_get_exactly_nothing_and_a_row_without_keys_stays_finite(params):
    out, maps = attend(params, *INPUTS, MASK)
    assert (np.asarray(maps)[0, :, :, 2] == 0).all()
    assert np.isfinite(out).all()


def test_no_mask_reads_every_key(params):
    everything = np.ones_like(MASK)
    ours, theirs = (attend(params, *INPUTS, m) for m in (None, everything))
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_gates_multiply_queries_and_keys(params, normal):
    gates = (1 + normal(2, 1, HEADS, HEAD_DIM), 1 + normal(2, 1, HEADS, HEAD_DIM))
    ours = attend(params, *INPUTS, MASK, None, gates)
    theirs = brute_force(params, *INPUTS, MASK, gates)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)


def test_dropout_of_probabilities_is_not_renormalised(params):
    """The map that is returned is the one before dropout; the output uses the one after."""
    key = jax.random.key(3)
    out, maps = attend(params, *INPUTS, MASK, key, rate=0.5)
    keep = np.asarray(jax.random.bernoulli(key, 0.5, maps.shape))
    theirs, expected_maps = brute_force(
        params, *INPUTS, MASK, weights_of=lambda p: np.where(keep, 2 * p, 0)
    )
    np.testing.assert_allclose(maps, expected_maps, atol=1e-5)
    np.testing.assert_allclose(out, theirs, atol=1e-5)


def test_probabilities_are_float32_under_bfloat16(params):
    out, maps = attend(params, *INPUTS, MASK, numerics=BFLOAT16)
    assert (out.dtype, maps.dtype) == (jnp.bfloat16, jnp.float32)
    # float32 resolves the sum to 1e-6, bfloat16 would to 1e-2
    np.testing.assert_allclose(maps[0].sum(-1), 1.0, atol=1e-6)


# ------------------------------------------------------------------------------ feed-forward


def test_feed_forward_is_post_norm(normal):
    stream = StreamConfig(1, 4, 2, 6, activation="relu")
    p = {
        "up": {"kernel": normal(4, 6), "bias": normal(6)},
        "down": {"kernel": normal(6, 4), "bias": normal(4)},
        "norm": {"scale": normal(4), "bias": normal(4)},
    }
    x = normal(2, 3, 4)
    ours = jax.jit(layers.FeedForward(stream, FLOAT32, "text_embed").apply)({"params": p}, x)
    hidden = np.maximum(x @ p["up"]["kernel"] + p["up"]["bias"], 0)
    y = hidden @ p["down"]["kernel"] + p["down"]["bias"] + x
    y = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)
    np.testing.assert_allclose(ours, y * p["norm"]["scale"] + p["norm"]["bias"], atol=1e-5)


@pytest.mark.parametrize(
    "x, kernel, summed",
    [((2, 3, 5), (5, 4, 2), 1), ((2, 3, 4, 2), (4, 2, 5), 2), ((5,), (5, 3), 1)],
)
def test_gradients_of_products_are_those_of_jax(x, kernel, summed):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in (x, kernel))
    dims = ((tuple(range(x.ndim - summed, x.ndim)), tuple(range(summed))), ((), ()))

    def gradients(dot):
        return jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(dot(x, kernel, dims))), (0, 1)))

    for ours, theirs in zip(
        gradients(layers.product)(x, kernel), gradients(jax.lax.dot_general)(x, kernel), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
