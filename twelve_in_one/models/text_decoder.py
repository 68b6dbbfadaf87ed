"""The text decoder: writes text about the tokens of an image encoder.

Pre-norm blocks of causal self-attention, cross-attention to the encoder's tokens, and a
feed-forward block, as in big_vision's CapPa (Tschannen et al. 2023), the published relative of
LiT-decoder (Beyer et al. 2023). The same blocks read whole texts in both directions, without an
image (MaMMUT, Kuo et al. 2023). What differs between decoders is config.

Shape letters: B images, R rows of text (a multiple of B; rows on the same image are neighbours),
L tokens of a text, P prepended embeddings, S places in the self-attention's cache, K encoder
tokens, De their width, D width, N heads, H head size, V vocabulary.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.decoder_block import DecoderBlock, KeysValues, TextDecoderConfig
from twelve_in_one.models.layers import layer_norm, product
from twelve_in_one.models.pre_norm import rematerialised, scanned
from twelve_in_one.parallel.sharding import constrain

Array = jax.Array


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
            if config.logits_bias:
                bias = nn.with_logical_partitioning(zeros, ("vocab",))
                self.logits_bias = self.param("logits_bias", bias, (config.vocab_size,))
        else:
            axes = (config.width_axis, "vocab")
            self.logits = nn.Dense(
                config.vocab_size,
                use_bias=config.logits_bias,
                dtype=config.dtype,
                kernel_init=nn.with_logical_partitioning(zeros, axes),
                bias_init=nn.with_logical_partitioning(zeros, axes[1:]),
                dot_general=product,
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
          The logits [R, L, V] of the label at each input, and the intermediates of `read`.

        Raises:
          ValueError: texts longer than `max_tokens`, or an encoder of another width.
        """
        ahead = 0 if prepended is None else prepended.shape[1]
        mask = readable(ahead + inputs.shape[1], ahead, prefix_length)
        states, aux = self.read(
            inputs,
            encoder,
            mask,
            encoder_mask=encoder_mask,
            prepended=prepended,
            dropout_key=dropout_key,
        )
        return self.score(states), aux

    def read(
        self,
        inputs: Array,
        encoder: Array | None,
        mask: Array | None,
        *,
        encoder_mask: Array | None = None,
        prepended: Array | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """The states of whole texts, before the logits; arguments are those of `__call__`.

        Args:
          inputs: int32[R, L].
          encoder: [B, K, De], or None.
          mask: bool, broadcastable to [R, 1, P + L, P + L], True where an input (rows) may read a
            place (columns); None to read everything.
          encoder_mask: bool[B, K], or None.
          prepended: [R, P, D], or None.
          dropout_key: or None.

        Returns:
          The states [R, L, D] after the last norm, and the named intermediates: "embedded"
          [R, L, D] (with positions), "block_i/NAME" of every block [R, P + L, D] (not scanned),
          "states" again.

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
        return states, aux

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
            if not self.config.logits_bias:
                return logits
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
    shape = (rows, config.num_heads, places, config.hidden_dim // config.num_heads)
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
