"""What a frozen encoder's tokens tell without a decoder: the nearest picture, and a linear probe.

Both see the mean of a picture's tokens. They answer a question from the training examples with the
same words, and take those of all questions for words that are new.

Letters: E examples, W width of the tokens.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_STRENGTHS = tuple(10.0**n for n in range(-3, 3))  # of the probe's penalty, chosen on training data
_MAX_QUESTIONS = 500  # with a probe of their own


@dataclasses.dataclass(frozen=True)
class Seen:
    """Examples as the baselines see them.

    Attributes:
      pictures: float32[E, W], unit vectors.
      questions: E questions, "" for tasks without.
      texts: E texts, the best right one of each.
    """

    pictures: np.ndarray
    questions: tuple[str, ...]
    texts: tuple[str, ...]


def seen(features: Any, numbers: Sequence[int], examples: Sequence[Any], texts: Any) -> Seen:
    """The examples with these numbers, in their order.

    Args:
      features: `data.images.features.ImageFeatures` of their set; all must have tokens.
      numbers: E numbers.
      examples: E examples, for their questions.
      texts: E texts.
    """
    places = features.places[list(numbers)]
    alone, which = np.unique(places, axis=0, return_inverse=True)
    pooled = [np.mean(features.shards[i][row], axis=0, dtype=np.float32) for i, row in alone]
    vectors = np.stack(pooled)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    questions = tuple(" ".join(example.question.lower().split()) for example in examples)
    return Seen(vectors[which.reshape(-1)], questions, tuple(texts))


def nearest(train: Seen, test: Seen) -> list[str]:
    """The text of the training example with the most similar picture, by cosine."""
    return _by_question(train, test, _nearest)


def probe(train: Seen, test: Seen) -> list[str] | None:
    """The texts of linear classifiers on the pictures, one for each question.

    None if there are too many questions.
    """
    if len(set(train.questions)) > _MAX_QUESTIONS:
        return None
    return _by_question(train, test, _linear)


def _by_question(train: Seen, test: Seen, answer: Any) -> list[str]:
    known: Mapping[str, list[int]] = collections.defaultdict(list)
    for number, question in enumerate(train.questions):
        known[question].append(number)
    asked: Mapping[str, list[int]] = collections.defaultdict(list)
    for number, question in enumerate(test.questions):
        asked[question if question in known else None].append(number)
    found = [""] * len(test.questions)
    for question, numbers in asked.items():
        rows = list(range(len(train.texts))) if question is None else known[question]
        texts = np.array([train.texts[row] for row in rows], object)
        answers = answer(train.pictures[rows], texts, test.pictures[numbers])
        for number, text in zip(numbers, answers, strict=True):
            found[number] = str(text)
    return found


def _nearest(pictures: np.ndarray, texts: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return texts[np.argmax(queries @ pictures.T, axis=1)]


def _linear(pictures: np.ndarray, texts: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Ridge regression of one-hot texts."""
    from sklearn.linear_model import RidgeCV

    names, labels = np.unique(texts.astype(str), return_inverse=True)
    if len(names) == 1 or len(texts) < 3:
        return np.repeat(texts[:1], len(queries))
    model = RidgeCV(_STRENGTHS).fit(pictures, np.eye(len(names), dtype=np.float32)[labels])
    return names[np.argmax(model.predict(queries), axis=1)]
