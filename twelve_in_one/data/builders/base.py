"""Code that all builders share: annotations and regions become one record per image."""

import collections
import contextlib
import dataclasses
import functools
import inspect
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from twelve_in_one.data import official
from twelve_in_one.data.builders.assemble import (
    describe_missing,
    make_record,
    notes_of,
    read_splits,
    splits_without_regions,
)
from twelve_in_one.data.builders.region_inputs import RegionInputs, missing_images
from twelve_in_one.data.builders.sources import Source
from twelve_in_one.data.formats.files import read_json
from twelve_in_one.data.stored import index as index_module
from twelve_in_one.data.stored import schema
from twelve_in_one.data.stored.reader import (
    BUILD_INFO,
    built_folder,
    dataset_folder,
    has_split,
    open_split,
    read_build_info,
    region_names,
)
from twelve_in_one.data.stored.records import AnnotationSet, DataError, Skipped

# More than this share of unusable records means the wrong file rather than a few bad records.
MAX_SKIPPED_SHARE = 0.05
_STORED_ORDER_SEED = 1912
_SHOWN_FILES = 5
_STAMPS = "region_stamps.json"  # of all images in a dataset's build, with or without regions


@dataclasses.dataclass(frozen=True)
class BuildInputs:
    """Inputs of a dataset's build.

    Attributes:
      folder: of the official annotation files.
      regions: of the images.
      file_hashes: file name -> SHA-256 of the annotation files.
      progress: (split, records done, total records), called often.
      max_skipped_share: largest share of skipped annotations; more is an error.
      skip_option: the option that sets it.
    """

    folder: Path
    regions: RegionInputs
    file_hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    progress: Callable[[str, int, int], None] = lambda split, done, total: None
    max_skipped_share: float = MAX_SKIPPED_SHARE
    skip_option: str = "--max_skipped_share"


@dataclasses.dataclass
class SplitReport:
    """Contents of a split, and the records left out.

    Attributes:
      records: images, or pairs of images.
      images: distinct images.
      annotations: examples.
      skipped: records left out, with reasons.
      seconds: taken.
      empty: images in which the detector found nothing.
      notes: for the user, on how records were interpreted.
    """

    records: int = 0
    images: int = 0
    annotations: int = 0
    skipped: tuple[Skipped, ...] = ()
    seconds: float = 0.0
    empty: int = 0
    notes: tuple[str, ...] = ()


class ImageMajorBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes one record per image. Subclasses name a `source`; their docstring is the recipe."""

    VERSION = tfds.core.Version("1.0.0")
    source: Source

    def __init__(self, *, inputs: BuildInputs, data_dir: str):
        self.inputs = inputs
        self.reports: dict[str, SplitReport] = {}
        self.absent: dict[str, str] = {}
        self._stamps: dict[str, str] = {}
        config = tfds.core.BuilderConfig(
            name=inputs.regions.name,
            version=self.VERSION,
            description=f"Region features: {inputs.regions.describes}.",
        )
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.getdoc(type(self)),
            features=schema.features_dict(self.inputs.regions.pictures is not None),
            # The generator shuffles, so the index, written along with it, knows the order.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        found, self.absent = read_splits(self.source, self.inputs.folder)
        regions = self.inputs.regions
        self._stamps = {i: regions.stamp(i) for each in found.values() for i in each.images}
        self.absent |= splits_without_regions(self.source, found, regions)
        present = (split for split in found if split not in self.absent)
        return {split: self._generate_examples(split, found[split]) for split in present}

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super()._download_and_prepare(*args, **kwargs)
        # Into the folder that becomes the dataset's once complete.
        info = {
            "made_of": made_of(self.inputs),
            "splits": {split: dataclasses.asdict(r) for split, r in self.reports.items()},
            "absent": self.absent,
            "unreadable": [dataclasses.asdict(skip) for skip in self.inputs.regions.unreadable],
        }
        (Path(self.data_dir) / BUILD_INFO).write_text(json.dumps(info, indent=1))
        (Path(self.data_dir) / _STAMPS).write_text(json.dumps(self._stamps))

    def _generate_examples(
        self, split: str, annotations: AnnotationSet
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        start = time.perf_counter()
        self._require_regions(split, annotations)
        skipped = [*annotations.skipped]
        grouped = list(annotations.by_image())
        rng = np.random.default_rng(_STORED_ORDER_SEED)
        rows = _IndexRows(self.source.keeps_texts)
        converted: collections.Counter[str] = collections.Counter()
        for done, position in enumerate(rng.permutation(len(grouped))):
            key, examples = grouped[position]
            self.inputs.progress(split, done, len(grouped))
            images = [annotations.images[i] for i in annotations.pairs.get(key, (key,))]
            try:
                record = make_record(key, images, examples, self.inputs.regions)
                rows.add(record)
            except DataError as error:
                skipped += [Skipped(split, x.example_id, str(error)) for x in examples]
                continue
            converted.update(x.converted for x in record.pictures if x.converted)
            yield len(rows) - 1, schema.example_of(record)
        self.inputs.progress(split, len(grouped), len(grouped))
        total = len(annotations.annotations) + len(annotations.skipped)
        if len(skipped) > self.inputs.max_skipped_share * total:
            raise DataError(
                f"{self.source.name}/{split}: {len(skipped)} of {total} records cannot be used, "
                f"more than {self.inputs.max_skipped_share:.0%}; the first: {skipped[0].file}: "
                f"{skipped[0].record}: {skipped[0].reason}"
                + (f". Pass {self.inputs.skip_option} to go on" if len(rows) else "")
            )
        if not len(rows):  # which TFDS cannot store
            raise DataError(
                f"{self.source.name}/{split}: none of {total} records can be used; the first: "
                f"{skipped[0].file}: {skipped[0].record}: {skipped[0].reason}"
            )
        index_module.write_index(Path(self.data_dir), split, rows.finish())
        self.reports[split] = SplitReport(
            len(rows),
            rows.num_images,
            int(sum(rows.counts)),
            tuple(skipped),
            time.perf_counter() - start,
            rows.num_empty,
            (*notes_of(annotations, self.inputs.regions), *_converted_note(converted)),
        )

    def _require_regions(self, split: str, annotations: AnnotationSet) -> None:
        """Looks for all images before anything is written.

        Raises:
          DataError: so many are missing that the features must be those of another dataset.
        """
        missing = missing_images(self.inputs.regions, annotations.images)
        if len(missing) > self.inputs.max_skipped_share * len(annotations.images):
            why = "" if any(missing.values()) else "Are they of another dataset? "
            raise DataError(
                f"{self.source.name}/{split}: region features {self.inputs.regions.name} lack "
                f"{describe_missing(missing, len(annotations.images))}. {why}Pass "
                f"{self.inputs.skip_option} to go on without these images"
            )


def made_of(inputs: BuildInputs) -> dict[str, Any]:
    """Data that tell whether a built dataset is up to date."""
    made = {"features": inputs.regions.describes, "files": dict(inputs.file_hashes)}
    if inputs.regions.extractor:
        made["extractor"] = inputs.regions.extractor
    if inputs.regions.official_sizes:
        made["official_sizes"] = True
    if inputs.regions.pictures is not None:
        made["images"] = "keep"
    return made


def _converted_note(converted: collections.Counter[str]) -> tuple[str, ...]:
    """Says how many pictures are not stored as the files' own bytes."""
    if not converted:
        return ()
    kinds = "; ".join(f"{kind}: {count:,}" for kind, count in sorted(converted.items()))
    return (f"{converted.total():,} pictures were encoded again as PNG, without loss ({kinds})",)


