"""Building blocks shared by the models: embeddings, attention, feed-forward, transformer layer.

All modules are pure: randomness is passed as an explicit key (`dropout_key=None` means no dropout),
so a layer gives the same numbers scanned or unrolled, rematerialised or not, under any name.
Parameters are float32; `Numerics.dtype` is the compute dtype; softmax and layer-norm statistics are
float32. Every parameter and activation carries logical axis names (`parallel/sharding.py`).

Shape letters: see `models/two_stream/config.py`.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.two_stream.config import Numerics, StreamConfig
from twelve_in_one.parallel.sharding import constrain

Array = jax.Array
_log = logging.getLogger(__name__)

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
    "relu": jax.nn.relu,
    "swish": jax.nn.swish,
}
# Score of a masked key: its probability underflows to exactly 0 in float32, and being finite it
# keeps a row whose keys are all masked (a padded example) free of NaN.
_MASKED_SCORE = -1e9


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function `name`, one of `config.ACTIVATIONS`."""
    return _ACTIVATIONS[name]


def fold_key(key: Array | None, *ids: int | Array) -> Array | None:
    """`key` folded with each of `ids`; None stays None (no dropout)."""
    if key is not None:
        for i in ids:
            key = jax.random.fold_in(key, i)
    return key


def split_key(key: Array | None, num: int) -> tuple[Array | None, ...]:
    """`num` independent keys; all None when there is no dropout."""
    return (None,) * num if key is None else tuple(jax.random.split(key, num))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout: zeroes a share `rate` of `x` and divides the rest by 1 - rate."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def table_init(numerics: Numerics, *axes: str) -> nn.initializers.Initializer:
    """N(0, initializer_range), untruncated, like every matrix and table of the released code."""
    if numerics.initializer_range is None:
        return nn.with_logical_partitioning(nn.initializers.xavier_uniform(), axes)
    normal = nn.initializers.normal(numerics.initializer_range)
    return nn.with_logical_partitioning(normal, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def product(
    x: Array,
    kernel: Array,
    dimension_numbers: jax.lax.DotDimensionNumbers,
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: Any = None,
) -> Array:
    """`jax.lax.dot_general` of the last dimensions of `x` with the first ones of `kernel`.

    [..., *C] x [*C, *F] -> [..., *F], with C inputs and F outputs of one or more dimensions.
    Its gradient of the kernel is a product that comes out as the kernel lies in memory. JAX's own
    comes out transposed: XLA then transposes an operand instead, and where the kernel has several
    output dimensions each reader of the gradient steps through it column by column.
    """
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision, preferred_element_type)


def _product_forward(x: Array, kernel: Array, *options: Any) -> tuple[Array, tuple[Array, Array]]:
    return jax.lax.dot_general(x, kernel, *options), (x, kernel)


def _product_backward(
    dimension_numbers: jax.lax.DotDimensionNumbers,
    precision: jax.lax.PrecisionLike,
    _: Any,
    kept: tuple[Array, Array],
    grad: Array,
) -> tuple[Array, Array]:
    x, kernel = kept
    summed = len(dimension_numbers[0][0])
    # As matrices: products over several dimensions of a kernel would transpose it first.
    flat = kernel.reshape(math.prod(kernel.shape[:summed]), -1)
    rows, grads = x.reshape(-1, flat.shape[0]), grad.reshape(-1, flat.shape[1])
    of_x = jax.lax.dot_general(grads, flat, (((1,), (1,)), ((), ())), precision)
    of_kernel = jax.lax.dot_general(rows, grads, (((0,), (0,)), ((), ())), precision)
    return of_x.reshape(x.shape), of_kernel.reshape(kernel.shape)


product.defvjp(_product_forward, _product_backward)


def dense(
    features: int | tuple[int, ...],
    axes: tuple[str, ...],
    numerics: Numerics,
    *,
    name: str | None = None,
    contract: int = 1,
    bias: float = 0.0,
    use_bias: bool = True,
) -> nn.DenseGeneral:
    """A linear map of the last `contract` dimensions to `features`.

    `axes` are the logical names of the kernel's dimensions, inputs first. Every bias, if there are
    any, starts at `bias`.
    """
    constant = nn.initializers.constant(bias)
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-contract, 0)),
        use_bias=use_bias,
        dtype=numerics.dtype,
        kernel_init=table_init(numerics, *axes),
        bias_init=nn.with_logical_partitioning(constant, axes[contract:]),
        name=name,
        dot_general=product,
    )


def layer_norm(
    axis: str, numerics: Numerics, *, name: str | None = None, use_bias: bool = True
) -> nn.LayerNorm:
    """Layer norm of the last dimension: biased variance, epsilon inside the root, scale, bias."""
    return nn.LayerNorm(
        epsilon=numerics.layer_norm_eps,
        use_bias=use_bias,
        dtype=numerics.dtype,
        use_fast_variance=False,  # E[x^2] - E[x]^2 cancels badly at an epsilon of 1e-12
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), (axis,)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (axis,)),
        name=name,
    )


