"""What all datasets of a data folder have in common, made once they are built.

* `answers-vqa.json`, `answers-gqa.json`: answer vocabularies
* `vocab.txt`: words of the tokenizer
* `clean_split.json`: images that nobody may train on
* `hard_negatives.npz` in each retrieval dataset: images that look alike

Each is written under another name first, so that what is there is whole, and vocabularies that are
there are kept: checkpoints depend on them.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from twelve_in_one.data import answers, splits, text
from twelve_in_one.data.annotations import gqa, vqa
from twelve_in_one.data.index import SplitIndex, read_index
from twelve_in_one.data.negatives import nearest_pool
from twelve_in_one.data.reader import built_folder, has_split, region_names
from twelve_in_one.data.records import DataError
from twelve_in_one.data.sources import SOURCES
from twelve_in_one.data.splits import CleanSplit, Indexes

VQA_ANSWERS, GQA_ANSWERS = "answers-vqa.json", "answers-gqa.json"
WORDS = "vocab.txt"
CLEAN_SPLIT = "clean_split.json"
_HARD_NEGATIVES = "hard_negatives.npz"
MAX_WORDS = 30_522


def built_indexes(data_dir: Path, regions: str) -> Indexes:
    """Indexes of everything that is built with the given region features."""
    indexes: dict[str, dict[str, SplitIndex]] = {}
    for name, source in SOURCES.items():
        if regions in region_names(data_dir, name):
            indexes[name] = split_indexes(data_dir, name, regions, source.splits)
    return indexes


def split_indexes(
    data_dir: Path, name: str, regions: str, known: Sequence[str] = ("train", "val", "test")
) -> dict[str, SplitIndex]:
    """Indexes of those splits of a built dataset that are there."""
    folder = built_folder(data_dir, name, regions)
    return {split: read_index(folder, split) for split in known if has_split(folder, split)}


def write_answers(
    manual_dir: Path, data_dir: Path, given: Mapping[str, Path | None], built: Iterable[str]
) -> list[str]:
    """Writes the answer vocabularies: given ones, or made by rule from the official files.

    Args:
      manual_dir: of the official files.
      data_dir: of the built datasets.
      given: "vqa" and "gqa" -> file, None to make it.
      built: names of the built datasets.

    Returns:
      One line about each.

    Raises:
      DataError: a vocabulary is needed, not given, and cannot be made.
    """
    lines = []
    built = set(built)
    for head, users, file in (
        ("vqa", {"vqa", "vgqa"}, VQA_ANSWERS),
        ("gqa", {"gqa"}, GQA_ANSWERS),
    ):
        path = data_dir / file
        if not built & users:
            continue
        if given.get(head) is not None:
            vocabulary = answers.read_vocabulary(given[head])
        elif path.is_file():
            lines.append(f"{path.name}: was there; delete it to have it made anew")
            continue
        else:
            vocabulary = _answers(head, manual_dir / SOURCES[head].folder)
        with _replacing(path) as new:
            answers.write_vocabulary(new, vocabulary)
        lines.append(f"{path.name}: {len(vocabulary):,} answers")
    return lines


def _answers(head: str, folder: Path) -> tuple[str, ...]:
    try:
        if head == "gqa":
            return answers.gqa_vocabulary(gqa.read(folder, split) for split in ("train", "val"))
        parts = (vqa.annotation_records(folder, split) for split in ("train2014", "val2014"))
        return answers.vqa_vocabulary(itertools.chain.from_iterable(parts))
    except DataError as error:
        users = {"vqa": "VQA and Visual Genome QA", "gqa": "GQA"}[head]
        raise DataError(
            f"the answer vocabulary of {users} cannot be made: {error}; pass one with "
            f"--{head}_answers"
        ) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Another name, under which a file is written; it is renamed when it is complete."""
    new = path.with_name(f".{path.name}")
    yield new
    new.replace(path)


def write_words(manual_dir: Path, data_dir: Path, given: Path | None) -> str:
    """Writes the tokenizer's words: a given file, or made from the training texts.

    These are the texts of all datasets in `manual_dir`, whichever are built by now: words must
    not depend on which came first.

    Returns:
      A line about it.
    """
    path = data_dir / WORDS
    without: list[str] = []
    if given is not None:
        words = text.load_tokenizer(given).vocabulary
    elif path.is_file():
        return f"{path.name}: was there; delete it to have it made anew"
    else:
        words = text.train_tokenizer(_training_texts(manual_dir, without), MAX_WORDS)
    with _replacing(path) as new:
        text.write_vocabulary(new, words)
    missing = f", without those of {', '.join(without)}" if without else ""
    return f"{path.name}: {len(words):,} words{missing}"


def _training_texts(manual_dir: Path, without: list[str]) -> Iterator[str]:
    """Adds to `without` the datasets that there are no training texts of."""
    for name, source in sorted(SOURCES.items()):
        try:
            annotations = source.read(manual_dir / source.folder, "train").annotations
        except DataError:
            without.append(name)
            continue
        yield from (annotation.text for annotation in annotations)


def write_clean_split(data_dir: Path, clean: CleanSplit) -> None:
    """Writes the images that nobody may train on, unless they are there."""
    path = data_dir / CLEAN_SPLIT
    with contextlib.suppress(DataError):  # damaged or missing
        if splits.read_clean_split(path) == clean:
            return
    with _replacing(path) as new:
        splits.write_clean_split(new, clean)


def write_hard_negatives(
    data_dir: Path, regions: str, indexes: Indexes, clean: CleanSplit, log: Callable[[str], None]
) -> None:
    """Writes the pool of each retrieval dataset, over the images that remain after cleaning.

    A pool of these images that is there is kept.
    """
    for name in ("coco", "flickr30k"):
        if "train" not in indexes.get(name, {}):
            continue
        index = indexes[name]["train"]
        kept = np.flatnonzero(clean.keeps(SOURCES[name].domain, index))
        if not index.feature_dim:
            log(f"{name}: no region features, so negatives will be random")
            continue
        folder, image_ids = built_folder(data_dir, name, regions), index.image_ids[kept, 0]
        with contextlib.suppress(DataError):  # damaged, missing, or of other images
            read_hard_negatives(folder, image_ids)
            continue
        pool = nearest_pool(index.mean_features[kept])
        with _replacing(folder / _HARD_NEGATIVES) as new:
            np.savez(new, image_ids=image_ids, pool=pool)
        log(f"{name}: {len(kept):,} images, {pool.shape[1] - 1} neighbours each")


def read_hard_negatives(folder: Path, image_ids: np.ndarray) -> np.ndarray:
    """The pool of a built retrieval dataset, as positions in `image_ids`.

    Args:
      folder: of the built dataset.
      image_ids: str[n], images that are trained on, in stored order.

    Returns:
      int32[n, P].

    Raises:
      DataError: there is no pool, or it is of other images.
    """
    path = folder / _HARD_NEGATIVES
    fix = "run python -m twelve_in_one.data.build on this folder again"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            stored, pool = arrays["image_ids"], arrays["pool"]
    except Exception as error:  # zipfile and NumPy have no error of their own for damaged files
        raise DataError(f"{path}: cannot be read ({error}); {fix}") from error
    if not np.array_equal(stored, image_ids):
        raise DataError(
            f"{path}: pool of {len(stored)} images, but {len(image_ids)} are trained on, or in "
            f"another order: the clean split has changed; {fix}"
        )
    return pool
