"""What the samples of `data.real_samples` say about the photos in them, divided by photo.

Few of the samples' records are about their photos, so two sets are filled up with what COCO's
labels tell: questions whether there is an object of a class, and expressions that name the one
object of its class.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data.annotations import refcoco_rows, retrieval, select, vqa
from twelve_in_one.data.builders.real_sets import RealSet, find, joined, news, with_answers
from twelve_in_one.data.formats import files
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import AnnotatedImage, Annotation, AnnotationSet, DataError

_DRAW = "twelve_in_one photos"
_CANDIDATES = 24  # objects of a photo that expressions choose from, the largest
_FOLDERS = ("coco", "coco_more")


@dataclasses.dataclass(frozen=True)
class Objects:
    """Labelled objects of a photo.

    Attributes:
      size: width and height in pixels.
      boxes: id -> corners x1, y1, x2, y2, of objects that are no crowds, from the largest on.
      classes: id -> name of the class, of these.
      present: class -> number of objects; crowds count as two.
    """

    size: tuple[int, int]
    boxes: Mapping[int, tuple[float, float, float, float]]
    classes: Mapping[int, str]
    present: Mapping[str, int]


def photo_files(samples: Path) -> dict[str, Path]:
    """The samples' photos, by COCO's id.

    Raises:
      DataError: there are none.
    """
    paths = [
        path for name in _FOLDERS for path in sorted((samples / name / "images").glob("*.jpg"))
    ]
    found = {str(int(path.stem)): path for path in paths if path.stem.isdecimal()}
    if not found:
        raise DataError(f"{samples}: no photos in {' or '.join(f'{x}/images' for x in _FOLDERS)}")
    return found


def held_out(photos: Collection[str], part: int, parts: int) -> set[str]:
    """The photos of one of several parts of equal size; every photo is in one of them."""
    drawn = sorted(photos, key=lambda x: hashlib.sha256(f"{_DRAW}:{x}".encode()).digest())
    return set(drawn[part::parts])


def read(samples: Path, part: int, parts: int) -> dict[str, RealSet]:
    """Captions ("coco"), questions ("vqa") and expressions ("refcocog") about the photos.

    All sets are divided alike: `held_out` is "val", the other photos are "train".

    Raises:
      DataError: there are no photos, or a file is missing or unusable.
    """
    photos = photo_files(samples)
    validated = held_out(photos, part, parts)
    paths = [
        find(samples / "coco/annotations", "instances_subset"),
        *([samples / "coco_more/annotations/instances.json"] * (samples / "coco_more").is_dir()),
    ]
    objects = {key: x for path in paths for key, x in _objects(path).items() if key in photos}

    def divided(name: str, found: AnnotationSet, used: Iterable[Path], **counts: int) -> RealSet:
        about = select.only_images(found, photos.keys())
        val = select.only_images(about, validated)
        splits = {
            "train": select.without_images(about, validated),
            "val": dataclasses.replace(val, skipped=()),
        }
        return RealSet(name, splits, tuple(used), **counts)

    sets = []
    captions = [
        find(samples / "coco/annotations", "captions_subset"),
        *([samples / "coco_more/annotations/captions.json"] * (samples / "coco_more").is_dir()),
    ]
    sets.append(divided("coco", joined([retrieval.read_coco_file(p) for p in captions]), captions))

    asked = [with_answers(find(samples / "coco/annotations", "vqav2_questions_subset"))]
    if (samples / "vqav2").is_dir():
        stems = ("vqa_questions_train", "vqa_questions_valid")
        asked += [with_answers(find(samples / "vqav2", stem)) for stem in stems]
    questions: list[AnnotationSet] = []
    repeated = 0
    for both in asked:
        new, again = news(select.only_images(vqa.read_files(*both), photos), questions, both[0])
        questions.append(new)
        repeated += again
    made = [*_presence(objects, validated), *_presence(objects, objects.keys() - validated)]
    questions.append(_set(made, {key: AnnotatedImage(key, coco_id=int(key)) for key in objects}))
    used = [path for both in asked for path in both] + paths
    sets.append(divided("vqa", joined(questions), used, repeated=repeated, made=len(made)))

    path = find(samples / "refcoco", "refcocog_val")
    rows = select.only_images(refcoco_rows.read(path), objects.keys())
    named = list(_names(objects))
    images = {key: _image(key, x) for key, x in objects.items()}
    expressions = _set([*rows.annotations, *named], images)
    expressions = dataclasses.replace(expressions, skipped=rows.skipped)
    sets.append(divided("refcocog", expressions, [path, *paths], made=len(named)))
    return {found.name: found for found in sets}


def _set(annotations: Iterable[Annotation], images: Mapping[str, AnnotatedImage]) -> AnnotationSet:
    return select.restricted(AnnotationSet((), images), annotations)


def _image(key: str, objects: Objects) -> AnnotatedImage:
    chosen = sorted(list(objects.boxes)[:_CANDIDATES])
    boxes = tuple(objects.boxes[i] for i in chosen)
    return AnnotatedImage(key, "", *objects.size, int(key), tuple(chosen), boxes)


def _objects(path: Path) -> dict[str, Objects]:
    """Objects by image id, out of a file of the official form.

    Raises:
      DataError: it is none; names the record.
    """
    content = files.read_json(path, dict)
    where = ""
    try:
        classes = {
            files.field(x, "id", int): files.field(x, "name", str)
            for x in files.field(content, "categories", list)
        }
        sizes = {}
        for record in files.field(content, "images", list):
            where = f"image {record.get('id')}"
            sizes[files.field(record, "id", int)] = (
                files.field(record, "width", int),
                files.field(record, "height", int),
            )
        records: dict[int, list[Any]] = {key: [] for key in sizes}
        for record in files.field(content, "annotations", list):
            where = f"object {record.get('id')}"
            records[files.field(record, "image_id", int)].append(
                (
                    files.field(record, "id", int),
                    files.box_from_xywh(record, "bbox"),
                    classes[files.field(record, "category_id", int)],
                    bool(record.get("iscrowd")),
                )
            )
    except (RecordError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: {where}: {error!r}: not objects of COCO's form") from error
    return {str(key): _of_photo(sizes[key], found) for key, found in records.items() if found}


def _of_photo(size: tuple[int, int], records: Iterable[Any]) -> Objects:
    present: collections.Counter[str] = collections.Counter()
    single = []
    for number, box, name, crowd in records:
        present[name] += 2 if crowd else 1
        if not crowd:
            area = (box[2] - box[0]) * (box[3] - box[1])
            single.append((-area, number, box, name))
    single.sort()
    return Objects(
        size,
        {number: box for _, number, box, _ in single},
        {number: name for _, number, _, name in single},
        present,
    )


def _presence(objects: Mapping[str, Objects], photos: Collection[str]) -> Iterator[Annotation]:
    """Questions whether there is any object of a class: as often yes as no, for every class."""
    rng = np.random.default_rng(0)
    left = [key for key in objects if key in photos]
    for name in sorted({name for key in left for name in objects[key].present}):
        there = [key for key in left if name in objects[key].present]
        absent = [key for key in left if name not in objects[key].present]
        count = min(len(there), len(absent))
        for keys, answer in ((there, "yes"), (absent, "no")):
            for place in sorted(rng.choice(len(keys), count, replace=False)):
                key = keys[place]
                yield Annotation(
                    f"{key}-{name}", key, f"is there any {name}?", answers=(answer,), scores=(1.0,)
                )


def _names(objects: Mapping[str, Objects]) -> Iterator[Annotation]:
    """Names of classes of which there is one object, where there are others to choose from."""
    for key, found in objects.items():
        for number in list(found.boxes)[:_CANDIDATES]:
            name = found.classes[number]
            if found.present[name] == 1 and len(found.boxes) > 1:
                yield Annotation(f"{key}-{name}", key, f"the {name}", box=found.boxes[number])
