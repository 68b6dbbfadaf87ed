"""Opens built datasets as streams: one call from a data folder to the batches of a task."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data import own_spec, trained_on
from twelve_in_one.data.builders import finish
from twelve_in_one.data.builders.answers import read_vocabulary
from twelve_in_one.data.builders.sources import ALL_SOURCES, Source
from twelve_in_one.data.builders.splits import CleanSplit, read_clean_split
from twelve_in_one.data.encode.examples import Encoding
from twelve_in_one.data.encode.negatives import nearest_pool
from twelve_in_one.data.encode.pictures import PictureInput
from twelve_in_one.data.encode.pretraining import PretrainingStream
from twelve_in_one.data.encode.text import Tokenizer
from twelve_in_one.data.pipeline import AllTrainedOn, Seen, Selection, Stream, TaskStream
from twelve_in_one.data.stored.preprocessing import Preprocessing, answers_sha256
from twelve_in_one.data.stored.reader import (
    DEFAULT_CACHE_BYTES,
    SplitReader,
    built_folder,
    open_split,
    read_build_info,
)
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.trained_on import TrainedOn
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.task import VERDICTS, Task, label_names


@dataclasses.dataclass(frozen=True)
class DataFolder:
    """Data that the datasets of a data folder share.

    Attributes:
      path: of the folder, written by `data.build` or `data.own`.
      regions: name of the region features.
      tokenizer: of its `vocab.txt` and `tokenizer_config.json`.
      answers: head -> answers or labels, if there are any.
      clean: images that no dataset may train on; None to train on everything.
      own: the user's own data sets, all in `path`.
      base: folder of all other datasets; None if that is `path`.
      trained_on: data that the model has seen; evaluation streams say how much of it they
        hold, and leave those examples out. None skips the check.
      keep_trained_on: leave nothing out.
    """

    path: Path
    regions: str
    tokenizer: Tokenizer
    answers: Mapping[str, tuple[str, ...]]
    clean: CleanSplit | None
    own: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    base: Path | None = None
    trained_on: TrainedOn | None = None
    keep_trained_on: bool = False

    def source(self, name: str) -> Source:
        """The description of a dataset."""
        return self.own[name] if name in self.own else ALL_SOURCES[name]

    def built(self, name: str) -> Path:
        """Folder of a built dataset.

        Raises:
          DataError: it has not been built.
        """
        folder = self.path if name in self.own or self.base is None else self.base
        return built_folder(folder, name, self.regions)


def open_folder(path: Path, regions: str, *, clean: bool = True) -> DataFolder:
    """Opens a data folder.

    Args:
      path: as written by `data.build` or `data.own`.
      regions: name of the region features, "pixels" or that of a store.
      clean: leave out other datasets' test images (12-in-1 section 3.2).

    Raises:
      DataError: a file is missing or damaged.
    """
    spec = own_spec.read_spec(path)
    base = Path(spec.base) if spec and spec.base else None
    found = {}
    for folder in (base, path) if base else (path,):
        for file in sorted(folder.glob("answers-*.json")):
            found[file.stem.removeprefix("answers-")] = read_vocabulary(file)
    split = read_clean_split(path / finish.CLEAN_SPLIT) if clean else None
    words = finish.read_tokenizer(path)
    sources = own_spec.sources(spec) if spec else {}
    return DataFolder(path, regions, words, found, split, sources, base)


def preprocessing_of(folder: DataFolder, tasks: Sequence[Task], feature_dim: int) -> Preprocessing:
    """Preprocessing of the inputs of a model that learns these tasks; stored with its checkpoint.

    Args:
      folder: from `open_folder`.
      tasks: with the lengths used.
      feature_dim: region feature size F of the model.

    Raises:
      DataError: a task's dataset has not been built.
    """
    made_of = {task.name: read_build_info(folder.built(task.name))["made_of"] for task in tasks}
    stores = {name: made["features"] for name, made in made_of.items()}
    extractors = {made["extractor"] for made in made_of.values() if "extractor" in made}
    extractors |= {name for name in stores.values() if name.startswith("pixels-")}
    return Preprocessing(
        vocab_sha256=folder.tokenizer.sha256,
        vocab_size=folder.tokenizer.vocab_size,
        lower_case=folder.tokenizer.lower_case,
        max_tokens={task.name: task.max_tokens for task in tasks},
        max_regions={task.name: task.max_regions for task in tasks},
        region_feature_dim=feature_dim,
        region_source=folder.regions,
        image_descriptor=", ".join(sorted(extractors)),
        answers_sha256={
            head: answers_sha256(folder.answers[head])
            for head in sorted({task.head for task in tasks} & folder.answers.keys())
        },
        region_stores=stores,
    )


def open_stream(
    folder: DataFolder,
    task: Task,
    split: str,
    *,
    batch_size: int,
    training: bool,
    feature_dim: int | None = None,
    num_labels: int | None = None,
    seed: int = 0,
    host: int = 0,
    num_hosts: int = 1,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    max_examples: int = 0,
    removed: bool = False,
    picture: Mapping[str, Any] | None = None,
    encoding_options: Mapping[str, object] | None = None,
    pretraining_options: Mapping[str, object] | None = None,
) -> Stream:
    """The batches of one task.

    Args:
      folder: from `open_folder`.
      task: shapes of the batches; its name is the dataset's.
      split: "train", "val", ...
      batch_size: global.
      training: shuffled and endless, or once in stored order.
      feature_dim: region feature size F of the model; None for that of the dataset.
      num_labels: L for kind "answer", at least the number of answers; equal to it if None.
      seed: of order and negatives.
      host: which of the hosts this is.
      num_hosts: how many there are.
      cache_bytes: memory for records.
      max_examples: use about this many, from records drawn by the seed; 0 uses all.
      removed: take only the records that cleaning leaves out: annotations never trained on,
        although their split is trained on (the released code's "mteval" splits).
      picture: fields of `PictureInput`, for a model that reads pictures.
      encoding_options: further fields of `Encoding`.
      pretraining_options: further fields of `PretrainingStream`, for kind "pretraining".

    Raises:
      DataError: the dataset or one of its inputs has not been built, or cleaning leaves nothing
        out.
      AllTrainedOn: the model was trained on all of it.
      ValueError: training on the removed records.
    """
    if removed and training:
        raise ValueError(f"{task.name}: what cleaning leaves out is not for training")
    source = folder.source(task.name)
    built = folder.built(task.name)
    if picture is not None and read_build_info(built)["made_of"].get("images") != "keep":
        raise DataError(
            f"{built}: built without its pictures, which this model reads: build {task.name} with "
            "--images keep into a new folder"
        )
    reader = open_split(built, split, cache_bytes=cache_bytes)
    kept = np.ones(len(reader.index.counts), bool)
    if folder.clean is not None and split in source.cleaned_splits:
        kept = folder.clean.keeps(source.domain, reader.index)
    if removed:
        kept = ~kept
    records = _some(np.flatnonzero(kept), reader.index.counts, max_examples, (seed, task.task_id))
    seen = None
    if folder.trained_on is not None and not training:
        reader, records, seen = _unseen(folder, task.name, source.domain, reader, records)
    pool = None  # without region features no image is near another
    kind = KINDS[task.kind]
    if kind.ranked and training and reader.index.feature_dim:
        # The stored pool covers all images that are clean without a user's own data sets.
        if folder.clean is None or max_examples or folder.own:
            pool = nearest_pool(reader.index.mean_features[records])
        else:
            pool = finish.read_hard_negatives(built, reader.index.image_ids[records, 0])
    selection = Selection(
        reader,
        records,
        batch_size,
        training,
        (seed, task.task_id),
        host,
        num_hosts,
        domain=source.domain,
        seen=seen,
    )
    width = reader.index.feature_dim if feature_dim is None else feature_dim
    if kind.pretrains:
        options = pretraining_options or {}
        return PretrainingStream(selection, task, folder.tokenizer, width, **options)
    answers: tuple[str, ...] = ()
    if kind.noun:
        try:
            answers = label_names(task, folder.answers)
        except ValueError as error:
            raise DataError(f"{folder.path}: {error}") from error
    labels = len(VERDICTS.get(task.head, ())) or num_labels or len(answers)
    if len(answers) > labels:
        raise DataError(f"{task.name}: {len(answers)} answers, but the model has {labels} labels")
    encoding = Encoding(
        task,
        folder.tokenizer,
        width,
        {answer: label for label, answer in enumerate(answers)},
        labels,
        training,
        picture=None if picture is None else PictureInput(**picture),
        **(encoding_options or {}),
    )
    return TaskStream(selection, encoding, pool)


def _unseen(
    folder: DataFolder, name: str, domain: str, reader: SplitReader, records: np.ndarray
) -> tuple[SplitReader, np.ndarray, Seen]:
    """The scored part of a split: all, or all that the model was not trained on; and how much was.

    Raises:
      AllTrainedOn: it was trained on all of it.
    """
    known, seen = trained_on.look(folder.trained_on, name, domain, reader.index, records)
    if folder.keep_trained_on or not seen.records:
        return reader, records, seen
    if seen.records == seen.of_records:
        raise AllTrainedOn(reader.name, seen.records)
    reader = trained_on.without_examples(reader, known)
    left = records[reader.index.counts[records] > 0]
    return reader, left, dataclasses.replace(seen, left_out=True)


def _some(
    records: np.ndarray, counts: np.ndarray, max_examples: int, seed: tuple[int, ...]
) -> np.ndarray:
    """Enough of the records to hold `max_examples` examples, in stored order; all if 0."""
    if not max_examples or counts[records].sum() <= max_examples:
        return records
    drawn = np.random.default_rng(seed).permutation(records)
    enough = int(np.searchsorted(np.cumsum(counts[drawn]), max_examples)) + 1
    return np.sort(drawn[:enough])
