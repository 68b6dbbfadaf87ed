"""Text to token ids as in BERT: WordPiece over any vocabulary file (12-in-1, section 3.1).

A `Tokenizer` is a vocabulary and a flag; the `tokenizers` library behind it is built from these two
on first use, so a tokenizer can be sent to other processes and used from many threads.

The library agrees with the released Python code on every text, except for two differences repaired
here (`_repaired`) and one that remains: the library uses its own Unicode tables to decide whether a
character is a punctuation mark, an accent or unassigned; the released code uses those of the Python
that runs it. They differ on characters that one of them does not know or has reclassified,
and on 256 rare CJK characters from U+2B820; BERT's vocabulary has none of these.

Letters: B texts, T tokens with [CLS], [SEP] and padding.
"""

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one import atomic
from twelve_in_one.data.formats.files import read_text
from twelve_in_one.data.stored.records import DataError

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Longer words are [UNK] with any vocabulary (BERT).
MAX_WORD_CHARACTERS = 100
# Number of texts whose ids are cached, some hundred bytes each.
_MAX_KNOWN = 1 << 17
# Vocabularies of lower-cased text may have a few capitals added by hand.
_MAX_CASED_SHARE = 0.01
_IN_BRACKETS = re.compile(r"\[.*\]|<.*>")
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Cuts texts into word pieces and numbers them.

    Special tokens spelled out in a text, like "[MASK]", stay whole and get their ids, as in the
    released code.

    Attributes:
      vocabulary: tokens in the order of their ids.
      lower_case: lower-case texts and remove accents before anything else.

    Raises:
      DataError: the vocabulary is empty, repeats a token or lacks one of `SPECIALS`; or it is
        for cased text, and `lower_case` is set.
    """

    vocabulary: tuple[str, ...] = dataclasses.field(repr=False)
    lower_case: bool = True

    def __post_init__(self) -> None:
        _check_vocabulary(self.vocabulary, "vocabulary")
        if self.lower_case:
            _refuse_cased(self.vocabulary, "vocabulary")

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.vocabulary, self.lower_case)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def pad_id(self) -> int:
        return self._ids[PAD]

    @property
    def unk_id(self) -> int:
        return self._ids[UNK]

    @property
    def cls_id(self) -> int:
        return self._ids[CLS]

    @property
    def sep_id(self) -> int:
        return self._ids[SEP]

    @property
    def mask_id(self) -> int:
        return self._ids[MASK]

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the tokens in order, equal to that of the file that `write_vocabulary` writes."""
        return hashlib.sha256(_file_text(self.vocabulary).encode("utf-8")).hexdigest()

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without [CLS] and [SEP]."""
        return self._library.encode(_repaired(text, self.lower_case)).tokens

    def encode(self, text: str, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """One text as [CLS] tokens [SEP], cut or padded on the right to `max_tokens`.

        Args:
          text: one text, may be empty.
          max_tokens: T, with [CLS] and [SEP].

        Returns:
          int32[T] ids and bool[T], False for padding.

        Raises:
          ValueError: no room for [CLS] and [SEP].
        """
        ids, mask = self.encode_batch([text], max_tokens)
        return ids[0], mask[0]

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """`encode` for many texts, on several threads and without the interpreter's lock.

        Returns:
          int32[B, T] ids and bool[B, T], False for padding.

        Raises:
          ValueError: no room for [CLS] and [SEP].
        """
        if max_tokens < 2:
            raise ValueError(f"max_tokens must leave room for {CLS} and {SEP}, got {max_tokens}")
        ids = np.full((len(texts), max_tokens), self.pad_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, pieces in enumerate(self.pieces(texts)):
            end = min(len(pieces) + 2, max_tokens)
            ids[row, 0], ids[row, end - 1] = self.cls_id, self.sep_id
            ids[row, 1 : end - 1] = pieces[: end - 2]
            mask[row, :end] = True
        return ids, mask

    def token_counts(self, texts: Sequence[str]) -> np.ndarray:
        """Counts the tokens of each whole text with [CLS] and [SEP], before any cut by `encode`.

        Returns:
          int64[B].
        """
        return np.array([len(pieces) + 2 for pieces in self.pieces(texts)], np.int64)

    def pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each whole text, int32[its tokens], without [CLS] and [SEP].

        Raises:
          TypeError: `texts` is a single text.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of texts, got a single one")
        known = self._known
        new = [text for text in dict.fromkeys(texts) if text not in known]
        encodings = self._library.encode_batch([_repaired(x, self.lower_case) for x in new])
        fresh = {
            text: np.array(encoding.ids, np.int32)
            for text, encoding in zip(new, encodings, strict=True)
        }
        if len(known) + len(fresh) <= _MAX_KNOWN:
            known.update(fresh)
        return [fresh[text] if text in fresh else known[text] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Tokens as one line for people, without [PAD], [CLS] and [SEP]; case and spaces are lost.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        tokens = []
        for token_id in map(int, ids):
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"token id {token_id} is outside 0..{self.vocab_size - 1}")
            if token_id not in (self.pad_id, self.cls_id, self.sep_id):
                tokens.append(self.vocabulary[token_id])
        return " ".join(tokens).replace(" ##", "")

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {token: token_id for token_id, token in enumerate(self.vocabulary)}

    @functools.cached_property
    def _library(self) -> Any:
        tokenizers = _import_tokenizers()
        model = tokenizers.models.WordPiece(
            vocab=self._ids, unk_token=UNK, max_input_chars_per_word=MAX_WORD_CHARACTERS
        )
        library = tokenizers.Tokenizer(model)
        library.normalizer, library.pre_tokenizer = _word_rules(self.lower_case)
        library.add_special_tokens(list(SPECIALS))
        return library

    @functools.cached_property
    def _known(self) -> dict[str, np.ndarray]:
        """Ids of the first texts seen; for small datasets, soon all of them."""
        return {}


def load_tokenizer(vocab_file: Path, *, lower_case: bool = True) -> Tokenizer:
    """The tokenizer of a vocabulary file: UTF-8, one token per line, ids by line from 0.

    Raises:
      DataError: not readable as UTF-8, empty, a line is empty or repeats another, or one of
        `SPECIALS` is missing; or `lower_case` is set for a vocabulary of cased text.
    """
    lines = read_text(vocab_file).removesuffix("\n").split("\n")
    # Not `splitlines`: a vocabulary of all scripts has tokens that it treats as line ends.
    tokens = tuple(line.removesuffix("\r") for line in lines)
    _check_vocabulary(tokens, str(vocab_file))
    if lower_case:
        _refuse_cased(tokens, str(vocab_file))
    return Tokenizer(tokens, lower_case)


def write_vocabulary(path: Path, tokens: Sequence[str]) -> None:
    """Writes the file that `load_tokenizer` reads.

    Raises:
      DataError: tokens that `load_tokenizer` would not accept.
    """
    _check_vocabulary(tokens, str(path))
    atomic.write(path, _file_text(tokens))


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, lower_case: bool = True
) -> tuple[str, ...]:
    """A vocabulary for texts with few distinct words: their characters, then their commonest words.

    It depends only on the counts of the words; the library's own trainer breaks ties by chance.
    Every character is included as the beginning of a word and, if it occurs inside a longer word,
    as a continuation, so words that do not fit are spelled and no text of the corpus has an [UNK],
    except for words above `MAX_WORD_CHARACTERS`.

    Args:
      texts: the corpus, read once.
      vocab_size: tokens at most; fewer if the corpus has no more words.
      lower_case: as in `Tokenizer`.

    Returns:
      Tokens: `SPECIALS`, characters, words by descending count, equal counts in alphabetical order.

    Raises:
      ValueError: no room for all characters.
    """
    normalizer, pre_tokenizer = _word_rules(lower_case)
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        for part in _SPECIAL.split(_repaired(text, lower_case)):
            if part not in SPECIALS:
                words = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(part))
                counts.update(word for word, _ in words if len(word) <= MAX_WORD_CHARACTERS)
    starts = {character for word in counts for character in word}
    continuations = {f"##{character}" for word in counts if len(word) > 1 for character in word}
    tokens = [*SPECIALS, *sorted(starts), *sorted(continuations)]
    if len(tokens) > vocab_size:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: special tokens and characters are {len(tokens)}"
        )
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    tokens += [word for word, _ in by_count if len(word) > 1]
    return tuple(tokens[:vocab_size])


def _repaired(text: str, lower_case: bool) -> str:
    """Changes `text` so that the library gives the released code's result for the original."""
    if text.isascii():
        return text
    # JSON may hold half a surrogate pair: the library refuses it, the released code drops it.
    text = text.encode("utf-8", "ignore").decode("utf-8")
    # The library lower-cases letter by letter and misses that a final sigma is "ς".
    if lower_case and "Σ" in text:
        parts = _SPECIAL.split(text)
        text = "".join(part if part in SPECIALS else part.lower() for part in parts)
    return text


