"""Pictures with the captions or questions of a user's records, or of COCO's caption files.

    jsonl:FILE,FOLDER[SPLIT]     records as in `data.annotations.jsonl`: captions, or questions
    coco:FILES,FOLDERS[SPLIT]    official caption files, and the folders of their pictures

FILES and FOLDERS may be patterns with * and ?. SPLIT is train, val or test: as the records say, or
else by picture, drawn by name, so that a picture stays where it is when others are added. Without
SPLIT all records are taken.
"""

import dataclasses
import functools
import glob
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data.annotations import jsonl, retrieval
from twelve_in_one.data.formats import files
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.images.files_of import files_of
from twelve_in_one.data.images.image_set import ImageExample, ImageSet, even_shards
from twelve_in_one.data.images.load import read_file
from twelve_in_one.data.stored.records import Annotation, AnnotationSet, DataError, Skipped
from twelve_in_one.tasks.kinds import KINDS, Name

# Of the pictures, if the records name no splits.
VAL_SHARE, TEST_SHARE = 0.1, 0.2
_SHARD_SIZE = 1024
_ORDER_SEED = 1912
_log = logging.getLogger(__name__)


def open_jsonl(place: str, labels: Sequence[str] | None = None) -> ImageSet:
    """Opens a split of a user's records: of questions, or of captions.

    Args:
      place: see above.
      labels: not used; records have texts.

    Raises:
      DataError: the file or the folder is missing, more than a few records cannot be used, or the
        split has none.
    """
    return _open("jsonl", place, _read_jsonl)


def open_coco(place: str, labels: Sequence[str] | None = None) -> ImageSet:
    """Opens a split of COCO's captions, each picture with all of its own.

    Args:
      place: see above.
      labels: not used.

    Raises:
      DataError: as `open_jsonl`.
    """
    return _open("coco", place, _read_coco)


_Read = Callable[[Sequence[Path]], tuple[list[jsonl.Part], Name, list[Skipped]]]


def _open(kind: str, place: str, read: _Read) -> ImageSet:
    where, bracket, split = place.partition("[")
    pattern, comma, folder = where.partition(",")
    if not comma or (bracket and split[:-1] not in jsonl.SPLITS):
        raise DataError(
            f"{kind}:{place}: should be {kind}:FILE,FOLDER[SPLIT], with a split of "
            f"{', '.join(jsonl.SPLITS)}"
        )
    paths = files_of(pattern)
    folders = tuple(Path(x) for x in sorted(glob.glob(folder)) if Path(x).is_dir())
    if not folders:
        raise DataError(f"{folder}: no such folder of pictures")
    changed = tuple(path.stat().st_mtime_ns for path in paths)
    found, one_each = _found(read, paths, folders, changed)
    wanted = split[:-1] if bracket else ""
    if wanted and wanted not in found.splits:
        raise DataError(f"{pattern}: no record for {wanted}, but for {', '.join(found.splits)}")
    parts = [found.splits[wanted]] if wanted else list(found.splits.values())
    return _image_set(f"{kind}:{place}", parts, found, one_each)


@functools.lru_cache(maxsize=8)
def _found(
    read: _Read, paths: tuple[Path, ...], folders: tuple[Path, ...], changed: tuple[int, ...]
) -> tuple[jsonl.Found, bool]:
    """All records, and whether each picture is one example; `changed` tells versions apart."""
    del changed
    parts, kind, skipped = read(paths)
    finders = [jsonl.picture_in(folder) for folder in folders]

    def picture(name: str) -> Path:
        for find in finders[:-1]:
            try:
                return find(name)
            except RecordError:
                continue
        return finders[-1](name)

    found = jsonl.read(
        parts, jsonl.Rules(kind, 1, picture, val_share=VAL_SHARE, test_share=TEST_SHARE)
    )
    left_out = [skip for part in found.splits.values() for skip in part.skipped] + skipped
    for note in found.notes:
        _log.info("%s: %s", paths[0], note)
    for skip in left_out:
        _log.warning("%s: %s: %s; it is left out", skip.file, skip.record, skip.reason)
    return found, KINDS[kind].ranked


def _read_jsonl(paths: Sequence[Path]) -> tuple[list[jsonl.Part], Name, list[Skipped]]:
    first = next((r for _, r in files.read_json_lines(paths[0]) if isinstance(r, Mapping)), {})
    kind: Name = "answer" if "question" in first else "match"
    if kind == "match" and not {"caption", "captions"} & first.keys():
        raise DataError(
            f"{paths[0]}: its first record has neither a 'question' nor a 'caption', but "
            f"{', '.join(first) or 'nothing'}"
        )
    return [jsonl.file_part(path) for path in paths], kind, []


def _read_coco(paths: Sequence[Path]) -> tuple[list[jsonl.Part], Name, list[Skipped]]:
    parts, skipped = [], []
    for path in paths:
        annotations = retrieval.read_coco_file(path)
        skipped += annotations.skipped
        parts.append(jsonl.Part(str(path), "", list(_records(annotations))))
    return parts, "match", skipped


def _records(annotations: AnnotationSet) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for image_id, captions in annotations.by_image():
        name = annotations.images[image_id].file_name
        texts = [caption.text for caption in captions]
        yield f"image {image_id}", {"id": image_id, "image": name, "captions": texts}


def _image_set(
    name: str, parts: Sequence[AnnotationSet], found: jsonl.Found, one_each: bool
) -> ImageSet:
    """The examples of the records, one per picture or one per record, those of a picture together.

    Pictures are in a fixed random order, so any part of the set resembles the whole.
    """
    by_image = [item for part in parts for item in part.by_image()]
    order = np.random.default_rng(_ORDER_SEED).permutation(len(by_image))
    groups = [by_image[i] for i in order]
    skipped = tuple(skip for part in parts for skip in part.skipped)
    if one_each:
        read = functools.partial(_captions, groups, found)
        pairs = sum(len(own) for _, own in groups)
        sizes = even_shards(len(groups), _SHARD_SIZE)
        return ImageSet(name, sizes, read, skipped=skipped, pairs=pairs)
    flat = [annotation for _, own in groups for annotation in own]
    first = np.concatenate([[0], np.cumsum([len(own) for _, own in groups])])
    read = functools.partial(_question, flat, found)
    sizes = even_shards(len(flat), _SHARD_SIZE)
    return ImageSet(name, sizes, read, first_of_image=first, skipped=skipped)


def _captions(
    groups: Sequence[tuple[str, tuple[Annotation, ...]]], found: jsonl.Found, number: int
) -> ImageExample:
    image_id, own = groups[number]
    data = read_file(found.pictures[image_id])
    texts = tuple(annotation.text for annotation in own)
    return ImageExample(data, found.names[image_id], texts=texts, image_id=image_id)


def _question(flat: Sequence[Annotation], found: jsonl.Found, number: int) -> ImageExample:
    annotation = flat[number]
    data = read_file(found.pictures[annotation.image_id])
    example = ImageExample(data, annotation.example_id, question=annotation.text)
    return dataclasses.replace(
        example,
        texts=annotation.answers,
        scores=annotation.scores,
        image_id=annotation.image_id,
    )
