"""What a text decoder needs of a tokenizer: `TextTokenizer`, whichever vocabulary is behind it.

Letters: B texts.
"""

import abc
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

# Number of texts whose ids are cached, some hundred bytes each.
_MAX_KNOWN = 1 << 17
SETTINGS_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class TextTokenizer(abc.ABC):
    """Cuts texts into the ids of a vocabulary, and writes ids as text.

    A subclass is a frozen dataclass of what decides the ids, and nothing else. The library behind
    it is built from these on first use, so a tokenizer can be compared, sent to other processes and
    used from many threads.

    Attributes:
      kind: names the subclass in a model folder.
      vocabulary_file: name of the vocabulary there.
      vocab_size: ids are below it.
      pad_id: fills sequences behind their end.
      eos_id: ends a text; never part of `encode`.
      start_id: what a decoder reads before a text. The pad id where a vocabulary has no start of
        its own: shifted right, labels begin with it (big_vision).
      unk_id: of what the vocabulary cannot write; None if it writes everything.
      lower_case: lower-case texts before anything else. Unlike big_vision, which does so with the
        letters of ASCII only, for all scripts.
      sha256: hash of the vocabulary file in a model folder.
    """

    kind: ClassVar[str]
    vocabulary_file: ClassVar[str]

    @property
    @abc.abstractmethod
    def lower_case(self) -> bool: ...

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int: ...

    @property
    @abc.abstractmethod
    def pad_id(self) -> int: ...

    @property
    @abc.abstractmethod
    def eos_id(self) -> int: ...

    @property
    @abc.abstractmethod
    def unk_id(self) -> int | None: ...

    @property
    def start_id(self) -> int:
        return self.pad_id

    @property
    @abc.abstractmethod
    def vocabulary(self) -> bytes:
        """Content of the vocabulary file in a model folder."""

    @property
    def options(self) -> dict[str, Any]:
        """What else decides the ids, by argument of the subclass."""
        return {"lower_case": self.lower_case}

    @abc.abstractmethod
    def _cut(self, texts: list[str]) -> Iterable[Sequence[int]]:
        """Ids of texts which are valid Unicode and lower-cased if they should be."""

    @abc.abstractmethod
    def _join(self, ids: list[int]) -> str:
        """The text of ids of the vocabulary, without pads and end of text."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither the library nor the cache travels to other processes.
        return type(self), tuple(getattr(self, f.name) for f in dataclasses.fields(self))

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.vocabulary).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without start, end or padding; empty if nothing of it is visible."""
        return list(self.encode_batch([text])[0])

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """`encode` for B texts; those seen before are not cut again.

        Raises:
          TypeError: `texts` is a single text.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of texts, got a single one")
        known = self._known
        new = [text for text in dict.fromkeys(texts) if text not in known]
        cut = self._cut([self._cleaned(text) for text in new])
        fresh = {text: tuple(map(int, ids)) for text, ids in zip(new, cut, strict=True)}
        if len(known) + len(fresh) <= _MAX_KNOWN:
            known.update(fresh)
        return [fresh[text] if text in fresh else known[text] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids write, up to the first end of text; padding at their end is left out.

        Args:
          ids: as a decoder writes them: tokens, end of text, padding. The end may be missing.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        kept = []
        for token in map(int, ids):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is outside 0..{self.vocab_size - 1}")
            if token == self.eos_id:
                break
            kept.append(token)
        while kept and kept[-1] == self.pad_id:
            kept.pop()
        return self._join(kept)

    def files(self) -> dict[str, bytes]:
        """{name: content} of the files that `tokenizer_files.load` reads."""
        settings = {
            "kind": self.kind,
            "options": self.options,
            "sha256": self.sha256,
            "vocab_size": self.vocab_size,
            "pad_id": self.pad_id,
            "eos_id": self.eos_id,
        }
        return {
            self.vocabulary_file: self.vocabulary,
            SETTINGS_FILE: (json.dumps(settings, indent=2) + "\n").encode(),
        }

    @functools.cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        """Ids of the first texts seen; for small datasets, soon all of them."""
        return {}

    def _cleaned(self, text: str) -> str:
        if not text.isascii():
            # JSON may hold half a surrogate pair, which no library takes.
            text = text.encode("utf-8", "ignore").decode("utf-8")
        return text.lower() if self.lower_case else text
