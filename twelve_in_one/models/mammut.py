"""MaMMUT: an image encoder and one text decoder that runs in two passes (Kuo et al. 2023).

The contrastive pass reads a text in both directions and skips the cross-attention, with its
feed-forward blocks: a text becomes a vector. The generative pass reads it causally, with
cross-attention to the image's tokens, and scores every next token. Both share all other weights,
and one encoding of the image. What distinguishes the paper's form from that of open_clip is config.

Letters: B rows, K image tokens, De width of the encoder, Db of the bridge, D of the decoder, E of
the vectors, L tokens of a text, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.decoder_block import TextDecoderConfig
from twelve_in_one.models.layers import dense, fold_key
from twelve_in_one.models.text_decoder import TextDecoder, readable, shift_right
from twelve_in_one.models.two_tower import unit_vectors
from twelve_in_one.models.vit import ViT, ViTConfig

Array = jax.Array

LOSSES = ("focal", "softmax")


@dataclasses.dataclass(frozen=True)
class MammutConfig:
    """Sizes, numerics and options.

    Attributes:
      encoder: the Vision Transformer. Its `pool` makes the image's vector; with `norm_pooled` the
        decoder reads the tokens of the last block as they are, the class token included.
      decoder: the text decoder. Its `encoder_dim` is the width Db of the bridge, a linear map of
        the image's tokens; `max_tokens` counts the start of a text too.
      embed_dim: E.
      image_projection: a linear map makes the image's vector of the pooled one (open_clip); else
        the bridge does (the paper).
      text_projection: a linear map makes the text's vector of the mean state; else that is the
        vector, and E = D.
      mask_padding: the contrastive pass neither reads padding nor averages it; open_clip's does.
      causal_contrast: the contrastive pass reads only backwards, like the generative one.
      prefix_lm: the generative pass reads prompts in both directions.
      contrast: "focal", a sigmoid for every pair with less weight on easy ones (the paper), or
        "softmax" over texts and over images (CLIP).
      focal_gamma: how much less: the exponent of the error's probability.
      skip_same_text: pairs of rows with equal texts take no part in the contrast.
      contrast_chunk: columns of the matrix of pairs that a device computes at a time; 0 for all.
      temperature: initial divisor of cosines; it is learned.
      scale_limits: of the factor on cosines, 1 / temperature; () for none.
      contrast_weight: of the contrastive loss.
      caption_weight: of the generative loss.
      label_smoothing: share of the target spread over all other tokens.
      per_token: the generative loss is a mean over tokens, rather than over texts.
      pixel_mean: of the pixels (0 to 1) that the weights were trained on, per channel. Images are
        given in [-1, 1]; one half leaves them there.
      pixel_std: their standard deviation.
      pad_id: of the tokenizer, like the two below.
      eos_id: end of text.
      start_id: what the decoder reads first.
    """

    encoder: ViTConfig
    decoder: TextDecoderConfig
    embed_dim: int
    image_projection: bool = False
    text_projection: bool = False
    mask_padding: bool = True
    causal_contrast: bool = False
    prefix_lm: bool = False
    contrast: Literal["focal", "softmax"] = "focal"
    focal_gamma: float = 1.0
    skip_same_text: bool = True
    contrast_chunk: int = 0
    temperature: float = 1.0
    scale_limits: tuple[float, ...] = ()
    contrast_weight: float = 1.0
    caption_weight: float = 1.0
    label_smoothing: float = 0.0
    per_token: bool = True
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 0

    def __post_init__(self) -> None:
        errors = []
        if self.encoder.num_classes or self.encoder.representation:
            errors.append("encoder.num_classes should be 0 and encoder.representation False")
        if self.encoder.pool == "none":
            errors.append('encoder.pool "none" gives no vector')
        if not self.image_projection and self.decoder.encoder_dim != self.embed_dim:
            errors.append(
                f"without image_projection embed_dim {self.embed_dim} should be the bridge's "
                f"width, decoder.encoder_dim {self.decoder.encoder_dim}"
            )
        if not self.text_projection and self.decoder.hidden_dim != self.embed_dim:
            errors.append(
                f"without text_projection embed_dim {self.embed_dim} should be the decoder's "
                f"width, decoder.hidden_dim {self.decoder.hidden_dim}"
            )
        if self.decoder.max_tokens < 2:
            errors.append("decoder.max_tokens should be at least 2: a start and a token")
        if self.contrast not in LOSSES:
            errors.append(f"contrast {self.contrast!r} is none of {', '.join(LOSSES)}")
        for name in ("focal_gamma", "contrast_chunk", "contrast_weight", "caption_weight"):
            if getattr(self, name) < 0:
                errors.append(f"{name} {getattr(self, name)} should not be negative")
        if not self.contrast_weight and not self.caption_weight:
            errors.append("contrast_weight and caption_weight are both 0: there is no loss")
        if not 0 <= self.label_smoothing < 1:
            errors.append(f"label_smoothing {self.label_smoothing} should be in [0, 1)")
        limits = self.scale_limits
        if not self.temperature > 0:
            errors.append(f"temperature {self.temperature} should be positive")
        elif limits and not (
            len(limits) == 2 and 0 < limits[0] <= 1 / self.temperature <= limits[1]
        ):
            errors.append(
                f"scale_limits {limits} should be two positive numbers around the initial factor "
                f"1 / temperature = {1 / self.temperature:.4g}"
            )
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            errors.append("pixel_mean and pixel_std should be three numbers each, std above 0")
        if errors:
            raise ValueError("MammutConfig: " + "; ".join(errors))

    @property
    def text_length(self) -> int:
        """L of the longest text, its end included: the decoder also reads its start."""
        return self.decoder.max_tokens - 1


class Encoded(NamedTuple):
    """An encoded image.

    Attributes:
      tokens: [B, K, Db], after the bridge.
      embedding: unit vectors float32[B, E].
    """

    tokens: Array
    embedding: Array


class Passes(NamedTuple):
    """Both passes over a batch of images and their texts.

    Attributes:
      image: unit vectors float32[B, E] of the images.
      text: unit vectors float32[B, E] of the texts.
      scale: float32[], factor on cosines.
      logits: float32[B, L, V] of every label of the texts.
    """

    image: Array
    text: Array
    scale: Array
    logits: Array


class Mammut(nn.Module):
    """The encoder, the bridge and the decoder."""

    config: MammutConfig

    def setup(self) -> None:
        config, numerics = self.config, self.config.decoder.numerics
        self.encoder = ViT(config.encoder)
        self.decoder = TextDecoder(config.decoder)
        axes = ("visual_embed", "pooled")
        self.bridge = dense(config.decoder.encoder_dim, axes, numerics, use_bias=False)
        if config.image_projection:
            self.image_map = dense(config.embed_dim, axes, numerics, use_bias=False)
        if config.text_projection:
            axes = ("text_embed", "pooled")
            self.text_map = dense(config.embed_dim, axes, numerics, use_bias=False)
        start = nn.initializers.constant(-math.log(config.temperature))
        self.log_scale = self.param("log_scale", nn.with_logical_partitioning(start, ()), ())

    def __call__(self, batch: Mapping[str, Array], dropout_key: Array | None = None) -> Passes:
        """Both passes; see `embed_text` and `score` for the batch, besides its `images`."""
        encoded = self.encode(batch["images"], fold_key(dropout_key, 0))
        text = self.embed_text(batch["tokens"], fold_key(dropout_key, 1))
        logits = self.score(encoded.tokens, batch, fold_key(dropout_key, 2))
        return Passes(encoded.embedding, text, self.scale(), logits)

    def encode(self, images: Array, dropout_key: Array | None = None) -> Encoded:
        """Tokens and vectors of images float[B, S, S, 3], or clips, in [-1, 1]."""
        config = self.config
        tokens, aux = self.encoder(self._pixels(images), dropout_key)
        embed = self.image_map if config.image_projection else self.bridge
        return Encoded(self.bridge(tokens), unit_vectors(embed(aux["pooled"])))

    def embed_text(self, tokens: Array, dropout_key: Array | None = None) -> Array:
        """Unit vectors float32[B, E] of texts int32[B, L], each with its end, then padding.

        They are means over the states of the start and all tokens, with `mask_padding` up to the
        first end of text.

        Raises:
          ValueError: texts longer than `text_length`.
        """
        config = self.config
        if tokens.shape[1] > config.text_length:
            raise ValueError(
                f"texts of {tokens.shape[1]} tokens, the model is for {config.text_length} behind "
                "the start"
            )
        inputs = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=config.start_id)
        mask = readable(inputs.shape[1]) if config.causal_contrast else None
        real = jnp.pad(until_end(tokens, config.eos_id), ((0, 0), (1, 0)), constant_values=True)
        if config.mask_padding:
            own = real[:, None, None]
            mask = own if mask is None else mask & own
        states, _ = self.decoder.read(inputs, None, mask, dropout_key=dropout_key)
        states = states.astype(jnp.promote_types(states.dtype, jnp.float32))
        if config.mask_padding:
            total = jnp.sum(jnp.where(real[..., None], states, 0.0), axis=1)
            mean = total / jnp.sum(real, axis=1, keepdims=True)
        else:
            mean = jnp.mean(states, axis=1)
        return unit_vectors(self.text_map(mean) if config.text_projection else mean)

    def score(
        self, tokens: Array, batch: Mapping[str, Array], dropout_key: Array | None = None
    ) -> Array:
        """Logits float32[B, L, V] of every label of `batch["tokens"]`, given image tokens.

        Args:
          tokens: [B, K, Db] of `encode`, or those of other images, or zeros.
          batch: tokens int32[B, L], and with `prefix_lm` prompt_length int32[B].
          dropout_key: or None.
        """
        config = self.config
        logits, _ = self.decoder(
            shift_right(batch["tokens"], config.start_id),
            tokens,
            prefix_length=batch["prompt_length"] if config.prefix_lm else None,
            dropout_key=dropout_key,
        )
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def scale(self) -> Array:
        """float32[], the factor on cosines."""
        log_scale = self.log_scale
        if self.config.scale_limits:
            log_scale = held_between(log_scale, *map(math.log, self.config.scale_limits))
        return jnp.exp(log_scale)

    def _pixels(self, images: Array) -> Array:
        """Images as the weights know them."""
        mean, std = self.config.pixel_mean, self.config.pixel_std
        if mean == std == (0.5, 0.5, 0.5):
            return images
        # With x in [-1, 1]: ((x + 1) / 2 - mean) / std
        shape = (1,) * (images.ndim - 1) + (3,)
        mean, std = (jnp.asarray(x, images.dtype).reshape(shape) for x in (mean, std))
        return (images - (2 * mean - 1)) / (2 * std)


def until_end(tokens: Array, eos_id: int) -> Array:
    """bool[B, L], the tokens of texts [B, L] up to the first end of text; all if there is none.

    Not those that differ from padding: in CLIP's vocabulary that is also the number of a piece.
    """
    ends = jnp.cumsum(tokens == eos_id, axis=1)
    return jnp.pad(ends[:, :-1], ((0, 0), (1, 0))) == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def held_between(x: Array, low: float, high: float) -> Array:
    """`x` between `low` and `high`; its gradient is 0 where a step against it leads further out.

    Outside a plain clip has no gradient at all, and would never let a parameter return.
    """
    return jnp.clip(x, low, high)


def _held_forward(x: Array, low: float, high: float) -> tuple[Array, Array]:
    return jnp.clip(x, low, high), x


def _held_backward(low: float, high: float, x: Array, gradient: Array) -> tuple[Array]:
    outwards = ((x >= high) & (gradient < 0)) | ((x <= low) & (gradient > 0))
    return (jnp.where(outwards, 0.0, gradient),)


held_between.defvjp(_held_forward, _held_backward)


def init_params(config: MammutConfig, key: Array) -> Any:
    """Random parameters with their logical axis names."""
    batch = {
        "images": jnp.zeros((1, *config.encoder.input_shape), config.encoder.dtype),
        "tokens": jnp.zeros((1, 1), jnp.int32),
        "prompt_length": jnp.zeros(1, jnp.int32),
    }
    return Mammut(config).init(key, batch)["params"]


@functools.lru_cache(maxsize=16)
def abstract_params(config: MammutConfig) -> Any:
    """Shapes of `init_params`, without computing anything."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
