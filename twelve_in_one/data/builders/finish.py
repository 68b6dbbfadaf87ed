"""Files that all datasets of a data folder share, made once the datasets are built.

* `answers-vqa.json`, `answers-gqa.json`: answer vocabularies
* `vocab.txt`, `tokenizer_config.json`: the tokenizer's words, and whether it lower-cases texts
* `clean_split.json`: images that no dataset may train on
* `hard_negatives.npz` in each retrieval dataset: images that look alike

Each is written under another name first, so a file that exists is complete. Existing vocabularies
are kept: checkpoints depend on them.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from twelve_in_one import atomic
from twelve_in_one.data.annotations import gqa, vqa
from twelve_in_one.data.builders import answers, splits
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.builders.splits import CleanSplit, Indexes
from twelve_in_one.data.encode import text
from twelve_in_one.data.encode.negatives import nearest_pool
from twelve_in_one.data.formats import files
from twelve_in_one.data.stored.index import SplitIndex, read_index
from twelve_in_one.data.stored.reader import built_folder, has_split, region_names
from twelve_in_one.data.stored.records import DataError

VQA_ANSWERS, GQA_ANSWERS = "answers-vqa.json", "answers-gqa.json"
WORDS = "vocab.txt"
TOKENIZER_CONFIG, _LOWER_CASE = "tokenizer_config.json", "do_lower_case"  # names as BERT's
CLEAN_SPLIT = "clean_split.json"
_HARD_NEGATIVES = "hard_negatives.npz"
MAX_WORDS = 30_522


def built_indexes(data_dir: Path, regions: str) -> Indexes:
    """Indexes of all datasets built with the given region features."""
    indexes: dict[str, dict[str, SplitIndex]] = {}
    for name, source in SOURCES.items():
        if regions in region_names(data_dir, name):
            indexes[name] = split_indexes(data_dir, name, regions, source.splits)
    return indexes


def split_indexes(
    data_dir: Path, name: str, regions: str, known: Sequence[str] = ("train", "val", "test")
) -> dict[str, SplitIndex]:
    """Indexes of a built dataset's existing splits."""
    folder = built_folder(data_dir, name, regions)
    return {split: read_index(folder, split) for split in known if has_split(folder, split)}


