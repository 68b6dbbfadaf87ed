"""Pictures and texts from a built dataset whose records hold pictures."""

import numpy as np

from twelve_in_one.data.images.image_set import ImageExample, ImageSet, even_shards
from twelve_in_one.data.stored.reader import SplitReader
from twelve_in_one.data.stored.records import DataError

_SHARD_SIZE = 1024


def questions_of(reader: SplitReader) -> ImageSet:
    """The examples of a split with pictures, questions and answers, numbered as in the split.

    Args:
      reader: of `open_split`.

    Raises:
      DataError: the records hold no pictures, or two each.
    """
    _check(reader)

    def read(number: int) -> ImageExample:
        position = int(np.searchsorted(reader.first_example, number, side="right")) - 1
        record = reader.record(position)
        annotation = record.annotations[number - int(reader.first_example[position])]
        return ImageExample(
            record.pictures[0].data,
            annotation.example_id,
            annotation.label,
            annotation.text,
            annotation.answers,
            annotation.scores,
            str(reader.index.image_ids[position, 0]),
        )

    # Records are stored in random order, so neighbours are like any others.
    sizes = even_shards(reader.index.num_examples, _SHARD_SIZE)
    return ImageSet(reader.name, sizes, read, is_checked=True, first_of_image=reader.first_example)


def captions_of(reader: SplitReader) -> ImageSet:
    """The images of a split, each with all its captions, numbered as its records.

    Raises:
      DataError: the records hold no pictures, or two each.
    """
    _check(reader)

    def read(number: int) -> ImageExample:
        record = reader.record(number)
        texts = tuple(annotation.text for annotation in record.annotations)
        name = str(reader.index.image_ids[number, 0])
        return ImageExample(record.pictures[0].data, name, texts=texts, image_id=name)

    sizes = even_shards(len(reader.index.counts), _SHARD_SIZE)
    pairs = reader.index.num_examples
    return ImageSet(reader.name, sizes, read, is_checked=True, pairs=pairs)


def _check(reader: SplitReader) -> None:
    if not len(reader.index.counts) or not reader.record(0).pictures:
        raise DataError(
            f"{reader.name}: the records hold no pictures; build them with --images keep"
        )
    if len(reader.record(0).pictures) > 1:
        raise DataError(f"{reader.name}: an example has two pictures, where one can be read")
