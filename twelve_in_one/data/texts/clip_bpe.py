"""CLIP's byte-pair tokenizer over a list of merges: 49,408 ids with the published list.

Texts are cleaned as the released code does (HTML entities, blanks, Unicode NFC, quotes, case), but
text once decoded in the wrong encoding is not repaired, and ligatures stay. "<|endoftext|>" written
in a text is text here and not the end of it.
"""

import dataclasses
import functools
import html
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from twelve_in_one.data.formats.files import read_text
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.tokenizer import TextTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# The published file lists more merges than the model has ids for.
MAX_MERGES = 49_408 - 2 * 256 - 2
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_QUOTES = str.maketrans(
    dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)


def _byte_characters() -> dict[int, str]:
    """Byte -> the character that stands for it: itself if visible, else the next from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in visible)
    # The order is that of the ids.
    return {byte: chr(byte) for byte in visible} | {b: chr(256 + n) for n, b in enumerate(others)}


BYTES = _byte_characters()
_BYTE_OF = {character: byte for byte, character in BYTES.items()}


@dataclasses.dataclass(frozen=True)
class ClipBpe(TextTokenizer):
    """Byte-pair pieces of CLIP, ids in the order bytes, bytes at a word's end, merges, start, end.

    Sequences are padded with 0 as in open_clip. It is the id of "!" within a word, too: padding is
    what stands behind the end.

    Attributes:
      merges: "left right" pairs, the first is merged first.
      lower_case: see `TextTokenizer`; CLIP's own texts are lower-cased.

    Raises:
      DataError: a merge is no pair, repeats another, or has a part that no merge before it makes.
      ImportError: the tokenizers library is missing.
    """

    kind: ClassVar[str] = "clip_bpe"
    vocabulary_file: ClassVar[str] = "merges.txt"
    pad_id: ClassVar[int] = 0
    unk_id: ClassVar[None] = None

    merges: tuple[str, ...] = dataclasses.field(repr=False)
    lower_case: bool = True

    def __post_init__(self) -> None:
        known = set(self._tokens[: 2 * len(BYTES)])
        for number, merge in enumerate(self.merges, start=1):
            pair = merge.split(" ")
            if len(pair) != 2 or not known.issuperset(pair) or "".join(pair) in known:
                raise DataError(
                    f"merge {number} must be two known pieces that make a new one, is {merge!r}"
                )
            known.add("".join(pair))

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    @property
    def start_id(self) -> int:
        return self.vocab_size - 2

    @property
    def eos_id(self) -> int:
        return self.vocab_size - 1

    @property
    def vocabulary(self) -> bytes:
        return "".join(f"{line}\n" for line in ("#version: 0.2", *self.merges)).encode()

    @functools.cached_property
    def _tokens(self) -> list[str]:
        single = list(BYTES.values())
        merged = (merge.replace(" ", "") for merge in self.merges)
        return [*single, *(character + WORD_END for character in single), *merged, START, END]

    def _cut(self, texts: list[str]) -> Iterable[Sequence[int]]:
        cleaned = [html.unescape(html.unescape(text)).translate(_QUOTES) for text in texts]
        return (encoding.ids for encoding in self._library.encode_batch(cleaned))

    def _join(self, ids: list[int]) -> str:
        text = "".join(self._tokens[token] for token in ids if token != self.start_id)
        words = (bytes(_BYTE_OF[c] for c in word) for word in text.split(WORD_END))
        return b" ".join(words).decode("utf-8", "replace").strip()

    @functools.cached_property
    def _library(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(
                "CLIP's tokenizer needs the tokenizers library: pip install 'twelve_in_one[data]'"
            ) from error
        library = tokenizers.Tokenizer(
            tokenizers.models.BPE(
                vocab={token: number for number, token in enumerate(self._tokens)},
                merges=[tuple(merge.split(" ")) for merge in self.merges],
                end_of_word_suffix=WORD_END,
            )
        )
        rules = [tokenizers.normalizers.NFC()]
        if self.lower_case:
            rules.append(tokenizers.normalizers.Lowercase())  # also what entities hid
        library.normalizer = tokenizers.normalizers.Sequence(rules)
        library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Split(
                    tokenizers.Regex(_WORDS), behavior="removed", invert=True
                ),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return library


def load_clip_bpe(path: Path, *, lower_case: bool = True) -> ClipBpe:
    """The tokenizer of a list of merges, one pair per line; the first line is a heading.

    Such are CLIP's `bpe_simple_vocab_16e6.txt.gz`, of which the first `MAX_MERGES` count, and the
    `merges.txt` of a Hugging Face folder.

    Raises:
      DataError: the file cannot be read, or see `ClipBpe`; names the file.
    """
    lines = read_text(path).split("\n")[1:]
    merges = tuple(itertools.islice((x.removesuffix("\r") for x in lines if x), MAX_MERGES))
    if not merges:
        raise DataError(f"{path}: has no merges; expected a heading, then two pieces per line")
    try:
        return ClipBpe(merges, lower_case)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
