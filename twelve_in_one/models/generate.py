"""Writes texts with a decoder: greedily, with beams, within a list; and scores a list of texts.

Everything runs inside one compiled program. The self-attention's keys and values of earlier tokens
are kept; the cross-attention's are computed once per image, whatever the number of beams or texts.
A row's text does not depend on the other rows.

Shape letters: B images, W beams, R rows (B, or B * W with an image's beams side by side), L the
longest text, Q the longest prompt, P prepended embeddings, S places in the cache, C texts of a
list, T the longest of them, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class Images(NamedTuple):
    """What a text is about, and what comes before it.

    Attributes:
      encoder: [B, K, De] tokens, of an image encoder and whatever is added to them; None to write
        without looking.
      prompt: int32[B, Q], the first tokens of each text, padded at their end; None for no prompts.
      encoder_mask: bool[B, K], False for tokens that are padding, or None.
      prepended: embeddings [B, P, D] before the start token, or None.
    """

    encoder: Array
    prompt: Array | None = None
    encoder_mask: Array | None = None
    prepended: Array | None = None


class Texts(NamedTuple):
    """Written texts.

    Attributes:
      tokens: int32[B, L], prompt, text, end, padding.
      log_probabilities: float32[B, L] of each token that was written, given all before it; 0 in the
        prompt, which is given, and in the padding.
      score: float32[B], their sum.
      finished: bool[B], False if the text reached L without wanting to end: cut off, or with beams,
        which always end, ended against the odds.
      steps: int32[B], tokens tried until the text was settled.
      choice: int32[B], the text's number in `allowed`; -1 without a list.
    """

    tokens: Array
    log_probabilities: Array
    score: Array
    finished: Array
    steps: Array
    choice: Array


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


def text_table(texts: Sequence[Sequence[int]], options: Options) -> np.ndarray:
    """A list of texts as int32[C, T], each padded at its end.

    Raises:
      ValueError: an empty list, two equal texts, or a text that does not end with the end token or
        contains it or the padding elsewhere; names the text by its number.
    """
    if not len(texts):
        raise ValueError("there are no texts to choose from")
    seen: dict[tuple[int, ...], int] = {}
    for i, text in enumerate(map(tuple, texts)):
        if not text or text[-1] != options.end_id:
            raise ValueError(f"text {i} {text} does not end with the end token {options.end_id}")
        if options.end_id in text[:-1] or options.pad_id in text:
            raise ValueError(
                f"text {i} {text} contains the end token {options.end_id} before its end, or the "
                f"padding {options.pad_id}"
            )
        if text in seen:
            raise ValueError(f"texts {seen[text]} and {i} have the same tokens {text}")
        seen[text] = i
    table = np.full((len(texts), max(map(len, texts))), options.pad_id, np.int32)
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = text
    return table


# ------------------------------------------------------------------------------------- steps


def read_prompt(
    config: TextDecoderConfig, params: Any, images: Images, options: Options, room: int
) -> tuple[Reading, Array]:
    """Reads the prompts, with room in the cache for more inputs.

    Args:
      config: of an unrolled decoder.
      params: its parameters.
      images: B of them.
      options: tokens.
      room: places for later inputs.

    Returns:
      What was read, and the log-probabilities float32[B, V] of every text's first own token.
    """
    rows = _rows(images)
    prompt = images.prompt
    if prompt is None:
        prompt = jnp.zeros((rows, 0), jnp.int32)
    length = jnp.sum(prompt != options.pad_id, axis=1)
    inputs = jnp.pad(prompt, ((0, 0), (1, 0)), constant_values=options.start_id)
    count = inputs.shape[1]
    ahead = 0 if images.prepended is None else images.prepended.shape[1]
    places = jnp.arange(ahead + count + room)[None]
    real = (places <= ahead + length[:, None]) & (places < ahead + count)
    last = jnp.arange(ahead + count)[None]
    if options.prefix_lm:
        last = jnp.maximum(last, ahead + length[:, None])
    cross = _apply(config, params, images.encoder, method="keys_values")
    states, cache = _apply(
        config,
        params,
        inputs,
        jnp.arange(count)[None],
        cross,
        images.encoder_mask,
        empty_cache(config, rows, places.shape[1]),
        0,
        real[:, None] & (places[None] <= last[..., None]),
        images.prepended,
        method="extend",
    )
    states = jnp.take_along_axis(states, length[:, None, None], axis=1)[:, 0]
    reading = Reading(cross, images.encoder_mask, cache, real, length, jnp.int32(ahead + count))
    return reading, _log_probabilities(config, params, states)


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


def _log_probabilities(config: TextDecoderConfig, params: Any, states: Array) -> Array:
    logits = _apply(config, params, states, method="score")
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


def _rows(images: Images) -> int:
    given = [x for x in (images.encoder, images.prompt, images.prepended) if x is not None]
    if not given:
        raise ValueError("nothing says how many texts to write: no encoder tokens, no prompts")
    return given[0].shape[0]


def _unrolled(config: TextDecoderConfig, params: Any) -> tuple[TextDecoderConfig, Any]:
    if not config.scan_layers:
        return config, params
    return dataclasses.replace(config, scan_layers=False), unstack_blocks(config, params)


def _repeat_rows(reading: Reading, times: int) -> Reading:
    """The same text `times` times, side by side."""

    def repeat(x: Array) -> Array:
        return jnp.repeat(x, times, axis=0)

    return reading._replace(
        cache=jax.tree.map(repeat, reading.cache),
        mask=repeat(reading.mask),
        length=repeat(reading.length),
    )


def _sizes(
    config: TextDecoderConfig, images: Images, options: Options, allowed: Array | None
) -> tuple[int, int]:
    """L and Q.

    Raises:
      ValueError: prompts that leave no room for a text, or for one of `allowed`.
    """
    longest = config.max_tokens if options.max_tokens is None else options.max_tokens
    prompt = 0 if images.prompt is None else images.prompt.shape[1]
    need = 1 if allowed is None else allowed.shape[1]
    if not 0 < longest <= config.max_tokens:
        raise ValueError(f"max_tokens={longest}: the decoder is for 1 to {config.max_tokens}")
    if prompt + need > longest:
        raise ValueError(
            f"prompts of {prompt} tokens and texts of at least {need} are more than "
            f"max_tokens={longest}"
        )
    return longest, prompt


# -------------------------------------------------------------------------------- lists of texts


class _Choices(NamedTuple):
    """A trie of texts, as their sorted table: a node is a range of rows with a common beginning."""

    table: Array  # int32[C, T], sorted
    number: Array  # int32[C], of each row in the list

    @classmethod
    def sort(cls, allowed: Array) -> "_Choices":
        order = jnp.lexsort(allowed.T[::-1])
        return cls(allowed[order], order.astype(jnp.int32))

    def root(self, rows: int) -> Array:
        """int32[R, 2], the first row of each text's range and the one behind its last."""
        return jnp.broadcast_to(jnp.asarray([0, len(self.table)], jnp.int32), (rows, 2))

    def _inside(self, node: Array) -> Array:
        rows = jnp.arange(len(self.table))[None]
        return (rows >= node[:, :1]) & (rows < node[:, 1:])

    def children(self, node: Array, depth: Array, vocab_size: int) -> Array:
        """bool[R, V], the tokens that may follow."""
        column = jnp.take(self.table, depth, axis=1, mode="clip")
        may = jnp.zeros((len(node), vocab_size), bool)
        return may.at[:, column].max(self._inside(node))

    def child(self, node: Array, depth: Array, token: Array) -> Array:
        """The node int32[R, 2] after `token`, empty if the token may not follow."""
        column = jnp.take(self.table, depth, axis=1, mode="clip")[None]
        inside = self._inside(node)
        smaller = jnp.sum(inside & (column < token[:, None]), axis=1)
        equal = jnp.sum(inside & (column == token[:, None]), axis=1)
        first = node[:, 0] + smaller
        return jnp.stack([first, first + equal], axis=1)


