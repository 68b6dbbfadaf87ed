"""The data of `data.real_samples`: which file is which, and which images are held out.

The readers of the official files (`data/annotations/`) read the records. This module only decides
the splits: no sample has all splits of its dataset.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from twelve_in_one.data.annotations import gqa, refcoco_rows, retrieval, select, snli_ve, vqa
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.formats import files
from twelve_in_one.data.official import OfficialFiles
from twelve_in_one.data.stored.records import Annotation, AnnotationSet, DataError, Skipped

_HELD_OUT_SHARE = 5
_DRAW = "twelve_in_one real samples 9"  # of ten draws, the nearest to a fifth of each set
_ENDINGS = (".json", ".csv", ".jsonl", ".gzip")  # the reader looks for these with .gz, too
# RefCOCO and RefCOCO+ refer to the same objects, so each has boxes that the other lacks.
_BESIDE = {"refcoco": "refcoco+", "refcoco+": "refcoco"}
_REFERENCES = {
    "refcoco_testA": ("refcoco", "testA"),
    "refcoco_testB": ("refcoco", "testB"),
    "refcoco+_testA": ("refcoco+", "testA"),
    "refcoco+_testB": ("refcoco+", "testB"),
    "refcocog_test": ("refcocog", "test"),
}


@dataclasses.dataclass(frozen=True)
class RealSet:
    """One dataset, or parts of it.

    Attributes:
      name: of the dataset.
      splits: role -> annotations.
      files: that they were read from.
      repeated: records identical to one in an earlier file; they count once.
      made: how many are of our making, out of labels; no official program knows them.
    """

    name: str
    splits: Mapping[str, AnnotationSet]
    files: tuple[Path, ...]
    repeated: int = 0
    made: int = 0

    @property
    def official(self) -> OfficialFiles | None:
        """Inputs of the official program, from the same files."""
        files = SOURCES[self.name].official
        if files is None or self.made:
            return None
        if files.program == "vqa":
            answers = [path for path in self.files if "questions" not in _stem(path)]
            find = functools.partial(vqa.records_of_files, answers)
        else:
            find = functools.partial(gqa.records_of_files, self.files, ())
        return OfficialFiles(files.program, lambda folder, split: find)

    def __or__(self, other: "RealSet") -> "RealSet":
        """Joins both, which must not share a split."""
        return RealSet(
            self.name,
            {**self.splits, **other.splits},
            tuple(dict.fromkeys((*self.files, *other.files))),
            self.repeated + other.repeated,
        )


def is_held_out(image_id: str) -> bool:
    """Returns whether sets split by image validate on this one; true for about every fifth.

    It depends on the id alone, so an image is held out of all sets or of none.
    """
    digest = hashlib.sha256(f"{_DRAW}:{image_id}".encode()).digest()
    return int.from_bytes(digest[:8]) % _HELD_OUT_SHARE == 0


def read_samples(folder: Path) -> dict[str, RealSet]:
    """All datasets in a folder of samples, with their splits "train" and "val".

    VQA keeps the samples' split ("valid" is "val"), with the questions about the photos; all others
    are split by image, see `is_held_out`.

    Raises:
      DataError: a dataset's folder is there, but one of its files is missing or unusable; or none
        of the folders is there.
    """
    readers: dict[str, Callable[[Path], Sequence[RealSet]]] = {
        "vqav2": _vqa_samples,
        "gqa": _gqa_samples,
        "coco": _coco_samples,
        "refcoco": _refcoco_samples,
        "snli_ve": _snli_ve_samples,
    }
    there = [read for name, read in readers.items() if (folder / name).is_dir()]
    if not there:
        raise DataError(f"{folder}: no folder {' or '.join(readers)}; are the samples elsewhere?")
    return {found.name: found for read in there for found in read(folder)}


def _vqa_samples(folder: Path) -> list[RealSet]:
    first, second = (
        with_answers(find(folder / "vqav2", f"vqa_questions_{split}"))
        for split in ("train", "valid")
    )
    train, val = vqa.read_files(*first), vqa.read_files(*second)
    repeated, used = 0, (*first, *second)
    if (folder / "coco").is_dir():
        about = with_answers(find(folder / "coco/annotations", "vqav2_questions_subset"))
        photos, repeated = news(vqa.read_files(*about), (train, val), about[0])
        train, used = joined((train, photos)), (*used, *about)
    return [RealSet("vqa", {"train": train, "val": val}, used, repeated)]


def _gqa_samples(folder: Path) -> list[RealSet]:
    names = "testdev_balanced_questions", "xgqa_en_train_48"
    paths = [find(folder / "gqa", name) for name in names]
    return [_by_image("gqa", paths, *_read_all(_read_gqa, [(path,) for path in paths]))]


def _coco_samples(folder: Path) -> list[RealSet]:
    path = find(folder / "coco/annotations", "captions_subset")
    return [_by_image("coco", [path], retrieval.read_coco_file(path))]


def _refcoco_samples(folder: Path) -> list[RealSet]:
    paths = {
        name: find(folder / "refcoco", f"{name}_val")
        for name in ("refcoco", "refcoco+", "refcocog")
    }
    found = []
    for name, path in paths.items():
        beside = [paths[_BESIDE[name]]] if name in _BESIDE else []
        found.append(_by_image(name, [path, *beside], refcoco_rows.read(path, beside)))
    return found


def _snli_ve_samples(folder: Path) -> list[RealSet]:
    path = find(folder / "snli_ve", "esnlive_dev")
    return [_by_image("snli_ve", [path], snli_ve.read_file(path))]


_read_gqa = functools.partial(gqa.read_file, answers_needed=True)


def find(folder: Path, *stems: str) -> Path:
    """A file by its name without its endings; DataError if it is not there."""
    return files.find(folder, *(f"{stem}{ending}" for stem in stems for ending in _ENDINGS))


def _by_image(
    name: str, paths: Iterable[Path], annotations: AnnotationSet, repeated: int = 0
) -> RealSet:
    """Divides a set in two; skipped records are listed with "train"."""
    held_out = {image_id for image_id in annotations.images if is_held_out(image_id)}
    val = select.only_images(annotations, held_out)
    splits = {
        "train": select.without_images(annotations, held_out),
        "val": dataclasses.replace(val, skipped=()),
    }
    return RealSet(name, splits, tuple(paths), repeated)


def _read_all(
    read: Callable[..., AnnotationSet], sources: Iterable[tuple[Path, ...]]
) -> tuple[AnnotationSet, int]:
    """Joins several files; also returns how many records are in more than one of them."""
    found: list[AnnotationSet] = []
    repeated = 0
    for paths in sources:
        new, again = news(read(*paths), found, paths[0])
        found.append(new)
        repeated += again
    return joined(found), repeated


def news(
    annotations: AnnotationSet, earlier: Iterable[AnnotationSet], path: Path
) -> tuple[AnnotationSet, int]:
    """The part of a set that is not in earlier ones, and the number of its identical records there.

    Records that share only their id with an earlier one are skipped.
    """
    known = {a.example_id: a for part in earlier for a in part.annotations}
    new: list[Annotation] = []
    skipped = [*annotations.skipped]
    repeated = 0
    for annotation in annotations.annotations:
        before = known.get(annotation.example_id)
        if before is None:
            new.append(annotation)
        elif before == annotation:
            repeated += 1
        else:
            reason = "another record of the same id is in an earlier file"
            skipped.append(Skipped(str(path), annotation.example_id, reason))
    left = select.restricted(annotations, new)
    return dataclasses.replace(left, skipped=tuple(skipped)), repeated


def joined(parts: Sequence[AnnotationSet]) -> AnnotationSet:
    """Joins sets without pairs that have no record in common."""
    return AnnotationSet(
        tuple(annotation for part in parts for annotation in part.annotations),
        {image_id: image for part in parts for image_id, image in part.images.items()},
        skipped=tuple(skip for part in parts for skip in part.skipped),
        notes=select.joined_notes(parts),
    )


def read_held_out(folder: Path) -> tuple[dict[str, RealSet], list[Path]]:
    """Test splits from files in the samples' forms, found by name anywhere below a folder.

    Names may end in .json, .jsonl, .csv, .gzip and .gz; several files of one set count together.

    * vqa_questions_X with vqa_annotatons_X (or vqa_annotations_X): VQA
    * X_balanced_questions, xgqa_X: GQA
    * captions_X: COCO retrieval
    * refcoco_testA, refcoco_testB, refcoco+_testA, refcoco+_testB, refcocog_test
    * esnlive_X, snli_ve_X: SNLI-VE

    Returns:
      Dataset -> its split "test", or "testA" and "testB" for RefCOCO and RefCOCO+; and the files
      whose names match no form.

    Raises:
      DataError: no file has such a name; or one is unusable or lacks its companion.
    """
    named = {path: _stem(path) for path in files.walk_files(folder)}
    parts = []
    for name, read, pattern in (
        ("vqa", vqa.read_files, r"vqa_questions_\w+"),
        ("gqa", _read_gqa, r"\w+_balanced_questions|xgqa_\w+"),
        ("coco", retrieval.read_coco_file, r"captions_\w+"),
        ("snli_ve", snli_ve.read_file, r"(esnlive|snli_ve)_\w+"),
    ):
        sources = [(path,) for path, stem in named.items() if re.fullmatch(pattern, stem)]
        if name == "vqa":
            sources = [with_answers(path) for (path,) in sources]
        if sources:
            annotations, repeated = _read_all(read, sources)
            used = tuple(path for source in sources for path in source)
            parts.append(RealSet(name, {"test": annotations}, used, repeated))
    expressions = {_REFERENCES[s]: path for path, s in named.items() if s in _REFERENCES}
    for (name, split), path in expressions.items():
        other = expressions.get((_BESIDE.get(name, ""), split))
        beside = [] if other is None else [other]
        annotations = refcoco_rows.read(path, beside)
        parts.append(RealSet(name, {split: annotations}, (path, *beside)))
    if not parts:
        raise DataError(f"{folder}: no file has one of the names that --help lists")
    found: dict[str, RealSet] = {}
    for part in parts:
        found[part.name] = found[part.name] | part if part.name in found else part
    used = {path for part in parts for path in part.files}
    return found, [path for path in named if path not in used]


def _stem(path: Path) -> str:
    """A file's name without its endings (there may be several)."""
    return re.sub(r"(\.(json|jsonl|csv|gzip|gz))+$", "", path.name)


def with_answers(questions: Path) -> tuple[Path, Path]:
    """A file of questions, and the file of their annotations beside it."""
    names = (_stem(questions).replace("questions", word) for word in ("annotatons", "annotations"))
    return questions, find(questions.parent, *names)
