"""Prompts and targets as the arrays that a text decoder is trained on.

labels       prompt | target | end of text | padding
input        labels shifted right by one: the start id comes first
loss_mask    False on the prompt and on padding, True on the target and the end of text

Prompt and target are cut into ids apart from each other, so a prompt has the same ids with every
target. Letters: B rows, L positions, P positions of prompts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.tokenizer import TextTokenizer

# What a text that is too long loses: "sticky" its last tokens but not the end of text; "yes" the
# end first, so that a decoder does not learn to end where a text was cut (big_vision's names).
Eos = Literal["sticky", "yes"]
_ROOM = 2  # positions that a prompt must leave: one token, and the end of text
_SHOWN = 80  # characters of a text in a message


class Sequences(NamedTuple):
    """Rows to train on.

    Attributes:
      labels: int32[B, L].
      loss_mask: bool[B, L].
      prompt_lengths: int32[B].
      cut: bool[B], whether the target lost tokens or its end.
    """

    labels: np.ndarray
    loss_mask: np.ndarray
    prompt_lengths: np.ndarray
    cut: np.ndarray


def encode_sequences(
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    targets: Sequence[str],
    max_length: int,
    *,
    eos: Eos = "sticky",
    names: Sequence[str] | None = None,
) -> Sequences:
    """Makes the arrays of B prompts and their targets.

    Args:
      tokenizer: of both.
      prompts: may be empty texts; never cut.
      targets: cut where prompt, target and end of text exceed `max_length`.
      max_length: L.
      eos: see `Eos`.
      names: of the rows in errors, such as ids of examples; else their numbers.

    Raises:
      DataError: a prompt leaves no room for a token and the end of text, or a target is empty;
        names the row, the text and the limit.
      ValueError: `eos` is unknown, or the numbers of prompts and targets differ.
    """
    if eos not in ("sticky", "yes"):
        raise ValueError(f"eos must be 'sticky' or 'yes', got {eos!r}")
    if len(prompts) != len(targets):
        raise ValueError(f"got {len(prompts)} prompts and {len(targets)} targets")
    labels = np.full((len(prompts), max_length), tokenizer.pad_id, np.int32)
    loss_mask = np.zeros(labels.shape, bool)
    lengths = np.zeros(len(prompts), np.int32)
    cut = np.zeros(len(prompts), bool)
    prompt_ids = _prompt_ids(tokenizer, prompts, max_length, names)
    target_ids = tokenizer.encode_batch(targets)
    for row, (prompt, target) in enumerate(zip(prompt_ids, target_ids, strict=True)):
        if not target:
            raise DataError(
                f"{_name(row, names)}: the target {_short(targets[row])} is empty: a decoder would "
                "learn to write nothing; leave the example out, or mend its text"
            )
        begin, end = len(prompt), len(prompt) + len(target)
        cut[row] = end >= max_length
        whole = (*prompt, *target, tokenizer.eos_id)[:max_length]
        labels[row, : len(whole)] = whole
        if cut[row] and eos == "sticky":
            labels[row, -1] = tokenizer.eos_id
        loss_mask[row, begin : len(whole)] = True
        lengths[row] = begin
    return Sequences(labels, loss_mask, lengths, cut)


def encode_prompts(
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    max_length: int,
    *,
    width: int | None = None,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts alone, as generation begins with them.

    Args:
      tokenizer: of the model.
      prompts: B texts, may be empty.
      max_length: L of the whole sequences.
      width: P, the same for all batches if given; else that of the longest prompt.
      names: see `encode_sequences`.

    Returns:
      int32[B, P] ids, padded on the right, and int32[B] their numbers.

    Raises:
      DataError: a prompt leaves no room for a token and the end of text, or exceeds `width`.
    """
    ids = _prompt_ids(tokenizer, prompts, max_length, names)
    lengths = np.array([len(prompt) for prompt in ids], np.int32)
    longest = int(lengths.max(initial=0))
    width = longest if width is None else width
    if longest > width:
        row = int(lengths.argmax())
        raise _too_long(_name(row, names), prompts[row], longest, width)
    padded = np.full((len(ids), width), tokenizer.pad_id, np.int32)
    for row, prompt in enumerate(ids):
        padded[row, : len(prompt)] = prompt
    return padded, lengths


