"""A closed list of texts: as a trie that writing follows, and scored by likelihood.

Shape letters: C texts, T tokens of the longest, B images, R rows, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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

Array = jax.Array


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


class Trie(NamedTuple):
    """Which tokens may follow: a trie of texts, or no restriction.

    The trie is the sorted table of its texts: a node is a range of rows with a common beginning.

    Attributes:
      table: int32[C, T], sorted; None allows everything.
      number: int32[C] of each row in the list.
    """

    table: Array | None
    number: Array | None

    @classmethod
    def of(cls, texts: Array | None) -> "Trie":
        """The trie of a table from `text_table`."""
        if texts is None:
            return cls(None, None)
        order = jnp.lexsort(texts.T[::-1])
        return cls(texts[order], order.astype(jnp.int32))

    def root(self, rows: int) -> Array:
        """int32[R, 2], the first row of each text's range and the one behind its last."""
        if self.table is None:
            return jnp.zeros((rows, 2), jnp.int32)
        return jnp.broadcast_to(jnp.asarray([0, len(self.table)], jnp.int32), (rows, 2))

    def restrict(self, node: Array, depth: Array, log_p: Array) -> Array:
        """Log-probabilities [R, V] of the next tokens, -inf where they may not follow."""
        if self.table is None:
            return log_p
        inside, column = self._column(node, depth)
        may = jnp.zeros(log_p.shape, bool).at[:, column].max(inside)
        return jnp.where(may, log_p, -jnp.inf)

    def child(self, node: Array, depth: Array, token: Array) -> Array:
        """The nodes int32[R, 2] after `token` [R], empty if it may not follow."""
        if self.table is None:
            return node
        inside, column = self._column(node, depth)
        smaller = jnp.sum(inside & (column[None] < token[:, None]), axis=1)
        equal = jnp.sum(inside & (column[None] == token[:, None]), axis=1)
        first = node[:, 0] + smaller
        return jnp.stack([first, first + equal], axis=1)

    def chosen(self, node: Array, complete: Array) -> Array:
        """The number of each text that is `complete` [R]; -1 for others and without a list."""
        if self.number is None:
            return jnp.full(node.shape[0], -1, jnp.int32)
        return jnp.where(complete, self.number[node[:, 0]], -1)

    def _column(self, node: Array, depth: Array) -> tuple[Array, Array]:
        """bool[R, C], which rows are in each range, and their tokens int32[C] at `depth`."""
        rows = jnp.arange(len(self.table))[None]
        column = jnp.take(self.table, depth, axis=1, mode="clip")
        return (rows >= node[:, :1]) & (rows < node[:, 1:]), column


@functools.partial(jax.jit, static_argnames=("config", "options", "block_rows"))
def rank(
    config: TextDecoderConfig,
    params: Any,
    context: Context,
    texts: Array,
    options: Options,
    *,
    block_rows: int = 256,
) -> Array:
    """The log-probability of every text of a list, given each image and its prompt.

    The sum over the text's tokens, its end included, whatever its length.

    Args:
      config: sizes.
      params: of a `TextDecoder`.
      context: of B images; prompts are read once.
      texts: int32[C, T] from `text_table`.
      options: tokens and the longest text.
      block_rows: about as many pairs of an image and a text are scored at a time: their logits
        take block_rows * T * V numbers.

    Returns:
      float32[B, C]; the best text is its argmax.

    Raises:
      ValueError: prompts that leave no room for one of the texts.
    """
    longest_text(config, context, options, texts)
    config, params = unrolled(config, params)
    rows, (count, length) = number_of_rows(context), texts.shape
    reading, first = read_prompt(config, params, context, options, length - 1)
    size = min(count, max(1, block_rows // rows))
    blocks = -(-count // size)
    # float32[B, C]
    score = first[:, texts[:, 0]]
    if length == 1:
        return score
    repeated = repeat_rows(reading, size)

    def block(table: Array) -> Array:
        """Log-probabilities float32[B, C'] of the tokens after the first of texts [C', T]."""
        inputs = jnp.tile(table, (rows, 1))
        _, states = read_tokens(config, params, repeated, inputs[:, :-1])
        log_p = log_probabilities(config, params, states)
        own = jnp.take_along_axis(log_p, inputs[:, 1:, None], axis=2)[..., 0]
        own = jnp.where(inputs[:, 1:] != options.pad_id, own, 0.0)
        return jnp.sum(own, axis=1).reshape(rows, size)

    padded = jnp.pad(texts, ((0, blocks * size - count), (0, 0)), constant_values=options.pad_id)
    rest = jax.lax.map(block, padded.reshape(blocks, size, length))
    return score + jnp.swapaxes(rest, 0, 1).reshape(rows, -1)[:, :count]
