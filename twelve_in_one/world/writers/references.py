"""RefCOCO, RefCOCO+ and RefCOCOg: references as pickled lists, objects as COCO instances."""

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twelve_in_one.world.collections import Picture
from twelve_in_one.world.language import references
from twelve_in_one.world.scene import SHAPES, Scene
from twelve_in_one.world.shapes import outline
from twelve_in_one.world.splits import Division, is_round
from twelve_in_one.world.writers.captions import words
from twelve_in_one.world.writers.output import (
    Count,
    Counts,
    Run,
    bounding_box,
    image_record,
    info,
    write_json,
)

_TRIES = 3  # for each expression to differ from the others of its thing


class _Style(NamedTuple):
    """How much of a dataset is about a picture: ranges from ... to, both included."""

    references: tuple[int, int]
    sentences: tuple[int, int]


_FILES = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
_STYLES = {
    "refcoco": _Style((2, 3), (2, 4)),
    "refcoco+": _Style((2, 3), (2, 4)),
    "refcocog": _Style((2, 2), (1, 3)),
}
_TESTED = _Style((3, 3), (3, 4))  # of pictures that are only tested on


class _Task(NamedTuple):
    """Things to refer to: those of round shapes, of others, or (None) of all."""

    scene: Scene
    dataset: str
    style: _Style
    round_only: bool | None


def write(folder: Path, name: str, division: Division, run: Run) -> Counts:
    """Writes the references of one dataset and the instances of its pictures.

    Things surrounded by others of their shape are referred to first, as in the real datasets. In
    "testA" all are round, in "testB" none.

    Args:
      folder: to write to, a folder for each of the three datasets.
      name: "refcoco", "refcoco+" or "refcocog".
      division: split -> pictures.
      run: hands out the work.
    """
    counts, records, referred = {}, [], []
    sentence_id = 0
    for split, pictures in division.items():
        only = {"testA": True, "testB": False}.get(split)
        tasks = [
            _Task(p.scene, name, _TESTED if p.only_tested else _STYLES[name], only)
            for p in pictures
        ]
        results = run(f"{name}/{split}", _refer, tasks)
        described = [pair for pair in zip(pictures, results, strict=True) if pair[1]]
        before = sentence_id
        for picture, found in described:
            referred.append(picture)
            for index, texts in found:
                sentences = [_sentence(text, i) for i, text in enumerate(texts, sentence_id)]
                sentence_id += len(texts)
                records.append(_reference(picture, index, sentences, len(records), split))
        counts[split] = Count(sentence_id - before, len(described))
    # After parsing again, no two texts are one object, which pickle would store as references to
    # the first: the output must not depend on the process that made it.
    content = pickle.dumps(json.loads(json.dumps(records)), protocol=2)
    path = folder / name / _FILES[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    write_json(folder / name / "instances.json", instances(referred))
    return counts


def instances(pictures: Iterable[Picture]) -> dict[str, Any]:
    """All things of the pictures, as in COCO's instance files."""
    pictures = sorted(pictures, key=lambda picture: picture.image_id)
    return {
        "info": info("Things"),
        "licenses": [],
        "images": [image_record(picture) for picture in pictures],
        "annotations": [
            _instance(picture, index)
            for picture in pictures
            for index in range(len(picture.scene.things))
        ],
        "categories": [
            {"id": number, "name": shape, "supercategory": "shape"}
            for number, shape in enumerate(SHAPES, 1)
        ],
    }


def _refer(task: _Task, rng: np.random.Generator) -> list[tuple[int, list[str]]]:
    """Things with different expressions for each."""
    scene, style = task.scene, task.style
    hard = references.hard_targets(scene)
    easy = [index for index in range(len(scene.things)) if index not in hard]
    targets = [*rng.permutation(hard).tolist(), *rng.permutation(easy).tolist()]
    wanted = rng.integers(style.references[0], style.references[1] + 1)
    found: list[tuple[int, list[str]]] = []
    for index in map(int, targets):
        if len(found) == wanted:
            break
        if task.round_only in (None, is_round(scene.things[index])):
            count = int(rng.integers(style.sentences[0], style.sentences[1] + 1))
            if texts := _expressions(task, index, count, rng):
                found.append((index, texts))
    return found


def _expressions(task: _Task, index: int, count: int, rng: np.random.Generator) -> list[str]:
    texts: dict[str, None] = {}
    for _ in range(_TRIES * count):
        text = references.refer(task.scene, index, rng, task.dataset)
        if text is not None:
            texts[text] = None
        if len(texts) == count:
            break
    return list(texts)


def _sentence(text: str, sentence_id: int) -> dict[str, Any]:
    tokens = words(text)
    return {"tokens": tokens, "raw": text, "sent_id": sentence_id, "sent": " ".join(tokens)}


def _reference(
    picture: Picture, index: int, sentences: list[dict[str, Any]], ref_id: int, split: str
) -> dict[str, Any]:
    object_id = picture.object_id + index
    return {
        "ref_id": ref_id,
        "ann_id": object_id,
        "category_id": SHAPES.index(picture.scene.things[index].shape) + 1,
        "image_id": picture.image_id,
        # REFER's files name the picture with the object's id appended.
        "file_name": f"{picture.name.removesuffix('.jpg')}_{object_id}.jpg",
        "split": split,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def _instance(picture: Picture, index: int) -> dict[str, Any]:
    thing = picture.scene.things[index]
    points = outline(thing)
    x, y = points.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return {
        "id": picture.object_id + index,
        "image_id": picture.image_id,
        "category_id": SHAPES.index(thing.shape) + 1,
        "bbox": bounding_box(thing),
        "area": round(area, 2),
        "iscrowd": 0,
        "segmentation": [points.round(2).ravel().tolist()],
    }
