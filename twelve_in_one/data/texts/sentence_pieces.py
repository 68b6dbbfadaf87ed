"""SentencePiece models: files of others, such as big_vision's c4_en, and one's own small ones.

The special pieces of c4_en are <pad> 0, </s> 1 and <unk> 2. Other models have others, and some lack
a pad or an end: `SentencePieces` finds what it can and asks for the rest.
"""

import dataclasses
import functools
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.tokenizer import TextTokenizer

PADS = ("<pad>", "[PAD]")
ENDS = ("</s>", "[SEP]", "<eos>", "<|endoftext|>")
_NUM_SPECIALS = 3  # of trained models: pad, end of text, unknown
_SHOWN_PIECES = 8


@dataclasses.dataclass(frozen=True)
class SentencePieces(TextTokenizer):
    """A SentencePiece model as a tokenizer.

    Attributes:
      model: content of a `.model` file.
      lower_case: see `TextTokenizer`.
      pad_piece: the piece that pads; "" takes what the model declares, else the first of `PADS`.
      eos_piece: the piece that ends a text; "" takes what the model declares, else the first of
        `ENDS`.

    Raises:
      DataError: not a SentencePiece model; it has no such piece, or none that pads or ends a text;
        or both are the same.
      ImportError: the sentencepiece library is missing.
    """

    kind: ClassVar[str] = "sentencepiece"
    vocabulary_file: ClassVar[str] = "tokenizer.model"

    model: bytes = dataclasses.field(repr=False)
    lower_case: bool = True
    pad_piece: str = ""
    eos_piece: str = ""

    def __post_init__(self) -> None:
        if self.pad_id == self.eos_id:
            raise DataError(
                f"{self._library.id_to_piece(self.pad_id)!r} can't both pad and end a text: the "
                "end would never be learnt; choose another pad_piece or eos_piece"
            )

    @property
    def vocab_size(self) -> int:
        return self._library.get_piece_size()

    @functools.cached_property
    def pad_id(self) -> int:
        return self._special("pad_piece", self.pad_piece, self._library.pad_id(), PADS)

    @functools.cached_property
    def eos_id(self) -> int:
        return self._special("eos_piece", self.eos_piece, self._library.eos_id(), ENDS)

    @property
    def unk_id(self) -> int:
        return self._library.unk_id()

    @property
    def vocabulary(self) -> bytes:
        return self.model

    @property
    def options(self) -> dict[str, Any]:
        return {
            "lower_case": self.lower_case,
            "pad_piece": self.pad_piece,
            "eos_piece": self.eos_piece,
        }

    def _cut(self, texts: list[str]) -> Iterable[Sequence[int]]:
        return self._library.encode(texts, out_type=int, num_threads=1)

    def _join(self, ids: list[int]) -> str:
        return self._library.decode(ids)

    @functools.cached_property
    def _library(self) -> Any:
        try:
            return _import_sentencepiece().SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise DataError("not a SentencePiece model, or a damaged one") from error

    def _special(self, option: str, piece: str, declared: int, usual: Sequence[str]) -> int:
        """Id of the piece that the user named, or that the model declares, or of a usual one."""
        if not piece and declared >= 0:
            return declared
        library = self._library
        for candidate in [piece] if piece else usual:
            found = library.piece_to_id(candidate)
            if library.id_to_piece(found) == candidate:  # else it is the id of <unk>
                return found
        size = library.get_piece_size()
        control = [library.id_to_piece(i) for i in range(size) if not _is_text(library, i)]
        raise DataError(
            (f"has no piece {piece!r}" if piece else f"has none of {', '.join(usual)}")
            + f"; set {option} to one of its special pieces, which are "
            + ", ".join(control[:_SHOWN_PIECES])
            + ("" if len(control) <= _SHOWN_PIECES else f" and {len(control) - _SHOWN_PIECES} more")
        )


def load_sentencepiece(
    path: Path, *, lower_case: bool = True, pad_piece: str = "", eos_piece: str = ""
) -> SentencePieces:
    """The tokenizer of a `.model` file, see `SentencePieces`.

    Raises:
      DataError: the file cannot be read, or see `SentencePieces`; names the file.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    try:
        return SentencePieces(model, lower_case, pad_piece, eos_piece)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, *, lower_case: bool = True
) -> SentencePieces:
    """A model of byte-pair pieces for texts of one's own, with the special ids of c4_en.

    It depends on the texts alone, not on their order or the machine. Byte-pair and not unigram
    pieces, because the latter are never whole words unless words share them: the few words of a
    small corpus would be spelled. Every character is a piece, so the corpus has no <unk>.

    Args:
      texts: the corpus, read once.
      vocab_size: pieces at most; fewer if the corpus has no more.
      lower_case: as in `TextTokenizer`.

    Raises:
      ValueError: there is no text, or no room for all characters; says how many they need.
    """
    # Blanks of all kinds end as one; line feeds and tabs would make the library drop the text.
    corpus = sorted(" ".join((t.lower() if lower_case else t).split()) for t in texts)
    corpus = [text.encode("utf-8", "ignore").decode("utf-8") for text in corpus if text]
    if not corpus:
        raise ValueError("there is no text to train a SentencePiece model on")
    written = io.BytesIO()
    try:
        _import_sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=written,
            model_type="bpe",
            # For less the library does not say how much is needed.
            vocab_size=max(vocab_size, _NUM_SPECIALS + 1),
            hard_vocab_limit=False,
            character_coverage=1.0,
            # Longer texts would be left out; the library takes no smaller limit.
            max_sentence_length=max(10, *(len(text.encode()) + 1 for text in corpus)),
            num_threads=1,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        needed = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        if needed is None:
            raise ValueError(f"vocab_size {vocab_size} does not suit the texts: {error}") from error
        raise ValueError(
            f"vocab_size {vocab_size} is too small: {_NUM_SPECIALS} special pieces and the "
            f"characters of the texts are {needed[1]}"
        ) from error
    return SentencePieces(written.getvalue(), lower_case)


def _is_text(library: Any, piece: int) -> bool:
    return not (library.is_control(piece) or library.is_unknown(piece) or library.is_unused(piece))


def _import_sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError(
            "SentencePiece models need the sentencepiece library: pip install 'twelve_in_one[data]'"
        ) from error
    return sentencepiece