def write_answers(
    manual_dir: Path, data_dir: Path, given: Mapping[str, Path | None], built: Iterable[str]
) -> list[str]:
    """Writes the answer vocabularies: given, or made by rule from the official files.

    Args:
      manual_dir: of the official files.
      data_dir: of the built datasets.
      given: "vqa" and "gqa" -> file, or None to make the vocabulary.
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
        answers.write_vocabulary(path, vocabulary)
        lines.append(f"{path.name}: {len(vocabulary):,} answers")
    return lines


def _answers(head: str, folder: Path) -> tuple[str, ...]:
    try:
        if head == "gqa":
            return answers.gqa_vocabulary(gqa.read(folder, split) for split in ("train", "val"))
        parts = (vqa.annotation_records(folder, split) for split in ("train2014", "val2014"))
        return answers.vqa_vocabulary(itertools.chain.from_iterable(parts))
    except ValueError as error:
        users = {"vqa": "VQA and Visual Genome QA", "gqa": "GQA"}[head]
        raise DataError(
            f"the answer vocabulary of {users} cannot be made: {error}; pass one with "
            f"--{head}_answers"
        ) from error


def write_words(
    manual_dir: Path, data_dir: Path, given: Path | None, lower_case: bool | None = None
) -> str:
    """Writes the tokenizer's words: from a given file, or made from the training texts.

    These are the texts of all datasets in `manual_dir`, built or not: words must not depend on the
    order of builds.

    Args:
      manual_dir: of the official files.
      data_dir: of the built datasets.
      given: vocabulary file; None to keep existing words, or else make them.
      lower_case: of the tokenizer; None for the setting of existing words, or else True.

    Returns:
      A line about the words.

    Raises:
      DataError: words cannot be read; or the existing words are not for the kind of text that
        `lower_case` says.
    """
    known = known_tokenizer(data_dir, given, lower_case)
    if known is not None and given is None:
        if not (data_dir / TOKENIZER_CONFIG).is_file():  # older than this file
            _write_tokenizer_config(data_dir, known.lower_case)
        return f"{WORDS}: was there; delete it to have it made anew"
    lower_case, without = lower_case is not False, []
    if known is not None:
        words = known.vocabulary
    else:
        texts = _training_texts(manual_dir, without)
        words = text.train_tokenizer(texts, MAX_WORDS, lower_case=lower_case)
    write_tokenizer(data_dir, words, lower_case)
    line = f"{WORDS}: {len(words):,} words"
    if not lower_case:
        line += " of cased text"
        if not text.with_capitals(words):
            line += ", none with a capital letter: words with capitals will be [UNK]"
    return line + (f", without those of {', '.join(without)}" if without else "")


def known_tokenizer(
    data_dir: Path, given: Path | None, lower_case: bool | None
) -> text.Tokenizer | None:
    """The tokenizer of the given words, or else of the existing ones; None if there are none.

    Args and errors are those of `write_words`.
    """
    if given is not None:
        return text.load_tokenizer(given, lower_case=lower_case is not False)
    if not (data_dir / WORDS).is_file():
        return None
    there = read_tokenizer(data_dir)
    if lower_case not in (None, there.lower_case):
        raise DataError(
            f"{data_dir / WORDS}: made with lower_case {there.lower_case}, not {lower_case}; "
            "delete it to have it made anew"
        )
    return there


def write_tokenizer(data_dir: Path, words: Sequence[str], lower_case: bool) -> None:
    """Writes the files that `read_tokenizer` reads."""
    _write_tokenizer_config(data_dir, lower_case)
    text.write_vocabulary(data_dir / WORDS, words)


def _write_tokenizer_config(data_dir: Path, lower_case: bool) -> None:
    atomic.write(data_dir / TOKENIZER_CONFIG, json.dumps({_LOWER_CASE: lower_case}) + "\n")


def read_tokenizer(data_dir: Path) -> text.Tokenizer:
    """The tokenizer of a data folder; it lower-cases texts unless a file says otherwise.

    Raises:
      DataError: a file is missing or damaged, or the words are for cased text and it lower-cases.
    """
    path = data_dir / TOKENIZER_CONFIG
    lower_case = True
    if path.is_file():
        try:
            lower_case = files.field(files.read_json(path, dict), _LOWER_CASE, bool)
        except files.RecordError as error:
            raise DataError(f"{path}: {error}") from error
    return text.load_tokenizer(data_dir / WORDS, lower_case=lower_case)


def _training_texts(manual_dir: Path, without: list[str]) -> Iterator[str]:
    """Adds to `without` the datasets without training texts."""
    for name, source in sorted(SOURCES.items()):
        try:
            annotations = source.read(manual_dir / source.folder, "train").annotations
        except ValueError:  # also of a library; the build of the dataset says it
            without.append(name)
            continue
        yield from (annotation.text for annotation in annotations)


def write_clean_split(data_dir: Path, clean: CleanSplit) -> None:
    """Writes the images that no dataset may train on, unless they are already written."""
    path = data_dir / CLEAN_SPLIT
    with contextlib.suppress(DataError):  # damaged or missing
        if splits.read_clean_split(path) == clean:
            return
    splits.write_clean_split(path, clean)


def write_hard_negatives(
    data_dir: Path, regions: str, indexes: Indexes, clean: CleanSplit, log: Callable[[str], None]
) -> None:
    """Writes the pool of each retrieval dataset, over the images that remain after cleaning.

    An existing pool of the same images is kept.
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
        with atomic.replacing(folder / _HARD_NEGATIVES) as new:
            np.savez(new, image_ids=image_ids, pool=pool)
        log(f"{name}: {len(kept):,} images, {pool.shape[1] - 1} neighbours each")


def read_hard_negatives(folder: Path, image_ids: np.ndarray) -> np.ndarray:
    """The pool of a built retrieval dataset, as positions in `image_ids`.

    Args:
      folder: of the built dataset.
      image_ids: str[n], training images, in stored order.

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