def _word_rules(lower_case: bool) -> tuple[Any, Any]:
    """The library's rules for cleaning a text and for cutting it into words and punctuation."""
    tokenizers = _import_tokenizers()
    # BERT removes accents together with case.
    normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True,
        strip_accents=lower_case,
        lowercase=lower_case,
    )
    return normalizer, tokenizers.pre_tokenizers.BertPreTokenizer()


def _import_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "texts need the tokenizers library: pip install 'twelve_in_one[data]'"
        ) from error
    return tokenizers


def _check_vocabulary(tokens: Sequence[str], where: str) -> None:
    """Raises a DataError unless every line is a distinct token and the specials are present."""
    if not any(tokens):
        raise DataError(f"{where}: is empty; expected one token a line")
    first_line: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if not token or any(character in token for character in " \t\n\r"):
            raise DataError(f"{where}: line {line} must be one token, is {token!r}")
        if token in first_line:
            raise DataError(f"{where}: line {line} repeats {token!r} of line {first_line[token]}")
        first_line[token] = line
    missing = [token for token in SPECIALS if token not in first_line]
    if missing:
        raise DataError(f"{where}: no line is {' or '.join(missing)}; is it a BERT vocabulary?")


def with_capitals(tokens: Iterable[str]) -> tuple[str, ...]:
    """The tokens that no lower-cased text has, except names in brackets, such as "[MASK]"."""
    return tuple(t for t in tokens if t != t.lower() and not _IN_BRACKETS.fullmatch(t))


def _refuse_cased(tokens: Sequence[str], where: str) -> None:
    """Raises a DataError if lower-casing would leave a large part of the tokens unused."""
    cased = with_capitals(tokens)
    if len(cased) > _MAX_CASED_SHARE * len(tokens):
        raise DataError(
            f"{where}: {len(cased):,} of {len(tokens):,} tokens have capital letters, such as "
            f"{cased[-1]!r}, which lower-cased texts never have: the vocabulary is for cased "
            "texts; build the data with --vocab FILE --no-lower_case (lower_case=False in Python)"
        )


def _file_text(tokens: Sequence[str]) -> str:
    return "".join(f"{token}\n" for token in tokens)
