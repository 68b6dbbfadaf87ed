"""CenterNet (Zhou et al. 2019) on MobileNetV3 (Howard et al. 2019): objects as peaks of a heat map.

Every class has a map of the places where a centre of it may be, and every place has the distances
from it to the four sides of its box. A peak is a place that none of its neighbours exceeds: nothing
has to be suppressed afterwards, and the number of boxes is fixed. Batch norms are part of the
convolutions in the published weights.

Shape letters: B photos, Y and X pixels, y and x cells of the heat map (a quarter of the pixels),
C classes, N boxes.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.depthwise import Depthwise
from twelve_in_one.models.efficientnet import relu6

Array = jax.Array

# One sixth, as it is stored beside the published weights: in float16.
SIXTH = 0.16662598
_CELL = 4  # pixels
_DISTANCE_UNIT = 16  # pixels
# The coarsest map, in pixels a cell: canvases are multiples of it.
STRIDE = 32


class Block(NamedTuple):
    """A block of the trunk: expands, filters each channel, weighs the channels, projects.

    Attributes:
      kernel: side of the depthwise kernels.
      stride: of the depthwise convolution.
      hidden: width after expanding; 0 omits the expanding convolution.
      dim: width of the output.
      squeezed: width of the layer between the channels' means and their weights; 0 omits it.
      swish: hard-swish after both convolutions instead of ReLU.
    """

    kernel: int
    stride: int
    hidden: int
    dim: int
    squeezed: int
    swish: bool


_BLOCKS = (
    Block(3, 1, 0, 16, 0, False),
    Block(3, 2, 64, 24, 0, False),
    Block(3, 1, 72, 24, 0, False),
    Block(5, 2, 72, 32, 24, False),
    Block(5, 1, 96, 32, 24, False),
    Block(5, 1, 96, 32, 24, False),
    Block(3, 2, 192, 64, 0, True),
    Block(3, 1, 160, 64, 0, True),
    Block(3, 1, 144, 64, 0, True),
    Block(3, 1, 144, 64, 0, True),
    Block(3, 1, 384, 88, 96, True),
    Block(3, 1, 528, 88, 136, True),
    Block(5, 2, 528, 120, 136, True),
    Block(5, 1, 720, 120, 184, True),
    Block(5, 1, 720, 120, 184, True),
)


@dataclasses.dataclass(frozen=True)
class CenterNetConfig:
    """Sizes; the defaults are those of the published weights.

    Attributes:
      blocks: of the trunk.
      fine: number of the block whose expanded input is read, in cells of 4 pixels.
      medium: the same in cells of 8 pixels.
      coarse: number of the block whose output is read, in cells of 16 pixels.
      stem_dim: width of the first convolution.
      deep_dim: width of the trunk's last map.
      lateral_dims: widths that the three maps are reduced to, from coarse to fine.
      merge_dims: half the widths of the maps on the way up, from coarse to fine.
      gate_dim: width of the layer that weighs the channels of the finest map.
      num_classes: C.
      dtype: compute dtype of the convolutions; boxes and scores are float32.
    """

    blocks: tuple[Block, ...] = _BLOCKS
    fine: int = 3
    medium: int = 5
    coarse: int = 11
    stem_dim: int = 16
    deep_dim: int = 480
    lateral_dims: tuple[int, int, int] = (22, 24, 18)
    merge_dims: tuple[int, int, int] = (128, 96, 64)
    gate_dim: int = 32
    num_classes: int = 80
    dtype: str = "float32"


class Maps(NamedTuple):
    """The output of the network.

    Attributes:
      heat: float32[B, y, x, C], logits of a centre of each class.
      distances: float32[B, y, x, 4], pixels from a cell's first pixel to the left, upper, right and
        lower side of the box around it.
      deep: [B, Y / 32, X / 32, W], the trunk's last map.
    """

    heat: Array
    distances: Array
    deep: Array


class CenterNet(nn.Module):
    """The network."""

    config: CenterNetConfig

    @nn.compact
    def __call__(self, pixels: Array) -> Maps:
        """Reads photos.

        Args:
          pixels: float[B, Y, X, 3], red, green, blue from 0 to 255; sides are multiples of 32.

        Raises:
          ValueError: other sides.
        """
        config = self.config
        if pixels.shape[1] % STRIDE or pixels.shape[2] % STRIDE:
            raise ValueError(f"sides must be multiples of {STRIDE}, are {pixels.shape[1:3]}")
        stem = nn.Conv(
            config.stem_dim, (3, 3), strides=2, padding="SAME", dtype=config.dtype, name="stem"
        )
        x = _hard_swish(stem(pixels.astype(config.dtype)))
        expanded, outputs = [], []
        for i, block in enumerate(config.blocks):
            x, inside = _Block(config, block, name=f"block_{i}")(x)
            expanded.append(inside)
            outputs.append(x)
        deep = x = _hard_swish(_pointwise(config, config.deep_dim, "deep")(x))
        laterals = (outputs[config.coarse], expanded[config.medium], expanded[config.fine])
        for i, lateral in enumerate(laterals):
            x = _Merge(config, config.lateral_dims[i], config.merge_dims[i], name=f"merge_{i}")(
                x, lateral
            )
        gate = nn.relu(_pointwise(config, config.gate_dim, "gate_in")(_mean(x)))
        gate = nn.Dense(x.shape[-1], use_bias=False, dtype=config.dtype, name="gate_out")(gate)
        x = x * nn.sigmoid(gate)
        heat = _Separable(config, 3, config.num_classes, name="heat")(x)
        distances = _Separable(config, 3, 4, name="distances")(x).astype(jnp.float32)
        return Maps(heat.astype(jnp.float32), distances * _DISTANCE_UNIT, deep)


class _Block(nn.Module):
    """[B, Y, X, D] to [B, Y / stride, X / stride, D'], and the expanded [B, Y, X, H]."""

    config: CenterNetConfig
    block: Block

    @nn.compact
    def __call__(self, inputs: Array) -> tuple[Array, Array]:
        block, dtype = self.block, self.config.dtype
        activation = _hard_swish if block.swish else nn.relu
        x = inputs
        if block.hidden:
            x = activation(_pointwise(self.config, block.hidden, "expand")(x))
        expanded = x
        x = activation(Depthwise(block.kernel, block.stride, dtype, name="depthwise")(x))
        if block.squeezed:
            gate = nn.relu(_pointwise(self.config, block.squeezed, "squeeze")(_mean(x)))
            gate = _pointwise(self.config, x.shape[-1], "excite")(gate)
            x = x * (relu6(gate + 3) * SIXTH)
        x = _pointwise(self.config, block.dim, "project")(x)
        return (x + inputs if x.shape == inputs.shape else x), expanded


class _Merge(nn.Module):
    """A coarse map, doubled, beside a finer one: [B, y, x, D], [B, 2y, 2x, E] to [B, 2y, 2x, W]."""

    config: CenterNetConfig
    lateral_dim: int
    dim: int

    @nn.compact
    def __call__(self, coarse: Array, finer: Array) -> Array:
        up = _Separable(self.config, 3, self.dim, name="up_3")(coarse)
        up = up + _Separable(self.config, 5, self.dim, name="up_5")(coarse)
        lateral = nn.relu(_pointwise(self.config, self.lateral_dim, "reduce")(finer))
        lateral = _Separable(self.config, 5, self.dim, name="lateral")(lateral)
        up = _doubled(_doubled(up, 1), 2)
        return nn.relu(jnp.concatenate([lateral, up], axis=-1))


class _Separable(nn.Module):
    """Filters each channel for itself, then maps each pixel linearly."""

    config: CenterNetConfig
    kernel_size: int
    dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = self.config.dtype
        x = Depthwise(self.kernel_size, 1, dtype, use_bias=False, name="depthwise")(x)
        return _pointwise(self.config, self.dim, "pointwise")(x)


def _pointwise(config: CenterNetConfig, width: int, name: str) -> nn.Dense:
    return nn.Dense(width, dtype=config.dtype, name=name)


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=(1, 2), keepdims=True)


