"""Two towers, for pictures and for texts, with vectors in one space (SigLIP, LiT).

Shape letters: B pictures, T texts, L tokens of a text, D width, E width of the vectors.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.layers import dropout, fold_key, layer_norm
from twelve_in_one.models.pre_norm import (
    AttentionPool,
    BlocksConfig,
    run_blocks,
    stack_blocks,
    unstack_blocks,
)
from twelve_in_one.models.vit import ViT, ViTConfig
from twelve_in_one.parallel.sharding import constrain

Array = jax.Array

TEXT_POOLS = ("last", "first", "mean", "attention")
# Added to a vector's norm, so that a vector of zeros stays zero.
_NORM_EPS = 1e-8


@dataclasses.dataclass(frozen=True)
class TextTowerConfig(BlocksConfig):
    """Sizes and numerics of a text tower, besides those of its blocks.

    Attributes:
      vocab_size: pieces.
      max_tokens: L, tokens of every text, padding included: SigLIP's tower reads padding like any
        other token, so texts must be padded as in training.
      pool: how tokens become one vector: the "last" (SigLIP), the "first", their "mean", or the
        output of a learned probe ("attention").
      out_dim: E, of the final linear map; 0 omits it.
    """

    vocab_size: int = 32_000
    max_tokens: int = 64
    pool: Literal["last", "first", "mean", "attention"] = "last"
    out_dim: int = 0

    width_axis: ClassVar[str] = "text_embed"

    def _size_errors(self) -> list[str]:
        return super()._size_errors() + [
            f"{name} must be positive, got {getattr(self, name)}"
            for name in ("vocab_size", "max_tokens")
            if getattr(self, name) < 1
        ]

    def _errors(self) -> list[str]:
        errors = super()._errors()
        if self.pool not in TEXT_POOLS:
            errors.append(f"pool {self.pool!r} is none of {', '.join(TEXT_POOLS)}")
        return errors


@dataclasses.dataclass(frozen=True)
class TwoTowerConfig:
    """Both towers, with vectors of the same width.

    Attributes:
      image: its vector is the pooled one, or its linear map (`num_classes`) if it has one.
      text: its vector is the pooled one, or its linear map (`out_dim`).
      temperature: initial factor on cosines in the logits.
      bias: initial value added to logits; None for no bias.
    """

    image: ViTConfig
    text: TextTowerConfig
    temperature: float = 10.0
    bias: float | None = -10.0

    def __post_init__(self) -> None:
        image = self.image.num_classes or self.image.hidden_dim
        text = self.text.out_dim or self.text.hidden_dim
        if image != text:
            raise ValueError(
                f"TwoTowerConfig: pictures' vectors are {image} wide, texts' {text}: set "
                f"text.out_dim={image}, or image.num_classes={text}"
            )
        if self.image.pool == "none":
            raise ValueError('TwoTowerConfig: image.pool "none" gives no vector')
        if not self.temperature > 0:
            raise ValueError(f"TwoTowerConfig: temperature must be positive: {self.temperature}")


def _linear(features: int, axes: tuple[str, str], dtype: str, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
        name=name,
    )


class TextTower(nn.Module):
    """Maps token ids to one vector, neither causal nor masked (big_vision's text_transformer)."""

    config: TextTowerConfig

    @nn.compact
    def __call__(
        self, tokens: Array, dropout_key: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Encodes texts.

        Args:
          tokens: int32[T, L] below `vocab_size`, padded to `max_tokens`.
          dropout_key: key of dropout and drop path, or None.

        Returns:
          The states after the last norm, [T, L, D], and the named intermediates: "embedded"
          [T, L, D] (with positions), "block_i/NAME" of every block (not scanned), "pooled" [T, D],
          "vector" [T, E].

        Raises:
          ValueError: texts of another length.
        """
        config, numerics = self.config, self.config.numerics
        if tokens.shape[1:] != (config.max_tokens,):
            raise ValueError(
                f"texts of shape {tokens.shape[1:]}, the model is for {(config.max_tokens,)}: pad "
                "or cut them"
            )
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        embed = nn.Embed(
            config.vocab_size,
            config.hidden_dim,
            dtype=numerics.dtype,
            embedding_init=nn.with_logical_partitioning(init, ("vocab", "text_embed")),
            name="token",
        )
        init = nn.initializers.normal(config.hidden_dim**-0.5)
        positions = self.param(
            "position",
            nn.with_logical_partitioning(init, ("positions", "text_embed")),
            (config.max_tokens, config.hidden_dim),
        )
        x = embed(tokens) + positions.astype(numerics.dtype)[None]
        x = constrain(x, "act_batch", "act_length", "act_embed")
        aux = {"embedded": x}
        x = dropout(x, config.dropout_rate, fold_key(dropout_key, 0))
        x, blocks = run_blocks(config, x, fold_key(dropout_key, 1))
        states = layer_norm("text_embed", numerics, name="final_norm")(x)
        if config.pool == "attention":
            pooled = AttentionPool(config, name="attention_pool")(states)
        elif config.pool == "mean":
            pooled = jnp.mean(states, axis=1)
        else:
            pooled = states[:, -1 if config.pool == "last" else 0]
        aux |= blocks | {"pooled": pooled, "vector": pooled}
        if config.out_dim:
            axes = ("text_embed", "pooled")
            aux["vector"] = _linear(config.out_dim, axes, numerics.dtype, "projection")(pooled)
        return states, aux


class Vectors(NamedTuple):
    """Unit vectors of pictures float32[B, E] and texts [T, E], and the scaling of their logits."""

    image: Array
    text: Array
    temperature: Array
    bias: Array

    def logits(self) -> Array:
        """float32[B, T], temperature * cosine + bias."""
        return self.temperature * (self.image @ self.text.T) + self.bias


class TwoTower(nn.Module):
    """Both towers, and the temperature and bias of their logits."""

    config: TwoTowerConfig

    def setup(self) -> None:
        config = self.config
        # A zero linear map would give no unit vectors to learn from.
        self.image = ViT(dataclasses.replace(config.image, zero_classifier=False))
        self.text = TextTower(config.text)
        start = nn.initializers.constant(math.log(config.temperature))
        self.log_temperature = self.param(
            "log_temperature", nn.with_logical_partitioning(start, ()), ()
        )
        if config.bias is not None:
            start = nn.initializers.constant(config.bias)
            self.bias = self.param("bias", nn.with_logical_partitioning(start, ()), ())

    def __call__(
        self, images: Array, tokens: Array, dropout_key: Array | None = None
    ) -> tuple[Vectors, dict[str, Array]]:
        """Encodes pictures and texts.

        Args:
          images: float[B, Y, X, 3], see `ViT`.
          tokens: int32[T, L], see `TextTower`.
          dropout_key: key of dropout and drop path, or None.

        Returns:
          Their vectors, and the towers' intermediates as "image/NAME" and "text/NAME", among them
          "image/tokens" and "text/states".
        """
        image, aux = self.encode_images(images, fold_key(dropout_key, 0))
        text, text_aux = self.encode_texts(tokens, fold_key(dropout_key, 1))
        bias = jnp.zeros(()) if self.config.bias is None else self.bias
        return Vectors(image, text, jnp.exp(self.log_temperature), bias), aux | text_aux

    def encode_images(
        self, images: Array, dropout_key: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Unit vectors float32[B, E] of pictures, and the tower's intermediates."""
        tokens, aux = self.image(images, dropout_key)
        named = {f"image/{name}": value for name, value in (aux | {"tokens": tokens}).items()}
        return unit_vectors(
            aux["logits"] if self.config.image.num_classes else aux["pooled"]
        ), named

    def encode_texts(
        self, tokens: Array, dropout_key: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Unit vectors float32[T, E] of texts, and the tower's intermediates."""
        states, aux = self.text(tokens, dropout_key)
        named = {f"text/{name}": value for name, value in (aux | {"states": states}).items()}
        return unit_vectors(aux["vector"]), named


def unit_vectors(x: Array) -> Array:
    """Vectors [..., E] at length 1, in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + _NORM_EPS)


def init_params(config: TwoTowerConfig, key: Array) -> Any:
    """Random parameters with their logical axis names, as big_vision draws them."""
    images = jnp.zeros((1, *config.image.image_size, 3), config.image.dtype)
    tokens = jnp.zeros((1, config.text.max_tokens), jnp.int32)
    return TwoTower(config).init(key, images, tokens)["params"]


def abstract_params(config: TwoTowerConfig) -> Any:
    """Shapes of `init_params`, without computing anything."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def stack_towers(config: TwoTowerConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled model in the layout of `config`, whose towers may be scanned."""
    return dict(params) | {
        name: stack_blocks(tower, params[name])
        for name, tower in (("image", config.image), ("text", config.text))
        if tower.scan_layers
    }


def unstack_towers(config: TwoTowerConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_towers`."""
    return dict(params) | {
        name: unstack_blocks(tower, params[name])
        for name, tower in (("image", config.image), ("text", config.text))
        if tower.scan_layers
    }
