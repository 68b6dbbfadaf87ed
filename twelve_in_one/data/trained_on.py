"""Training data of a model, so a score on it is not mistaken for one on unseen records.

Recorded at the beginning of a run as 64-bit hashes, 8 bytes per example and per image, and kept
with the model (`trained_on.npz`, some 40 MB for the twelve datasets): data folders change, and
today's test data may have been yesterday's training data. Letters: E examples, n records.
"""

import dataclasses
import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from twelve_in_one import atomic
from twelve_in_one.data.pipeline import Seen, Selection
from twelve_in_one.data.stored.index import SplitIndex, key_of
from twelve_in_one.data.stored.reader import SplitReader
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.task import Task

FILE = "trained_on.npz"
_EXAMPLES, _IMAGES, _UNKNOWN = "examples/", "images", "unknown"


class _Trained(Protocol):
    @property
    def task(self) -> Task: ...

    @property
    def selection(self) -> Selection: ...


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedOn:
    """Examples and images that a model has seen in training.

    Attributes:
      examples: dataset -> uint64[...], keys of its examples, ascending.
      images: uint64[...], keys of the images of all datasets, ascending; a photo in both COCO and
        Visual Genome is under both its ids, if these are known.
      unknown: further training data that were not recorded, in words.
    """

    examples: Mapping[str, np.ndarray]
    images: np.ndarray
    unknown: tuple[str, ...] = ()

    def __or__(self, other: "TrainedOn") -> "TrainedOn":
        """Joins both."""
        nothing = np.zeros(0, np.uint64)
        examples = {
            name: np.union1d(self.examples.get(name, nothing), other.examples.get(name, nothing))
            for name in {**self.examples, **other.examples}
        }
        unknown = tuple(dict.fromkeys((*self.unknown, *other.unknown)))
        return TrainedOn(examples, np.union1d(self.images, other.images), unknown)


def nothing(*unknown: str) -> TrainedOn:
    """For a model without any known training data."""
    return TrainedOn({}, np.zeros(0, np.uint64), unknown)


def of_streams(streams: Iterable[_Trained]) -> TrainedOn:
    """The data of training on these streams, even if it does not reach the end of an epoch."""
    selections = [(stream.task.name, stream.selection) for stream in streams]
    return of_records((name, x.domain, x.reader.index, x.records) for name, x in selections)


def of_records(sets: Iterable[tuple[str, str, SplitIndex, np.ndarray]]) -> TrainedOn:
    """The data of training on records.

    Args:
      sets: name of the dataset, collection that its images come from, index of the split, and
        int64[n], positions of the records.
    """
    examples: dict[str, np.ndarray] = {}
    images, both, unknown = [], [], []
    for name, domain, index, kept in sets:
        if len(index.example_keys) == index.num_examples:
            in_records = np.zeros(len(index.counts), bool)
            in_records[kept] = True
            keys = np.unique(index.example_keys[np.repeat(in_records, index.counts)])
            examples[name] = np.union1d(examples.get(name, keys), keys)
        else:
            unknown.append(_not_kept(name))
        images.append(_image_keys(domain, index, kept).ravel())
        if domain == "visual_genome":
            both.append(_photos_of_both(index))
    found = np.unique(np.concatenate(images)) if images else np.zeros(0, np.uint64)
    for genome, coco in both:  # a photo known by one id is known by both
        seen = np.isin(genome, found) | np.isin(coco, found)
        found = np.union1d(found, np.concatenate([genome[seen], coco[seen]]))
    return TrainedOn(examples, found, tuple(unknown))


