"""ResNet and ResNeXt bodies of detectors, on photos that cover a part of their canvas.

Batch norms are frozen and part of the convolutions. Before every convolution that looks at
neighbours, cells outside the photo are set to 0, which is what a convolution sees beyond the border
of a map: results do not depend on the canvas.

Shape letters: B photos, Y and X cells, D channels.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.detection.resize import covered

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a body.

    Attributes:
      blocks: of each stage.
      stem_dim: width of the first convolution.
      inner_dim: width of the 3 x 3 convolutions of the first stage; doubles from stage to stage.
      dim: width of the first stage's output; doubles in the same way.
      groups: of the 3 x 3 convolutions.
      stride_in_1x1: where a stage's stride is: in the first convolution of its first block, or in
        the 3 x 3 one.
      open_pool: the stem's pooling has no border and counts windows that stick out (Caffe).
      dtype: compute dtype.
    """

    blocks: tuple[int, ...]
    stem_dim: int = 64
    inner_dim: int = 64
    dim: int = 256
    groups: int = 1
    stride_in_1x1: bool = False
    open_pool: bool = False
    dtype: str = "float32"

    def stage_dim(self, stage: int) -> int:
        """D after a stage, counted from 0."""
        return self.dim << stage


def halved(size: Any) -> Any:
    """Cells of a map after a stride of 2, of an array or a number."""
    return (size + 1) // 2


class ResNet(nn.Module):
    """Stem and stages; each stage after the first has half the cells."""

    config: ResNetConfig

    @nn.compact
    def __call__(self, pixels: Array, sizes: Array) -> tuple[list[Array], list[Array]]:
        """The maps of the stem and of all stages.

        Args:
          pixels: float32[B, Y, X, 3], 0 outside the photo.
          sizes: int32[B, 2], rows and columns that count.

        Returns:
          [B, Y', X', D] for each, and int32[B, 2] for each, which cells count.
        """
        config = self.config
        x = convolution(config.stem_dim, 7, stride=2, dtype=config.dtype, name="stem")(
            pixels.astype(config.dtype)
        )
        sizes = halved(sizes)
        x = masked(nn.relu(x), sizes)
        x = stem_pool(x, config.open_pool)
        sizes = sizes // 2 if config.open_pool else halved(sizes)
        maps, all_sizes = [x], [sizes]
        for i, blocks in enumerate(config.blocks):
            stride = 2 if i else 1
            stage = Stage(config, blocks, i, stride, name=f"stage_{i + 1}")
            x = stage(x, sizes)
            sizes = halved(sizes) if i else sizes
            maps.append(x)
            all_sizes.append(sizes)
        return maps, all_sizes


class Stage(nn.Module):
    """Blocks of one width; those after the first run in a scan, their parameters stacked.

    Attributes:
      config: of the body.
      blocks: how many.
      index: of the stage, from 0, which says its widths.
      stride: of the first block.
      dilation: of the 3 x 3 convolutions.
    """

    config: ResNetConfig
    blocks: int
    index: int
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array, sizes: Array | None) -> Array:
        """[B, Y, X, D] to [B, Y / stride, X / stride, D'], rounded up; None for `sizes`: all."""
        options = dict(config=self.config, index=self.index, dilation=self.dilation)
        x, _ = Bottleneck(**options, stride=self.stride, first=True, name="block_0")(x, sizes)
        if self.blocks > 1:
            if sizes is not None and self.stride == 2:
                sizes = halved(sizes)
            scanned = nn.scan(
                Bottleneck,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=self.blocks - 1,
            )
            x, _ = scanned(**options, name="blocks")(x, sizes)
        return x


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions around a shortcut."""

    config: ResNetConfig
    index: int
    dilation: int = 1
    stride: int = 1
    first: bool = False

    @nn.compact
    def __call__(self, x: Array, sizes: Array | None) -> tuple[Array, None]:
        """Like `Stage`; the second value is for the scan."""
        config, stride = self.config, self.stride
        inner, outer = config.inner_dim << self.index, config.stage_dim(self.index)
        strides = (stride, 1) if config.stride_in_1x1 else (1, stride)
        y = convolution(inner, 1, stride=strides[0], dtype=config.dtype, name="conv_1")(x)
        inside = halved(sizes) if sizes is not None and strides[0] == 2 else sizes
        y = convolution(
            inner,
            3,
            stride=strides[1],
            dilation=self.dilation,
            groups=config.groups,
            dtype=config.dtype,
            name="conv_2",
        )(masked(nn.relu(y), inside))
        y = convolution(outer, 1, dtype=config.dtype, name="conv_3")(nn.relu(y))
        if self.first:
            x = convolution(outer, 1, stride=stride, dtype=config.dtype, name="shortcut")(x)
        return nn.relu(x + y), None


def stem_pool(x: Array, open_border: bool) -> Array:
    """Largest of 3 x 3 cells at every second one, of [B, Y, X, D] that are not negative."""
    border = [(0, 1 - side % 2) if open_border else (1, 1) for side in x.shape[1:3]]
    return nn.max_pool(x, (3, 3), (2, 2), border)


def convolution(
    dim: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    dtype: str = "float32",
    name: str | None = None,
) -> nn.Conv:
    """A convolution with a bias and a border of zeros that keeps the cells, but for the stride."""
    border = dilation * (kernel // 2)
    return nn.Conv(
        dim,
        (kernel, kernel),
        strides=stride,
        padding=border,
        kernel_dilation=dilation,
        feature_group_count=groups,
        dtype=dtype,
        kernel_init=nn.initializers.he_normal(),
        name=name,
    )


def masked(x: Array, sizes: Array | None) -> Array:
    """Maps [B, Y, X, D], 0 outside `sizes`, int32[B, 2]; None for all that there is."""
    if sizes is None:
        return x
    inside = jax.vmap(lambda size: covered(x.shape[1:3], size))(sizes)
    return jnp.where(inside[..., None], x, 0)
