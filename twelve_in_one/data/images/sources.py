"""Opens pictures from any source, as a set and as a stream of batches."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from twelve_in_one.data.images import clip_sets
from twelve_in_one.data.images.boxes import open_boxes
from twelve_in_one.data.images.catalogue import open_catalogue
from twelve_in_one.data.images.class_folders import open_class_folders
from twelve_in_one.data.images.image_set import ImageSet, share_of
from twelve_in_one.data.images.own_records import open_coco, open_jsonl
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.images.selection import ImageSelection
from twelve_in_one.data.images.stream import (
    MAX_UNREADABLE_SHARE,
    ClassLabels,
    ImageStream,
    Part,
    try_some,
)
from twelve_in_one.data.images.tar import open_tar
from twelve_in_one.data.images.tfrecord import open_tfrecord
from twelve_in_one.data.images.tsv import open_tsv
from twelve_in_one.data.stored.order import PERMUTED_EXAMPLES, WINDOW
from twelve_in_one.data.stored.records import DataError

Open = Callable[[str, Sequence[str] | None], ImageSet]

_SHARE = re.compile(r"(.*)\[(\d{1,2}%)?:(\d{1,2}%)?\]")
_SEVERAL = re.compile(r"(.*)\{([^{}]*,[^{}]*)\}(.*)")


def _open_folders(place: str, labels: Sequence[str] | None) -> ImageSet:
    """A folder, or several as "photos/{a,b}", or a share of their pictures as "photos[:90%]"."""
    share = _SHARE.fullmatch(place)
    several = _SEVERAL.fullmatch(share[1] if share else place)
    names = [share[1] if share else place]
    if several:
        names = [f"{several[1]}{name.strip()}{several[3]}" for name in several[2].split(",")]
    first, *more = map(Path, names)
    found = open_class_folders(first, labels, more)
    if not share:
        return found
    start, stop = (int(x[:-1]) / 100 if x else y for x, y in ((share[2], 0.0), (share[3], 1.0)))
    return share_of(found, start, stop, place)


_KINDS: dict[str, Open] = {
    "folder": _open_folders,
    "jsonl": open_jsonl,
    "coco": open_coco,
    "lvis": open_boxes,
    "instances": open_boxes,
    "tfds": open_catalogue,
    "tar": open_tar,
    "tsv": open_tsv,
    "tfrecord": open_tfrecord,
    **{kind: functools.partial(clip_sets.open_clips, kind) for kind in clip_sets.KINDS},
}


def open_images(source: str | Path, labels: Sequence[str] | None = None) -> ImageSet:
    """Opens a set of pictures.

    Args:
      source: a folder of class folders or of one picture for each class, also as "folder:PATH",
        several as "folder:photos/{a,b}", a share of the pictures as "folder:PATH[:90%]";
        "jsonl:FILE,FOLDER[SPLIT]" of a user's records and "coco:FILES,FOLDERS[SPLIT]", see
        `own_records`; "lvis:FILE,FOLDER" and "instances:FILE,FOLDER" of boxes; "tfds:NAME[SPLIT]"
        of the TFDS catalogue; "tar:FILES" of webdataset; "tsv:FILE" or "tsv:FILE,FOLDER";
        "tfrecord:FILES"; "msrvtt_qa:FOLDER[SPLIT]" and the like of clips, see `clip_sets`.
      labels: names of the classes in the order of their numbers; None for those of the source.

    Raises:
      DataError: see the modules of the kinds.
    """
    kind, colon, place = str(source).partition(":")
    if colon and kind in _KINDS:
        return _KINDS[kind](place, labels)
    path = Path(source)
    if path.is_dir():
        return open_class_folders(path, labels)
    raise DataError(
        f"{source}: no such folder; other kinds of pictures are {', '.join(_KINDS)}, with a colon "
        "and the place behind it"
    )


def recipe(size: int, *, training: bool, flip: bool = True) -> Preprocess:
    """The usual recipe: a random box, flipped or not, for training; the middle for evaluation."""
    if training:
        return Preprocess(size, random_crop=True, flip=flip)
    return Preprocess(size, short_side=round(size * 256 / 224))


def open_image_stream(
    source: str | Path | ImageSet,
    *,
    size: int,
    batch_size: int,
    training: bool,
    seed: int | tuple[int, ...] = 0,
    host: int = 0,
    num_hosts: int = 1,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    num_labels: int | None = None,
    task_id: int = 0,
    permuted_examples: int = PERMUTED_EXAMPLES,
    window: int = WINDOW,
    max_unreadable_share: float = MAX_UNREADABLE_SHARE,
) -> ImageStream:
    """Batches of pictures with labels.

    Args:
      source: see `open_images`, or a set.
      size: side of the pictures that the model takes, in pixels.
      batch_size: of all hosts together.
      training: shuffled and endless, or once in stored order.
      seed: of the order and of the random operations on a picture; differs between tasks.
      host: which of the hosts this is.
      num_hosts: how many there are.
      preprocess: of the pictures; None for `recipe`.
      labels: names of the classes that the model knows, in their order; None for those of `source`.
      num_labels: width of one-hot targets; None for as many as there are classes, 0 for numbers.
      task_id: stated in every row.
      permuted_examples: see `ImageSelection`.
      window: see `ImageSelection`.
      max_unreadable_share: largest share of unreadable pictures among a few that are tried; more is
        an error.

    Raises:
      DataError: the source cannot be opened, most of it cannot be read, or it has more classes than
        the model.
      ValueError: the batch does not divide among the hosts, or `preprocess` gives another size.
    """
    images = source if isinstance(source, ImageSet) else open_images(source, labels)
    if not images.is_checked:
        try_some(images, max_unreadable_share)
    preprocess = preprocess or recipe(size, training=training)
    if preprocess.size != size:
        raise ValueError(f"preprocess makes pictures of {preprocess.size} pixels, not {size}")
    seeds = (seed,) if isinstance(seed, int) else seed
    selection = ImageSelection(
        images, batch_size, training, seeds, host, num_hosts, permuted_examples, window
    )
    width = len(images.labels) if num_labels is None else num_labels
    if 0 < width < len(images.labels):
        raise DataError(
            f"{images.name}: {len(images.labels)} classes, but the model has {width} labels"
        )
    part = Part(images, preprocess, ClassLabels(width), task_id, seeds)
    return ImageStream(selection, (part,))