def look(
    trained: TrainedOn, name: str, domain: str, index: SplitIndex, records: np.ndarray
) -> tuple[np.ndarray, Seen]:
    """How much of a split was trained on.

    Args:
      trained: by the model.
      name: of the dataset.
      domain: collection that its images come from.
      index: of the split.
      records: int64[n'], positions of the scored records.

    Returns:
      bool[E], the examples of the split that were trained on; and the numbers, of `records` alone.
    """
    in_records = np.zeros(len(index.counts), bool)
    in_records[records] = True
    scored = np.repeat(in_records, index.counts)
    unknown = list(trained.unknown)
    seen = np.zeros(index.num_examples, bool)
    if len(index.example_keys) == index.num_examples:
        seen = np.isin(index.example_keys, trained.examples.get(name, ())) & scored
    else:
        unknown.append(_not_kept(name))
    ids, first = np.unique(index.image_ids[records].ravel(), return_index=True)
    keys = _image_keys(domain, index, records)
    images = np.isin(keys, trained.images).any(axis=-1).ravel()[first]
    return seen, Seen(
        int(seen.sum()),
        int(scored.sum()),
        int(images.sum()),
        len(ids),
        False,
        tuple(dict.fromkeys(unknown)),
    )


def without_examples(reader: SplitReader, left_out: np.ndarray) -> SplitReader:
    """The split without some of its examples; records may be left without any.

    Args:
      reader: of the split.
      left_out: bool[E].
    """
    index, first = reader.index, reader.first_example
    kept = np.flatnonzero(~left_out)
    owner = np.repeat(np.arange(len(index.counts)), index.counts)

    def record(position: int) -> object:
        whole, part = reader.record(position), slice(first[position], first[position + 1])
        left = zip(whole.annotations, left_out[part], strict=True)
        return dataclasses.replace(whole, annotations=tuple(a for a, gone in left if not gone))

    smaller = dataclasses.replace(
        index,
        counts=np.bincount(owner[kept], minlength=len(index.counts)).astype(np.int64),
        texts=tuple(index.texts[i] for i in kept) if index.texts else (),
        example_keys=index.example_keys[kept],
    )
    return dataclasses.replace(reader, index=smaller, record=record)


def write(path: Path, trained: TrainedOn) -> None:
    """Writes the file that `read` reads."""
    atomic.write(path, to_bytes(trained))


def to_bytes(trained: TrainedOn) -> bytes:
    """The content of a file."""
    buffer = io.BytesIO()
    arrays = {f"{_EXAMPLES}{name}": keys for name, keys in trained.examples.items()}
    unknown = np.array(trained.unknown, str).reshape(-1)
    np.savez(buffer, **{_IMAGES: trained.images, _UNKNOWN: unknown}, **arrays)
    return buffer.getvalue()


def read(path: Path) -> TrainedOn | None:
    """Reads the record; None if there is none.

    Raises:
      DataError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            examples = {
                key.removeprefix(_EXAMPLES): arrays[key].astype(np.uint64, casting="safe")
                for key in arrays
                if key.startswith(_EXAMPLES)
            }
            images = arrays[_IMAGES].astype(np.uint64, casting="safe")
            return TrainedOn(examples, images, tuple(map(str, arrays[_UNKNOWN])))
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); delete it, and what was trained on is not known"
        ) from error


def _not_kept(name: str) -> str:
    return f"which records of {name} are the same: its data were built before ids were kept"


def _photos_of_both(index: SplitIndex) -> tuple[np.ndarray, np.ndarray]:
    """Keys of Visual Genome's photos that are COCO's, under each of their two ids."""
    known = index.coco_ids >= 0
    genome = [key_of(f"visual_genome\0{image_id}") for image_id in index.image_ids[known]]
    coco = [key_of(f"coco\0{image_id}") for image_id in index.coco_ids[known]]
    return np.array(genome, np.uint64), np.array(coco, np.uint64)


def _image_keys(domain: str, index: SplitIndex, records: np.ndarray) -> np.ndarray:
    """uint64[n', K, 2], keys under the own id and COCO's; the own key twice if there is none."""
    ids, coco = index.image_ids[records].ravel(), index.coco_ids[records].ravel()
    own = np.array([key_of(f"{domain}\0{image_id}") for image_id in ids], np.uint64)
    other = own.copy()
    in_coco = np.flatnonzero(coco >= 0) if domain != "coco" else ()
    for i in in_coco:
        other[i] = key_of(f"coco\0{coco[i]}")
    return np.stack([own, other], axis=-1).reshape(len(records), -1, 2)
