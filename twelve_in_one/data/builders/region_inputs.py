"""Region features that a dataset is built with: from a detector's store, from pixels, or none.

"lmdb:PATH", "npy:DIR", "tsv:FILE", "hdf5:FILE", "records:DIR"   a store, see `data/regions/`; or
                                                                several, with commas between them
"pixels", "photos", "small:PATH", "x152:FILE", ...              found in the pictures by us
"none"                                                          text and boxes only
"""

import dataclasses
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twelve_in_one.data.annotations import conceptual_captions, visual7w
from twelve_in_one.data.builders.sources import Source
from twelve_in_one.data.formats import files
from twelve_in_one.data.regions import open_store
from twelve_in_one.data.regions.checks import check_annotated, check_regions
from twelve_in_one.data.regions.store import NoRegions, RegionStore, in_pixels
from twelve_in_one.data.stored.records import AnnotatedImage, DataError, Regions, Skipped

if TYPE_CHECKING:
    from twelve_in_one.data.regions.extractor import RegionExtractor

NO_REGIONS = "none"  # name for no features
NO_PICTURE = "there is no picture of it"
STORED = "detected"  # default name of a detector's features
_GROUND_REGIONS, _PHOTO_REGIONS = 16, 36
# How systems name a copy of "1": "1 (1)", "1 - Copy (2)", "1-copy", "1 copy 2", "Copy of 1".
_COPY = re.compile(r"(.*\S) *(?:\(\d+\)|[-_ ] *copy(?: ?\(?\d+\)?)?)|copy of (.*)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class RegionInputs:
    """Regions of the images of one dataset.

    Attributes:
      name: of the features, part of the built dataset's folder; datasets that are trained together
        share it.
      describes: their origin, stored with checkpoints.
      extractor: name of the detector that found them, if their stores say so; stored likewise.
      has: image id -> whether there are regions.
      detected: image -> regions, checked.
      annotated: image -> regions at its annotated boxes; only their features and the size
        of the picture (0 if unknown) are used; features float[G, 0] if there are none.
      stamp: image id -> text that changes with the files of its regions.
      unreadable: images that gave no regions, by image id if it is known.
      official_sizes: accept, as the released loader does, that detected and annotated regions, and
        the annotations, state different sizes of a picture: each kind of box is then placed
        in the size of its own store.
      pictures: image id -> file, if pictures are kept in the records beside the regions.
    """

    name: str
    describes: str
    has: Callable[[str], bool]
    detected: Callable[[AnnotatedImage], Regions]
    annotated: Callable[[AnnotatedImage], Regions]
    extractor: str = ""
    stamp: Callable[[str], str] = lambda image_id: ""
    unreadable: tuple[Skipped, ...] = ()
    official_sizes: bool = False
    pictures: Mapping[str, Path] | None = None


def with_pictures(inputs: RegionInputs, pictures: Mapping[str, Path]) -> RegionInputs:
    """Regions together with the pictures themselves."""

    def stamp(image_id: str) -> str:
        picture = files.stamp(pictures[image_id]) if image_id in pictures else ""
        return f"{inputs.stamp(image_id)} {picture}"

    return dataclasses.replace(inputs, pictures=pictures, stamp=stamp)


def _no_features(image: AnnotatedImage) -> Regions:
    boxes = np.asarray(image.boxes, np.float32).reshape(-1, 4)
    return Regions(boxes, np.zeros((len(boxes), 0), np.float16), 0, 0)


def no_regions() -> RegionInputs:
    """No detected boxes and no features, to learn from text and annotated boxes alone."""
    store = NoRegions()
    return RegionInputs(
        NO_REGIONS,
        "none",
        store.__contains__,
        lambda image: store.get(image.image_id),
        _no_features,
    )


def from_stores(
    source: Source,
    features: str,
    annotated_features: str | None,
    name: str = STORED,
    *,
    official_sizes: bool = False,
) -> RegionInputs:
    """Regions from a detector, and from its pass over the annotated boxes.

    Args:
      source: the dataset.
      features: of detected regions, see `open_store`.
      annotated_features: of annotated boxes.
      name: of the features.
      official_sizes: see `RegionInputs`.

    Raises:
      DataError: a store cannot be opened; the dataset needs features of annotated boxes, but no
        store of them is given; or two detectors filled the stores.
    """
    store = open_store(features)
    if source.scores_annotated_boxes and annotated_features is None:
        raise DataError(
            f"{source.name} chooses among annotated boxes, so it needs their region features: pass "
            "--annotated_features"
        )
    annotated_store = open_store(annotated_features) if annotated_features else None
    stores = [store] if annotated_store is None else [store, annotated_store]
    extractor = _only_extractor([part for each in stores for part in each.parts])
    stamps = {part.name: files.stamp(Path(part.name)) for each in stores for part in each.parts}

    def detected(image: AnnotatedImage) -> Regions:
        key = store_key(store, source, image.image_id)
        regions = in_pixels(store.get(key), image, f"{store.name}: image {key!r}")
        return check_regions(regions, store=store.name, image_id=key)

    def annotated(image: AnnotatedImage) -> Regions:
        if annotated_store is None or not image.box_ids:
            return _no_features(image)
        key = store_key(annotated_store, source, image.image_id)
        if not source.scores_annotated_boxes and key not in annotated_store:
            return _no_features(image)
        return check_annotated(annotated_store.get(key), image, annotated_store.name)

    def stamp(image_id: str) -> str:
        return " ".join(
            stamps[part.name]
            for each in stores
            for part in each.parts
            if store_key(each, source, image_id) in part
        )

    return RegionInputs(
        name=name,
        describes=" + ".join(Path(part.name).name for part in store.parts),
        extractor=extractor,
        has=lambda image_id: store_key(store, source, image_id) in store,
        detected=detected,
        annotated=annotated,
        stamp=stamp,
        unreadable=tuple(skip for each in stores for skip in each.damaged),
        official_sizes=official_sizes,
    )


def _only_extractor(stores: Sequence[RegionStore]) -> str:
    """The detector that filled stores; "" if one of them does not say."""
    fillers: dict[str, str] = {}
    for store in stores:
        if store.extractor:
            fillers.setdefault(store.extractor, store.name)
    if len(fillers) > 1:
        named = " and ".join(f"{name} of {extractor}" for extractor, name in fillers.items())
        raise DataError(f"regions of two detectors: {named}; extract both with one of them")
    return next(iter(fillers), "") if all(store.extractor for store in stores) else ""


def store_key(store: RegionStore, source: Source, image_id: str) -> str:
    """The key of an image in a store, if released stores use another key than the annotations."""
    keys = {
        "visual7w": visual7w.feature_key,
        "conceptual_captions": conceptual_captions.feature_key,
    }
    if source.name in keys and image_id not in store:
        return keys[source.name](image_id)
    return image_id


def pixel_extractor(*, cluttered: bool, num_regions: int | None = None) -> "RegionExtractor":
    """What finds regions without a detector's weights.

    Args:
      cluttered: photos rather than things on an even ground.
      num_regions: most regions per image; None for the default of the kind of picture.
    """
    from twelve_in_one.data.regions.extractor import PixelExtractor

    count = num_regions or (_PHOTO_REGIONS if cluttered else _GROUND_REGIONS)
    return PixelExtractor(num_regions=count, cluttered=cluttered)


def from_folder(
    source: Source,
    images_dir: Path,
    cache_dir: Path,
    extractor: "RegionExtractor",
    name: str,
    *,
    annotated: Iterable[AnnotatedImage] = (),
    jobs: int = 1,
    overwrite: bool = False,
) -> RegionInputs:
    """`from_pictures` of the dataset's collection.

    Args:
      source: the dataset.
      images_dir: holds one folder per collection ("coco", "visual_genome", ...), searched in depth.
      cache_dir, extractor, name, annotated, jobs, overwrite: see `from_pictures`.

    Raises:
      DataError: there are no pictures.
    """
    if not images_dir.is_dir():
        raise DataError(f"{images_dir}: no such folder; pass --images, or other --features")
    pictures, left_out = picture_files(images_dir / source.domain)
    inputs = from_pictures(
        source,
        pictures,
        cache_dir,
        extractor,
        name,
        annotated=annotated,
        jobs=jobs,
        overwrite=overwrite,
    )
    return dataclasses.replace(inputs, unreadable=(*inputs.unreadable, *left_out))


def from_pictures(
    source: Source,
    pictures: Mapping[str, Path],
    cache_dir: Path,
    extractor: "RegionExtractor",
    name: str,
    *,
    annotated: Iterable[AnnotatedImage] = (),
    jobs: int = 1,
    overwrite: bool = False,
) -> RegionInputs:
    """Finds regions in all pictures of a collection; keeps those found before.

    Pictures are upright, unless annotations mean them as they are stored (`means_stored`). Features
    of annotated boxes are made when a record needs them, or all at once and kept, too.

    Args:
      source: the dataset.
      pictures: of the collection, by image id.
      cache_dir: where regions are kept, for all datasets of the collection.
      extractor: what finds and describes them.
      name: of the features.
      annotated: images whose annotated boxes are described at once, in batches, if the dataset
        chooses among such boxes.
      jobs: number of processes; one for a detector.
      overwrite: find the regions again.

    Raises:
      DataError: see `extract_folder`.
    """
    from twelve_in_one.data.images.load import load_image, means_stored
    from twelve_in_one.data.regions.extraction import (
        Boxes,
        extract_folder,
        fingerprint,
        turned_images,
    )
    from twelve_in_one.data.regions.extractor import BatchExtractor

    folder = cache_dir / extractor.name / source.domain

    def extracted(images: Iterable[str], out: Path, boxes: Boxes | None, upright: bool) -> Any:
        files_of = {image_id: pictures[image_id] for image_id in images}
        unreadable = extract_folder(
            files_of,
            out,
            extractor,
            jobs=jobs,
            upright=upright,
            overwrite=overwrite,
            boxes=boxes,
        )
        store = open_store(f"records:{out}")
        store.damaged = unreadable
        return store

    upright = stored = extracted(pictures, folder, None, True)
    if turned := turned_images(folder):
        stored = extracted(turned, folder.with_name(f"{folder.name}-stored"), None, False)

    def is_stored(image: AnnotatedImage) -> bool:
        size, key = (image.width, image.height), image.image_id
        return key in turned and means_stored(pictures[key], size, bool(image.boxes))

    kept: dict[bool, Any] = {}
    wanted = [x for x in annotated if x.box_ids and x.image_id in pictures]
    for as_stored in (False, True) if source.scores_annotated_boxes else ():
        frame = [image for image in wanted if is_stored(image) == as_stored]
        boxes = {image.image_id: _no_features(image).boxes for image in frame}
        if boxes:
            out = folder.with_name(f"{folder.name}-boxes-{fingerprint(boxes)}")
            kept[as_stored] = extracted(boxes, out, boxes, not as_stored)

    def detected(image: AnnotatedImage) -> Regions:
        return (stored if is_stored(image) else upright).get(image.image_id)

    def described(image: AnnotatedImage) -> Regions:
        if not source.scores_annotated_boxes or not image.box_ids:
            return _no_features(image)
        as_stored = is_stored(image)
        if as_stored in kept:
            return kept[as_stored].get(image.image_id)
        path = pictures[image.image_id]
        pixels, boxes = load_image(path, upright=not as_stored), _no_features(image).boxes
        try:
            features = extractor.describe(pixels, boxes)
        except ValueError as error:
            raise DataError(f"{path}: annotated {error}") from error
        return Regions(boxes, features, pixels.shape[1], pixels.shape[0])

    return RegionInputs(
        name=name,
        describes=extractor.name,
        # Names of `PixelExtractor` say by themselves what they are.
        extractor=extractor.name if isinstance(extractor, BatchExtractor) else "",
        has=upright.__contains__,
        detected=detected,
        annotated=described,
        stamp=lambda image_id: files.stamp(pictures[image_id]) if image_id in pictures else "",
        unreadable=upright.damaged,
    )


def picture_files(folder: Path) -> tuple[dict[str, Path], tuple[Skipped, ...]]:
    """Pictures below a folder by image id: the file's stem, or the number that ends COCO's names.

    Links are followed. Two pictures with one id count as the same if they have the same size.

    Returns:
      File by image id, and pictures left out, with reasons: copies by their names, names among
      COCO's that are not COCO's, and different pictures with one id.

    Raises:
      DataError: there is none.
    """
    paths = [p for p in files.walk_files(folder) if p.suffix.lower() in files.PICTURE_SUFFIXES]
    stems, coco = {path.stem for path in paths}, folder.name == "coco"
    named, left_out = [], []
    for path in paths:
        try:
            named.append((_image_id(path.stem, stems, coco), path))
        except ValueError as error:
            left_out.append(Skipped(str(path), path.stem, str(error)))
    found: dict[str, Path] = {}
    differing: set[str] = set()
    for image_id, path in named:
        first = found.setdefault(image_id, path)
        if first is not path:
            same = first.stat().st_size == path.stat().st_size
            what = "has the same size and is used" if same else "is another picture: remove one"
            left_out.append(Skipped(str(path), image_id, f"image {image_id}: {first} {what}"))
            if not same:
                differing.add(image_id)
    pictures = {image_id: path for image_id, path in found.items() if image_id not in differing}
    if not pictures:
        why = f" that can be used: {left_out[0].file}: {left_out[0].reason}" if left_out else ""
        raise DataError(f"{folder}: no pictures{why}; pass --images, or other --features")
    return pictures, tuple(left_out)


def _image_id(stem: str, stems: Container[str], coco: bool) -> str:
    """The id of a picture from its name without suffix; ValueError if it has none."""
    copy = _COPY.fullmatch(stem)
    if copy and (original := copy[1] or copy[2]) in stems:
        raise ValueError(f"named like a copy of {original}: remove it")
    if stem.startswith("COCO_") or (coco and stem.isdecimal()):
        number = stem.rsplit("_", 1)[-1]
        if not (number.isascii() and number.isdecimal()):
            raise ValueError("does not end in a number, as names of COCO do: rename it")
        return str(int(number))
    return stem


def missing_images(inputs: RegionInputs, image_ids: Iterable[str]) -> dict[str, str]:
    """Images without regions, or without a picture to keep.

    Returns:
      Image id -> the reason, "" if unknown.
    """
    reasons = {skip.record: skip.reason for skip in inputs.unreadable}
    missing = {}
    for image_id in image_ids:
        if not inputs.has(image_id):
            missing[image_id] = reasons.get(image_id, "")
        elif inputs.pictures is not None and image_id not in inputs.pictures:
            missing[image_id] = reasons.get(image_id, NO_PICTURE)
    return missing
