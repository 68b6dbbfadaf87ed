"""Writes texts with a decoder, greedily or with beams, freely or within a list.

Everything runs inside one compiled program, see `reading.py`. A row's text does not depend on the
other rows.

Shape letters: B images, W beams, L the longest text, C texts of a list, T the longest of them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from twelve_in_one.models.reading import (
    Context,
    Options,
    log_probabilities,
    longest_text,
    number_of_rows,
    read_prompt,
    read_tokens,
    repeat_rows,
    unrolled,
)
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.text_list import Trie

Array = jax.Array


class Texts(NamedTuple):
    """Written texts.

    Attributes:
      tokens: int32[B, L], prompt, text, end, padding.
      log_probabilities: float32[B, L] of each token that was written, given all before it; 0 in the
        prompt, which is given, and in the padding.
      score: float32[B], their sum.
      finished: bool[B], False if the text was cut off at L. Texts of beams always end; False if
        another beam, which had not ended at L, was more probable.
      steps: int32[B], tokens tried until the text was settled.
      choice: int32[B], the text's number in `allowed`; -1 without a list.
    """

    tokens: Array
    log_probabilities: Array
    score: Array
    finished: Array
    steps: Array
    choice: Array


@functools.partial(jax.jit, static_argnames=("config", "options"))
def greedy(
    config: TextDecoderConfig,
    params: Any,
    context: Context,
    options: Options,
    allowed: Array | None = None,
) -> Texts:
    """Writes texts from their most probable next tokens.

    Args:
      config: sizes.
      params: of a `TextDecoder`.
      context: of B context.
      options: tokens and the longest text.
      allowed: int32[C, T] from `text_table`: each text, after its prompt, is one of these. None
        allows everything. Log-probabilities are the unrestricted model's.

    Raises:
      ValueError: prompts that leave no room for a text, or for one of `allowed`.
    """
    longest = longest_text(config, context, options, allowed)
    config, params = unrolled(config, params)
    rows = number_of_rows(context)
    trie = Trie.of(allowed)
    reading, log_p = read_prompt(config, params, context, options, longest)
    length = reading.length
    blank = jnp.full((rows, longest), options.pad_id, jnp.int32)

    def unsettled(carry: Any) -> Array:
        return ~jnp.all(carry[-1])

    def step(carry: Any) -> Any:
        i, reading, log_p, node, written, scores, ended, done = carry
        token = jnp.argmax(trie.restrict(node, i, log_p), axis=1).astype(jnp.int32)
        own = jnp.take_along_axis(log_p, token[:, None], axis=1)[:, 0]
        token = jnp.where(done, options.pad_id, token)
        written = written.at[:, i].set(token)
        scores = scores.at[:, i].set(jnp.where(done, 0.0, own))
        node = jnp.where(done[:, None], node, trie.child(node, i, token))
        ended |= ~done & (token == options.end_id)
        done |= ended | (length + i + 1 >= longest)
        reading, states = read_tokens(config, params, reading, token[:, None])
        log_p = log_probabilities(config, params, states[:, 0])
        return i + 1, reading, log_p, node, written, scores, ended, done

    none = jnp.zeros(rows, bool)
    start = (
        jnp.int32(0),
        reading,
        log_p,
        trie.root(rows),
        blank,
        jnp.zeros(blank.shape),
        none,
        none,
    )
    _, _, _, node, written, scores, ended, _ = jax.lax.while_loop(unsettled, step, start)
    steps = jnp.sum(written != options.pad_id, axis=1)
    tokens, scores = _joined(context, length, written, scores, longest, options.pad_id)
    return Texts(tokens, scores, jnp.sum(scores, axis=1), ended, steps, trie.chosen(node, ended))


def _joined(
    context: Context, length: Array, written: Array, log_p: Array, longest: int, pad_id: int
) -> tuple[Array, Array]:
    """Prompts and what was written after them [B, N], as tokens and log-probabilities [B, L]."""
    index = jnp.arange(longest)[None] - length[:, None]
    own = index >= 0
    index = jnp.clip(index, 0, written.shape[1] - 1)
    tokens = jnp.take_along_axis(written, index, axis=1)
    log_p = jnp.take_along_axis(log_p, index, axis=1)
    prompt = jnp.full((1, longest), pad_id, jnp.int32)
    if context.prompt is not None:
        missing = longest - context.prompt.shape[1]
        prompt = jnp.pad(context.prompt, ((0, 0), (0, missing)), constant_values=pad_id)
    return jnp.where(own, tokens, prompt), jnp.where(own, log_p, 0.0)


class _Best(NamedTuple):
    """Each image's best ended text; the fields are those of `Texts` and the node of a `Trie`."""

    written: Array
    log_p: Array
    score: Array
    node: Array


