"""The clean multi-task split: no dataset trains on an image that any dataset is tested on.

Datasets share photos, so a test image of one may be a training image of another (12-in-1 section
3.2). The ids of all test images are gathered per collection of images, Visual Genome's own list of
COCO ids joins COCO and Visual Genome, and records of such images are removed from every training
split. Test splits stay unchanged. All this uses the indexes of built datasets alone, so
cleaning only chooses which records are read, and needs no second build.

GQA's files do not say which of its images are COCO's; those of Visual Genome QA do for all images.
So an id that any index knows for an image counts for all datasets that use the image.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from twelve_in_one import atomic
from twelve_in_one.data.builders.sources import SOURCES, Source
from twelve_in_one.data.stored.index import SplitIndex
from twelve_in_one.data.stored.records import DataError

Indexes = Mapping[str, Mapping[str, SplitIndex]]
_NONE: Mapping[str, Source] = {}


@dataclasses.dataclass(frozen=True)
class CleanSplit:
    """Ids of the images that no dataset may train on.

    Attributes:
      images: domain -> ids; a photo in both COCO and Visual Genome is in both, under each one's id.
      datasets: those whose test splits were collected.
    """

    images: Mapping[str, frozenset[str]]
    datasets: tuple[str, ...]

    def keeps(self, domain: str, index: SplitIndex) -> np.ndarray:
        """bool[n], records that may be trained on."""
        return ~_is_in(self.images, domain, index).any(axis=1)


def test_images(indexes: Indexes, own: Mapping[str, Source] = _NONE) -> CleanSplit:
    """Collects the test images of all built datasets.

    Args:
      indexes: dataset -> split -> index.
      own: the user's own data sets among them.
    """
    known = {**SOURCES, **own}
    images: dict[str, set[str]] = {source.domain: set() for source in known.values()}
    datasets = []
    for name, splits in indexes.items():
        source = known[name]
        for split in source.test_splits:
            if split in splits:
                images[source.domain].update(splits[split].image_ids.ravel().tolist())
                datasets.append(name)
    return CleanSplit(
        _under_both_ids(images, _coco_ids(indexes, known)), tuple(dict.fromkeys(datasets))
    )


def from_id_lists(lists: Mapping[str, Sequence[int]]) -> CleanSplit:
    """A clean split from given ids, such as the released `coco_test_ids.npy`: domain -> ids."""
    return CleanSplit(
        {domain: frozenset(map(str, ids)) for domain, ids in lists.items()}, ("given lists",)
    )


def _coco_ids(indexes: Indexes, sources: Mapping[str, Source] = SOURCES) -> dict[str, str]:
    """Visual Genome id -> COCO id, if any index knows it."""
    known = {}
    for name, splits in indexes.items():
        if sources[name].domain == "visual_genome":
            for index in splits.values():
                in_coco = index.coco_ids >= 0
                photos = map(str, index.coco_ids[in_coco].tolist())
                known.update(zip(index.image_ids[in_coco].tolist(), photos, strict=True))
    return known


def _under_both_ids(
    images: Mapping[str, set[str]], coco_ids: Mapping[str, str]
) -> dict[str, frozenset[str]]:
    """`images`, with photos shared by COCO and Visual Genome in both."""
    genome = images["visual_genome"]
    coco = images["coco"] | {coco_ids[image] for image in genome & coco_ids.keys()}
    genome = genome | {image for image, photo in coco_ids.items() if photo in coco}
    both = {**images, "coco": coco, "visual_genome": genome}
    return {domain: frozenset(ids) for domain, ids in both.items()}


def _is_in(images: Mapping[str, frozenset[str]], domain: str, index: SplitIndex) -> np.ndarray:
    """bool[n, K], whether `images` has the image under either id."""
    own = np.isin(index.image_ids, np.array(sorted(images.get(domain, ())), str))
    photos = np.fromiter(map(int, images.get("coco", ())), np.int64)
    return own | (np.isin(index.coco_ids, photos) & (index.coco_ids >= 0))


@dataclasses.dataclass(frozen=True)
class Removed:
    """How much a split loses.

    Attributes:
      dataset: name.
      split: name.
      records: before cleaning.
      removed_records: of these.
      annotations: before cleaning.
      removed_annotations: of these.
    """

    dataset: str
    split: str
    records: int
    removed_records: int
    annotations: int
    removed_annotations: int


def removed(
    indexes: Indexes, clean: CleanSplit, own: Mapping[str, Source] = _NONE
) -> tuple[Removed, ...]:
    """Losses of every cleaned split; `own` as in `test_images`."""
    rows, known = [], {**SOURCES, **own}
    for name, splits in indexes.items():
        source = known[name]
        for split in source.cleaned_splits:
            if split in splits:
                index = splits[split]
                gone = ~clean.keeps(source.domain, index)
                rows.append(
                    Removed(
                        name,
                        split,
                        len(index.counts),
                        int(gone.sum()),
                        index.num_examples,
                        int(index.counts[gone].sum()),
                    )
                )
    return tuple(rows)


def overlap_matrix(indexes: Indexes) -> tuple[tuple[str, ...], np.ndarray]:
    """Share of each dataset's test images that another dataset trains or validates on (Table 1).

    Returns:
      Names, and float64[n, n]: tested in rows, trained on in columns; NaN on the diagonal and for
      datasets without test images of their own.
    """
    names = tuple(indexes)
    coco_ids = _coco_ids(indexes)
    matrix = np.full((len(names), len(names)), np.nan)
    for j, column in enumerate(names):
        seen: dict[str, set[str]] = {source.domain: set() for source in SOURCES.values()}
        for split in ("train", "val"):
            if split in indexes[column]:
                ids = indexes[column][split].image_ids.ravel().tolist()
                seen[SOURCES[column].domain].update(ids)
        found = _under_both_ids(seen, coco_ids)
        for i, row in enumerate(names):
            tests = [indexes[row][s] for s in SOURCES[row].test_splits if s in indexes[row]]
            if i != j and sum(len(test.counts) for test in tests):
                ids = np.concatenate([test.image_ids.ravel() for test in tests])
                is_in = [_is_in(found, SOURCES[row].domain, test).ravel() for test in tests]
                _, first = np.unique(ids, return_index=True)
                matrix[i, j] = np.concatenate(is_in)[first].mean()
    return names, matrix


def format_removed(rows: Sequence[Removed]) -> str:
    """The table of removed annotations, with the mean share over training splits."""
    lines = [f"{'dataset':<20} {'split':<6} {'annotations':>12} {'removed':>9} {'share':>7}"]
    shares = []
    for row in rows:
        share = row.removed_annotations / max(row.annotations, 1)
        if row.split == "train":
            shares.append(share)
        lines.append(
            f"{row.dataset:<20} {row.split:<6} {row.annotations:>12,} "
            f"{row.removed_annotations:>9,} {share:>7.1%}"
        )
    mean = float(np.mean(shares)) if shares else 0.0
    lines.append(f"mean share of the {len(shares)} training splits: {mean:.1%} (the paper: 11 %)")
    return "\n".join(lines)


def format_overlap(names: Sequence[str], matrix: np.ndarray) -> str:
    """The overlap matrix in percent."""
    width = max(map(len, names), default=0)
    header = "test images of (row) found in train or val of (column), in %"
    lines = [header, " " * width + "".join(f"  {name:>5}" for name in names)]
    for name, row in zip(names, matrix, strict=True):
        cells = (
            f"{'-' if np.isnan(share) else f'{100 * share:.0f}':>{2 + max(5, len(column))}}"
            for column, share in zip(names, row, strict=True)
        )
        lines.append(f"{name:<{width}}{''.join(cells)}")
    return "\n".join(lines)


def write_clean_split(path: Path, clean: CleanSplit) -> None:
    """Writes the ids as JSON."""
    images = {domain: sorted(ids) for domain, ids in clean.images.items()}
    atomic.write(path, json.dumps({"datasets": list(clean.datasets), "images": images}, indent=1))


def read_clean_split(path: Path) -> CleanSplit:
    """Reads the file that `write_clean_split` wrote.

    Raises:
      DataError: missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
        images = {domain: frozenset(ids) for domain, ids in value["images"].items()}
        return CleanSplit(images, tuple(value["datasets"]))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); run python -m twelve_in_one.data.build all"
        ) from error
