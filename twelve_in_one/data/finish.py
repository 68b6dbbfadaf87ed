"""What all datasets of a data folder have in common, made once they are built.

* `answers-vqa.json`, `answers-gqa.json`: answer vocabularies
* `vocab.txt`: words of the tokenizer
* `clean_split.json`: images that nobody may train on
* `hard_negatives.npz` in each retrieval dataset: images that look alike
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from twelve_in_one.data import answers, text
from twelve_in_one.data.annotations import vqa
from twelve_in_one.data.index import SplitIndex, read_index
from twelve_in_one.data.negatives import nearest_pool
from twelve_in_one.data.reader import built_folder, dataset_folder, has_split
from twelve_in_one.data.records import Annotation, DataError, MissingFile
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
        if any((data_dir / dataset_folder(name) / regions).glob("*/dataset_info.json")):
            folder = built_folder(data_dir, name, regions)
            splits = {s: read_index(folder, s) for s in source.splits if has_split(folder, s)}
            indexes[name] = splits
    return indexes


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
            continue
        elif head == "gqa":
            folder = manual_dir / SOURCES["gqa"].folder
            sets = (SOURCES["gqa"].read(folder, split) for split in ("train", "val"))
            vocabulary = answers.gqa_vocabulary(sets)
        else:
            vocabulary = _vqa_answers(manual_dir)
        answers.write_vocabulary(path, vocabulary)
        lines.append(f"{path.name}: {len(vocabulary):,} answers")
    return lines


def _vqa_answers(manual_dir: Path) -> tuple[str, ...]:
    folder = manual_dir / SOURCES["vqa"].folder
    try:
        records = itertools.chain.from_iterable(
            vqa.annotation_records(folder, split) for split in ("train2014", "val2014")
        )
        return answers.vqa_vocabulary(records)
    except DataError as error:
        raise DataError(
            f"the answer vocabulary of VQA and Visual Genome QA cannot be made: {error}; pass one "
            "with --vqa_answers"
        ) from error


def write_words(
    manual_dir: Path, data_dir: Path, given: Path | None, built: Iterable[str]
) -> list[str]:
    """Writes the tokenizer's words: a given file, or made from the training texts.

    Returns:
      A line about it; none where the words are there already.
    """
    path = data_dir / WORDS
    if given is not None:
        words = text.load_tokenizer(given).vocabulary
    elif path.is_file():
        return []
    else:
        texts = (
            annotation.text
            for name in sorted(built)
            for annotation in _training_annotations(manual_dir, name)
        )
        words = text.train_tokenizer(texts, MAX_WORDS)
    text.write_vocabulary(path, words)
    return [f"{path.name}: {len(words):,} words"]


def _training_annotations(manual_dir: Path, name: str) -> tuple[Annotation, ...]:
    source = SOURCES[name]
    try:
        return source.read(manual_dir / source.folder, "train").annotations
    except MissingFile:
        return ()


def write_hard_negatives(
    data_dir: Path, regions: str, indexes: Indexes, clean: CleanSplit, log: Callable[[str], None]
) -> None:
    """Writes the pool of each retrieval dataset, over the images that remain after cleaning."""
    for name in ("coco", "flickr30k"):
        if "train" not in indexes.get(name, {}):
            continue
        index = indexes[name]["train"]
        kept = np.flatnonzero(clean.keeps(SOURCES[name].domain, index))
        if not index.feature_dim:
            log(f"{name}: no region features, so negatives will be random")
            continue
        pool = nearest_pool(index.mean_features[kept])
        path = built_folder(data_dir, name, regions) / _HARD_NEGATIVES
        np.savez(path, image_ids=index.image_ids[kept, 0], pool=pool)
        log(f"{name}: {len(kept):,} images, {pool.shape[1] - 1} neighbours each")


def read_hard_negatives(folder: Path, image_ids: np.ndarray) -> np.ndarray | None:
    """The pool of a built retrieval dataset, as positions in `image_ids`.

    Args:
      folder: of the built dataset.
      image_ids: str[n], images that are trained on, in stored order.

    Returns:
      int32[n, P], or None where the dataset was built without region features.

    Raises:
      DataError: there is no pool, or it is of other images.
    """
    path = folder / _HARD_NEGATIVES
    if not read_index(folder, "train").feature_dim:
        return None
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
