"""Which region features a dataset is built with: a store of a detector's, the pixels, or none.

"lmdb:PATH", "npy:DIR", "tsv:FILE", "hdf5:FILE", "records:DIR"   a store, see `data/regions/`
"pixels"                                                        found in the pictures by us
"none"                                                          text and boxes only
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from twelve_in_one.data.annotations import conceptual_captions, visual7w
from twelve_in_one.data.records import AnnotatedImage, DataError, Regions, Skipped
from twelve_in_one.data.regions import open_store
from twelve_in_one.data.regions.checks import check_annotated, check_regions
from twelve_in_one.data.regions.store import NoRegions, RegionStore
from twelve_in_one.data.sources import Source

NO_REGIONS = "none"  # name of features that there are none of
STORED = "detected"  # default name of a detector's features
_GROUND_REGIONS, _PHOTO_REGIONS = 16, 36
_PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))


@dataclasses.dataclass(frozen=True)
class RegionInputs:
    """Regions of the images of one dataset.

    Attributes:
      name: of the features, part of the built dataset's folder; datasets that are trained together
        share it.
      describes: what made them, as it travels with checkpoints.
      has: image id -> whether there are regions.
      detected: image id -> regions, checked.
      annotated: image -> features of its annotated boxes float[G, F], [G, 0] where there are none.
      unreadable: pictures that no region could be taken from.
    """

    name: str
    describes: str
    has: Callable[[str], bool]
    detected: Callable[[str], Regions]
    annotated: Callable[[AnnotatedImage], np.ndarray]
    unreadable: tuple[Skipped, ...] = ()


def _no_features(image: AnnotatedImage) -> np.ndarray:
    return np.zeros((len(image.box_ids), 0), np.float16)


def no_regions() -> RegionInputs:
    """Neither detected boxes nor features: what can be learnt from text and annotated boxes."""
    store = NoRegions()
    return RegionInputs(NO_REGIONS, "none", store.__contains__, store.get, _no_features)


def from_stores(
    source: Source, features: str, annotated_features: str | None, name: str = STORED
) -> RegionInputs:
    """Regions of a detector, and of its pass over the annotated boxes.

    Raises:
      DataError: a store cannot be opened; or the dataset needs features of annotated boxes and no
        store of them is given.
    """
    store = open_store(features)
    if source.scores_annotated_boxes and annotated_features is None:
        raise DataError(
            f"{source.name} chooses among annotated boxes, so it needs their region features: pass "
            "--annotated_features"
        )
    annotated_store = open_store(annotated_features) if annotated_features else None

    def detected(image_id: str) -> Regions:
        key = store_key(store, source, image_id)
        return check_regions(store.get(key), store=store.name, image_id=key)

    def annotated(image: AnnotatedImage) -> np.ndarray:
        if annotated_store is None or not image.box_ids:
            return _no_features(image)
        key = store_key(annotated_store, source, image.image_id)
        if not source.scores_annotated_boxes and key not in annotated_store:
            return _no_features(image)
        regions = annotated_store.get(key)
        return check_annotated(regions, image, annotated_store.name).features

    return RegionInputs(
        name=name,
        describes=Path(features.split(":", 1)[-1]).name,
        has=lambda image_id: store_key(store, source, image_id) in store,
        detected=detected,
        annotated=annotated,
    )


def store_key(store: RegionStore, source: Source, image_id: str) -> str:
    """The key of an image in a store, where released stores have another than the annotations."""
    keys = {
        "visual7w": visual7w.feature_key,
        "conceptual_captions": conceptual_captions.feature_key,
    }
    if source.name in keys and image_id not in store:
        return keys[source.name](image_id)
    return image_id


def from_pixels(
    source: Source,
    images_dir: Path,
    cache_dir: Path,
    *,
    cluttered: bool,
    num_regions: int | None,
    jobs: int,
) -> RegionInputs:
    """Regions found in the pictures of the dataset's collection; those found before are kept.

    Args:
      source: the dataset.
      images_dir: holds one folder a collection ("coco", "visual_genome", ...), searched in depth.
      cache_dir: where regions are kept, for all datasets of the collection.
      cluttered: photos rather than things on an even ground.
      num_regions: most regions an image; None for what suits the kind of picture.
      jobs: processes.

    Raises:
      DataError: there are no pictures.
    """
    from twelve_in_one.data.regions.extract import extract_folder
    from twelve_in_one.data.regions.extractor import PixelExtractor, load_image

    if not images_dir.is_dir():
        raise DataError(f"{images_dir}: no such folder; pass --images, or other --features")
    count = num_regions or (_PHOTO_REGIONS if cluttered else _GROUND_REGIONS)
    extractor = PixelExtractor(num_regions=count, cluttered=cluttered)
    pictures = picture_files(images_dir / source.domain)
    folder = cache_dir / extractor.name / source.domain
    unreadable = extract_folder(pictures, folder, extractor, jobs=jobs)
    store = open_store(f"records:{folder}")

    def annotated(image: AnnotatedImage) -> np.ndarray:
        if not source.scores_annotated_boxes or not image.box_ids:
            return _no_features(image)
        pixels = load_image(pictures[image.image_id])
        try:
            return extractor.describe(pixels, np.asarray(image.boxes, np.float32))
        except ValueError as error:
            raise DataError(f"{pictures[image.image_id]}: annotated {error}") from error

    return RegionInputs(
        name="photos" if cluttered else "pixels",
        describes=extractor.name,
        has=store.__contains__,
        detected=store.get,
        annotated=annotated,
        unreadable=unreadable,
    )


def picture_files(folder: Path) -> dict[str, Path]:
    """Pictures below a folder by image id: the file's stem, or the number that ends COCO's names.

    Raises:
      DataError: there is none, or two pictures have the same id.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _PICTURES:
            continue
        image_id = path.stem
        if image_id.startswith("COCO_") or (image_id.isdecimal() and folder.name == "coco"):
            image_id = str(int(image_id.rsplit("_", 1)[-1]))
        if image_id in found:
            raise DataError(f"{path}: image {image_id} is also at {found[image_id]}")
        found[image_id] = path
    if not found:
        raise DataError(f"{folder}: no pictures; pass --images, or other --features")
    return found


def missing_images(inputs: RegionInputs, image_ids: Iterable[str]) -> list[str]:
    """Images that there are no regions of."""
    return [image_id for image_id in image_ids if not inputs.has(image_id)]
