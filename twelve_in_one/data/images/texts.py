"""Questions, answers, captions and names of classes as the tokens that a decoder learns."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from twelve_in_one.data.images.image_set import ImageExample, TextMisfit
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.sequences import Sequences, encode_sequences
from twelve_in_one.data.texts.tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True)
class NamedClasses:
    """Encodes numbers of classes as "targets" int32[], -1 without; classes have sentences.

    Attributes:
      tokenizer: of the sentences.
      labels: names of the classes.
      templates: sentences, with {} for the name.
      max_tokens: L.
      sticky: see `TextTargets`.
    """

    tokenizer: TextTokenizer
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    max_tokens: int
    sticky: bool = True

    @property
    def empty(self) -> Mapping[str, np.ndarray]:
        """See `stream.Encode`."""
        return {"targets": np.int32(-1)}

    def __call__(self, example: ImageExample, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """See `stream.Encode`."""
        return {"targets": np.int32(example.label)}

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """int32[C * T, L], each class's sentences side by side.

        Raises:
          DataError: a sentence is empty.
        """
        sentences = [text.replace("{}", name) for name in self.labels for text in self.templates]
        return encode_sequences(
            self.tokenizer,
            [""] * len(sentences),
            sentences,
            self.max_tokens,
            eos="sticky" if self.sticky else "yes",
        ).labels


def empty_text(pad_id: int, max_tokens: int, max_question: int) -> Mapping[str, np.ndarray]:
    """The arrays of `TextTargets` without an example."""
    found = {
        "tokens": np.full(max_tokens, pad_id, np.int32),
        "prompt_length": np.int32(0),
        "condition": np.int32(0),
    }
    if max_question:
        found["question"] = np.full(max_question, pad_id, np.int32)
    return found


@dataclasses.dataclass(frozen=True)
class TextTargets:
    """Encodes one of an example's texts, drawn by its credit, behind its prompt.

    As "tokens" int32[L], "prompt_length" int32[], "condition" int32[], the row of the task in the
    model's table, and, if questions have an encoder of their own, "question" int32[Q].

    Attributes:
      tokenizer: of the texts.
      prompt: before every text; a question follows it.
      max_tokens: L.
      max_prompt: longest prompt, in tokens.
      condition: see above.
      labels: names of the classes, which are the texts of examples with a label.
      max_question: Q, 0 if questions are part of the prompt.
      sticky: whether texts that are too long end with the end of text.
    """

    tokenizer: TextTokenizer
    prompt: str
    max_tokens: int
    max_prompt: int
    condition: int = 0
    labels: tuple[str, ...] = ()
    max_question: int = 0
    sticky: bool = True

    @functools.cached_property
    def empty(self) -> Mapping[str, np.ndarray]:
        """See `stream.Encode`."""
        return empty_text(self.tokenizer.pad_id, self.max_tokens, self.max_question)

    def texts(self, example: ImageExample) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The texts that are right, and their credit.

        Raises:
          TextMisfit: there is none.
        """
        if self.labels and example.label >= 0:
            return (self.labels[example.label],), (1.0,)
        scores = example.scores or (1.0,) * len(example.texts)
        pairs = zip(example.texts, scores, strict=True)
        found = tuple((text, score) for text, score in pairs if text.strip())
        if not found:
            raise TextMisfit(f"{example.example_id}: has no text to learn; leave it out")
        texts, scores = zip(*found, strict=True)
        return texts, scores

    def prompt_of(self, example: ImageExample) -> str:
        """The words before its text."""
        words = [self.prompt] if self.prompt else []
        if example.question and not self.max_question:
            words.append(example.question)
        return " ".join(words)

    def __call__(self, example: ImageExample, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """See `stream.Encode`."""
        texts, scores = self.texts(example)
        text = texts[0]
        if len(texts) > 1:
            shares = np.cumsum(np.asarray(scores, np.float64))
            drawn = np.searchsorted(shares, rng.random() * shares[-1], side="right")
            text = texts[min(int(drawn), len(texts) - 1)]
        prompt = self.prompt_of(example)
        found = self._sequences(prompt, text, example.example_id)
        length = int(found.prompt_lengths[0])
        if length > self.max_prompt:
            raise TextMisfit(
                f"{example.example_id}: the prompt {prompt!r} has {length} tokens, "
                f"model.max_prompt is {self.max_prompt}"
            )
        arrays = {
            "tokens": found.labels[0],
            "prompt_length": np.int32(length),
            "condition": np.int32(self.condition),
        }
        if self.max_question:
            arrays["question"] = self._question(example)
        return arrays

    def tokens_of(self, text: str, name: str) -> np.ndarray:
        """int32[L], a text behind the task's prompt; `name` is for errors.

        Raises:
          TextMisfit: it has no token.
        """
        return self._sequences(self.prompt, text, name).labels[0]

    def _sequences(self, prompt: str, text: str, name: str) -> Sequences:
        try:
            return encode_sequences(
                self.tokenizer,
                [prompt],
                [text],
                self.max_tokens,
                eos="sticky" if self.sticky else "yes",
                names=[name],
            )
        except DataError as error:
            raise TextMisfit(str(error)) from error

    def _question(self, example: ImageExample) -> np.ndarray:
        ids = self.tokenizer.encode(example.question)
        if len(ids) > self.max_question:
            raise TextMisfit(
                f"{example.example_id}: the question {example.question!r} has {len(ids)} tokens, "
                f"model.max_question is {self.max_question}"
            )
        row = np.full(self.max_question, self.tokenizer.pad_id, np.int32)
        row[: len(ids)] = ids
        return row

    @functools.cached_property
    def candidates(self) -> np.ndarray:
        """int32[C, T], the names of the classes with the end of text, for ranking."""
        ids = [
            (*tokens, self.tokenizer.eos_id) for tokens in self.tokenizer.encode_batch(self.labels)
        ]
        table = np.full((len(ids), max(map(len, ids))), self.tokenizer.pad_id, np.int32)
        for row, tokens in zip(table, ids, strict=True):
            row[: len(tokens)] = tokens
        return table
