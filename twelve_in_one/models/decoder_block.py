"""The blocks of a text decoder, and its config.

Shape letters: see `text_decoder.py`.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.layers import fold_key, layer_norm
from twelve_in_one.models.pre_norm import BlocksConfig, FeedForward, add_residual, attention

Array = jax.Array
KeysValues = tuple[Array, Array]  # [., N, ., H] each, see `attend`


CROSS_MLPS = ("shared", "own", "second")


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
      cross_mlp: the feed-forward block of a block with cross-attention: "shared", one behind both
        attentions, which stays if the cross-attention is skipped (CapPa); "own", one that belongs
        to the cross-attention and is skipped with it, which leaves only self-attention; "second",
        the latter besides one between the attentions (MaMMUT).
      block_biases: whether norms and feed-forward blocks in the blocks have biases
        (`decoder_bias` of CapPa; the last norm always has one).
      attention_biases: whether the attention's linear maps have biases.
      norm_encoder: whether each cross-attention norms the encoder's tokens first.
      tied_logits: whether the token table also makes the logits. It then starts at the scale of the
        positions, so that the first logits are of size 1.
      logits_bias: whether the logits have a bias.
    """

    vocab_size: int = 32_000
    max_tokens: int = 64
    encoder_dim: int = 768
    cross_every: int = 1
    cross_mlp: Literal["shared", "own", "second"] = "shared"
    block_biases: bool = True
    attention_biases: bool = False
    norm_encoder: bool = False
    tied_logits: bool = False
    logits_bias: bool = True

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
        if self.cross_mlp not in CROSS_MLPS:
            errors.append(f"cross_mlp {self.cross_mlp!r} is none of {', '.join(CROSS_MLPS)}")
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

    `config.cross_mlp` may put a feed-forward block between the attentions.

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
        if self.splits:
            self.cross_mlp_norm = norm()
            self.cross_mlp = FeedForward(config, **bias)
        if not self.splits or config.cross_mlp == "second":
            self.mlp_norm = norm()
            self.mlp = FeedForward(config, **bias)

    @property
    def splits(self) -> bool:
        """Whether the cross-attention has a feed-forward block that is skipped with it."""
        return self.cross and self.config.cross_mlp != "shared"

    def keys_values(self, encoder: Array | None) -> KeysValues | None:
        """The cross-attention's keys and values [B, N, K, H] of the encoder's tokens [B, K, De]."""
        if not self.cross or encoder is None:
            return None
        if self.config.norm_encoder:
            encoder = self.encoder_norm(encoder)
        return _heads_first(self.cross_attention.keys_values(encoder))

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
          [R, L, D], and the intermediates by name: the output of each sub-layer, before its
          addition, and of its norm; "before_cross", the states that the cross-attention reads with.
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
          cross: from `keys_values`, [B, N, K, H]; None skips the cross-attention.
          encoder_mask: bool[B, K], True for tokens that may be read, or None for all.
          cache: keys and values of earlier tokens, [R, N, S, H]; None if there are none (S = L).
          place: of the first token in the cache.
          layer: number of the block, which seeds its dropout and sets its drop-path rate.
          key: of the model's dropout, or None.

        Returns:
          [R, L, D], the cache with the new keys and values, and `__call__`'s intermediates.
        """
        config, key, aux = self.config, fold_key(key, layer), {}

        def add(x: Array, name: str, k: int) -> Array:
            return add_residual(config, x, aux[name], layer, fold_key(key, k), fold_key(key, k + 1))

        def feed_forward(x: Array, name: str, k: int) -> Array:
            aux[f"{name}_norm"] = y = getattr(self, f"{name}_norm")(x)
            aux[name] = y = getattr(self, name)(y, fold_key(key, k))
            return add_residual(config, x, y, layer, None, fold_key(key, k + 1))

        aux["self_attention_norm"] = y = self.self_attention_norm(x)
        kept = _heads_first(self.self_attention.keys_values(y))
        if cache is not None:
            kept = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), place, axis=2)
                for old, new in zip(cache, kept, strict=True)
            )
        aux["self_attention"], _ = self.self_attention.read(
            y, *kept, mask, fold_key(key, 0), heads_first=True
        )
        x = add(x, "self_attention", 1)
        if self.splits and config.cross_mlp == "second":
            x = feed_forward(x, "mlp", 6)
        if cross is not None:
            aux["before_cross"] = x
            aux["cross_attention_norm"] = y = self.cross_attention_norm(x)
            # All rows of an image read the same keys: [R, L, D] -> [B, R/B * L, D].
            y = y.reshape(cross[0].shape[0], -1, y.shape[-1])
            readable = None if encoder_mask is None else encoder_mask[:, None, None]
            y, _ = self.cross_attention.read(
                y, *cross, readable, fold_key(key, 3), heads_first=True
            )
            aux["cross_attention"] = y.reshape(x.shape)
            x = add(x, "cross_attention", 4)
            if self.splits:
                x = feed_forward(x, "cross_mlp", 8)
        if not self.splits:
            x = feed_forward(x, "mlp", 6)
        return x, kept, aux


def _heads_first(keys_values: KeysValues) -> KeysValues:
    """[., N, ., H] of [., ., N, H]."""
    key, value = keys_values
    return jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
