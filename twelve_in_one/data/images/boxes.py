"""Pictures with boxes, from COCO's and LVIS's files, and as the arrays of a detector's batch.

    lvis:FILE,FOLDER       boxes of `FILE`, whose pictures are in FOLDER
    instances:FILE,FOLDER  the same in COCO's form, which states no frequencies

Letters: G boxes of a picture at most, S side of the canvas, M side of a mask.
"""

import dataclasses
import functools
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from twelve_in_one.data.annotations import instances
from twelve_in_one.data.annotations.instances import Instances, Objects
from twelve_in_one.data.images.image_set import ImageExample, ImageSet, TextMisfit, even_shards
from twelve_in_one.data.images.letterbox import covered
from twelve_in_one.data.images.load import read_file
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.metrics.detection import Truth

_SHARD_SIZE = 1024
_ORDER_SEED = 1912
_SHOWN = 5  # skipped records that are logged
_log = logging.getLogger(__name__)


def open_boxes(place: str, labels: Sequence[str] | None = None) -> ImageSet:
    """Opens a file of boxes.

    Args:
      place: FILE,FOLDER.
      labels: names of the classes that are known; None for those of the file.

    Raises:
      DataError: the file cannot be read, the folder is missing, or the classes are not `labels`.
    """
    where, comma, folder = place.partition(",")
    if not comma:
        raise DataError(f"{place}: should be FILE,FOLDER, the boxes and their pictures")
    path, pictures = Path(where), Path(folder)
    if not pictures.is_dir():
        raise DataError(f"{pictures}: no such folder of pictures")
    if not path.is_file():
        raise DataError(f"{path}: no such file of boxes")
    found = _read(path, path.stat().st_mtime_ns)
    if labels is not None and tuple(labels) != found.names:
        raise DataError(
            f"{path}: its {len(found.names)} classes are not the {len(labels)} of training: take "
            "files of one set"
        )
    # Files are in the order of their collection, shards of a random one.
    order = np.random.default_rng(_ORDER_SEED).permutation(len(found.images))
    images = tuple(found.images[i] for i in order)
    return ImageSet(
        place,
        even_shards(len(images), _SHARD_SIZE),
        functools.partial(_example, images, pictures),
        found.names,
        skipped=found.skipped,
        frequencies=found.frequencies,
        category_ids=found.category_ids,
    )


@functools.lru_cache(maxsize=6)
def _read(path: Path, changed: int) -> Instances:
    del changed  # tells versions of a file apart
    found = instances.read(path, outlines=True)
    for skip in found.skipped[:_SHOWN]:
        _log.warning("%s: %s: %s; it is left out", skip.file, skip.record, skip.reason)
    if len(found.skipped) > _SHOWN:
        _log.warning("%s: %d records are left out in all", path, len(found.skipped))
    return found


def _example(images: tuple[Objects, ...], folder: Path, number: int) -> ImageExample:
    objects = images[number]
    names = objects.names
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    data = read_file(path)
    try:
        with Image.open(io.BytesIO(data)) as picture:
            size = picture.size
    except Exception as error:  # decoders raise any kind of error on strangers' bytes
        raise DataError(f"{path}: cannot be read as an image: {error}; replace it") from error
    if size != objects.size:
        raise DataError(
            f"{path}: has {size[0]} x {size[1]} pixels, and its boxes are for {objects.size[0]} x "
            f"{objects.size[1]}: take the picture that was annotated"
        )
    return ImageExample(data, str(objects.image_id), objects=objects)


@dataclasses.dataclass(frozen=True)
class BoxTargets:
    """Encodes what is annotated as "boxes" float32[G, 4], corners in pixels of the canvas;
    "classes" int32[G], -1 for padding; "size" float32[2], rows and columns of the canvas that the
    picture covers; and "masks" uint8[G, M, M], 1 where the object is in its box.

    Attributes:
      side: S.
      max_boxes: G; of more a random part.
      mask_side: M; 0 for none.
      hidden: classes whose boxes are left out.
    """

    side: int
    max_boxes: int
    mask_side: int = 0
    hidden: frozenset[int] = frozenset()

    @functools.cached_property
    def empty(self) -> Mapping[str, np.ndarray]:
        """See `stream.Encode`."""
        count, side = self.max_boxes, self.mask_side
        return {
            "boxes": np.zeros((count, 4), np.float32),
            "classes": np.full(count, -1, np.int32),
            "size": np.full(2, self.side, np.float32),
            "masks": np.zeros((count, side, side), np.uint8),
        }

    def __call__(self, example: ImageExample, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """See `stream.Encode`."""
        objects = example.objects
        if objects is None:
            raise TextMisfit(f"{example.example_id}: has no boxes; take a set that has")
        hidden = np.isin(objects.classes, list(self.hidden))
        rows = np.flatnonzero(~objects.crowd & ~hidden)
        if len(rows) > self.max_boxes:
            rows = np.sort(rng.permutation(rows)[: self.max_boxes])
        columns, lines = covered(objects.size, self.side)
        factors = np.array([columns, lines] * 2) / np.tile(objects.size, 2)
        found = {key: value.copy() for key, value in self.empty.items()}
        count = len(rows)
        found["boxes"][:count] = objects.boxes[rows] * factors
        found["classes"][:count] = objects.classes[rows]
        found["size"][:] = lines, columns
        if self.mask_side:
            for place, row in enumerate(rows):
                found["masks"][place] = mask_of(
                    objects.boxes[row], objects.outlines[row], self.mask_side
                )
        return found


def mask_of(box: np.ndarray, outlines: Sequence[np.ndarray], side: int) -> np.ndarray:
    """uint8[side, side], 1 where an object is in its box; everywhere if it has no outline."""
    if not outlines:
        return np.ones((side, side), np.uint8)
    scale = side / np.maximum(box[2:] - box[:2], 1e-6)
    image = Image.new("1", (side, side))
    draw = ImageDraw.Draw(image)
    for outline in outlines:
        # Pillow's whole numbers are the middles of pixels.
        corners = (outline.reshape(-1, 2) - box[:2]) * scale - 0.5
        draw.polygon(corners.ravel().tolist(), fill=1)
    return np.asarray(image, np.uint8)


def truth_of(objects: Objects) -> Truth:
    """What is annotated, for measures."""
    return Truth(
        objects.boxes,
        objects.classes,
        objects.areas,
        objects.crowd,
        objects.absent,
        objects.not_exhaustive,
    )
