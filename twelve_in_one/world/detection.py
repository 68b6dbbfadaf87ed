"""Makes pictures of things with names, with their boxes as LVIS states them.

    python -m twelve_in_one.world.detection --out DETECTION --images 1000
    python -m twelve_in_one.world.detection --out DETECTION --images 5000 --pictures EMOJI

DETECTION then holds `images/` and `lvis_v1_{train,val,test}.json`. Without --pictures the things
are the world's shapes in its colours ("red star"); with it they are the pictures in a folder, on
the world's grounds: NAME.png, or several looks as NAME/*.png, with transparent surroundings. "_"
and "-" in a name are blanks. A name in --others (a folder of the same kind) is drawn with the looks
found there in val and test, so that a detector is tested in a style that it never saw.

A share of the names is rare ("r"): in training they are drawn seldom, and a reader leaves their
boxes out. Of the others every second is common ("c"), and drawn a third as often as a frequent one
("f"). In val and test all are drawn alike. Absent classes that an image is known not to show
are a random part of all, as in LVIS. The same arguments make the same files.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from twelve_in_one import atomic
from twelve_in_one.config.paths import local_path
from twelve_in_one.data.builders.report import Progress
from twelve_in_one.data.formats.files import PICTURE_SUFFIXES
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.world import shapes
from twelve_in_one.world.grounds import ground
from twelve_in_one.world.render import render
from twelve_in_one.world.scene import (
    COLOURS,
    GROUNDS,
    HEIGHT,
    PATTERNS,
    SHAPES,
    SIZES,
    WIDTH,
    Scene,
    Thing,
)
from twelve_in_one.world.scenes import placed
from twelve_in_one.world.writers.output import address_of, info, write_json, write_picture

VERSION = 1
ABOUT = "detection.json"
SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}
MIN_IMAGES = 20
_WEIGHTS = {"r": 0.02, "c": 1 / 3, "f": 1.0}  # how often one is drawn in training
_THINGS = (3, 7)
_ABSENT = 20  # classes that an image is known not to show
_MOST_PIXELS = 4096 * 4096
_LEAST_OPAQUE = 128  # of 255: what belongs to a picture's box


class Look(NamedTuple):
    """A picture with transparent surroundings, cut to what is visible: uint8[H, W, 4]."""

    pixels: np.ndarray


def shape_names() -> tuple[str, ...]:
    """The world's things, "red circle" and so on."""
    return tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)


