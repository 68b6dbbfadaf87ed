"""Arrays of prompts and targets against rows written out by hand, and class names that clash."""

import numpy as np
import pytest

from twelve_in_one.data.encode.text import SPECIALS, Tokenizer
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.class_names import check_class_names
from twelve_in_one.data.texts.sequences import (
    TextCounts,
    count_texts,
    encode_prompts,
    encode_sequences,
    shift_right,
)
from twelve_in_one.data.texts.word_pieces import WordPieces

pytest.importorskip("tokenizers", reason="the data extra is not installed")

# Ids: specials 0..4, a 5, b 6, c 7, d 8, ##e 9.
LETTERS = WordPieces(Tokenizer((*SPECIALS, "a", "b", "c", "d", "##e")))
PAD, EOS = LETTERS.pad_id, LETTERS.eos_id


def test_rows_by_hand():
    rows = encode_sequences(LETTERS, ["a b", "", "a"], ["c", "c d", "b C d"], 5)
    assert rows.labels.dtype == np.int32
    assert rows.labels.tolist() == [
        [5, 6, 7, EOS, PAD],
        [7, 8, EOS, PAD, PAD],
        [5, 6, 7, 8, EOS],
    ]
    assert rows.loss_mask.astype(int).tolist() == [
        [0, 0, 1, 1, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1],
    ]
    assert rows.prompt_lengths.tolist() == [2, 0, 1]
    assert not rows.cut.any()
    assert shift_right(rows.labels, LETTERS.start_id)[0].tolist() == [PAD, 5, 6, 7, EOS]
    assert shift_right(rows.labels[1], 3).tolist() == [3, 7, 8, EOS, PAD]


@pytest.mark.parametrize("eos, last", [("sticky", EOS), ("yes", 8)])
def test_long_targets_are_cut(eos, last):
    rows = encode_sequences(LETTERS, ["a", "a"], ["b c d", "b c d a b"], 4, eos=eos)
    assert rows.labels.tolist() == [[5, 6, 7, last]] * 2
    assert rows.loss_mask.astype(int).tolist() == [[0, 1, 1, 1]] * 2
    assert rows.cut.tolist() == [True, True]


def test_nothing_is_lost_unsaid():
    with pytest.raises(
        DataError, match="row 1: the prompt 'a b c' has 3 tokens, but at most 2 leave"
    ):
        encode_sequences(LETTERS, ["a b", "a b c"], ["a", "a"], 4)
    with pytest.raises(DataError, match=r"coco/7: the target ' ' is empty"):
        encode_sequences(LETTERS, ["a b"], [" "], 4, names=["coco/7"])
    with pytest.raises(ValueError, match="eos must be"):
        encode_sequences(LETTERS, ["a"], ["a"], 4, eos="no")
    with pytest.raises(ValueError, match="1 prompts and 2 targets"):
        encode_sequences(LETTERS, ["a"], ["a", "b"], 4)


def test_prompts_alone():
    ids, lengths = encode_prompts(LETTERS, ["a b", "", "c"], 8)
    assert ids.tolist() == [[5, 6], [PAD, PAD], [7, PAD]]
    assert lengths.tolist() == [2, 0, 1]
    assert encode_prompts(LETTERS, ["a"], 8, width=3)[0].tolist() == [[5, PAD, PAD]]
    assert encode_prompts(LETTERS, [], 8)[0].shape == (0, 0)
    for arguments in ({"max_length": 4}, {"max_length": 8, "width": 2}):
        with pytest.raises(DataError, match="7: the prompt 'a b c' has 3 tokens, but at most 2"):
            encode_prompts(LETTERS, ["a", "a b c"], names=["6", "7"], **arguments)


def test_counts_say_what_arrays_do():
    prompts = ["a", "a", "a b c", "a", "", "a"]
    targets = ["b", "b c d a", "b", "", "\u732b", "b c"]
    counts = count_texts(LETTERS, prompts, targets, 4)
    assert counts == TextCounts(6, 1, 1, 1, 1, 6)
    assert counts.message(4) == (
        "of 6 texts, 1 with a target that is cut, 1 with a prompt that leaves no room for a "
        "target, 1 with an empty target, 1 with parts that the vocabulary cannot write; sequences "
        "have 4 positions, the longest text needs 6"
    )
    halves = [count_texts(LETTERS, prompts[s], targets[s], 4) for s in (slice(2), slice(2, None))]
    assert sum(halves, TextCounts()) == counts
    assert count_texts(LETTERS, ["a"], ["b"], 4).message(4) == ""
    good = [0, 1, 4, 5]
    rows = encode_sequences(LETTERS, [prompts[i] for i in good], [targets[i] for i in good], 4)
    assert rows.cut.sum() == counts.cut


def test_class_names_that_differ():
    assert check_class_names(LETTERS, ["a", "A b", "be"]) == ("a", "a b", "be")


@pytest.mark.parametrize(
    "names, message",
    [
        (["a", "b", "a"], r"tiny: 'a' \(0\) and 'a' \(2\) are equal: rename one, as 'crane'"),
        (["A b", "a B"], r"'A b' \(0\) and 'a B' \(1\) are equal once lower-cased, 'a b'"),
        (["a b", "a  b"], r"'a b' \(0\) and 'a  b' \(1\) are equal as tokens"),
        (["\u732b", "\u72ac"], r"\(0\) and '.' \(1\) hold what the vocabulary cannot write"),
        (["a", ""], r"'' \(1\) is empty"),
        (["a", "a b c"], r"'a b c' \(1\) has 3 tokens, with the end of text more than 3"),
        (["a"] * 9, r"\(and 3 more\)"),
        ([], "expected a list"),
        ("abc", "expected a list of names, got 'abc'"),
    ],
)
def test_class_names_that_clash(names, message):
    with pytest.raises(DataError, match=message):
        check_class_names(LETTERS, names, max_tokens=3, where="tiny")
