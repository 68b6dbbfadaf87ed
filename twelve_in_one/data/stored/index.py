"""Index of a built split, to use it without reading its records: ids, counts, captions.

The builder writes one beside the records; order, cleaning, negatives and overlap tables are
computed from it. Letters: n records, K images per record, E examples, F feature size.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from twelve_in_one.data.stored.records import DataError

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """Index of one built split; records in stored order.

    Attributes:
      record_ids: str[n].
      image_ids: str[n, K].
      coco_ids: int64[n, K], -1 if the image is not COCO's.
      counts: int64[n], examples of each record.
      texts: E captions; empty for datasets that never need another image's text.
      mean_features: float16[n, F], for the hard negatives of retrieval; [0, 0] elsewhere.
      feature_dim: F, 0 if there are no region features.
      example_keys: uint64[E], see `example_keys`; [0] for data built without them.
    """

    record_ids: np.ndarray
    image_ids: np.ndarray
    coco_ids: np.ndarray
    counts: np.ndarray
    texts: tuple[str, ...]
    mean_features: np.ndarray
    feature_dim: int = 0
    example_keys: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def num_examples(self) -> int:
        """E."""
        return int(self.counts.sum())


def key_of(text: str) -> int:
    """A number below 2 ** 64 that represents a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def example_keys(example_ids: Iterable[str], image_ids: Sequence[str]) -> list[int]:
    """Keys of the examples of one record: its id and its images identify an example."""
    where = "\0".join(image_ids)
    return [key_of(f"{example_id}\0{where}") for example_id in example_ids]


def index_path(folder: Path, split: str) -> Path:
    """Path of a split's index in the folder of a built dataset."""
    return folder / f"index-{split}.npz"


def write_index(folder: Path, split: str, index: SplitIndex) -> None:
    """Writes the index into the folder of a dataset that is being built."""
    texts = [text.encode() for text in index.texts]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    np.savez(
        index_path(folder, split),
        version=np.int64(_VERSION),
        record_ids=index.record_ids,
        image_ids=index.image_ids,
        coco_ids=index.coco_ids,
        counts=index.counts,
        texts=np.frombuffer(b"".join(texts), np.uint8),
        text_ends=ends,
        mean_features=index.mean_features,
        feature_dim=np.int64(index.feature_dim),
        example_keys=index.example_keys,
    )


def read_index(folder: Path, split: str) -> SplitIndex:
    """Reads the index that `write_index` wrote.

    Raises:
      DataError: missing, damaged, or of another version.
    """
    path = index_path(folder, split)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            values = dict(arrays)
    except Exception as error:  # zipfile and NumPy have no error of their own for damaged files
        raise DataError(f"{path}: cannot be read ({error}); build the dataset again") from error
    if not np.array_equal(values.pop("version", None), _VERSION):
        raise DataError(f"{path}: of another version; build the dataset again")
    try:
        return _index_of(values)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); build the dataset again") from error


def _index_of(values: dict[str, np.ndarray]) -> SplitIndex:
    """The index that `write_index` wrote; a KeyError, TypeError or ValueError for other content."""
    blob, ends = values.pop("texts").tobytes(), values.pop("text_ends").tolist()
    texts = tuple(blob[start:end].decode() for start, end in itertools.pairwise(ends))
    feature_dim = int(values.pop("feature_dim"))
    index = SplitIndex(texts=texts, feature_dim=feature_dim, **values)
    n, k = index.image_ids.shape
    shapes = [x.shape for x in (index.record_ids, index.counts, index.coco_ids)]
    if shapes != [(n,), (n,), (n, k)] or len(index.mean_features) not in (0, n):
        raise ValueError(f"arrays of {n} records disagree in length")
    if len(texts) not in (0, index.num_examples):
        raise ValueError(f"{len(texts)} texts of {index.num_examples} examples")
    if len(index.example_keys) not in (0, index.num_examples):
        raise ValueError(f"{len(index.example_keys)} keys of {index.num_examples} examples")
    return index
