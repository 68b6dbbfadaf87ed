import dataclasses

import numpy as np
import pytest
from reference.memory_split import TOKENIZER, memory_split, text_of

from twelve_in_one.data.cut_texts import count_cut
from twelve_in_one.data.encode.examples import Encoding
from twelve_in_one.data.pipeline import Selection, TaskStream
from twelve_in_one.tasks.twelve import TASKS

COUNTS = (3, 1, 6, 2)


def _stream(records=(0, 1, 2, 3), *, max_tokens=4, indexed=True):
    reader = memory_split(COUNTS)
    if not indexed:
        reader = dataclasses.replace(reader, index=dataclasses.replace(reader.index, texts=()))
    task = dataclasses.replace(TASKS["snli_ve"], max_tokens=max_tokens)
    selection = Selection(reader, np.array(records), 2, training=False)
    return TaskStream(selection, Encoding(task, TOKENIZER, 6, num_labels=3))


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("max_tokens", [3, 4, 5, 6])
def test_counts_what_the_batches_lack(max_tokens, indexed):
    found = count_cut(_stream(max_tokens=max_tokens, indexed=indexed))
    lengths = [len(text_of(example).split()) + 2 for example in range(sum(COUNTS))]
    assert (found.num_read, found.num_texts, found.longest) == (12, 12, max(lengths))
    assert found.num_cut == sum(length > max_tokens for length in lengths)
    cut = ", and their ends are cut off" if found.num_cut else ""
    assert str(found) == (
        f"snli_ve/train: {found.num_cut} of 12 texts have more than max_tokens {max_tokens} "
        f"tokens{cut}; the longest has 6"
    )


@pytest.mark.parametrize("indexed", [True, False])
def test_only_texts_that_take_part(indexed):
    found = count_cut(_stream((1, 3), indexed=indexed))  # examples 3, 10 and 11
    assert (found.num_cut, found.num_read, found.num_texts) == (3, 3, 3)


def test_of_a_large_split_the_first_records():
    found = count_cut(_stream(indexed=False), max_records=2)
    assert (found.num_cut, found.num_read, found.num_texts) == (2, 4, 12)
    assert "2 of 4 texts (looked at, of 12) have more" in str(found)