def _hard_swish(x: Array) -> Array:
    return x * SIXTH * relu6(x + 3)


def _doubled(x: Array, axis: int) -> Array:
    """Twice the length: old values, and between each two their mean; the last stands twice.

    TensorFlow's first bilinear interpolation, without half-pixel centres.
    """
    length = x.shape[axis]
    following = jnp.take(x, jnp.minimum(jnp.arange(length) + 1, length - 1), axis=axis)
    pairs = jnp.stack([x, (x + following) / 2], axis=axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])


class Peaks(NamedTuple):
    """Objects, most certain first.

    Attributes:
      boxes: float32[B, N, 4], corners in pixels, perhaps beyond the photo.
      scores: float32[B, N], 0 to 1.
      classes: int32[B, N].
    """

    boxes: Array
    scores: Array
    classes: Array


def find_peaks(maps: Maps, count: int) -> Peaks:
    """The `count` highest peaks of all classes.

    A cell may be a peak of several classes. Every photo has `count` of them, perhaps of score 0.
    """
    heat = jax.nn.sigmoid(maps.heat)
    highest = nn.max_pool(heat, (3, 3), padding="SAME")
    batch, rows, columns, num_classes = heat.shape
    peaks = jnp.where(heat == highest, heat, 0.0).reshape(batch, -1)
    scores, places = jax.lax.top_k(peaks, count)
    cells, classes = places // num_classes, places % num_classes
    distances = maps.distances.reshape(batch, rows * columns, 4)
    sides = jnp.take_along_axis(distances, cells[..., None], axis=1)
    centres = _CELL * jnp.stack([cells % columns, cells // columns], axis=-1)
    boxes = jnp.concatenate([centres - sides[..., :2], centres + sides[..., 2:]], axis=-1)
    return Peaks(boxes, scores, classes)


@functools.cache
def abstract_params(config: CenterNetConfig) -> Any:
    """Shapes of the parameters, without computing anything."""
    pixels = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 3), jnp.float32)
    return nn.unbox(jax.eval_shape(CenterNet(config).init, jax.random.key(0), pixels)["params"])
