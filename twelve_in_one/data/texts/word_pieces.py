"""WordPiece vocabularies as those of BERT, for models that write text: [SEP] is the end of it."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from twelve_in_one.data.encode.text import SPECIALS, Tokenizer, load_tokenizer
from twelve_in_one.data.texts.tokenizer import TextTokenizer

_SPELLED = re.compile("|".join(rf"\[{special[1:-1]}\]" for special in SPECIALS))


@dataclasses.dataclass(frozen=True)
class WordPieces(TextTokenizer):
    """The word pieces of `encode.text.Tokenizer`, without [CLS] and [SEP] around them.

    Written text is lower-cased and has blanks around its punctuation marks: WordPiece forgets both.

    Attributes:
      words: the vocabulary and its case.
    """

    kind: ClassVar[str] = "wordpiece"
    vocabulary_file: ClassVar[str] = "vocab.txt"

    words: Tokenizer

    @property
    def lower_case(self) -> bool:
        return self.words.lower_case

    @property
    def vocab_size(self) -> int:
        return self.words.vocab_size

    @property
    def pad_id(self) -> int:
        return self.words.pad_id

    @property
    def eos_id(self) -> int:
        return self.words.sep_id

    @property
    def unk_id(self) -> int:
        return self.words.unk_id

    @property
    def vocabulary(self) -> bytes:
        return "".join(f"{token}\n" for token in self.words.vocabulary).encode()

    def _cut(self, texts: list[str]) -> Iterable[Sequence[int]]:
        # "[SEP]" written in a text is text, not the end of it.
        spelled = [_SPELLED.sub(lambda found: f"[ {found[0][1:-1]} ]", text) for text in texts]
        return self.words.pieces(spelled)

    def _join(self, ids: list[int]) -> str:
        return self.words.decode(ids)


def load_wordpiece(path: Path, *, lower_case: bool = True) -> WordPieces:
    """The tokenizer of a vocabulary file, see `encode.text.load_tokenizer`.

    Raises:
      DataError: see there.
    """
    return WordPieces(load_tokenizer(path, lower_case=lower_case))