def _follow(choices: _Choices | None, node: Array, depth: Array, log_p: Array) -> Array:
    """`log_p` [R, V] with -inf for tokens that may not follow."""
    if choices is None:
        return log_p
    return jnp.where(choices.children(node, depth, log_p.shape[1]), log_p, -jnp.inf)


def _chosen(choices: _Choices | None, node: Array, complete: Array) -> Array:
    """The number of each complete text, -1 for others and without a list."""
    if choices is None:
        return jnp.full(len(node), -1, jnp.int32)
    return jnp.where(complete, choices.number[node[:, 0]], -1)


def _joined(
    images: Images, length: Array, written: Array, log_p: Array, longest: int, pad_id: int
) -> tuple[Array, Array]:
    """Prompts and what was written after them [B, N], as tokens and log-probabilities [B, L]."""
    index = jnp.arange(longest)[None] - length[:, None]
    own = index >= 0
    index = jnp.clip(index, 0, written.shape[1] - 1)
    tokens = jnp.take_along_axis(written, index, axis=1)
    log_p = jnp.take_along_axis(log_p, index, axis=1)
    prompt = jnp.full((1, longest), pad_id, jnp.int32)
    if images.prompt is not None:
        missing = longest - images.prompt.shape[1]
        prompt = jnp.pad(images.prompt, ((0, 0), (0, missing)), constant_values=pad_id)
    return jnp.where(own, tokens, prompt), jnp.where(own, log_p, 0.0)