def attention_kernel(dtype: str | jnp.dtype) -> Literal["cudnn", "einsum"]:
    """The kernel of `attend` on this machine, without a mask and if no probabilities are requested.

    cuDNN's fused kernel never writes the [B, N, Q, K] scores to memory. It needs a GPU and half
    precision; elsewhere XLA optimises the einsum.
    """
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return "cudnn" if half and jax.default_backend() == "gpu" else "einsum"


@functools.cache  # once per process
def _say_fused() -> None:
    _log.info("attention: cuDNN's fused kernel (jax.nn.dot_product_attention)")


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    with_probabilities: bool = True,
    heads_first: bool = False,
) -> tuple[Array, Array | None]:
    """Scaled dot-product attention.

    Args:
      query: [B, Q, N, H].
      key: [B, K, N, H].
      value: [B, K, N, H].
      mask: bool, broadcastable to [B, N, Q, K]; True where a key may be read. None reads all.
      dropout_rate: on the probabilities, without renormalisation.
      dropout_key: key of the dropout, or None.
      with_probabilities: return them. Without them, a mask and dropout, uses the device's fused
        kernel if there is one (`attention_kernel`), and the log says so.
      heads_first: keys and values are [B, N, K, H], as the products need them; worth it where the
        same ones are read again and again.

    Returns:
      context [B, Q, N, H], and the probabilities before dropout, float32[B, N, Q, K], or None.
    """
    dropped = dropout_key is not None and dropout_rate > 0.0
    # cuDNN's gradients under a mask need even lengths, and it knows head sizes in steps of 8.
    plain = mask is None and not dropped and query.shape[-1] % 8 == 0
    if plain and not with_probabilities and attention_kernel(query.dtype) == "cudnn":
        _say_fused()
        if heads_first:
            key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn"), None
    # Heads first, as the products need them: left to XLA, the copies cost four times as much.
    query = jnp.swapaxes(query, 1, 2)
    if not heads_first:
        key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    # [B, N, Q, H] x [B, N, K, H] -> [B, N, Q, K]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bnqh,bnkh->bnqk", query, key, preferred_element_type=wide)
    scores = scores / query.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.asarray(_MASKED_SCORE, wide))
    probabilities = jax.nn.softmax(scores, axis=-1)
    weights = dropout(probabilities, dropout_rate, dropout_key).astype(value.dtype)
    # [B, N, Q, K] x [B, N, K, H] -> [B, N, Q, H]
    context = jnp.swapaxes(jnp.einsum("bnqk,bnkh->bnqh", weights, value), 1, 2)
    return context, probabilities if with_probabilities else None


class Attention(nn.Module):
    """Multi-head attention; the widths of queries' and keys' inputs may differ.

    Serves self-attention and, with `kv_input` from the other stream, co-attention. Decoding keeps
    keys and values: `keys_values` makes them, `read` attends to them.

    Attributes:
      num_heads: N.
      qkv_dim: N * H, the joint width of queries, keys and values.
      out_dim: output width.
      dropout_rate: on the probabilities, without renormalisation.
      numerics: dtype and initialiser.
      q_axis: logical name of the width of the query input and of the output.
      kv_axis: logical name of the width of the key and value input.
      with_probabilities: see `attend`.
      use_bias: whether the four linear maps have biases.
    """

    num_heads: int
    qkv_dim: int
    out_dim: int
    dropout_rate: float
    numerics: Numerics
    q_axis: str
    kv_axis: str
    with_probabilities: bool = True
    use_bias: bool = True

    def setup(self) -> None:
        shape = (self.num_heads, self.qkv_dim // self.num_heads)
        for name, axis in (("query", self.q_axis), ("key", self.kv_axis), ("value", self.kv_axis)):
            axes = (axis, "heads", "head_dim")
            setattr(self, name, dense(shape, axes, self.numerics, use_bias=self.use_bias))
        axes = ("heads", "head_dim", self.q_axis)
        self.out = dense(self.out_dim, axes, self.numerics, contract=2, use_bias=self.use_bias)

    def __call__(
        self,
        q_input: Array,
        kv_input: Array,
        mask: Array | None,
        dropout_key: Array | None = None,
        gates: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Array | None]:
        """Attends from `q_input` to `kv_input`.

        Args:
          q_input: [B, Q, Dq].
          kv_input: [B, K, Dkv].
          mask: bool, broadcastable to [B, N, Q, K]; True where a key may be read. None reads all.
          dropout_key: key of the probabilities' dropout, or None.
          gates: factors [B, 1, N, H] for queries and keys, or None (`dynamic_attention`).

        Returns:
          output [B, Q, out_dim] and the probabilities of `attend`.
        """
        # Queries first: gradients of the input are added in this order, and rounding depends on it.
        query = self._split(self.query(q_input))
        key, value = self.keys_values(kv_input)
        if gates is not None:
            query, key = query * gates[0], key * gates[1]
        return self._attend(query, key, value, mask, dropout_key)

    def keys_values(self, kv_input: Array) -> tuple[Array, Array]:
        """Keys and values [B, K, N, H] of [B, K, Dkv]."""
        return self._split(self.key(kv_input)), self._split(self.value(kv_input))

    def read(
        self,
        q_input: Array,
        key: Array,
        value: Array,
        mask: Array | None,
        dropout_key: Array | None = None,
        *,
        heads_first: bool = False,
    ) -> tuple[Array, Array | None]:
        """Attends from `q_input` to keys and values from `keys_values`; see `attend`."""
        query = self._split(self.query(q_input))
        return self._attend(query, key, value, mask, dropout_key, heads_first)

    def _attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None,
        dropout_key: Array | None,
        heads_first: bool = False,
    ) -> tuple[Array, Array | None]:
        context, probabilities = attend(
            query,
            key,
            value,
            mask,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
            with_probabilities=self.with_probabilities,
            heads_first=heads_first,
        )
        # [B, Q, N, H] -> [B, Q, out_dim]
        return self.out(self._split(context)), probabilities

    def _split(self, x: Array) -> Array:
        """`x` [B, L, N, H], split over devices by rows and heads."""
        return constrain(x, "act_batch", "act_length", "act_heads", "head_dim")


