"""A feature pyramid from the one map of a plain Vision Transformer (Li et al. 2022, ViTDet).

Letters: B photos, Y and X cells, W width of the map, D channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def norm(dtype: str, name: str) -> nn.LayerNorm:
    """The norm of channels that follows a convolution."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


def conv(dim: int, size: int, dtype: str, name: str) -> nn.Conv:
    """A convolution without a bias, as a norm follows it, that keeps the cells."""
    init = nn.initializers.he_normal()
    return nn.Conv(
        dim, (size, size), padding="SAME", use_bias=False, dtype=dtype, kernel_init=init, name=name
    )


class Enlarge(nn.Module):
    """A transposed convolution of 2 x 2 cells with stride 2, as the product that it is.

    XLA has no fast program for transposed convolutions on CPUs.

    Attributes:
      dim: channels of the result.
      dtype: of the computation.
    """

    dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, Y, X, W] to [B, 2 Y, 2 X, dim]."""
        count, rows, columns, width = x.shape
        x = nn.Dense(4 * self.dim, dtype=self.dtype, name="cells")(x)
        x = x.reshape(count, rows, columns, 2, 2, self.dim)
        return jnp.swapaxes(x, 2, 3).reshape(count, 2 * rows, 2 * columns, self.dim)


def strides(patch: int, extra: bool) -> tuple[int, ...]:
    """Pixels per cell of each level, for patches of so many pixels."""
    found = (patch // 4, patch // 2, patch, 2 * patch)
    return (*found, 4 * patch) if extra else found


class SimplePyramid(nn.Module):
    """P2 to P5, at four times, twice, once and half the resolution of the map, and perhaps P6.

    Attributes:
      dim: D.
      extra: make P6, at a quarter.
      dtype: of the computation.
    """

    dim: int
    extra: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, cells: Array) -> list[Array]:
        """Maps [B, Y, X, W] to maps [B, Y', X', D], finest first."""

        def up(x: Array, width: int, name: str) -> Array:
            return Enlarge(width, self.dtype, name=name)(x)

        fine = norm(self.dtype, "p2_up_norm")(up(cells, self.dim // 2, "p2_up_0"))
        fine = up(jax.nn.gelu(fine, approximate=False), self.dim // 4, "p2_up_1")
        half = nn.max_pool(cells, (2, 2), (2, 2))
        levels = [fine, up(cells, self.dim // 2, "p3_up"), cells, half]
        made = []
        for number, x in enumerate([*levels, half] if self.extra else levels, 2):
            for size in (1, 3):
                x = conv(self.dim, size, self.dtype, f"p{number}_conv_{size}")(x)
                x = norm(self.dtype, f"p{number}_norm_{size}")(x)
            made.append(x[:, ::2, ::2] if number == 6 else x)
        return made
