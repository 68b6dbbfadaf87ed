"""Images of all kinds as records of regions, made in the same way as the training data.

A picture goes through the extractor that the model was trained with, regions of a detector are
checked, and both become a record as in `data.build`: features are rounded to float16, the global
region comes first. Letters: N regions, G given boxes, F feature size.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.convert import detectors
from twelve_in_one.data.builders.assemble import make_record
from twelve_in_one.data.builders.region_inputs import RegionInputs
from twelve_in_one.data.regions.checks import check_regions, normalised
from twelve_in_one.data.stored.image_rows import LoadedRecord, load
from twelve_in_one.data.stored.preprocessing import Preprocessing, is_of
from twelve_in_one.data.stored.records import AnnotatedImage, DataError, Picture, Regions

# str or Path of a picture, PIL.Image.Image, uint8[H, W, 3], Regions, or None: no image at all, for
# models that were trained on questions without one.
Image = Any
# Regions with features of the boxes, or real[G, 4] corners x1, y1, x2, y2 in pixels.
Boxes = Any

_PIXEL_EXTRACTOR = re.compile(r"pixels-\d+-(ground|cluttered)-(\d+)")
_BOX_SLACK = 1.0  # pixels, as `regions.checks` allows


@dataclasses.dataclass(frozen=True)
class SeenImage:
    """An image and the model's input from it.

    Attributes:
      name: for messages: its path, or its kind.
      source: as given.
      regions: float32[N, 4] boxes and float[N, F] features.
    """

    name: str
    source: Image = dataclasses.field(repr=False)
    regions: Regions = dataclasses.field(repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, 0 if there is no image."""
        return self.regions.width, self.regions.height

    def pixels(self) -> np.ndarray | None:
        """uint8[H, W, 3]; None if only regions are known."""
        if self.source is None or isinstance(self.source, Regions):
            return None
        return read_pixels(self.source)

    def picture(self) -> Picture:
        """The picture as records of a dataset hold it.

        Raises:
          ValueError: only regions are known, or it can no longer be read.
        """
        if self.source is None or isinstance(self.source, Regions):
            raise ValueError(f"{self.name}: the model reads pixels: pass the picture")
        _library()
        from twelve_in_one.data.images.encoded import picture_of, png_of

        if not isinstance(self.source, str | Path):
            return Picture(png_of(read_pixels(self.source)))
        try:
            return picture_of(Path(self.source).read_bytes(), self.name)[0]
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error})") from error


