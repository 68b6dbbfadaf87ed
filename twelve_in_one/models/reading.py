"""How a decoder reads: prompts at once, then more tokens, with a cache of what it has read.

The self-attention's keys and values of earlier tokens are kept; the cross-attention's are computed
once per image, whatever the number of its texts. Prompts of different lengths are padded at their
end, and padding is never read, so all texts go on together from their own next token.

Shape letters: B images, R rows of text (a multiple of B; rows on the same image are neighbours), Q
the longest prompt, P prepended embeddings, L more tokens, S places in the cache, K encoder tokens,
De their width, D width, V vocabulary.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from twelve_in_one.models.pre_norm import unstack_blocks
from twelve_in_one.models.text_decoder import (
    KeysValues,
    TextDecoder,
    TextDecoderConfig,
    empty_cache,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Options:
    """The tokens that begin, end and pad a text, and how its prompt is read.

    Attributes:
      start_id: the first input, which is no part of a text.
      end_id: ends a text, and is part of it.
      pad_id: follows the end; no text or prompt contains it.
      prefix_lm: whether prompts are read in both directions, see `TextDecoder`.
      max_tokens: L, the longest text, its prompt and its end included; None for the decoder's.
    """

    start_id: int = 0
    end_id: int = 1
    pad_id: int = 0
    prefix_lm: bool = False
    max_tokens: int | None = None


class Context(NamedTuple):
    """What a text is about, and what comes before it.

    Attributes:
      encoder: [B, K, De] tokens, of an image encoder and whatever is added to them; None to write
        without looking.
      prompt: int32[B, Q], the first tokens of each text, padded at their end; None for no prompts.
      encoder_mask: bool[B, K], False for tokens that are padding, or None.
      prepended: embeddings [B, P, D] before the start token, or None.
    """

    encoder: Array | None
    prompt: Array | None = None
    encoder_mask: Array | None = None
    prepended: Array | None = None


class Reading(NamedTuple):
    """What a decoder has read so far.

    Attributes:
      cross: every block's keys and values of the encoder's tokens.
      encoder_mask: bool[B, K] or None.
      cache: every block's keys and values of earlier inputs.
      mask: bool[R, S], places in the cache that hold an input.
      length: int32[R], tokens of the text so far: the position of the next input.
      place: int32[], of the next input in the cache.
    """

    cross: tuple[KeysValues | None, ...]
    encoder_mask: Array | None
    cache: tuple[KeysValues, ...]
    mask: Array
    length: Array
    place: Array


def read_prompt(
    config: TextDecoderConfig, params: Any, context: Context, options: Options, room: int
) -> tuple[Reading, Array]:
    """Reads the prompts, with room in the cache for more inputs.

    Args:
      config: of an unrolled decoder.
      params: its parameters.
      context: of B images.
      options: tokens.
      room: places for later inputs.

    Returns:
      What was read, and the log-probabilities float32[B, V] of every text's first own token.
    """
    rows = number_of_rows(context)
    prompt = context.prompt
    if prompt is None:
        prompt = jnp.zeros((rows, 0), jnp.int32)
    length = jnp.sum(prompt != options.pad_id, axis=1)
    inputs = jnp.pad(prompt, ((0, 0), (1, 0)), constant_values=options.start_id)
    count = inputs.shape[1]
    ahead = 0 if context.prepended is None else context.prepended.shape[1]
    places = jnp.arange(ahead + count + room)[None]
    real = (places <= ahead + length[:, None]) & (places < ahead + count)
    last = jnp.arange(ahead + count)[None]
    if options.prefix_lm:
        last = jnp.maximum(last, ahead + length[:, None])
    cross = _apply(config, params, context.encoder, method="keys_values")
    states, cache = _apply(
        config,
        params,
        inputs,
        jnp.arange(count)[None],
        cross,
        context.encoder_mask,
        empty_cache(config, rows, places.shape[1]),
        0,
        real[:, None] & (places[None] <= last[..., None]),
        context.prepended,
        method="extend",
    )
    states = jnp.take_along_axis(states, length[:, None, None], axis=1)[:, 0]
    reading = Reading(cross, context.encoder_mask, cache, real, length, jnp.int32(ahead + count))
    return reading, log_probabilities(config, params, states)


def read_tokens(
    config: TextDecoderConfig, params: Any, reading: Reading, tokens: Array
) -> tuple[Reading, Array]:
    """Reads the next tokens int32[R, L] of each text.

    Returns:
      What was read, and the states [R, L, D] after them, for `TextDecoder.score`.
    """
    count, places = tokens.shape[1], jnp.arange(reading.mask.shape[1])[None]
    # [L, S], causal among the new inputs
    new = (places >= reading.place) & (places <= reading.place + jnp.arange(count)[:, None])
    states, cache = _apply(
        config,
        params,
        tokens,
        # The start token is the input at 0.
        reading.length[:, None] + 1 + jnp.arange(count)[None],
        reading.cross,
        reading.encoder_mask,
        reading.cache,
        reading.place,
        reading.mask[:, None] | new[None],
        method="extend",
    )
    reading = reading._replace(
        cache=cache,
        mask=reading.mask | new[-1:],
        length=reading.length + count,
        place=reading.place + count,
    )
    return reading, states


def _apply(config: TextDecoderConfig, params: Any, *inputs: Any, method: str) -> Any:
    return TextDecoder(config).apply({"params": params}, *inputs, method=method)


def log_probabilities(config: TextDecoderConfig, params: Any, states: Array) -> Array:
    """Of the next tokens, float32[..., V], after states [..., D]."""
    logits = _apply(config, params, states, method="score")
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


def number_of_rows(context: Context) -> int:
    """B.

    Raises:
      ValueError: neither encoder tokens nor prompts nor prepended embeddings.
    """
    given = [x for x in (context.encoder, context.prompt, context.prepended) if x is not None]
    if not given:
        raise ValueError("nothing says how many texts to write: no encoder tokens, no prompts")
    return given[0].shape[0]


def unrolled(config: TextDecoderConfig, params: Any) -> tuple[TextDecoderConfig, Any]:
    """The decoder with one set of parameters per block, which have a cache each."""
    if not config.scan_layers:
        return config, params
    return dataclasses.replace(config, scan_layers=False), unstack_blocks(config, params)


def repeat_rows(reading: Reading, times: int) -> Reading:
    """The same text `times` times, side by side."""

    def repeat(x: Array) -> Array:
        return jnp.repeat(x, times, axis=0)

    return reading._replace(
        cache=jax.tree.map(repeat, reading.cache),
        mask=repeat(reading.mask),
        length=repeat(reading.length),
    )


def longest_text(
    config: TextDecoderConfig, context: Context, options: Options, allowed: Array | None
) -> int:
    """The number of tokens of the longest text, its prompt and its end included.

    Raises:
      ValueError: prompts that leave no room for a text, or for one of `allowed`.
    """
    longest = config.max_tokens if options.max_tokens is None else options.max_tokens
    prompt = 0 if context.prompt is None else context.prompt.shape[1]
    need = 1 if allowed is None else allowed.shape[1]
    if not 0 < longest <= config.max_tokens:
        raise ValueError(f"max_tokens={longest}: the decoder is for 1 to {config.max_tokens}")
    if prompt + need > longest:
        raise ValueError(
            f"prompts of {prompt} tokens and texts of at least {need} are more than "
            f"max_tokens={longest}"
        )
    return longest
