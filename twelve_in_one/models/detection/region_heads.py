"""What a detector says of boxes: another box, a vector in the space of texts, and a mask.

None of it depends on the classes, which may be others in every call: they are given as vectors.

Letters: R boxes, P bins of a side, D channels, H hidden size, E size of texts' vectors, C classes,
M side of a mask.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.detection.pyramid import Enlarge, conv, norm

Array = jax.Array

BOX_BINS, MASK_BINS = 7, 14
MASK_SIDE = 2 * MASK_BINS
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_INPUT_FACTOR = 20.0
_TEMPERATURE = 0.01


class BoxHead(nn.Module):
    """Four convolutions and a hidden layer, then deltas of the box and its vector.

    Attributes:
      dim: D.
      layers: convolutions.
      hidden_dim: H.
      embed_dim: E.
      normalised: the layer that makes the vector has weights and inputs of length 1, the latter
        times 20.
      dtype: of the computation.
    """

    dim: int
    layers: int
    hidden_dim: int
    embed_dim: int
    normalised: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pooled: Array) -> tuple[Array, Array]:
        """Deltas float32[R, 4] and vectors float32[R, E] from [R, P, P, D]."""
        x = pooled
        for i in range(self.layers):
            x = nn.relu(
                norm(self.dtype, f"norm_{i}")(conv(self.dim, 3, self.dtype, f"conv_{i}")(x))
            )
        x = x.reshape(len(x), -1)
        x = nn.Dense(self.hidden_dim, use_bias=False, dtype=self.dtype, name="hidden")(x)
        x = nn.relu(norm(self.dtype, "hidden_norm")(x)).astype(jnp.float32)
        small = nn.initializers.normal(0.001)
        deltas = nn.Dense(4, kernel_init=small, name="deltas")(x)
        kernel = self.param(
            "embedding", nn.initializers.normal(0.01), (self.hidden_dim, self.embed_dim)
        )
        if self.normalised:
            kernel = unit(kernel, axis=0)
            x = _INPUT_FACTOR * unit(x)
        return deltas, x @ kernel


class MaskHead(nn.Module):
    """Convolutions, then twice the resolution, and one mask whatever the class.

    Attributes:
      dim: D.
      layers: convolutions.
      dtype: of the computation.
    """

    dim: int
    layers: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pooled: Array) -> Array:
        """Logits float32[R, M, M] from [R, M / 2, M / 2, D]."""
        x = pooled
        for i in range(self.layers):
            x = nn.relu(
                norm(self.dtype, f"norm_{i}")(conv(self.dim, 3, self.dtype, f"conv_{i}")(x))
            )
        x = nn.relu(Enlarge(self.dim, self.dtype, name="up")(x))
        return nn.Conv(1, (1, 1), name="mask")(x.astype(jnp.float32))[..., 0]


def unit(x: Array, axis: int = -1) -> Array:
    """Vectors of length 1."""
    # Added inside the root: the slope of a root at 0 is not finite.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + 1e-12)


def class_logits(vectors: Array, background: Array, classes: Array, temperature: Array) -> Array:
    """Cosines with the background's vector and those of the classes, over 0.01 times a temperature.

    Args:
      vectors: float32[..., R, E] of boxes.
      background: float32[E].
      classes: float32[C, E].
      temperature: float32[], learned, 1 at first.

    Returns:
      float32[..., R, 1 + C], the background first.
    """
    texts = unit(jnp.concatenate([background[None], classes]))
    return unit(vectors) @ texts.T / (_TEMPERATURE * temperature)
