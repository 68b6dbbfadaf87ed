"""A convolution of each channel for itself, fast on every backend."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class Depthwise(nn.Module):
    """A kernel of k x k for each channel: [B, Y, X, H] to [B, Y / s, X / s, H], rounded up.

    As a sum of shifted products: XLA's grouped convolution takes ten to twenty times as long on a
    CPU (jax 0.10).

    Attributes:
      kernel_size: k.
      stride: s.
      dtype: compute dtype.
      use_bias: add a bias to each channel.
    """

    kernel_size: int
    stride: int = 1
    dtype: Any = "float32"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, stride, width = self.kernel_size, self.stride, x.shape[-1]
        init = nn.with_logical_partitioning(_he_normal, (None, None, "mlp"))
        kernel = self.param("kernel", init, (size, size, width)).astype(self.dtype)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("mlp",))
        total: Array | float = 0.0
        if self.use_bias:
            total = self.param("bias", zeros, (width,)).astype(self.dtype)[None, None, None]
        x = jnp.pad(x, ((0, 0), *(_padding(n, size, stride) for n in x.shape[1:3]), (0, 0)))
        batch, rows, columns = x.shape[0], x.shape[1] - size + 1, x.shape[2] - size + 1
        taps = kernel.reshape(1, size * size, 1, width)
        for place in range(size * size):
            # Indices in brackets would take most of the time of tracing a network.
            i, j = divmod(place, size)
            shifted = jax.lax.slice(x, (0, i, j, 0), (batch, i + rows, j + columns, width))
            total = total + shifted * jax.lax.slice_in_dim(taps, place, place + 1, axis=1)
        return total[:, ::stride, ::stride] if stride > 1 else total


def _padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: rows before and after `length` rows, an odd one after."""
    needed = max((-(-length // stride) - 1) * stride + size - length, 0)
    return needed // 2, needed - needed // 2


def _he_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Each of the [k, k, H] kernels sees k * k inputs."""
    rows, columns, _ = shape
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / (rows * columns))