class ImageReader:
    """Reads images for one model.

    Attributes:
      preprocessing: of the model.
    """

    def __init__(self, preprocessing: Preprocessing, extractor: Any = None):
        """Records which regions the model knows.

        Args:
          preprocessing: saved with the model.
          extractor: a `RegionExtractor` for pixels; None for the one that the model was trained
            with, if that needs no weights of its own.

        Raises:
          ValueError: the extractor is not the one that the model was trained with.
        """
        self.preprocessing = preprocessing
        names = preprocessing.image_descriptor.split(", ")
        self._descriptors = tuple(name for name in names if name not in ("", "none"))
        self._knows_regions = preprocessing.region_source != "none"
        self._extractor = extractor
        if extractor is None:
            return
        self.check_extractor(extractor.name, f"the extractor is {extractor.name}")
        if preprocessing.region_feature_dim not in (0, extractor.feature_dim):
            raise ValueError(
                f"extractor {extractor.name} makes features of size {extractor.feature_dim}, the "
                f"model takes {preprocessing.region_feature_dim}"
            )

    def check_extractor(self, name: str, what: str) -> None:
        """Refuses regions of another detector than the model's, if both are known.

        Args:
          name: of the detector; "" if it is unknown.
          what: ends the message, and names it.

        Raises:
          ValueError: another detector.
        """
        known = self._descriptors
        if name and known and not any(is_of(name, x) for x in known):
            raise ValueError(f"the model was trained on regions of {' and '.join(known)}, {what}")

    def read(self, image: Image, *, find: bool = True) -> SeenImage:
        """The model's input from an image.

        Args:
          image: one.
          find: look for regions in a picture; a model that reads pixels may do without.

        Raises:
          ValueError: it cannot be read, or the model was trained on other regions.
          ImportError: pictures need libraries that are not installed.
        """
        name = name_of(image)
        if isinstance(image, Regions):
            self._check(image, name)
            return SeenImage(name, image, image)
        if image is None:
            return SeenImage(name, None, no_regions(0, 0))
        if not (find and self._knows_regions):
            height, width = read_pixels(image).shape[:2]
            return SeenImage(name, image, no_regions(width, height))
        extractor = self._pixel_extractor(name)
        try:
            return SeenImage(name, image, extractor.extract(read_pixels(image)))
        except ValueError as error:
            raise ValueError(_prefixed(name, error)) from error

    def boxes(self, image: SeenImage, boxes: Boxes) -> Regions:
        """Given boxes of an image with their features.

        Raises:
          ValueError: there are none, one lies outside the image, or their features are needed but
            cannot be made.
        """
        if isinstance(boxes, Regions):
            self._check(boxes, f"boxes of {image.name}")
            if not len(boxes.boxes):
                raise ValueError(f"{image.name}: no boxes to choose from")
            if all(image.size) and image.size != (boxes.width, boxes.height):
                raise ValueError(
                    f"{image.name}: the image has {image.size[0]} x {image.size[1]} pixels, the "
                    f"boxes are of one of {boxes.width} x {boxes.height}"
                )
            return boxes
        corners = _checked_boxes(image, boxes)
        width, height = image.size
        pixels = image.pixels()
        blind = pixels is None and not len(image.regions.boxes)
        if blind or not self._knows_regions or not self.preprocessing.region_feature_dim:
            return Regions(corners, np.zeros((len(corners), 0), np.float32), width, height)
        if pixels is None:
            raise ValueError(
                f"{image.name}: the model needs features of the given boxes too: pass the boxes as "
                "Regions with the detector's features of them, or the image as a picture"
            )
        try:
            features = self._pixel_extractor(image.name).describe(pixels, corners)
        except ValueError as error:
            raise ValueError(_prefixed(image.name, error)) from error
        return Regions(corners, features, width, height)

    def _pixel_extractor(self, name: str) -> Any:
        if self._extractor is None:
            self._extractor = self._trained_extractor(name)
        return self._extractor

    def _trained_extractor(self, name: str) -> Any:
        if len(self._descriptors) > 1:
            raise ValueError(
                f"{name}: the model was trained on regions of {' and '.join(self._descriptors)}; "
                "pass extractor= to say which is meant"
            )
        if not self._descriptors:
            raise ValueError(
                f"{name}: the model was trained on regions that a detector found "
                f"({self.preprocessing.region_source!r}, features of size "
                f"{self.preprocessing.region_feature_dim}), not on pixels: "
                "name that detector and its weights, as load(..., detector='x152:FILE') or "
                "--detector x152:FILE, or pass twelve_in_one.data.stored.records.Regions with its "
                "boxes and features"
            )
        (descriptor,) = self._descriptors
        parts = _PIXEL_EXTRACTOR.fullmatch(descriptor)
        if parts is None:
            spec = detectors.spec_of(descriptor)
            how = "pass extractor= that makes these"
            if spec:
                how = f"name its weights, as load(..., detector={spec!r}) or --detector {spec}"
            raise ValueError(
                f"{name}: the model was trained on regions of {descriptor!r}; {how}, or Regions"
            )
        made = _library().PixelExtractor(int(parts[2]), parts[1] == "cluttered")
        dim = self.preprocessing.region_feature_dim
        if made.name != descriptor or dim not in (0, made.feature_dim):
            raise ValueError(
                f"{name}: the model was trained on regions of {descriptor!r} with features of size "
                f"{dim}; this version of the package makes {made.name!r} with size "
                f"{made.feature_dim}: use the version that the model was trained with"
            )
        return made

    def _check(self, regions: Regions, name: str) -> None:
        if not len(regions.boxes) and not len(regions.features):
            return  # an image of which at most the size is known
        # A model that reads only the boxes takes regions with any features.
        dim = (self.preprocessing.region_feature_dim or None) if self._knows_regions else 0
        check_regions(regions, store="given", image_id=name, feature_dim=dim)


