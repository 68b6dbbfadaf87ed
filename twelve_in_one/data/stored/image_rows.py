"""Regions of images in the model's form: the global region first, locations beside features.

Letters: N detected regions of an image, G annotated boxes, F feature size.
"""

import dataclasses

import numpy as np

from twelve_in_one.data.regions.rows import region_rows
from twelve_in_one.data.stored.records import Annotation, DataError, Picture, Regions
from twelve_in_one.data.stored.schema import Record

# Pixels, as `regions.checks` allows; boxes further out belong to a picture of another size.
_BOX_SLACK = 1.0


@dataclasses.dataclass(frozen=True)
class ImageRows:
    """Regions of an image in the model's form, before padding.

    Attributes:
      mean_feature: float32[1, F], the global region's feature; [0, F] if rows are annotated
        boxes, which have no global region.
      features: float16 or float32[N, F].
      locations: float32[N + 1, 5] (or [N, 5]), x1/W, y1/H, x2/W, y2/H and area share.
      boxes: float32[N + 1, 4] (or [N, 4]), the same in pixels.
      class_probs: float16[N, C], distribution over region classes; C = 0 if unknown.
    """

    mean_feature: np.ndarray
    features: np.ndarray
    locations: np.ndarray
    boxes: np.ndarray
    class_probs: np.ndarray

    def __len__(self) -> int:
        return len(self.locations)


@dataclasses.dataclass(frozen=True)
class LoadedRecord:
    """A record with its regions in rows.

    Attributes:
      images: rows of each image, the global region first.
      annotated: rows of the annotated boxes (of single images).
      box_ids: int64[G].
      annotations: of the record.
      pictures: of each image, not decoded; () for data built without pictures.
    """

    images: tuple[ImageRows, ...]
    annotated: ImageRows
    box_ids: np.ndarray
    annotations: tuple[Annotation, ...]
    pictures: tuple[Picture, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Memory used by the arrays and pictures."""
        return sum(len(picture.data) for picture in self.pictures) + sum(
            getattr(rows, field.name).nbytes
            for rows in (*self.images, self.annotated)
            for field in dataclasses.fields(rows)
        )


def load(record: Record, where: str) -> LoadedRecord:
    """Adds the global region and the location features to a record's regions.

    Raises:
      DataError: a box is outside its image.
    """
    images = []
    start = 0
    for image_id, (width, height), count in zip(
        record.image_ids, record.sizes, record.num_regions, strict=True
    ):
        part = slice(start, start + count)
        start += count
        rows = image_rows(
            Regions(
                record.boxes[part],
                record.features[part],
                int(width),
                int(height),
                record.class_probs[part],
            )
        )
        limit = np.array([width, height, width, height], np.float32) + _BOX_SLACK
        outside = (rows.boxes < -_BOX_SLACK) | (rows.boxes > limit)
        if outside.any():
            row = int(np.argmax(outside.any(axis=1)))
            raise DataError(
                f"{where}: image {image_id}: box {rows.boxes[row].tolist()} lies outside the "
                f"image of {width} x {height}"
            )
        images.append(rows)
    width, height = map(int, record.annotated_size)
    alone = Regions(
        record.annotated_boxes, np.zeros((len(record.box_ids), 0), np.float32), width, height
    )
    annotated = ImageRows(
        np.zeros((0, record.annotated_features.shape[1]), np.float32),
        record.annotated_features,
        region_rows(alone)[1][1:],
        record.annotated_boxes,
        np.zeros((len(record.box_ids), 0), np.float16),
    )
    return LoadedRecord(
        tuple(images), annotated, record.box_ids, record.annotations, record.pictures
    )


def image_rows(regions: Regions) -> ImageRows:
    """Rows of an image that is not part of any dataset, or of one image of a record."""
    features, locations = region_rows(regions)
    whole = np.array([[0, 0, regions.width, regions.height]], np.float32)
    boxes = np.concatenate([whole, regions.boxes])
    class_probs = regions.class_probs
    if class_probs is None:
        class_probs = np.zeros((len(regions.boxes), 0), np.float16)
    return ImageRows(features[:1], regions.features, locations, boxes, class_probs)
