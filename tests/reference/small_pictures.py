"""Pictures of three colours, in class folders and in tables with a caption each."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue")


def write(folder: Path) -> None:
    """Writes colour/SPLIT/COLOUR/NUMBER.png and SPLIT.tsv of 18, 6 and 9 pictures of 16 x 16."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 18), ("val", 6), ("test", 9)):
        rows = []
        for i in range(number):
            colour = COLOURS[i % 3]
            place = folder / "colour" / split / colour
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 40, (16, 16, 3))
            pixels[..., i % 3] += 200
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
            rows.append(f"colour/{split}/{colour}/{i}.png\ta wall painted {colour}")
        (folder / f"{split}.tsv").write_text("\n".join(["image\tcaption", *rows]) + "\n")
