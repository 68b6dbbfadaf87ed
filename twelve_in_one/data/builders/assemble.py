"""Joins annotations and regions into records, the unit of storage and reading."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from twelve_in_one.data.builders.region_inputs import (
    NO_PICTURE,
    NO_REGIONS,
    RegionInputs,
    missing_images,
)
from twelve_in_one.data.builders.sources import Source
from twelve_in_one.data.regions.checks import normalised
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    MissingFile,
    Picture,
    Regions,
)
from twelve_in_one.data.stored.schema import Record

_SHOWN_REASONS = 3


def read_splits(source: Source, folder: Path) -> tuple[dict[str, AnnotationSet], dict[str, str]]:
    """All splits of a dataset whose files exist.

    Returns:
      Split -> annotations, and split -> missing files.

    Raises:
      DataError: a file is unusable, or there is none.
    """
    found, missing = {}, {}
    for split in source.splits:
        try:
            annotations = source.read(folder, split)
        except MissingFile as error:
            missing[split] = str(error)
            continue
        if annotations.annotations or annotations.skipped:
            found[split] = annotations
        else:  # which TFDS cannot store
            missing[split] = f"{folder}: the files hold no example"
    if not found:
        raise MissingFile(f"{source.name}: {'; '.join(missing.values())}")
    return found, missing


def splits_without_regions(
    source: Source, found: Mapping[str, AnnotationSet], inputs: RegionInputs
) -> dict[str, str]:
    """Splits without regions for any image, as when a store covers only other splits, and why.

    Raises:
      DataError: no image of any split has regions.
    """
    lacking = {}
    for split, annotations in found.items():
        images = annotations.images
        if not images or any(map(inputs.has, images)):
            continue
        missing = missing_images(inputs, images)
        if not any(missing.values()):  # damage is not the same as a store of other images
            lacking[split] = f"region features {inputs.name} lack {describe_missing(missing)}"
    if len(lacking) == len(found):
        split, reason = next(iter(lacking.items()))
        raise DataError(f"{source.name}/{split}: {reason}. Are they of another dataset?")
    return lacking


def describe_missing(missing: Mapping[str, str], total: int | None = None) -> str:
    """Says how many images have no regions, and names the first of them and any known reasons.

    Args:
      missing: image id -> reason or "", at least one.
      total: number of images; None if all are missing.
    """
    known = [f"{image_id} ({reason})" for image_id, reason in missing.items() if reason]
    text = f"{len(missing)} of {total or len(missing)} images, the first: {next(iter(missing))}"
    if known:
        text += f"; known reasons of {len(known)}: {'; '.join(known[:_SHOWN_REASONS])}"
    return text


def notes_of(annotations: AnnotationSet, regions: RegionInputs) -> tuple[str, ...]:
    """Notes on a split for the user, one sentence each."""
    total = len(annotations.annotations)
    notes = [
        f"{len(about):,} of {total:,} examples {note}" if about else note
        for note, about in annotations.notes.items()
    ]
    beyond = annotations.next_image_id
    if beyond and regions.name != NO_REGIONS and regions.has(beyond):
        first = next(iter(annotations.images), beyond)
        missing = "" if regions.has(first) else f", and none of image {first}"
        notes.append(
            f"the lines end before image {beyond}, of which there are regions{missing}: images are "
            "known by the number of their line, from 0; are these numbered otherwise, or those of "
            "another file?"
        )
    return tuple(notes)


def make_record(
    key: str,
    images: list[AnnotatedImage],
    annotations: tuple[Annotation, ...],
    inputs: RegionInputs,
) -> Record:
    """Joins all data about an image or a pair.

    Raises:
      DataError: the regions of an image are unusable.
    """
    regions = [inputs.detected(image) for image in images]
    features = _features(key, [found.features for found in regions])
    single = images[0] if len(images) == 1 else AnnotatedImage(key)
    given = inputs.annotated(single)
    pictures, picture_sizes = _pictures(images, regions, inputs)
    sizes = [
        _size(image, found, given if image is single else None, picture_size, inputs)
        for image, found, picture_size in zip(images, regions, picture_sizes, strict=True)
    ]
    own_size = (given.width, given.height) if all((given.width, given.height)) else sizes[0]
    boxes = np.asarray(single.boxes, np.float32).reshape(-1, 4)
    _check_annotated_boxes(single, annotations, sizes[0])
    annotated = _features(key, [given.features])
    if annotated.shape[1] not in (0, features.shape[1]):
        raise DataError(
            f"{key}: region features of annotated boxes have size {annotated.shape[1]}, those of "
            f"detected ones {features.shape[1]}"
        )
    return Record(
        record_id=key,
        image_ids=tuple(image.image_id for image in images),
        coco_ids=np.array([image.coco_id for image in images], np.int64),
        sizes=np.array(sizes, np.int32),
        num_regions=np.array([len(found.boxes) for found in regions], np.int32),
        boxes=np.concatenate([found.boxes for found in regions]).astype(np.float32),
        features=features,
        class_probs=_class_probs(regions),
        box_ids=np.array(single.box_ids, np.int64),
        annotated_boxes=boxes,
        annotated_features=annotated,
        annotated_size=np.array(own_size, np.int32),
        annotations=annotations,
        pictures=pictures,
    )


def _pictures(
    images: list[AnnotatedImage], regions: list[Regions], inputs: RegionInputs
) -> tuple[tuple[Picture, ...], list[tuple[int, int]]]:
    """The pictures to keep, in the orientation of the boxes, and their sizes; () and zeros if none.

    Raises:
      DataError: a picture is missing or cannot be read.
    """
    if inputs.pictures is None:
        return (), [(0, 0)] * len(images)
    from twelve_in_one.data.images.encoded import picture_of
    from twelve_in_one.data.images.load import means_stored, read_file

    found, sizes = [], []
    for image, detected in zip(images, regions, strict=True):
        path = inputs.pictures.get(image.image_id)
        if path is None:
            raise DataError(f"image {image.image_id}: {NO_PICTURE}")
        stated = (image.width, image.height)
        size = stated if all(stated) else (detected.width, detected.height)
        upright = not means_stored(path, size, bool(image.boxes))
        picture, size = picture_of(read_file(path), str(path), upright=upright)
        found.append(picture)
        sizes.append(size)
    return tuple(found), sizes


def _check_annotated_boxes(
    image: AnnotatedImage, annotations: Sequence[Annotation], size: tuple[int, int]
) -> None:
    targets = [annotation.box for annotation in annotations if annotation.box is not None]
    boxes = np.asarray([*image.boxes, *targets], np.float32).reshape(-1, 4)
    if problem := normalised(boxes, *size):
        raise DataError(f"image {image.image_id}: of the annotations, {problem}")


def _size(
    image: AnnotatedImage,
    detected: Regions,
    annotated: Regions | None,
    picture: tuple[int, int],
    inputs: RegionInputs,
) -> tuple[int, int]:
    """Width and height: of the regions' file, else as annotated.

    Raises:
      DataError: the two disagree, or there are boxes but no size.
    """
    stated = {
        f"regions {inputs.name} were found in": (detected.width, detected.height),
        "annotations say": (image.width, image.height),
    }
    if annotated is not None:
        stated["annotated regions are of"] = (annotated.width, annotated.height)
    stated["the picture has"] = picture
    known = {who: size for who, size in stated.items() if all(size)}
    if not known:
        if image.box_ids:
            raise DataError(
                f"image {image.image_id} has annotated boxes, but neither its annotations nor its "
                "regions say how large it is"
            )
        return (1, 1)  # no box will ever be placed in it
    first = next(iter(known.values()))
    if len(set(known.values())) > 1 and not inputs.official_sizes:
        sizes = ", ".join(f"{who} {size[0]} x {size[1]} pixels" for who, size in known.items())
        swapped = all(size in (first, first[::-1]) for size in known.values())
        hint = ": in one of them width and height are exchanged" if swapped else ""
        raise DataError(f"image {image.image_id}: {sizes}{hint}")
    return first


def _features(key: str, parts: list[np.ndarray]) -> np.ndarray:
    """float16[N, F] of all images of a record."""
    widths = {part.shape[1] for part in parts if len(part)}
    if len(widths) > 1:
        raise DataError(f"{key}: the images' region features have sizes {sorted(widths)}")
    width = widths.pop() if widths else parts[0].shape[1]
    features = np.concatenate([part.reshape(len(part), width) for part in parts])
    with np.errstate(over="ignore"):
        stored = features.astype(np.float16)
    if not np.isfinite(stored).all():
        largest = float(np.abs(features).max())
        raise DataError(f"{key}: a region feature of {largest:g} is beyond what float16 can hold")
    return stored


def _class_probs(regions: list[Regions]) -> np.ndarray:
    probs = [found.class_probs for found in regions if found.class_probs is not None]
    if len(probs) == len(regions):
        return np.concatenate(probs).astype(np.float16)
    return np.zeros((sum(len(found.boxes) for found in regions), 0), np.float16)
