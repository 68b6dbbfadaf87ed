"""Counts the texts of a split that are too long for its task: their ends are cut off."""

import dataclasses

from twelve_in_one.data.pipeline import Stream

# Records read from a large split: reading all would take longer than a few batches.
MAX_RECORDS = 1000


@dataclasses.dataclass(frozen=True)
class CutTexts:
    """Lengths of the texts of a split.

    Attributes:
      name: "dataset/split".
      max_tokens: T of the task, with [CLS] and [SEP].
      num_cut: texts with more tokens.
      num_read: texts that were read.
      num_texts: texts that take part, counting repetitions.
      longest: tokens of the longest text that was read.
      num_left_out: examples that were read and cannot be learnt, as they have no text.
      first_left_out: why the first of them cannot.
    """

    name: str
    max_tokens: int
    num_cut: int
    num_read: int
    num_texts: int
    longest: int
    num_left_out: int = 0
    first_left_out: str = ""

    def __str__(self) -> str:
        share = f"{self.num_cut:,} of {self.num_read:,} texts"
        if self.num_read < self.num_texts:
            share += f" (looked at, of {self.num_texts:,})"
        cut = ", and their ends are cut off" if self.num_cut else ""
        left = ""
        if self.num_left_out:
            left = (
                f"; {self.num_left_out:,} examples are left out, the first: {self.first_left_out}"
            )
        return (
            f"{self.name}: {share} have more than max_tokens {self.max_tokens} tokens{cut}; the "
            f"longest has {self.longest}{left}"
        )


def count_cut(stream: Stream, max_records: int = MAX_RECORDS) -> CutTexts:
    """Counts the texts that the batches of a stream cut off.

    Args:
      stream: of one task.
      max_records: only this many are read of a larger split, the first; stored order is random.

    Raises:
      DataError: a record cannot be read.
    """
    selection = stream.selection
    reader, texts = selection.reader, []
    for record in map(int, selection.records[:max_records]):
        if reader.index.texts:  # known without reading the record
            first, end = reader.first_example[record : record + 2]
            texts += reader.index.texts[first:end]
        else:
            texts += [annotation.text for annotation in reader.record(record).annotations]
    counts = stream.tokenizer.token_counts(texts)
    return CutTexts(
        f"{stream.task.name}/{reader.name.rpartition('/')[2]}",
        stream.task.max_tokens,
        int((counts > stream.task.max_tokens).sum()),
        len(texts),
        selection.num_examples,
        int(counts.max(initial=0)),
    )