def make_loaded(images: Sequence[SeenImage], boxes: Regions | None = None) -> LoadedRecord:
    """The record of one image, or of a pair, as read from a built dataset.

    Args:
      images: one or two.
      boxes: given boxes of a single image, with features; their ids are their positions.

    Raises:
      ValueError: regions lie outside their image, or differ in feature size.
    """
    annotated = [AnnotatedImage(str(position)) for position in range(len(images))]
    given = no_regions(0, 0)
    if boxes is not None:
        given = boxes
        annotated[0] = dataclasses.replace(
            annotated[0],
            box_ids=tuple(range(len(boxes.boxes))),
            boxes=tuple(map(tuple, boxes.boxes.tolist())),
        )
    inputs = RegionInputs(
        name="given",
        describes="",
        has=lambda image_id: True,
        detected=lambda image: images[int(image.image_id)].regions,
        annotated=lambda image: given,
    )
    name = " and ".join(image.name for image in images)
    return load(make_record(name, annotated, (), inputs), name)


def no_regions(width: int, height: int) -> Regions:
    """Of an image that is not read by regions."""
    return Regions(np.zeros((0, 4), np.float32), np.zeros((0, 0), np.float32), width, height)


def name_of(image: Image) -> str:
    """A name for messages: its path, or its kind."""
    if isinstance(image, str | Path):
        return str(image)
    if image is None:
        return "no image"
    if isinstance(image, Regions):
        return f"regions of {image.width} x {image.height} pixels"
    if isinstance(image, np.ndarray):
        return f"{image.dtype}{list(image.shape)} array"
    return f"{type(image).__name__} object"


def read_pixels(image: Image) -> np.ndarray:
    """uint8[H, W, 3] of a picture."""
    _library()
    from PIL import Image as pillow

    from twelve_in_one.data.images.load import load_image, rgb_array

    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, str | Path):
        return load_image(Path(image))
    if isinstance(image, pillow.Image):
        return rgb_array(image)
    raise ValueError(
        f"an image is a path, a PIL image, uint8[H, W, 3] or Regions, got {type(image).__name__}"
    )


def _library() -> Any:
    try:
        from twelve_in_one.data.regions import extractor
    except ImportError as error:
        raise ImportError(
            f"pictures need pillow and scipy ({error}): pip install 'twelve_in_one[data]', or pass "
            "Regions instead of pictures"
        ) from error
    return extractor


def _checked_boxes(image: SeenImage, boxes: Boxes) -> np.ndarray:
    """float32[G, 4] corners within the image."""
    try:
        corners = np.asarray(boxes, np.float32)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{image.name}: boxes are x1, y1, x2, y2 each, got {boxes!r}") from error
    if corners.ndim != 2 or corners.shape[1] != 4 or not len(corners):
        raise ValueError(
            f"{image.name}: boxes are x1, y1, x2, y2 each and one at least, got an array of shape "
            f"{corners.shape}"
        )
    width, height = image.size
    if not width or not height:
        raise ValueError(f"{image.name}: boxes need an image, or Regions that say how large it is")
    if problem := normalised(corners, width, height):
        raise ValueError(f"{image.name}: {problem}")
    limit = np.array([width, height, width, height], np.float32) + _BOX_SLACK
    with np.errstate(invalid="ignore"):
        usable = ((corners >= -_BOX_SLACK) & (corners <= limit)).all(axis=1)
        usable &= (corners[:, :2] < corners[:, 2:]).all(axis=1)
    if not usable.all():
        row = int(np.argmin(usable))
        raise ValueError(
            f"{image.name}: box {row} {corners[row].tolist()} must be x1 < x2, y1 < y2 in pixels "
            f"of an image of {width} x {height}"
        )
    return corners


def _prefixed(name: str, error: Exception) -> str:
    return str(error) if name in str(error) else f"{name}: {error}"
