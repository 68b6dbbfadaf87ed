"""Captions: COCO and Flickr30k in Karpathy's layout, Conceptual Captions as tables."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.world.collections import Picture, Pictures
from twelve_in_one.world.language import captions
from twelve_in_one.world.scene import Scene
from twelve_in_one.world.splits import Division
from twelve_in_one.world.writers.output import Count, Counts, Run, address, write_json

PER_PICTURE = 5
_TRIES = 4  # for each caption to differ from the others of its picture

# Captions of pictures by image id.
Described = Mapping[int, tuple[str, ...]]


def describe(
    name: str, pictures: Pictures, run: Run, tested: Pictures, least: int = 0
) -> Described:
    """Captions of each picture.

    Args:
      name: of the work.
      pictures: to describe.
      run: hands out the work.
      tested: the pictures among which captions are ranked.
      least: fewest captions of all of `tested` together.
    """
    each = max(PER_PICTURE, -(-least // max(1, len(tested))))
    many = {picture.image_id for picture in tested}
    counts = [each if picture.image_id in many else PER_PICTURE for picture in pictures]
    scenes = [picture.scene for picture in pictures]
    found = run(name, _captions, list(zip(scenes, counts, strict=True)))
    return {picture.image_id: texts for picture, texts in zip(pictures, found, strict=True)}


def write_coco(folder: Path, division: Division, run: Run, least: int = 0) -> Counts:
    """Writes dataset_coco.json; pictures of all splits are mixed, in the order of their ids.

    Args:
      folder: to write to.
      division: "train", "restval", "val" and "test" -> pictures.
      run: hands out the work.
      least: captions of "test".
    """
    described = describe("coco", _all(division), run, division["test"], least)

    def extra(picture: Picture) -> dict[str, Any]:
        return {"filepath": picture.file.split("/")[-2], "cocoid": picture.image_id}

    images = _karpathy(division, described, extra)
    write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return _counts(division, described)


def write_flickr30k(folder: Path, division: Division, described: Described) -> Counts:
    """Writes dataset_flickr30k.json.

    Args:
      folder: to write to.
      division: "train", "val" and "test" -> pictures.
      described: their captions, which SNLI-VE quotes.
    """
    images = _karpathy(division, described, lambda picture: {})
    write_json(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    return _counts(division, described)


def write_conceptual_captions(folder: Path, division: Division, run: Run) -> Counts:
    """Writes both tables, a caption and an address per line, lower case like the official ones."""
    names = {
        "train": "Train_GCC-training.tsv",
        "val": "Validation_GCC-1.1.0-Validation.tsv",
    }
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, pictures in division.items():
        scenes = [picture.scene for picture in pictures]
        texts = run(f"conceptual_captions/{split}", captions.caption, scenes)
        lines = [
            f"{text.rstrip('.').lower()} .\t{address(picture)}\n"
            for picture, text in zip(pictures, texts, strict=True)
        ]
        (folder / names[split]).write_text("".join(lines), encoding="utf-8")
        counts[split] = Count(len(lines), len(lines))
    return counts


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, as in Karpathy's and REFER's files."""
    return re.findall(r"[a-z0-9']+", text.lower())


def _captions(item: tuple[Scene, int], rng: np.random.Generator) -> tuple[str, ...]:
    scene, count = item
    found: list[str] = []
    for _ in range(count):
        for _ in range(_TRIES):
            text = captions.caption(scene, rng)
            if text not in found:
                break
        found.append(text)
    return tuple(found)


def _karpathy(
    division: Division, described: Described, extra: Callable[[Picture], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Records of all pictures; `extra` gives the fields of only one of the datasets."""
    split_of = {p.image_id: split for split, pictures in division.items() for p in pictures}
    records: list[dict[str, Any]] = []
    sentence_id = 0
    for number, picture in enumerate(_all(division)):
        sentences = []
        for text in described[picture.image_id]:
            sentences.append(
                {"tokens": words(text), "raw": text, "imgid": number, "sentid": sentence_id}
            )
            sentence_id += 1
        records.append(
            extra(picture)
            | {
                "filename": picture.name,
                "imgid": number,
                "split": split_of[picture.image_id],
                "sentids": [sentence["sentid"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    return records


def _all(division: Division) -> Pictures:
    pictures = (picture for part in division.values() for picture in part)
    return tuple(sorted(pictures, key=lambda picture: picture.image_id))


def _counts(division: Division, described: Described) -> Counts:
    return {
        split: Count(sum(len(described[p.image_id]) for p in pictures), len(pictures))
        for split, pictures in division.items()
    }