def frequencies(names: Sequence[str]) -> tuple[str, ...]:
    """Of each name "r", "c" or "f". A quarter is rare; of the world's things no shape and no colour
    is rare as a whole.
    """
    found = []
    for number, _ in enumerate(names):
        row, column = divmod(number, len(COLOURS))
        rare = (row + 3 * column) % 4 == 0
        found.append("r" if rare else "fc"[(row + column // 2) % 2])
    return tuple(found)


def read_looks(folder: Path) -> dict[str, tuple[Look, ...]]:
    """Name -> its pictures, from a folder of NAME.png and NAME/*.png, by name.

    Raises:
      DataError: no such folder, or no picture in it; a picture cannot be read or shows nothing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of named pictures")
    files: dict[str, list[Path]] = {}
    for place in sorted(folder.iterdir()):
        if place.name.startswith("."):
            continue
        of = sorted(place.iterdir()) if place.is_dir() else [place]
        for file in of:
            if file.is_file() and file.suffix.lower() in PICTURE_SUFFIXES:
                name = place.name if place.is_dir() else place.stem
                files.setdefault(_words(name), []).append(file)
    if len(files) < 4:
        raise DataError(
            f"{folder}: {len(files)} names with pictures; NAME.png or NAME/*.png of at least 4"
        )
    return {name: tuple(map(_read_look, found)) for name, found in sorted(files.items())}


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split()).lower()


def _read_look(file: Path) -> Look:
    try:
        with Image.open(file) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise DataError(f"{file}: {picture.size} is too large; make it smaller")
            pixels = np.asarray(picture.convert("RGBA"))
    except DataError:
        raise
    except Exception as error:  # decoders raise any kind of error on strangers' bytes
        raise DataError(f"{file}: cannot be read as a picture: {error}; replace it") from error
    visible = pixels[..., 3] >= _LEAST_OPAQUE
    if not visible.any():
        raise DataError(f"{file}: nothing in it is opaque; remove it")
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return Look(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


class Drawn(NamedTuple):
    """A picture uint8[H, W, 3]; classes of its things, boxes x, y, w, h, and outlines."""

    pixels: np.ndarray
    classes: list[int]
    boxes: list[list[float]]
    outlines: list[list[float]]


def draw(
    weights: np.ndarray,
    looks: Sequence[tuple[Look, ...]],
    rng: np.random.Generator,
) -> Drawn:
    """A picture of some things.

    Args:
      weights: float[C], how often each class is drawn.
      looks: of each class; empty for the world's own shapes.
      rng: of everything random.
    """
    count = int(rng.integers(*_THINGS, endpoint=True))
    things: list[Thing] = []
    classes: list[int] = []
    for number in rng.choice(len(weights), count, p=weights / weights.sum()):
        row, column = divmod(int(number), len(COLOURS))
        shape, colour = ("square", "red") if looks else (SHAPES[row], list(COLOURS)[column])
        pattern = PATTERNS[rng.integers(len(PATTERNS))]
        size = SIZES[1] if looks else SIZES[rng.integers(len(SIZES))]
        thing = placed((shape, colour, pattern, size), things, None, rng)
        if thing is not None:
            # In the light: a silhouette has no colour to tell.
            things.append(Thing(shape, colour, pattern, size, thing.x, thing.y, thing.radius))
            classes.append(int(number))
    name = GROUNDS[rng.integers(len(GROUNDS))]
    if not looks:
        pixels = render(Scene(name, tuple(things)), rng)
        boxes = [_xywh(thing.box) for thing in things]
        outlines = [shapes.outline(thing).ravel().round(2).tolist() for thing in things]
        return Drawn(pixels, classes, boxes, outlines)
    canvas = ground(name, rng).astype(np.float32)
    boxes = []
    for thing, number in zip(things, classes, strict=True):
        own = looks[number]
        boxes.append(_paste(canvas, own[rng.integers(len(own))], thing))
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    outlines = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes]
    return Drawn(pixels, classes, boxes, outlines)


def _paste(canvas: np.ndarray, look: Look, thing: Thing) -> list[float]:
    """Lays a picture where a thing would be; returns its box of whole pixels."""
    height, width = look.pixels.shape[:2]
    scale = 2 * thing.radius / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    resized = np.asarray(
        Image.fromarray(look.pixels).resize(size, Image.Resampling.LANCZOS), np.float32
    )
    x = int(np.clip(round(thing.x - size[0] / 2), 0, WIDTH - size[0]))
    y = int(np.clip(round(thing.y - size[1] / 2), 0, HEIGHT - size[1]))
    cover = resized[..., 3:] / 255
    part = canvas[y : y + size[1], x : x + size[0]]
    part[...] = part * (1 - cover) + resized[..., :3] * cover
    return [float(x), float(y), float(size[0]), float(size[1])]


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]


def arguments(images: int, seed: int, pictures: str = "", others: str = "") -> dict[str, Any]:
    """What the files depend on."""
    return {
        "version": VERSION, "images": images, "seed": seed, "pictures": pictures, "others": others,
    }  # fmt: skip


def is_made(out: Path, wanted: Mapping[str, Any]) -> bool:
    """Returns whether `out` already holds the set of these `arguments`.

    Raises:
      ValueError: it holds something else, which is never overwritten.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{out} is not empty and no set of this kind; choose another") from None
    if found != dict(wanted):
        raise ValueError(f"{out} holds another set, {found}, not {dict(wanted)}; choose another")
    return True


def make(
    out: Path, images: int, seed: int = 0, pictures: str = "", others: str = ""
) -> dict[str, int]:
    """Makes the set in a folder beside `out`, and renames it when it is complete.

    Returns:
      Split -> pictures.

    Raises:
      ValueError: the set is there already or something else is; too few images; or the named
        pictures cannot be read.
    """
    if images < MIN_IMAGES:
        raise ValueError(f"images must be at least {MIN_IMAGES}, got {images}")
    if is_made(out, arguments(images, seed, pictures, others)):
        raise ValueError(f"{out} is there already")
    looks = read_looks(Path(pictures)) if pictures else {}
    other = read_looks(Path(others)) if others else {}
    tested = {name: other.get(name, own) for name, own in looks.items()}
    names = tuple(looks) or shape_names()
    rarity = frequencies(names)
    temporary = out.with_name(f".{out.name}.making")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "images").mkdir(parents=True)
    progress, done, counts = Progress("detection"), 0, {}
    for number, (split, share) in enumerate(SPLITS.items()):
        training = split == "train"
        weights = np.array([_WEIGHTS[how] if training else 1.0 for how in rarity])
        own = tuple((looks if training else tested).values())
        drawn = []
        count = round(images * share)
        for place in range(count):
            rng = np.random.default_rng((seed, number, place))
            found = draw(weights, own, rng)
            file = f"{split}_{place:06}.jpg"
            write_picture(found.pixels, [temporary / "images" / file])
            drawn.append((file, found, _absent(found.classes, len(names), rng)))
            done += 1
            progress("pictures", done, images)
        write_json(temporary / f"lvis_v1_{split}.json", _annotations(names, rarity, drawn, done))
        counts[split] = count
    atomic.write(temporary / ABOUT, json.dumps(arguments(images, seed, pictures, others)))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()  # it is empty
    temporary.rename(out)
    return counts


def _absent(classes: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    left = np.setdiff1d(np.arange(count), classes)
    return sorted(rng.permutation(left)[:_ABSENT].tolist())


def _annotations(
    names: Sequence[str], rarity: Sequence[str], drawn: Sequence[Any], last: int
) -> dict[str, Any]:
    """A split in LVIS's form; ids of categories count from 1, those of images go on."""
    shown = [set(found.classes) for _, found, _ in drawn]
    first = last - len(drawn) + 1
    images, boxes = [], []
    for number, (file, found, absent) in enumerate(drawn, first):
        height, width = found.pixels.shape[:2]
        images.append(
            {
                "id": number,
                "file_name": file,
                "coco_url": address_of(f"images/{file}"),
                "width": width,
                "height": height,
                "neg_category_ids": [x + 1 for x in absent],
                "not_exhaustive_category_ids": [],
            }
        )
        for kind, box, outline in zip(found.classes, found.boxes, found.outlines, strict=True):
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": number,
                    "category_id": kind + 1,
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "segmentation": [outline],
                }
            )
    categories = [
        {
            "id": number,
            "name": name.replace(" ", "_"),
            "synonyms": [name],
            "def": name,
            "frequency": how,
            "image_count": sum(number - 1 in kinds for kinds in shown),
        }
        for number, (name, how) in enumerate(zip(names, rarity, strict=True), 1)
    ]
    return {
        "info": info("Boxes"),
        "images": images,
        "annotations": boxes,
        "categories": categories,
        "licenses": [],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.world.detection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=local_path, required=True, help="a new or empty folder")
    parser.add_argument("--images", type=int, required=True, help=f"at least {MIN_IMAGES}")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--pictures", default="", help="folder of named pictures")
    parser.add_argument("--others", default="", help="the same names in the style of the tests")
    args = parser.parse_args(argv)
    try:
        counts = make(args.out, args.images, args.seed, args.pictures, args.others)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: " + ", ".join(f"{split} {count:,}" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