# ---------------------------------------------------------------------------------------- greedy


@functools.partial(jax.jit, static_argnames=("config", "options"))
def greedy(
    config: TextDecoderConfig,
    params: Any,
    images: Images,
    options: Options = Options(),
    allowed: Array | None = None,
) -> Texts:
    """Writes texts from their most probable next tokens.

    Args:
      config: sizes.
      params: of a `TextDecoder`.
      images: B of them, with their prompts.
      options: tokens and the longest text.
      allowed: int32[C, T] from `text_table`: each text, after its prompt, is one of these. None
        allows everything. Log-probabilities are the unrestricted model's.

    Raises:
      ValueError: prompts that leave no room for a text, or for one of `allowed`.
    """
    longest, prompt = _sizes(config, images, options, allowed)
    config, params = _unrolled(config, params)
    rows = _rows(images)
    choices = None if allowed is None else _Choices.sort(allowed)
    reading, log_p = read_prompt(config, params, images, options, longest)
    length = reading.length
    blank = jnp.full((rows, longest), options.pad_id, jnp.int32)

    def unsettled(carry: Any) -> Array:
        return ~jnp.all(carry[-1])

    def step(carry: Any) -> Any:
        i, reading, log_p, node, written, scores, ended, done = carry
        token = jnp.argmax(_follow(choices, node, i, log_p), axis=1).astype(jnp.int32)
        own = jnp.take_along_axis(log_p, token[:, None], axis=1)[:, 0]
        token = jnp.where(done, options.pad_id, token)
        written = written.at[:, i].set(token)
        scores = scores.at[:, i].set(jnp.where(done, 0.0, own))
        if choices is not None:
            node = jnp.where(done[:, None], node, choices.child(node, i, token))
        ended |= ~done & (token == options.end_id)
        done |= ended | (length + i + 1 >= longest)
        reading, states = read_tokens(config, params, reading, token[:, None])
        log_p = _log_probabilities(config, params, states[:, 0])
        return i + 1, reading, log_p, node, written, scores, ended, done

    node = choices.root(rows) if choices else jnp.zeros((rows, 2), jnp.int32)
    none = jnp.zeros(rows, bool)
    start = (jnp.int32(0), reading, log_p, node, blank, jnp.zeros(blank.shape), none, none)
    _, _, _, node, written, scores, ended, _ = jax.lax.while_loop(unsettled, step, start)
    steps = jnp.sum(written != options.pad_id, axis=1)
    tokens, scores = _joined(images, length, written, scores, longest, options.pad_id)
    return Texts(
        tokens, scores, jnp.sum(scores, axis=1), ended, steps, _chosen(choices, node, ended)
    )
