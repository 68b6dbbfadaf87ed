"""Pictures and texts from a built dataset whose records hold pictures."""

import numpy as np

from twelve_in_one.data.images.image_set import ImageExample, ImageSet, even_shards
from twelve_in_one.data.stored.reader import SplitReader
from twelve_in_one.data.stored.records import DataError

_SHARD_SIZE = 1024


def images_of(reader: SplitReader) -> ImageSet:
    """The examples of a split with their pictures and texts, numbered as in the split.

    Args:
      reader: of `open_split`.

    Raises:
      DataError: the records hold no pictures, or two each.
    """
    if not len(reader.index.counts) or not reader.record(0).pictures:
        raise DataError(
            f"{reader.name}: the records hold no pictures; build them with --images keep"
        )
    if len(reader.record(0).pictures) > 1:
        raise DataError(f"{reader.name}: an example has two pictures, where one can be read")

    def read(number: int) -> ImageExample:
        position = int(np.searchsorted(reader.first_example, number, side="right")) - 1
        record = reader.record(position)
        annotation = record.annotations[number - int(reader.first_example[position])]
        return ImageExample(record.pictures[0].data, annotation.example_id, text=annotation.text)

    # Records are stored in random order, so neighbours are like any others.
    sizes = even_shards(reader.index.num_examples, _SHARD_SIZE)
    return ImageSet(reader.name, sizes, read, is_checked=True)
