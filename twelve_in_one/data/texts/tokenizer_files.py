"""Tokenizers in files: those of others, and those in a model folder.

tokenizer.json                                   kind, options and hash
tokenizer.model, merges.txt or vocab.txt         the vocabulary
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twelve_in_one import atomic
from twelve_in_one.data.formats.files import read_json, read_text
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.clip_bpe import ClipBpe, load_clip_bpe
from twelve_in_one.data.texts.sentence_pieces import SentencePieces, load_sentencepiece
from twelve_in_one.data.texts.tokenizer import SETTINGS_FILE, TextTokenizer
from twelve_in_one.data.texts.word_pieces import WordPieces, load_wordpiece

_LOADERS: Mapping[type[TextTokenizer], Callable[..., TextTokenizer]] = {
    SentencePieces: load_sentencepiece,
    ClipBpe: load_clip_bpe,
    WordPieces: load_wordpiece,
}
KINDS = {tokenizer.kind: tokenizer for tokenizer in _LOADERS}
_SHOWN = 12  # characters of a hash


def from_file(path: Path, **options: Any) -> TextTokenizer:
    """The tokenizer of somebody's vocabulary file, whose kind is seen in it.

    Args:
      path: a SentencePiece `.model`; a list of merges, compressed or not, whose second line has two
        pieces; or one word piece per line.
      **options: `lower_case`, True if not given; `pad_piece` and `eos_piece` of SentencePiece.

    Raises:
      DataError: see the loader of that kind; or it has no such option.
    """
    if path.suffix == ".model":
        kind: type[TextTokenizer] = SentencePieces
    else:
        second = read_text(path).split("\n", 2)[1:2]
        kind = ClipBpe if second and len(second[0].split()) == 2 else WordPieces
    options = {"lower_case": True} | options
    given = {name: value for name, value in options.items() if value != ""}
    extra = given.keys() - {"lower_case", "pad_piece", "eos_piece"}
    if kind is not SentencePieces:
        extra = given.keys() - {"lower_case"}
    if extra:
        raise DataError(
            f"{path}: a vocabulary of kind {kind.kind} has no {', '.join(sorted(extra))}"
        )
    return _LOADERS[kind](path, **given)


def write(folder: Path, tokenizer: TextTokenizer) -> None:
    """Writes the files of a tokenizer into an existing folder.

    Raises:
      OSError: a file cannot be written.
    """
    for name, content in tokenizer.files().items():
        atomic.write(folder / name, content)


def load(folder: Path, sha256: str | None = None) -> TextTokenizer:
    """Reads the tokenizer of a model folder.

    Args:
      folder: what `write` filled.
      sha256: of the vocabulary that the weights were trained with; None asks only for that of
        tokenizer.json.

    Raises:
      DataError: a file is missing or damaged, or the vocabulary is another one; names the file.
    """
    path = folder / SETTINGS_FILE
    settings = read_json(path, dict)
    kind, options = settings.get("kind"), settings.get("options")
    if kind not in KINDS or not isinstance(options, dict):
        raise DataError(
            f"{path}: needs 'options', and a 'kind' among {', '.join(KINDS)}; has {kind!r}"
        )
    vocabulary = folder / KINDS[kind].vocabulary_file
    try:
        tokenizer = _LOADERS[KINDS[kind]](vocabulary, **options)
    except TypeError as error:
        raise DataError(f"{path}: unknown option of {kind}: {error}") from error
    for where, expected in ((SETTINGS_FILE, settings.get("sha256")), ("the model", sha256)):
        if expected is not None and tokenizer.sha256 != expected:
            raise DataError(
                f"{vocabulary} is not the vocabulary that the weights were trained with: its hash "
                f"is {tokenizer.sha256[:_SHOWN]}, {where} says {str(expected)[:_SHOWN]}; put the "
                "original file back"
            )
    for name in ("vocab_size", "pad_id", "eos_id"):
        if settings.get(name) != getattr(tokenizer, name):
            raise DataError(
                f"{path}: says {name} {settings.get(name)!r}, but {vocabulary.name} with these "
                f"options has {getattr(tokenizer, name)}; put the original file back"
            )
    return tokenizer
