"""The models that turn pixels into tokens, behind one interface for what reads the tokens.

Letters: B rows, S side of a picture in pixels, L tokens, W their width.
"""

import flax.linen as nn

from twelve_in_one.models import efficientnet
from twelve_in_one.models.efficientnet import EfficientNet, EfficientNetConfig
from twelve_in_one.models.vit import ViT, ViTConfig

ImageEncoderConfig = ViTConfig | EfficientNetConfig


def image_encoder(config: ImageEncoderConfig, name: str | None = None) -> nn.Module:
    """A module: (images float[B, S, S, 3], dropout key or None) -> (tokens [B, L, W], dict).

    Pixels are in the range of `pixel_range`.
    """
    model = EfficientNet if isinstance(config, EfficientNetConfig) else ViT
    return model(config, name=name)


def token_width(config: ImageEncoderConfig) -> int:
    """W."""
    if isinstance(config, EfficientNetConfig):
        return config.head_dim
    return config.hidden_dim


def pixel_range(config: ImageEncoderConfig) -> tuple[float, float]:
    """Values of black and white that a model takes."""
    if isinstance(config, EfficientNetConfig):
        return efficientnet.BLACK, efficientnet.WHITE
    return -1.0, 1.0
