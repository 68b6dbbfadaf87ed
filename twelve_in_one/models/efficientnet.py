"""EfficientNet-Lite (Tan and Le 2019; the Lite variant of 2020): pixels to a grid of tokens.

A frozen encoder: batch norms hold the statistics of their training and are part of the convolutions
(`convert/efficientnet.py` multiplies them in), so a picture's tokens never depend on its batch, and
training the weights further leaves the statistics as they are. The Lite variant has no
squeeze-and-excitation, clips activations at 6 and keeps the sizes of stem, head and outer stages.

Shape letters: B batch, Y and X pixels, L tokens (a grid of rows x columns), D width, H width inside
a block, W width of the tokens, C classes.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.depthwise import Depthwise
from twelve_in_one.models.two_stream.config import DTYPES
from twelve_in_one.parallel.sharding import constrain

Array = jax.Array

# Values of black and white that the released weights were trained on: (x - 127) / 128.
BLACK, WHITE = -127 / 128, 1.0
STEM_STRIDE = 2


class Stage(NamedTuple):
    """Blocks of one width; the first of them has the stride.

    Attributes:
      kernel: side of the depthwise kernels.
      stride: of the first block.
      expansion: H divided by the width of a block's input; 1 omits the expanding convolution.
      dim: D.
      num_blocks: how many.
    """

    kernel: int
    stride: int
    expansion: int
    dim: int
    num_blocks: int


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Sizes of an EfficientNet-Lite.

    Attributes:
      stages: from the stem on.
      image_size: rows and columns of pixels.
      stem_dim: width of the first convolution.
      head_dim: W, width of the last convolution.
      num_classes: C; 0 omits the classifier.
      dtype: compute dtype.
    """

    stages: tuple[Stage, ...]
    image_size: tuple[int, int] = (224, 224)
    stem_dim: int = 32
    head_dim: int = 1280
    num_classes: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        # Written as JSON, stages come back as lists.
        object.__setattr__(self, "stages", tuple(Stage(*stage) for stage in self.stages))
        object.__setattr__(self, "image_size", tuple(self.image_size))
        errors = []
        if not self.stages:
            errors.append("no stage")
        sizes = {"stem_dim": self.stem_dim, "head_dim": self.head_dim}
        sizes |= {
            f"stages[{i}].{name}": value
            for i, stage in enumerate(self.stages)
            for name, value in stage._asdict().items()
        }
        errors += [f"{name} must be positive, got {n}" for name, n in sizes.items() if n < 1]
        if self.num_classes < 0:
            errors.append(f"num_classes must not be negative, got {self.num_classes}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            errors.append(f"image_size must be rows and columns of pixels, got {self.image_size}")
        if self.dtype not in DTYPES:
            errors.append(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if errors:
            raise ValueError("EfficientNetConfig: " + "; ".join(errors))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        strides = (STEM_STRIDE, *(stage.stride for stage in self.stages))
        rows, columns = (
            functools.reduce(lambda n, stride: -(-n // stride), strides, side)
            for side in self.image_size
        )
        return rows, columns

    @property
    def num_tokens(self) -> int:
        """L."""
        return math.prod(self.grid)


# Before scaling.
_STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
_WIDTH_MULTIPLE = 8
# Factor of widths, factor of depths, side of a picture in pixels.
_SCALES = {
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}


def named_efficientnet(name: str, **fields: Any) -> EfficientNetConfig:
    """A published size, "lite0" to "lite4"; `fields` are any of `EfficientNetConfig`'s.

    Raises:
      ValueError: no such size, or incompatible fields.
    """
    if name not in _SCALES:
        raise ValueError(f"no EfficientNet {name!r}: one of {', '.join(_SCALES)}")
    width, depth, side = _SCALES[name]
    outer = (0, len(_STAGES) - 1)  # of fixed depth
    stages = tuple(
        stage._replace(
            dim=_scaled_width(stage.dim, width),
            num_blocks=stage.num_blocks if i in outer else math.ceil(stage.num_blocks * depth),
        )
        for i, stage in enumerate(_STAGES)
    )
    return EfficientNetConfig(**dict(stages=stages, image_size=(side, side)) | fields)


def _scaled_width(dim: int, factor: float) -> int:
    """The nearest multiple of eight, but never more than a tenth below."""
    wanted = dim * factor
    width = max(_WIDTH_MULTIPLE, int(wanted + _WIDTH_MULTIPLE / 2) // _WIDTH_MULTIPLE * 8)
    return width + _WIDTH_MULTIPLE if width < 0.9 * wanted else width


class EfficientNet(nn.Module):
    """An EfficientNet-Lite."""

    config: EfficientNetConfig

    @nn.compact
    def __call__(
        self, images: Array, dropout_key: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Encodes pictures.

        Args:
          images: float[B, Y, X, 3] of `config.image_size`, from `BLACK` to `WHITE`.
          dropout_key: not used, as nothing is dropped; other encoders take one.

        Returns:
          The tokens, [B, L, W] row by row, and the named intermediates: "stem" and "block_i",
          [B, rows, columns, D]; "pooled" [B, W], the mean of the tokens; "logits" [B, C].

        Raises:
          ValueError: images of another size.
        """
        config = self.config
        if images.shape[1:] != (*config.image_size, 3):
            raise ValueError(
                f"images of shape {images.shape[1:]}, the model is for {(*config.image_size, 3)}"
            )
        x = relu6(_stem(config)(images.astype(config.dtype)))
        x = constrain(x, "act_batch", None, None, None)
        aux, number = {"stem": x}, 0
        for stage in config.stages:
            for i in range(stage.num_blocks):
                stride = 1 if i else stage.stride
                x = _Block(config, stage._replace(stride=stride), name=f"block_{number}")(x)
                aux[f"block_{number}"] = x
                number += 1
        x = _pointwise(config, config.head_dim, ("visual_embed", "pooled"), "head")(x)
        # [B, rows, columns, W] -> [B, L, W]
        tokens = constrain(
            relu6(x).reshape(x.shape[0], -1, config.head_dim), "act_batch", "act_length", None
        )
        aux["pooled"] = jnp.mean(tokens, axis=1)
        if config.num_classes:
            axes = ("visual_embed", "labels")
            aux["logits"] = _pointwise(config, config.num_classes, axes, "classifier")(
                aux["pooled"]
            )
        return tokens, aux


class _Block(nn.Module):
    """Expands, filters each channel for itself, projects; adds the input if it has the same shape.

    Pixels [B, Y, X, D] become [B, Y / stride, X / stride, D'], rounded up.
    """

    config: EfficientNetConfig
    stage: Stage

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        x, stage = inputs, self.stage
        if stage.expansion != 1:
            width = inputs.shape[-1] * stage.expansion
            x = _pointwise(self.config, width, ("visual_embed", "mlp"), "expand")(x)
            x = constrain(relu6(x), "act_batch", None, None, "act_mlp")
        x = relu6(Depthwise(stage.kernel, stage.stride, self.config.dtype, name="depthwise")(x))
        x = _pointwise(self.config, stage.dim, ("mlp", "visual_embed"), "project")(x)
        x = constrain(x, "act_batch", None, None, None)
        return x + inputs if stage.stride == 1 and x.shape == inputs.shape else x


def relu6(x: Array) -> Array:
    """`x`, clipped to 0 to 6."""
    return jnp.clip(x, 0, 6)


def _stem(config: EfficientNetConfig) -> nn.Conv:
    """The first convolution, 3 x 3 with stride 2: [B, Y, X, 3] to [B, Y / 2, X / 2, D]."""
    axes = (None, None, None, "visual_embed")
    return nn.Conv(
        config.stem_dim,
        (3, 3),
        strides=STEM_STRIDE,
        padding="SAME",
        dtype=config.dtype,
        kernel_init=nn.with_logical_partitioning(_he_normal, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[-1:]),
        name="stem",
    )


def _pointwise(
    config: EfficientNetConfig, width: int, axes: tuple[str, str], name: str
) -> nn.Dense:
    """A convolution of 1 x 1: a linear map of each pixel."""
    return nn.Dense(
        width,
        dtype=config.dtype,
        kernel_init=nn.with_logical_partitioning(_he_normal, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
        name=name,
    )


_he_normal = nn.initializers.he_normal()


def init_params(config: EfficientNetConfig, key: Array) -> Any:
    """Random parameters with their logical axis names (He et al. 2015)."""
    images = jnp.zeros((1, *config.image_size, 3), config.dtype)
    return EfficientNet(config).init(key, images)["params"]


def abstract_params(config: EfficientNetConfig) -> Any:
    """Shapes of `init_params`, without computing anything."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