def shift_right(labels: np.ndarray, start_id: int) -> np.ndarray:
    """What a decoder reads while it learns to write `labels`.

    Args:
      labels: int[..., L].
      start_id: `TextTokenizer.start_id`.

    Returns:
      int[..., L], the start id and all labels but the last.
    """
    return np.concatenate([np.full_like(labels[..., :1], start_id), labels[..., :-1]], axis=-1)


@dataclasses.dataclass(frozen=True)
class TextCounts:
    """What a length and a vocabulary do to a set of texts. Addition joins sets.

    Attributes:
      texts: number of rows.
      cut: targets that lose tokens.
      prompts_too_long: rows whose prompt leaves no room for a target.
      empty: targets without a token.
      with_unknown: rows in which the vocabulary cannot write something.
      longest: positions that the longest row needs.
    """

    texts: int = 0
    cut: int = 0
    prompts_too_long: int = 0
    empty: int = 0
    with_unknown: int = 0
    longest: int = 0

    def __add__(self, other: "TextCounts") -> "TextCounts":
        sums = (a + b for a, b in zip(self._counts(), other._counts(), strict=True))
        return TextCounts(*sums, longest=max(self.longest, other.longest))

    def _counts(self) -> tuple[int, ...]:
        return dataclasses.astuple(self)[:-1]

    def message(self, max_length: int) -> str:
        """One line for people, "" if nothing is lost."""
        parts = (
            (self.cut, "with a target that is cut"),
            (self.prompts_too_long, "with a prompt that leaves no room for a target"),
            (self.empty, "with an empty target"),
            (self.with_unknown, "with parts that the vocabulary cannot write"),
        )
        told = [f"{count:,} {what}" for count, what in parts if count]
        if not told:
            return ""
        return (
            f"of {self.texts:,} texts, {', '.join(told)}; sequences have {max_length} positions, "
            f"the longest text needs {self.longest}"
        )


def count_texts(
    tokenizer: TextTokenizer, prompts: Sequence[str], targets: Sequence[str], max_length: int
) -> TextCounts:
    """Counts what `encode_sequences` would cut or refuse, without making arrays."""
    cut = too_long = empty = unknown = longest = 0
    prompt_ids, target_ids = tokenizer.encode_batch(prompts), tokenizer.encode_batch(targets)
    for prompt, target in zip(prompt_ids, target_ids, strict=True):
        needed = len(prompt) + len(target) + 1
        no_room = len(prompt) + _ROOM > max_length
        longest = max(longest, needed)
        too_long += no_room
        cut += needed > max_length and not no_room
        empty += not target
        unknown += tokenizer.unk_id in prompt or tokenizer.unk_id in target
    return TextCounts(len(prompts), cut, too_long, empty, unknown, longest)


def _prompt_ids(
    tokenizer: TextTokenizer, prompts: Sequence[str], max_length: int, names: Sequence[str] | None
) -> list[tuple[int, ...]]:
    ids = tokenizer.encode_batch(prompts)
    for row, prompt in enumerate(ids):
        if len(prompt) + _ROOM > max_length:
            raise _too_long(_name(row, names), prompts[row], len(prompt), max_length - _ROOM)
    return ids


def _too_long(name: str, prompt: str, length: int, limit: int) -> DataError:
    return DataError(
        f"{name}: the prompt {_short(prompt)} has {length} tokens, but at most {limit} leave room "
        "for a target; shorten it or raise the length of sequences"
    )


def _name(row: int, names: Sequence[str] | None) -> str:
    return f"row {row}" if names is None else names[row]


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
