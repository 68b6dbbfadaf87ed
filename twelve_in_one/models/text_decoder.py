"""The text decoder: writes text about the tokens of an image encoder.

Pre-norm blocks of causal self-attention, cross-attention to the encoder's tokens, and a
feed-forward block, as in big_vision's CapPa (Tschannen et al. 2023), the published relative of
LiT-decoder (Beyer et al. 2023). What differs between decoders is config.

Shape letters: B images, R rows of text (a multiple of B; rows on the same image are neighbours),
L tokens of a text, P prepended embeddings, S places in the self-attention's cache, K encoder
tokens, De their width, D width, N heads, H head size, V vocabulary.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.layers import fold_key, layer_norm
from twelve_in_one.models.pre_norm import (
    BlocksConfig,
    FeedForward,
    add_residual,
    attention,
    rematerialised,
    scanned,
)
from twelve_in_one.parallel.sharding import constrain

Array = jax.Array
KeysValues = tuple[Array, Array]  # [., ., N, H] each


@dataclasses.dataclass(frozen=True)
class TextDecoderConfig(BlocksConfig):
    """Sizes and numerics of a text decoder, besides those of its blocks.

    `dropout_rate` is that of the attention's probabilities, of the attention's outputs and of the
    feed-forward blocks' hidden layer, as in CapPa's code.

    Attributes:
      vocab_size: V.
      max_tokens: the longest text, its prompt and its end included.
      encoder_dim: width of the encoder's tokens; any.
      cross_every: blocks 0, n, 2n, ... have cross-attention; 1 for all.
      block_biases: whether norms and feed-forward blocks in the blocks have biases
        (`decoder_bias` of CapPa; the last norm and the logits always have one).
      attention_biases: whether the attention's linear maps have biases.
      norm_encoder: whether each cross-attention norms the encoder's tokens first.
      tied_logits: whether the token table also makes the logits. It then starts at the scale of the
        positions, so that the first logits are of size 1.
    """

    vocab_size: int = 32_000
    max_tokens: int = 64
    encoder_dim: int = 768
    cross_every: int = 1
    block_biases: bool = True
    attention_biases: bool = False
    norm_encoder: bool = False
    tied_logits: bool = False

    width_axis: ClassVar[str] = "text_embed"
    encoder_axis: ClassVar[str] = "visual_embed"

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Numbers of the blocks with cross-attention."""
        return tuple(range(0, self.num_layers, self.cross_every))

    def _size_errors(self) -> list[str]:
        return super()._size_errors() + [
            f"{name} must be positive, got {getattr(self, name)}"
            for name in ("vocab_size", "max_tokens", "encoder_dim", "cross_every")
            if getattr(self, name) < 1
        ]

    def _errors(self) -> list[str]:
        errors = super()._errors()
        if self.scan_layers and self.cross_every > 1:
            errors.append("scan_layers needs blocks that are all alike: cross_every=1")
        return errors


# width, heads, feed-forward width
_SIZES = {
    "Ti": (192, 3, 768),
    "S": (384, 6, 1536),
    "B": (768, 12, 3072),
    "L": (1024, 16, 4096),
}


def named_decoder(name: str, num_layers: int = 2, **fields: Any) -> TextDecoderConfig:
    """A size by name, such as "B"; `fields` are any of `TextDecoderConfig`'s.

    Raises:
      ValueError: no such size, or incompatible fields.
    """
    if name not in _SIZES:
        raise ValueError(f"no decoder {name!r}: one of {', '.join(_SIZES)}")
    width, heads, mlp = _SIZES[name]
    return TextDecoderConfig(width, num_layers, heads, mlp, **fields)


