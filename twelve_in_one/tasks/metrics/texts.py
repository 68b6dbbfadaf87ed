"""Measures of written texts: exact match, the nearest of a list of names, log-perplexity."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


def normalise(text: str) -> str:
    """Lower case, single blanks: how texts are compared here."""
    return " ".join(text.lower().split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Whether a prediction equals the answer, apart from case and blanks (OCR-VQA, GQA, classes).

    With several answers, which several people gave: a third for each that agrees, 1 at most. VQA
    has its own, `vqa.accuracy`.

    Raises:
      ValueError: `answers` is empty or a single text.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers must be a list of texts, got {answers!r}")
    matches = sum(normalise(prediction) == normalise(answer) for answer in answers)
    return float(matches) if len(answers) == 1 else min(1.0, matches / 3)


class Nearest(NamedTuple):
    """For each of B predictions, the name that it differs least from.

    Attributes:
      index: int64[B], of the name; the first of equals.
      distance: float64[B], edits divided by the length of the longer text: 0 is equal, 1 is nothing
        in common.
    """

    index: np.ndarray
    distance: np.ndarray


def nearest_names(predictions: Iterable[str], names: Sequence[str]) -> Nearest:
    """Finds the class that a written text comes nearest to.

    A diagnostic: the accuracy of `index` above that of exact matches is the share of near misses.

    Args:
      predictions: B texts.
      names: of the classes, in their order.

    Raises:
      ValueError: there is no name.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"names must be a list of texts, got {names!r}")
    plain = [normalise(name) for name in names]
    lengths = np.array([len(name) for name in plain])
    letters = np.full((len(plain), max(1, int(lengths.max()))), -1)
    for row, name in enumerate(plain):
        letters[row, : len(name)] = [ord(letter) for letter in name]
    known: dict[str, tuple[int, float]] = {}
    found = []
    for prediction in map(normalise, predictions):
        if prediction not in known:
            edits = _edits(prediction, letters)[np.arange(len(plain)), lengths]
            distances = edits / np.maximum(1, np.maximum(lengths, len(prediction)))
            best = int(distances.argmin())
            known[prediction] = best, float(distances[best])
        found.append(known[prediction])
    index, distance = zip(*found, strict=True) if found else ((), ())
    return Nearest(np.array(index, np.int64), np.array(distance, np.float64))


def _edits(text: str, letters: np.ndarray) -> np.ndarray:
    """int64[C, L + 1], Levenshtein distance from `text` to the first 0 ... L letters of C names."""
    columns = np.arange(letters.shape[1] + 1)
    row = np.broadcast_to(columns, (len(letters), len(columns)))
    for done, letter in enumerate(text, start=1):
        replaced = row[:, :-1] + (letters != ord(letter))
        new = np.minimum(row + 1, np.pad(replaced, ((0, 0), (1, 0)), constant_values=done))
        # Letters of the name that the text lacks: the least of all entries to the left, and a step.
        row = np.minimum.accumulate(new - columns, axis=1) + columns
    return row


class LogPerplexity(NamedTuple):
    """Log-perplexity of a task, in nats.

    Attributes:
      per_sequence: mean over texts of the mean over the tokens of each, as the loss of training
        without smoothing.
      per_text: mean over texts of the sum over their tokens (big_vision's default).
      per_token: mean over all tokens.
    """

    per_sequence: float
    per_text: float
    per_token: float


def log_perplexity(losses: Any, num_tokens: Any) -> LogPerplexity:
    """Summarises what texts cost.

    Args:
      losses: float[B], for each text the sum over its target tokens of minus their log-probability.
      num_tokens: int[B], the target tokens of each, with the end of text.

    Raises:
      ValueError: shapes differ, there is no text, or one has no token.
    """
    losses, num_tokens = np.asarray(losses, np.float64), np.asarray(num_tokens)
    if losses.shape != num_tokens.shape or losses.ndim != 1 or not losses.size:
        raise ValueError(f"need two vectors, got shapes {losses.shape} and {num_tokens.shape}")
    if (num_tokens < 1).any():
        raise ValueError(f"text {int(np.argmin(num_tokens))} has no token")
    return LogPerplexity(
        float((losses / num_tokens).mean()),
        float(losses.mean()),
        float(losses.sum() / num_tokens.sum()),
    )
