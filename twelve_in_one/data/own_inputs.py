"""Reads the inputs of a user's own data sets: records, pictures and region features."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.config.settings import OwnTaskOptions
from twelve_in_one.data.annotations import hf_rows, jsonl
from twelve_in_one.data.annotations.jsonl import Found, Part, Rules
from twelve_in_one.data.builders import region_inputs
from twelve_in_one.data.builders.region_inputs import RegionInputs
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.own_spec import PIXELS, Spec, sources
from twelve_in_one.data.regions import open_store
from twelve_in_one.data.stored.records import AnnotatedImage, DataError, Regions
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.own import own_task
from twelve_in_one.tasks.task import VERDICTS, Task


def read_all(folder: Path, spec: Spec) -> dict[str, Found]:
    """Reads and checks the records of all data sets.

    Raises:
      DataError: lists the faults of every data set.
    """
    found, errors = {}, []
    for name, options in spec.sets.items():
        try:
            found[name] = _read(folder, name, options, spec.keep_images)
        except (DataError, OSError) as error:
            errors.append(f"{name}: {error}")
    if errors:
        raise DataError("\n".join(errors))
    return found


def _read(folder: Path, name: str, options: OwnTaskOptions, keep_images: bool) -> Found:
    task = own_task(name, options)
    written = folder / "pictures" / name  # of Hugging Face datasets
    return jsonl.read(_parts(options, written), _rules(task, options, written, keep_images))


def _parts(options: OwnTaskOptions, written: Path) -> list[Part]:
    if options.hf:
        return hf_rows.parts(options.hf, written)
    more = {"val": options.val_jsonl, "test": options.test_jsonl}
    role = "train" if any(more.values()) else ""
    parts = [jsonl.file_part(Path(options.jsonl), role)]
    return parts + [jsonl.file_part(Path(path), split) for split, path in more.items() if path]


def _rules(task: Task, options: OwnTaskOptions, written: Path, keep_images: bool) -> Rules:
    needs_files = keep_images or options.features in PIXELS
    folders = [Path(options.images)] if options.images or not options.hf else []
    if options.hf:
        folders.append(written)
    finders = [jsonl.picture_in(folder) for folder in folders]

    def picture(name: str) -> Path | None:
        for find in finders[:-1]:
            try:
                return find(name)
            except RecordError:
                continue
        try:
            path = finders[-1](name)
            if needs_files:
                _file_size(path, name)  # refuses files that are not pictures
            return path
        except RecordError:
            if needs_files:
                raise
            return None  # a store knows the image, or none is needed

    reads_files = options.features in (*PIXELS, "none") and needs_files
    sizes = _file_size if reads_files else _store_size(options.features)
    return Rules(
        task.kind,
        task.rows_per_example if KINDS[task.kind].noun else 1,
        picture,
        functools.cache(lambda name: sizes(picture(name), name)),
        options.labels or VERDICTS.get(task.head, ()),
        options.box_format,
        options.collection,
        options.val_share,
        options.test_share,
        options.max_skipped_share,
    )


def _file_size(path: Path | None, name: str) -> tuple[int, int] | None:
    """Width and height of the upright picture, the frame of its regions."""
    from PIL import Image

    if path is None:
        return None
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(0x0112, 1) >= 5
            return picture.size[::-1] if turned else picture.size
    except Exception as error:  # decoders raise any kind of error on strangers' bytes
        raise RecordError(f"picture {name!r} cannot be read: {error}") from error


def _store_size(features: str) -> Any:
    store = open_store(features)

    def size(path: Path | None, name: str) -> tuple[int, int] | None:
        key = _store_key(store, name)
        if key is None:
            return _file_size(path, name)
        regions = store.get(key)
        return (regions.width, regions.height) if regions.width and regions.height else None

    return size


def _store_key(store: Any, name: str) -> str | None:
    """A store's name for the picture that records call `name`."""
    tries = [name, Path(name).stem]
    tries += [jsonl.image_id_of(name, "coco")] if tries[1][-1:].isdecimal() else []
    return next((key for key in tries if key in store), None)


def regions_of(
    folder: Path, name: str, spec: Spec, found: Mapping[str, Found], jobs: int
) -> RegionInputs:
    """Region features of the images of a data set, and the pictures themselves if they are kept.

    Raises:
      DataError: a store cannot be opened, or pictures are missing.
    """
    inputs = _only_regions(folder, name, spec, found, jobs)
    if not spec.keep_images:
        return inputs
    return region_inputs.with_pictures(inputs, found[name].pictures)


def _only_regions(
    folder: Path, name: str, spec: Spec, found: Mapping[str, Found], jobs: int
) -> RegionInputs:
    options, source = spec.sets[name], sources(spec)[name]
    if options.features in PIXELS:
        return _from_pictures(folder, name, spec, found, jobs)
    if options.features == "none":
        return dataclasses.replace(region_inputs.no_regions(), name=spec.regions)
    store = open_store(options.features)
    plain = dataclasses.replace(source, scores_annotated_boxes=False)
    stored = region_inputs.from_stores(plain, options.features, None, spec.regions)
    names = found[name].names
    keys = {image_id: _store_key(store, called) for image_id, called in names.items()}

    def detected(image: AnnotatedImage) -> Regions:
        key = keys.get(image.image_id)
        if key is None:
            raise DataError(f"{options.features}: no image {names.get(image.image_id)!r}")
        return stored.detected(dataclasses.replace(image, image_id=key))

    def stamp(image_id: str) -> str:
        key = keys.get(image_id)
        return "" if key is None else stored.stamp(key)

    return dataclasses.replace(
        stored,
        has=lambda image_id: keys.get(image_id) is not None,
        detected=detected,
        stamp=stamp,
    )


def _from_pictures(
    folder: Path, name: str, spec: Spec, found: Mapping[str, Found], jobs: int
) -> RegionInputs:
    named, features = sources(spec), spec.sets[name].features
    # Pictures of a folder that several data sets share are read once.
    pictures: dict[str, Path] = {}
    for other, options in spec.sets.items():
        if named[other].domain == named[name].domain and options.features == features:
            pictures |= found[other].pictures
    extractor = region_inputs.pixel_extractor(cluttered=features == "photos")
    return region_inputs.from_pictures(
        named[name], pictures, folder / "regions", extractor, spec.regions, jobs=jobs
    )