class DecoderBlock(nn.Module):
    """x + self-attention(norm(x)), the same with cross-attention, then with the feed-forward block.

    Attributes:
      config: sizes.
      cross: whether the block has cross-attention.
    """

    config: TextDecoderConfig
    cross: bool = True

    def setup(self) -> None:
        config = self.config
        bias = dict(use_bias=config.block_biases)
        options = dict(dropout_rate=config.dropout_rate, use_bias=config.attention_biases)
        norm = functools.partial(layer_norm, config.width_axis, config.numerics, **bias)
        self.self_attention_norm = norm()
        self.self_attention = attention(config, **options)
        if self.cross:
            self.cross_attention_norm = norm()
            if config.norm_encoder:
                self.encoder_norm = layer_norm(config.encoder_axis, config.numerics, **bias)
            self.cross_attention = attention(config, kv_axis=config.encoder_axis, **options)
        self.mlp_norm = norm()
        self.mlp = FeedForward(config, **bias)

    def keys_values(self, encoder: Array | None) -> KeysValues | None:
        """The cross-attention's keys and values of the encoder's tokens [B, K, De]."""
        if not self.cross or encoder is None:
            return None
        if self.config.norm_encoder:
            encoder = self.encoder_norm(encoder)
        return self.cross_attention.keys_values(encoder)

    def __call__(
        self,
        x: Array,
        layer: int | Array,
        key: Array | None,
        mask: Array | None,
        encoder: Array | None,
        encoder_mask: Array | None,
    ) -> tuple[Array, dict[str, Array]]:
        """Runs whole texts; arguments are those of `extend` and of `TextDecoder`.

        Returns:
          [R, L, D], and the output of each sub-layer, before its addition, and of its norm.
        """
        cross = self.keys_values(encoder)
        x, _, aux = self.extend(x, mask, cross, encoder_mask, layer=layer, key=key)
        return x, aux

    def extend(
        self,
        x: Array,
        mask: Array | None,
        cross: KeysValues | None,
        encoder_mask: Array | None,
        cache: KeysValues | None = None,
        place: Array | int = 0,
        *,
        layer: int | Array = 0,
        key: Array | None = None,
    ) -> tuple[Array, KeysValues, dict[str, Array]]:
        """Runs more tokens, whose self-attention also reads the cache.

        Args:
          x: [R, L, D].
          mask: bool, broadcastable to [R, N, L, S]; True where a key may be read.
          cross: from `keys_values`, [B, K, N, H]; None skips the cross-attention.
          encoder_mask: bool[B, K], True for tokens that may be read, or None for all.
          cache: keys and values of earlier tokens, [R, S, N, H]; None if there are none (S = L).
          place: of the first token in the cache.
          layer: number of the block, which seeds its dropout and sets its drop-path rate.
          key: of the model's dropout, or None.

        Returns:
          [R, L, D], the cache with the new keys and values, and `__call__`'s intermediates.
        """
        config, key, aux = self.config, fold_key(key, layer), {}

        def add(x: Array, name: str, k: int) -> Array:
            return add_residual(config, x, aux[name], layer, fold_key(key, k), fold_key(key, k + 1))

        aux["self_attention_norm"] = y = self.self_attention_norm(x)
        kept = self.self_attention.keys_values(y)
        if cache is not None:
            kept = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), place, axis=1)
                for old, new in zip(cache, kept, strict=True)
            )
        aux["self_attention"], _ = self.self_attention.read(y, *kept, mask, fold_key(key, 0))
        x = add(x, "self_attention", 1)
        if cross is not None:
            aux["cross_attention_norm"] = y = self.cross_attention_norm(x)
            # All rows of an image read the same keys: [R, L, D] -> [B, R/B * L, D].
            y = y.reshape(cross[0].shape[0], -1, y.shape[-1])
            readable = None if encoder_mask is None else encoder_mask[:, None, None]
            y, _ = self.cross_attention.read(y, *cross, readable, fold_key(key, 3))
            aux["cross_attention"] = y.reshape(x.shape)
            x = add(x, "cross_attention", 4)
        aux["mlp_norm"] = y = self.mlp_norm(x)
        aux["mlp"] = y = self.mlp(y, fold_key(key, 6))
        x = add_residual(config, x, y, layer, None, fold_key(key, 7))
        return x, kept, aux