class FeedForward(nn.Module):
    """The feed-forward half of a post-norm layer: LN(dropout(down(act(up(x)))) + x)."""

    stream: StreamConfig
    numerics: Numerics
    axis: str

    @nn.compact
    def __call__(self, x: Array, dropout_key: Array | None = None) -> Array:
        """Maps [B, L, hidden_dim] to [B, L, hidden_dim]."""
        stream = self.stream
        hidden = dense(stream.mlp_dim, (self.axis, "mlp"), self.numerics, name="up")(x)
        hidden = activation(stream.activation)(hidden)
        hidden = constrain(hidden, "act_batch", "act_length", "act_mlp")
        y = dense(stream.hidden_dim, ("mlp", self.axis), self.numerics, name="down")(hidden)
        y = layer_norm(self.axis, self.numerics, name="norm")(
            x + dropout(y, stream.dropout_rate, dropout_key)
        )
        return constrain(y, "act_batch", "act_length", "act_embed")


class TransformerLayer(nn.Module):
    """Post-norm (BERT) self-attention layer of either stream.

    With `gated` (the released code's `dynamic_attention`) queries and keys are multiplied by
    1 + sigmoid(linear(mean text state)), each with its own linear map.
    """

    stream: StreamConfig
    numerics: Numerics
    axis: str
    gated: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        dropout_key: Array | None = None,
        gate_input: Array | None = None,
    ) -> tuple[Array, Array]:
        """Runs the layer.

        Args:
          x: [B, L, hidden_dim].
          mask: bool[B, L], True for real positions.
          dropout_key: key of this layer's dropout, or None.
          gate_input: [B, D] mean text state, read when `gated`.

        Returns:
          [B, L, hidden_dim] and the attention probabilities float32[B, N, L, L].
        """
        stream, keys = self.stream, split_key(dropout_key, 3)
        gates = None
        if self.gated:
            shape = (stream.num_heads, stream.hidden_dim // stream.num_heads)
            axes = ("text_embed", "heads", "head_dim")
            # [B, D] -> [B, 1, N, H]
            query_gate = dense(shape, axes, self.numerics, name="query_gate")(gate_input)[:, None]
            key_gate = dense(shape, axes, self.numerics, name="key_gate")(gate_input)[:, None]
            gates = (1.0 + jax.nn.sigmoid(query_gate), 1.0 + jax.nn.sigmoid(key_gate))
        attended, probabilities = Attention(
            num_heads=stream.num_heads,
            qkv_dim=stream.hidden_dim,
            out_dim=stream.hidden_dim,
            dropout_rate=stream.attention_dropout_rate,
            numerics=self.numerics,
            q_axis=self.axis,
            kv_axis=self.axis,
            name="attention",
        )(x, x, mask[:, None, None, :], keys[0], gates)
        x = layer_norm(self.axis, self.numerics, name="attention_norm")(
            x + dropout(attended, stream.dropout_rate, keys[1])
        )
        x = constrain(x, "act_batch", "act_length", "act_embed")
        x = FeedForward(stream, self.numerics, self.axis, name="feed_forward")(x, keys[2])
        return x, probabilities