@functools.partial(jax.jit, static_argnames=("config", "options", "beams"))
def beam_search(
    config: TextDecoderConfig,
    params: Any,
    context: Context,
    options: Options,
    allowed: Array | None = None,
    *,
    beams: int = 4,
) -> Texts:
    """Writes the most probable text that a search with `beams` beams finds (big_vision's rules).

    At every step each beam's text, ended there, is a candidate for the best ended text, whatever
    the rank of the end token. The beams go on with the best of their other next tokens. An image is
    settled when none of its beams is better than its best ended text, since scores only fall, or
    when texts reach L, where all must end. Scores are sums of log-probabilities, whatever the
    length.

    Args:
      config: sizes.
      params: of a `TextDecoder`.
      context: of B context.
      options: tokens and the longest text.
      allowed: see `greedy`.
      beams: W.

    Raises:
      ValueError: prompts that leave no room for a text, or for one of `allowed`.
    """
    if beams < 1:
        raise ValueError(f"beams must be positive, got {beams}")
    longest = longest_text(config, context, options, allowed)
    config, params = unrolled(config, params)
    rows, size = number_of_rows(context), beams
    trie = Trie.of(allowed)
    reading, log_p = read_prompt(config, params, context, options, longest)
    length = reading.length

    def fold(x: Array) -> Array:
        """[B, W, ...] of [B * W, ...]."""
        return x.reshape(rows, size, *x.shape[1:])

    def unfold(x: Array) -> Array:
        return x.reshape(rows * size, *x.shape[2:])

    def pick(x: Array, beam: Array) -> Array:
        """Rows [B * W, ...] of the beams int32[B, W']."""
        index = jnp.arange(rows)[:, None] * size + beam
        return x[index.reshape(-1)]

    def unsettled(carry: Any) -> Array:
        return ~jnp.all(carry[-1])

    def step(carry: Any) -> Any:
        i, reading, log_p, live, node, written, scores, best, steps, finished, done = carry
        may = trie.restrict(node, i, log_p)
        steps += ~done

        # The best of the beams, ended here.
        ended = live + fold(may[:, options.end_id])
        beam = jnp.argmax(ended, axis=1)[:, None]
        score = jnp.take_along_axis(ended, beam, axis=1)[:, 0]
        last = length + i + 1 >= longest
        new = _Best(
            pick(written, beam).at[:, i].set(options.end_id),
            pick(scores, beam).at[:, i].set(pick(log_p, beam)[:, options.end_id]),
            score,
            trie.child(pick(node, beam), i, jnp.full(rows, options.end_id)),
        )
        better = ~done & (score > best.score)
        best = jax.tree.map(
            lambda a, b: jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, best
        )

        # The best of the beams that go on.
        may = may.at[:, options.end_id].set(-jnp.inf)
        top, token = jax.lax.top_k(may, min(size, config.vocab_size))
        total = (live[:, :, None] + fold(top)).reshape(rows, -1)
        live, index = jax.lax.top_k(total, size)
        beam = index // top.shape[1]
        token = jnp.take_along_axis(fold(token).reshape(rows, -1), index, axis=1).reshape(-1)
        own = jnp.take_along_axis(pick(log_p, beam), token[:, None], axis=1)[:, 0]
        written = pick(written, beam).at[:, i].set(token)
        scores = pick(scores, beam).at[:, i].set(own)
        node = trie.child(pick(node, beam), i, token)
        settled = jnp.max(live, axis=1) < best.score
        finished |= ~done & settled
        done |= last | settled

        reading = reading._replace(
            cache=jax.tree.map(lambda x: pick(x, beam), reading.cache),
        )
        reading, states = read_tokens(config, params, reading, token[:, None])
        log_p = log_probabilities(config, params, states[:, 0])
        return i + 1, reading, log_p, live, node, written, scores, best, steps, finished, done

    def blank(rows: int) -> tuple[Array, Array]:
        shape = (rows, longest)
        return jnp.full(shape, options.pad_id, jnp.int32), jnp.zeros(shape)

    none = jnp.zeros(rows, bool)
    best = _Best(*blank(rows), jnp.full(rows, -jnp.inf), trie.root(rows))
    start = (
        jnp.int32(0),
        repeat_rows(reading, size),
        jnp.repeat(log_p, size, axis=0),
        # All beams are alike at first: only one counts.
        jnp.full((rows, size), -jnp.inf).at[:, 0].set(0.0),
        trie.root(rows * size),
        *blank(rows * size),
        best,
        jnp.zeros(rows, jnp.int32),
        none,
        none,
    )
    *_, best, steps, finished, _ = jax.lax.while_loop(unsettled, step, start)
    tokens, scores = _joined(context, length, best.written, best.log_p, longest, options.pad_id)
    chosen = trie.chosen(best.node, jnp.isfinite(best.score))
    return Texts(tokens, scores, best.score, finished, steps, chosen)