class TextDecoder(nn.Module):
    """A text decoder."""

    config: TextDecoderConfig

    def setup(self) -> None:
        config, width = self.config, self.config.hidden_dim
        stddev = width**-0.5
        table = nn.initializers.normal(stddev if config.tied_logits else 1.0)
        self.token = nn.Embed(
            config.vocab_size,
            width,
            dtype=config.dtype,
            embedding_init=nn.with_logical_partitioning(table, ("vocab", config.width_axis)),
        )
        init = nn.with_logical_partitioning(
            nn.initializers.normal(stddev), ("positions", config.width_axis)
        )
        self.position = self.param("position", init, (config.max_tokens, width))
        block = rematerialised(DecoderBlock, config)
        if config.scan_layers:
            self.blocks = scanned(block, config, 6)(config)
        else:
            crossed = config.cross_layers
            self.block = [block(config, i in crossed) for i in range(config.num_layers)]
        self.final_norm = layer_norm(config.width_axis, config.numerics)
        zeros = nn.initializers.zeros_init()
        if config.tied_logits:
            bias = nn.with_logical_partitioning(zeros, ("vocab",))
            self.logits_bias = self.param("logits_bias", bias, (config.vocab_size,))
        else:
            axes = (config.width_axis, "vocab")
            self.logits = nn.Dense(
                config.vocab_size,
                dtype=config.dtype,
                kernel_init=nn.with_logical_partitioning(zeros, axes),
                bias_init=nn.with_logical_partitioning(zeros, axes[1:]),
            )

    def __call__(
        self,
        inputs: Array,
        encoder: Array | None,
        *,
        encoder_mask: Array | None = None,
        prepended: Array | None = None,
        prefix_length: Array | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Scores every next token of whole texts.

        Args:
          inputs: int32[R, L] below `vocab_size`, from `shift_right`; at most `max_tokens` long.
          encoder: [B, K, De], with whatever tokens the caller adds; R = B. None skips the
            cross-attention.
          encoder_mask: bool[B, K], False for tokens that are padding; None if there are none.
          prepended: embeddings [R, P, D] before the first token, or None. They have no position.
          prefix_length: int32[R] leading labels that are a prompt. Inputs 0 ... prefix_length,
            which are the start and the prompt, and prepended embeddings read each other in both
            directions (prefix-LM). None reads causally everywhere.
          dropout_key: key of dropout and drop path, or None.

        Returns:
          The logits [R, L, V] of the label at each input, and the named intermediates: "embedded"
          [R, L, D] (with positions), "block_i/NAME" of every block [R, P + L, D] (not scanned),
          "states" [R, L, D] after the last norm.

        Raises:
          ValueError: texts longer than `max_tokens`, or an encoder of another width.
        """
        config = self.config
        if inputs.shape[1] > config.max_tokens:
            raise ValueError(
                f"texts of {inputs.shape[1]} tokens, the decoder is for {config.max_tokens}"
            )
        self._check_encoder(encoder)
        x = embedded = self._embed(inputs, jnp.arange(inputs.shape[1])[None])
        if prepended is not None:
            x = jnp.concatenate([prepended.astype(x.dtype), x], axis=1)
        first = x.shape[1] - inputs.shape[1]
        mask = readable(x.shape[1], first, prefix_length)
        aux = {"embedded": embedded}
        if config.scan_layers:
            layers = jnp.arange(config.num_layers)
            x, _ = self.blocks(x, layers, dropout_key, mask, encoder, encoder_mask)
        else:
            for i, block in enumerate(self.block):
                x, parts = block(x, i, dropout_key, mask, encoder, encoder_mask)
                aux |= {f"block_{i}/{name}": value for name, value in parts.items()}
                aux[f"block_{i}/out"] = x
        aux["states"] = states = self.final_norm(x[:, first:])
        return self.score(states), aux

    def keys_values(self, encoder: Array | None) -> tuple[KeysValues | None, ...]:
        """Every block's keys and values of the encoder's tokens, for `extend` (not scanned)."""
        self._check_encoder(encoder)
        return tuple(block.keys_values(encoder) for block in self.block)

    def extend(
        self,
        inputs: Array,
        positions: Array,
        cross: tuple[KeysValues | None, ...],
        encoder_mask: Array | None,
        cache: tuple[KeysValues, ...],
        place: Array | int,
        mask: Array,
        prepended: Array | None = None,
    ) -> tuple[Array, tuple[KeysValues, ...]]:
        """Runs more tokens of texts, with a cache of earlier ones (not scanned).

        Args:
          inputs: int32[R, L].
          positions: int32[R, L] of the inputs in their texts.
          cross: from `keys_values`.
          encoder_mask: see `__call__`.
          cache: from `empty_cache` or an earlier call.
          place: int32[] in the cache of the first input.
          mask: bool[R, P + L, S], True for places that an input may read.
          prepended: embeddings [R, P, D] before the inputs, or None.

        Returns:
          The states [R, L, D] of the inputs after the last norm, and the cache with them.
        """
        x = self._embed(inputs, positions)
        if prepended is not None:
            x = jnp.concatenate([prepended.astype(x.dtype), x], axis=1)
        kept = []
        for i, block in enumerate(self.block):
            x, new, _ = block.extend(x, mask[:, None], cross[i], encoder_mask, cache[i], place)
            kept.append(new)
        return self.final_norm(x[:, x.shape[1] - inputs.shape[1] :]), tuple(kept)

    def score(self, states: Array) -> Array:
        """Logits [..., V] of states [..., D]."""
        if self.config.tied_logits:
            logits = self.token.attend(states)
            lead = tuple(range(logits.ndim - 1))
            return logits + jnp.expand_dims(self.logits_bias.astype(logits.dtype), lead)
        return self.logits(states)

    def _embed(self, inputs: Array, positions: Array) -> Array:
        x = self.token(inputs) + jnp.asarray(self.position, self.config.dtype)[positions]
        return constrain(x, "act_batch", "act_length", "act_embed")

    def _check_encoder(self, encoder: Array | None) -> None:
        width = self.config.encoder_dim
        if encoder is not None and encoder.shape[-1] != width:
            raise ValueError(
                f"encoder tokens {encoder.shape[-1]} wide, the decoder reads encoder_dim={width}"
            )


def shift_right(labels: Array, start_id: int = 0) -> Array:
    """Decoder inputs int32[R, L]: the start token, then all labels but the last."""
    return jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)


def readable(length: int, prepended: int = 0, prefix_length: Array | None = None) -> Array:
    """bool[R or 1, 1, length, length], True where an input (rows) may read a place (columns).

    Args:
      length: inputs, prepended ones included.
      prepended: P, those before the start token.
      prefix_length: int32[R], see `TextDecoder`, or None.
    """
    places = last = jnp.arange(length)[None]
    if prefix_length is not None:
        last = jnp.maximum(last, prepended + prefix_length[:, None])
    return (places[None] <= last[..., None])[:, None]


def empty_cache(config: TextDecoderConfig, rows: int, places: int) -> tuple[KeysValues, ...]:
    """A cache for texts that take up to `places` inputs, prepended embeddings included."""
    shape = (rows, places, config.num_heads, config.hidden_dim // config.num_heads)
    zeros = jnp.zeros(shape, config.dtype)
    return ((zeros, zeros),) * config.num_layers


def init_params(config: TextDecoderConfig, key: Array) -> Any:
    """Random parameters with their logical axis names, as big_vision draws them."""
    inputs = jnp.zeros((1, 1), jnp.int32)
    encoder = jnp.zeros((1, 1, config.encoder_dim), config.dtype)
    return TextDecoder(config).init(key, inputs, encoder)["params"]


def abstract_params(config: TextDecoderConfig) -> Any:
    """Shapes of `init_params`, without computing anything."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
