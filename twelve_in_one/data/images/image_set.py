"""A set of encoded pictures, or clips, with labels or texts, from any source."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from twelve_in_one.data.annotations.instances import Objects
from twelve_in_one.data.stored.records import DataError, Skipped
from twelve_in_one.mixing.mixed import Size


class TextMisfit(DataError):
    """A text of one example cannot be learnt or does not fit: the example is left out."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageExample:
    """One picture, not decoded, or one clip.

    Attributes:
      data: bytes of an image file; empty for a clip.
      example_id: unique within the set; errors name the example by it.
      label: number of its class, -1 if there is none.
      question: to answer by `texts`, "" if there is none.
      texts: captions of the picture, or answers to the question.
      scores: credit of each answer, in (0, 1]; () if all are right.
      image_id: the same for all examples with one picture; "" for `example_id`.
      objects: the boxes of a picture to find things in; None for others.
      clip: a video file, or a folder of frames; see `clips`.
    """

    data: bytes
    example_id: str
    label: int = -1
    question: str = ""
    texts: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    image_id: str = ""
    objects: Objects | None = None
    clip: Path | None = None


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Random access to pictures, numbered shard by shard.

    Attributes:
      name: for messages: path or name.
      shard_sizes: number of examples in each shard. A shard is in one file, or is a part of the set
        with much the same mix as the whole.
      read: number -> example, from any thread.
      labels: names of the classes, in the order of their numbers; () if there are none.
      is_checked: whether `pipeline.decode` is known to read all bytes, as for a built
        dataset.
      first_of_image: int64[images + 1], number of the first example of each image, and the end, if
        consecutive examples share images; None if every example has its own.
      skipped: examples that the set names but that cannot be used.
      pairs: of picture and text, where an example has several texts; 0 for one each.
      frequencies: "r", "c" or "f" of each class, for sets of boxes that state them.
      category_ids: official number of each class, for sets of boxes.
    """

    name: str
    shard_sizes: tuple[int, ...]
    read: Callable[[int], ImageExample]
    labels: tuple[str, ...] = ()
    is_checked: bool = False
    first_of_image: np.ndarray | None = dataclasses.field(default=None, compare=False)
    skipped: tuple[Skipped, ...] = ()
    pairs: int = 0
    frequencies: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.num_examples:
            raise DataError(f"{self.name}: holds no example")

    @property
    def num_examples(self) -> int:
        """Number of pictures."""
        return int(self.first_of_shard[-1])

    @functools.cached_property
    def first_of_shard(self) -> np.ndarray:
        """int64[shards + 1], number of the first example of each shard, and the end."""
        return np.concatenate([[0], np.cumsum(np.array(self.shard_sizes, np.int64))])

    @property
    def size(self) -> Size:
        """Its pairs of picture and text, and its images."""
        images = self.num_examples if self.first_of_image is None else len(self.first_of_image) - 1
        return Size(self.pairs or self.num_examples, images)

    def locate(self, number: int) -> tuple[int, int]:
        """(shard, index within it) of an example.

        Raises:
          IndexError: there is no such example.
        """
        if not 0 <= number < self.num_examples:
            raise IndexError(f"{self.name}: example {number} of {self.num_examples}")
        shard = int(np.searchsorted(self.first_of_shard, number, side="right")) - 1
        return shard, number - int(self.first_of_shard[shard])


def examples(images: ImageSet, count: int = 0) -> Iterator[ImageExample]:
    """The first `count` examples, all if 0, but for those that cannot be read."""
    for number in range(min(count or images.num_examples, images.num_examples)):
        try:
            yield images.read(number)
        except DataError:
            continue  # the stream that needs its picture names it


def even_shards(count: int, shard_size: int) -> tuple[int, ...]:
    """Sizes of shards for a set without shards of its own; the last may be smaller."""
    whole, rest = divmod(count, shard_size)
    return (shard_size,) * whole + ((rest,) if rest else ())


def share_of(images: ImageSet, start: float, stop: float, name: str) -> ImageSet:
    """The examples of a set from one share of their number to another, in its order.

    Args:
      images: a set without images that examples share.
      start: from 0 to 1.
      stop: likewise.
      name: of the part.

    Raises:
      DataError: the part is empty.
    """
    first, last = (round(images.num_examples * share) for share in (start, stop))
    if first >= last:
        raise DataError(f"{name}: no example of {images.num_examples}")
    return dataclasses.replace(
        images,
        name=name,
        shard_sizes=even_shards(last - first, max(images.shard_sizes)),
        read=lambda number: images.read(first + number),
    )


def first_examples(images: ImageSet, count: int) -> ImageSet:
    """About the first `count` examples of a set: whole images."""
    if not count or count >= images.num_examples:
        return images
    first = images.first_of_image
    if first is not None:
        last = int(np.searchsorted(first, count))
        first, count = first[: last + 1], int(first[last])
    ends = np.minimum(images.first_of_shard, count)
    pairs = -(-images.pairs * count // images.num_examples)
    sizes = tuple(int(size) for size in np.diff(ends) if size)
    return dataclasses.replace(images, shard_sizes=sizes, first_of_image=first, pairs=pairs)
