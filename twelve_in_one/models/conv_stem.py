"""Convolutions in front of a Vision Transformer, in place of its patch embedding.

Xiao et al. 2021, "Early Convolutions Help Transformers See Better", with group norm instead of
batch norm, so that rows of a batch do not depend on each other.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.layers import Numerics

_GROUPS = 8


class ConvStem(nn.Module):
    """3 x 3 convolutions, each of which halves the sides; widths double from one to the next.

    Attributes:
      width: channels D of the last.
      halvings: number of convolutions.
      axis: logical name of D.
      numerics: compute dtype and epsilon.
    """

    width: int
    halvings: int
    axis: str
    numerics: Numerics

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, Y / 2**halvings, X / 2**halvings, D] of images [B, Y, X, 3]."""
        x = jnp.asarray(images, self.numerics.dtype)
        for i, channels in enumerate(widths(self.width, self.halvings)):
            axis = self.axis if channels == self.width else None
            kernel = nn.initializers.lecun_normal()
            x = nn.Conv(
                channels,
                (3, 3),
                strides=2,
                use_bias=False,
                dtype=self.numerics.dtype,
                kernel_init=nn.with_logical_partitioning(kernel, (None, None, None, axis)),
                name=f"conv_{i}",
            )(x)
            x = nn.GroupNorm(
                _GROUPS,
                epsilon=self.numerics.layer_norm_eps,
                dtype=self.numerics.dtype,
                use_fast_variance=False,
                scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), (axis,)),
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (axis,)),
                name=f"norm_{i}",
            )(x)
            x = nn.relu(x)
        return x


def widths(width: int, halvings: int) -> list[int]:
    """Channels of each convolution: the last has all, and each half as many as the next."""
    return [width >> i for i in reversed(range(halvings))]


def macs(width: int, image_size: tuple[int, int], patch_size: int) -> int:
    """Multiplications of the stem for one picture, of the rows of pixels that padding adds too."""
    total, before, side = 0, 3, 2
    for channels in widths(width, patch_size.bit_length() - 1):
        pixels = image_size[0] // side * (image_size[1] // side)
        total += pixels * 9 * before * channels
        before, side = channels, 2 * side
    return total


def misfits(width: int, patch_size: int) -> list[str]:
    """Why there can be no stem of this width that shrinks pictures by `patch_size`."""
    halvings = patch_size.bit_length() - 1
    if patch_size < 2 or patch_size != 1 << halvings:
        return [f"the stem's convolutions halve: patch_size {patch_size} is no power of two"]
    if width % (_GROUPS << (halvings - 1)):
        first = _GROUPS << (halvings - 1)
        return [f"hidden_dim {width} should be a multiple of {first}, for groups of the stem"]
    return []
