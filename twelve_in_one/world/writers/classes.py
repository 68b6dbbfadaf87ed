"""Sets of image classes: SET/{train,val,test}/CLASS/NUMBER.jpg, as ImageNet is unpacked."""

from pathlib import Path

import numpy as np

from twelve_in_one.world import class_scenes
from twelve_in_one.world.collections import divide
from twelve_in_one.world.render import render
from twelve_in_one.world.writers.output import Count, Counts, Run, write_picture

MIN_PICTURES = 5  # of a class, for every split to have one
_SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def write(folder: Path, image_set: str, pictures: int, run: Run) -> Counts:
    """Writes one set; every picture is of a scene of its own, and all classes have equally many.

    Args:
      folder: of the set.
      image_set: one of `class_scenes.SETS`.
      pictures: of each class, at least `MIN_PICTURES`; the splits share them.
      run: hands out the work.
    """
    sizes = divide(pictures, _SHARES, dict.fromkeys(_SHARES, 1))
    names = class_scenes.SETS[image_set]
    items = []
    for split, size in sizes.items():
        for name in names:
            place = folder / split / name
            place.mkdir(parents=True)
            items += [(image_set, name, place / f"{number:05}.jpg") for number in range(size)]
    run(f"classes/{image_set}", _picture, items)
    return {split: Count(size * len(names), size * len(names)) for split, size in sizes.items()}


def _picture(item: tuple[str, str, Path], rng: np.random.Generator) -> None:
    image_set, name, file = item
    pixels = render(class_scenes.sample(image_set, name, rng), rng)
    if image_set == "grounds":
        pixels = class_scenes.in_any_light(pixels, rng)
    write_picture(pixels, [file])