def build_with(
    kind: type[ImageMajorBuilder], inputs: BuildInputs, data_dir: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Builds one dataset, unless it already exists, built from the same files.

    Args:
      kind: the builder's class.
      inputs: of the build.
      data_dir: where to build.
      overwrite: rebuild an existing dataset.

    Returns:
      The notes stored beside the records, with "name", whether it was "kept", and "unofficial":
      split -> why no official program can score it.

    Raises:
      DataError: see the readers, the region stores and `BuildInputs`; or the dataset exists, built
        from other files.
    """
    name, regions = kind.source.name, inputs.regions.name
    if regions in region_names(data_dir, name) and not overwrite:
        there = built_folder(data_dir, name, regions)
        info = read_build_info(there)
        if info["made_of"] != made_of(inputs):
            raise DataError(
                f"{there}: built from {_difference(info['made_of'], made_of(inputs))}; pass "
                "--overwrite to replace it"
            )
        _check_stamps(there, inputs.regions)
        return info | {
            "name": name,
            "kept": True,
            "unofficial": _keep_official(kind, inputs, there),
        }
    modes = tfds.GenerateMode
    mode = modes.REUSE_CACHE_IF_EXISTS if overwrite else modes.REUSE_DATASET_IF_EXISTS
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    # TFDS announces downloads of unknown size on stdout, although there are none.
    silence = contextlib.redirect_stdout(io.StringIO())
    for folder in (data_dir / dataset_folder(name) / regions).glob("incomplete*"):
        shutil.rmtree(folder)  # of a build that was killed
    with silence, tempfile.TemporaryDirectory() as downloads:
        builder = kind(inputs=inputs, data_dir=str(data_dir))
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(download_mode=mode),
        )
    built = Path(builder.data_dir)
    unofficial = _keep_official(kind, inputs, built)
    return read_build_info(built) | {"name": name, "kept": False, "unofficial": unofficial}


def _keep_official(
    kind: type[ImageMajorBuilder], inputs: BuildInputs, folder: Path
) -> dict[str, str]:
    """Stores inputs of official programs beside a dataset; returns split -> why there are none.

    Datasets built by versions without these files get them here.
    """
    files = kind.source.official
    if files is None:
        return {}
    missing = {}
    for split in kind.source.splits:
        if split != "train" and has_split(folder, split):
            ids = functools.partial(_example_ids, folder, split)
            missing[split] = official.keep(files, inputs.folder, folder, split, ids)
    return {split: reason for split, reason in missing.items() if reason}


def _example_ids(folder: Path, split: str) -> Iterator[str]:
    reader = open_split(folder, split, cache_bytes=0)
    for position in range(len(reader.index.counts)):
        yield from (example.example_id for example in reader.record(position).annotations)


def _check_stamps(folder: Path, regions: RegionInputs) -> None:
    """Raises DataError if files that the regions come from were changed or added since."""
    stamps = read_json(folder / _STAMPS, dict) if (folder / _STAMPS).exists() else {}
    changed = [image_id for image_id, stamp in stamps.items() if regions.stamp(image_id) != stamp]
    if changed:
        raise DataError(
            f"{folder}: built before the pictures or stored regions of {len(changed)} of "
            f"{len(stamps)} images were changed or added, the first: {changed[0]}; pass "
            "--overwrite to replace it"
        )


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """How the inputs of an existing build differ from those of a new one."""
    if there["features"] != here["features"]:
        return f"region features {there['features']}, not {here['features']}"
    if there.get("official_sizes") != here.get("official_sizes"):
        return f"{'with' if 'official_sizes' in there else 'without'} --official_sizes"
    if there.get("images") != here.get("images"):
        return f"{'with' if 'images' in there else 'without'} --images keep"
    files = [there["files"], here["files"]]
    changed = sorted(
        file for file in files[0] | files[1] if files[0].get(file) != files[1].get(file)
    )
    return f"other files ({', '.join(changed[:_SHOWN_FILES])})"


class _IndexRows:
    """Collects the index while records are written."""

    def __init__(self, keeps_texts: bool):
        self._keeps_texts = keeps_texts
        self._records: list[tuple[str, tuple[str, ...], np.ndarray]] = []
        self._texts: list[str] = []
        self._means: list[np.ndarray] = []
        self._feature_dim = 0
        self._empty: set[str] = set()
        self._keys: list[int] = []
        self.counts: list[int] = []

    @property
    def num_images(self) -> int:
        return len({image_id for _, image_ids, _ in self._records for image_id in image_ids})

    @property
    def num_empty(self) -> int:
        """Images without any region, if others have some."""
        return len(self._empty) if self._feature_dim else 0

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: schema.Record) -> None:
        """Adds a record.

        Raises:
          DataError: its feature size differs from that of earlier records.
        """
        size = record.features.shape[1]
        if size and self._feature_dim not in (0, size):
            raise DataError(
                f"record {record.record_id}: region features have size {size}, those of other "
                f"images {self._feature_dim}"
            )
        self._feature_dim = self._feature_dim or size
        self._records.append((record.record_id, record.image_ids, record.coco_ids))
        self.counts.append(len(record.annotations))
        pairs = zip(record.image_ids, record.num_regions, strict=True)
        self._empty.update(image_id for image_id, count in pairs if not count)
        ids = (annotation.example_id for annotation in record.annotations)
        self._keys += index_module.example_keys(ids, record.image_ids)
        if self._keeps_texts:
            self._texts += [annotation.text for annotation in record.annotations]
            count = max(len(record.features), 1)
            self._means.append(record.features.sum(axis=0, dtype=np.float32) / count)

    def finish(self) -> index_module.SplitIndex:
        k = len(self._records[0][1]) if self._records else 1
        return index_module.SplitIndex(
            record_ids=np.array([record[0] for record in self._records], str),
            image_ids=np.array([record[1] for record in self._records], str).reshape(-1, k),
            coco_ids=np.array([record[2] for record in self._records], np.int64).reshape(-1, k),
            counts=np.array(self.counts, np.int64),
            texts=tuple(self._texts),
            mean_features=self._mean_features(),
            feature_dim=self._feature_dim,
            example_keys=np.array(self._keys, np.uint64),
        )

    def _mean_features(self) -> np.ndarray:
        means = np.zeros((len(self._means), self._feature_dim), np.float16)
        for row, mean in zip(means, self._means, strict=True):
            row[: len(mean)] = mean  # of an image without regions, nothing
        return means
