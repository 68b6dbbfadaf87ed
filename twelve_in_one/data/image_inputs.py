"""The streams of a run of a system of pictures, as set by its config; see `data.inputs`."""

import copy
import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from twelve_in_one.config.check import MIXTURE, TaskRun
from twelve_in_one.config.settings import ConfigError, RunConfig
from twelve_in_one.data import own_spec, trained_on
from twelve_in_one.data.builders.report import Progress
from twelve_in_one.data.builders.sources import ALL_SOURCES
from twelve_in_one.data.cut_texts import CutTexts
from twelve_in_one.data.image_serving import ImageServing
from twelve_in_one.data.images import text_checks
from twelve_in_one.data.images.boxes import BoxTargets
from twelve_in_one.data.images.built import captions_of, questions_of
from twelve_in_one.data.images.class_names import class_texts
from twelve_in_one.data.images.features import ImageFeatures, frozen_encoder, open_features
from twelve_in_one.data.images.image_set import (
    ImageSet,
    even_shards,
    examples,
    first_examples,
)
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.images.selection import ImageSelection, MixedSelection
from twelve_in_one.data.images.sources import open_images
from twelve_in_one.data.images.stream import ClassLabels, Encode, ImageStream, Part, try_some
from twelve_in_one.data.images.texts import NamedClasses, TextTargets
from twelve_in_one.data.pipeline import Seen
from twelve_in_one.data.stored.reader import SplitReader, built_folder, has_split, open_split
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts import tokenizer_files
from twelve_in_one.data.texts.class_names import check_class_names
from twelve_in_one.data.texts.sentence_pieces import train_sentencepiece
from twelve_in_one.data.texts.tokenizer import SETTINGS_FILE, TextTokenizer
from twelve_in_one.data.trained_on import TrainedOn
from twelve_in_one.mixing.mixed import MixedOrder, Stage, weights_of
from twelve_in_one.systems import SYSTEMS
from twelve_in_one.systems.base import Facts, System

_BUILT = {"questions": questions_of, "captions": captions_of}
_CLASSES = ("classify", "zero_shot", "detect")  # groups whose tasks have a list of classes
_IMAGE_SHARD = 1024
_VOCABULARY_EXAMPLES = 50_000  # of each task, read to make a vocabulary


class ImageInputs:
    """The data of a run; sets are opened once."""

    kind = "pictures"

    def __init__(self, run: RunConfig, tasks: Sequence[TaskRun], workdir: Path):
        """Opens nothing yet.

        Args:
          run: the settings.
          tasks: of the run.
          workdir: of the run; a resumed one has its tokenizer there.
        """
        self.run, self.workdir = run, workdir
        kinds = SYSTEMS[run.system.name].image_kinds.values()
        self.reads_texts = bool({"text", "boxes"} & set(kinds))
        self.tasks = tuple(tasks)
        self.path = Path(run.data.raw_dir or run.data.dir)
        self._trained_on: TrainedOn | None = None
        self._options = {task.task.name: task.options for task in tasks}
        self._encoder: Any = None
        self._stored: dict[Any, ImageFeatures] = {}

    def use_encoder(self, params: Any) -> None:
        """Makes batches of stored tokens from now on, by an encoder with these parameters."""
        self._encoder = params

    @property
    def learnt(self) -> tuple[TaskRun, ...]:
        """The tasks that the run trains on."""
        return tuple(task for task in self.tasks if task.options.learns)

    def system(self) -> System:
        """The system with the sizes set by the data.

        Raises:
          ConfigError: a size in the config does not fit the data.
          DataError: a source cannot be opened.
        """
        heads = tuple((name, len(labels), 1) for name, labels in self.labels.items())
        facts = Facts(
            vocab_size=0,
            answers={},
            own_heads=heads,
            num_tasks=len(self.tasks),
            novel=tuple(sorted(n for task in self.tasks for n in self.novel(task))),
        )
        if self.tokenizer:
            words = self.tokenizer
            for name, labels in self.labels.items():
                check_class_names(words, labels, where=f"classes of task {name}")
            facts = dataclasses.replace(
                facts,
                vocab_size=words.vocab_size,
                special_ids=(words.pad_id, words.eos_id, words.start_id),
            )
        return SYSTEMS[self.run.system.name].resolve(self.run.model, facts)

    def check_sources(self) -> None:
        """Opens what a training needs.

        Raises:
          DataError: sources cannot be opened; lists all, with what to do.
        """
        errors = []
        for task in self.tasks:
            try:
                for split in (task.options.first_split, task.options.val_split):
                    self.images(task, split)
            except DataError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise DataError("\n".join(map(str, errors))) from errors[0]

    @functools.cached_property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Task -> names of its classes, for tasks that classify.

        Raises:
          DataError: a source has none.
        """
        found = {}
        for task in self.tasks:
            if task.options.group not in _CLASSES:
                continue
            labels = self.images(task, task.options.first_split).labels
            if not labels:
                raise DataError(
                    f"task {task.task.name}: {task.options.source} has no classes to learn"
                )
            names = task.options.class_names
            try:
                found[task.task.name] = class_texts(
                    _catalogue_name(task.options.source), labels, Path(names) if names else None
                )
            except DataError as error:
                raise DataError(f"classes of task {task.task.name}: {error}") from error
        return found

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer | None:
        """Of the texts: named by the config, or that of the workdir, or made from the texts.

        Raises:
          DataError: it cannot be read or made.
        """
        if not self.reads_texts:
            return None
        text, before = self.run.text, self.workdir / "inputs"
        if text.tokenizer:
            path = Path(text.tokenizer)
            if path.is_dir():
                return tokenizer_files.load(path)
            return tokenizer_files.from_file(path, lower_case=text.lower_case)
        if (before / SETTINGS_FILE).is_file():
            return tokenizer_files.load(before)
        return train_sentencepiece(self._all_texts(), text.vocab_size, lower_case=text.lower_case)

    def _all_texts(self) -> Iterator[str]:
        """Texts of the training splits to make a vocabulary from."""
        for task in self.learnt:
            prompt = task.options.prompt or f"{task.task.name}:"
            images = self.images(task, task.options.train_split)
            count = min(images.num_examples, _VOCABULARY_EXAMPLES)
            if labels := self.labels.get(task.task.name):
                # As often as they are written, without reading the pictures.
                for text in (prompt, *labels):
                    yield from itertools.repeat(text, max(count // len(labels), 1))
                continue
            for example in examples(images, count):
                yield prompt
                yield example.question
                yield from example.texts

    def images(self, task: TaskRun, split: str) -> ImageSet:
        """The pictures of a split.

        Raises:
          DataError: the source cannot be opened, or its classes are not those of the training
            split.
        """
        return self._opened(task.task.name, split)

    @functools.cached_property
    def _opened(self) -> Any:
        return functools.cache(self._open)

    def _open(self, name: str, split: str) -> ImageSet:
        options = self._options[name]
        dataset = built_dataset(options.source)
        if dataset:
            kind = options.source.partition(":")[0]
            return _BUILT[kind](self._reader(options.source, split))
        labels: Sequence[str] | None = None
        if split != options.first_split and options.group in _CLASSES:
            labels = self._opened(name, options.first_split).labels or None
        try:
            images = open_images(_filled(options.source, split, self.run), labels)
        except DataError as error:
            how = f"; {options.obtain}" if options.obtain else ""
            raise DataError(f"task {name}, split {split}: {error}{how}") from error
        if not images.is_checked:
            try_some(images, self.run.images.max_unreadable_share)
        return images

    def _reader(self, source: str, split: str) -> SplitReader:
        """A split of a built dataset."""
        place = source.replace("{split}", split).partition(":")[2]
        folder = built_folder(Path(self.run.data.dir), built_dataset(source), self.run.data.regions)
        cache = self.run.data.cache_megabytes << 20
        return open_split(folder, place.partition("/")[2] or split, cache_bytes=cache)

    @functools.cached_property
    def _domains(self) -> Mapping[str, str]:
        """Built dataset -> collection that its pictures come from."""
        spec = own_spec.read_spec(Path(self.run.data.dir))
        own = own_spec.sources(spec) if spec else {}
        return {name: source.domain for name, source in {**ALL_SOURCES, **own}.items()}

    def splits(self, task: TaskRun, splits: Sequence[str]) -> tuple[str, ...]:
        """The splits among these that exist."""
        dataset = built_dataset(task.options.source)
        if dataset:
            folder = built_folder(Path(self.run.data.dir), dataset, self.run.data.regions)
            return tuple(split for split in splits if has_split(folder, split))
        there = []
        for split in splits:
            try:
                self.images(task, split)
            except DataError:
                continue
            there.append(split)
        return tuple(there)

    def train_streams(self, system: System) -> dict[str, ImageStream]:
        """Name -> training stream: one per task, or `MIXTURE` of all.

        Raises:
          DataError: a source cannot be opened, or an example cannot be used.
        """
        mixture, tasks = self.run.mixture, self.learnt
        parts = [self._part(task, task.options.train_split, system, True) for task in tasks]
        if not mixture.weighting:
            return {
                task.task.name: ImageStream(
                    self._selection(task, part, task.task.batch_size), (part,)
                )
                for task, part in zip(tasks, parts, strict=True)
            }
        names = [task.task.name for task in tasks]
        sizes = {name: part.images.size for name, part in zip(names, parts, strict=True)}
        weights = weights_of(
            mixture.weighting,
            sizes,
            temperature=mixture.temperature,
            explicit={task.task.name: task.options.weight for task in tasks},
        )
        by_image = mixture.weighting == "images"
        order = MixedOrder(mixture.batch_size, (Stage(0, tuple(weights.values())),))
        selection = MixedSelection(
            tuple(
                self._selection(task, part, 1, alone=False)
                for task, part in zip(tasks, parts, strict=True)
            ),
            order,
            sum(size.images if by_image else size.pairs for size in sizes.values()),
            jax.process_index(),
            jax.process_count(),
        )
        return {MIXTURE: ImageStream(selection, tuple(parts))}

    def evaluation_stream(self, task: TaskRun, split: str, system: System) -> ImageStream:
        """All examples of a split, once and in stored order."""
        part = self._part(task, split, system, False)
        size = self.run.evaluation.batch_size or task.task.batch_size
        images = part.images
        selection = ImageSelection(
            images,
            size,
            False,
            part.seed,
            jax.process_index(),
            jax.process_count(),
            seen=self._seen(task, split),
        )
        return ImageStream(selection, (part,), task.task)

    def _seen(self, task: TaskRun, split: str) -> Seen | None:
        """How much of a built dataset's split was trained on, if that is known."""
        dataset = built_dataset(task.options.source)
        if self._trained_on is None or not dataset:
            return None
        index = self._reader(task.options.source, split).index
        records = np.arange(len(index.counts))
        return trained_on.look(self._trained_on, dataset, self._domains[dataset], index, records)[1]

    def serving(self, system: System) -> ImageServing:
        """Companion of the weights of a model that learnt these tasks."""
        shapes = tuple(task.task for task in self.tasks)
        images = {
            task.task.name: _used(self._preprocess(task, system, training=False))
            for task in self.tasks
        }
        text = {}
        if self.tokenizer:
            sizes = system.sizes(shapes[0])
            text = {"cut": self.run.text.cut, "max_tokens": sizes["max_tokens"]}
        return ImageServing(shapes, self.labels, images, text, self.tokenizer)

    def trained_on(self, streams: Mapping[str, Any]) -> TrainedOn:
        """Of built datasets; pictures of other sources have no identity to recognise them by."""
        sets, unknown = [], []
        for task in self.tasks:
            options, dataset = task.options, built_dataset(task.options.source)
            if not dataset:
                unknown.append(f"which pictures of {options.source}")
                continue
            reader = self._reader(options.source, options.train_split)
            count = len(reader.index.counts)
            if options.max_train_examples:
                images = self.images(task, options.train_split)
                first = np.arange(count + 1) if images.pairs else reader.first_example
                count = min(count, int(np.searchsorted(first, options.max_train_examples)))
            sets.append((dataset, self._domains[dataset], reader.index, np.arange(count)))
        return trained_on.of_records(sets) | trained_on.nothing(*unknown)

    def cut_texts(self, streams: Mapping[str, Any]) -> list[CutTexts]:
        """Lengths of some of the texts of each task."""
        if not self.reads_texts:
            return []
        system, found = self.system(), []
        for task in self.learnt:
            if task.task.kind == "boxes":
                continue
            split = task.options.train_split
            name, images = f"{task.task.name}/{split}", self.images(task, split)
            found.append(text_checks.cut_texts(name, images, self._encode(task, system)))
        return found

    def for_tests(self, seen: TrainedOn | None, keep: bool) -> Self:
        """The same; what was trained on is reported, and scored."""
        other = copy.copy(self)
        other._trained_on = seen
        return other

    def _part(self, task: TaskRun, split: str, system: System, training: bool) -> Part:
        images, encode = self.images(task, split), self._encode(task, system)
        if training and isinstance(encode, BoxTargets):
            encode = dataclasses.replace(encode, hidden=self.novel(task))
        if training:
            images = first_examples(images, task.options.max_train_examples)
        if isinstance(encode, TextTargets):
            where = f"task {task.task.name}, split {split}"
            text_checks.check_prompts(where, images, encode)
            text_checks.check_texts(where, images, encode)
        return Part(
            images,
            self._preprocess(task, system, training=training),
            encode,
            task.task.task_id,
            (self.run.seed, seed_of(task.task.name)),
            training and self.run.mixture.weighting == "images",
            None if self._encoder is None else self._tokens(images, task, system),
        )

    def features(self, task: TaskRun, split: str, system: System) -> ImageFeatures | None:
        """The stored tokens of a split; None if batches are of pictures."""
        if self._encoder is None:
            return None
        return self._tokens(self.images(task, split), task, system)

    def _tokens(self, images: ImageSet, task: TaskRun, system: System) -> ImageFeatures:
        preprocess = self._preprocess(task, system, training=False)
        key = images.name, images.num_examples, preprocess
        if key not in self._stored:
            self._stored[key] = open_features(
                images,
                frozen_encoder(system.token_encoder, self._encoder, preprocess),
                Path(self.run.images.tokens),
                progress=Progress(task.task.name),
                max_unreadable_share=self.run.images.max_unreadable_share,
            )
        return self._stored[key]

    def _encode(self, task: TaskRun, system: System) -> Encode:
        if task.task.kind == "class":
            return ClassLabels()
        if task.task.kind == "boxes":
            sizes = system.sizes(task.task)
            return BoxTargets(system.image_size, sizes["max_boxes"], sizes["mask_side"])
        if task.task.kind == "names":
            return NamedClasses(
                self.tokenizer,
                self.labels[task.task.name],
                task.task.templates,
                system.sizes(task.task)["max_tokens"],
                self.run.text.cut == "sticky",
            )
        return TextTargets(
            tokenizer=self.tokenizer,
            prompt=system.prompt(task.task),
            labels=self.labels.get(task.task.name, ()),
            sticky=self.run.text.cut == "sticky",
            **system.sizes(task.task),
        )

    def novel(self, task: TaskRun) -> frozenset[int]:
        """Numbers of the classes of a detector whose boxes are not learnt.

        Raises:
          DataError: a name that is none of the classes.
        """
        if task.options.group != "detect":
            return frozenset()
        images = self.images(task, task.options.first_split)
        if not task.options.novel:
            return frozenset(i for i, how in enumerate(images.frequencies) if how == "r")
        labels = {name: number for number, name in enumerate(self.labels[task.task.name])}
        unknown = [name for name in task.options.novel if name not in labels]
        if unknown:
            raise DataError(
                f"task {task.task.name}: novel names {unknown[0]!r}, which is none of its "
                f"{len(labels)} classes, the first of which is {next(iter(labels))!r}"
            )
        return frozenset(labels[name] for name in task.options.novel)

    def sentences(self, system: System) -> np.ndarray | None:
        """See `RunInputs`."""
        for task in self.tasks:
            if task.task.kind == "boxes":
                named = NamedClasses(
                    self.tokenizer,
                    self.labels[task.task.name],
                    task.task.templates,
                    system.sizes(task.task)["max_tokens"],
                    self.run.text.cut == "sticky",
                )
                return named.tokens.reshape(len(named.labels), len(named.templates), -1)
        return None

    def _selection(
        self, task: TaskRun, part: Part, batch_size: int, *, alone: bool = True
    ) -> ImageSelection:
        images = part.images
        if part.by_image and images.first_of_image is not None:
            count = len(images.first_of_image) - 1
            images = ImageSet(images.name, even_shards(count, _IMAGE_SHARD), images.read)
        hosts = (jax.process_index(), jax.process_count()) if alone else (0, 1)
        return ImageSelection(images, batch_size, True, part.seed, *hosts)

    def _train_side(self, size: int) -> int:
        """See `ImageOptions`.

        Raises:
          ConfigError: it is smaller than the model's side.
        """
        side = self.run.images.train_side
        if 0 < side < size:
            raise ConfigError([f"images.train_side: {side} is less than the model's side {size}"])
        return side

    def _preprocess(self, task: TaskRun, system: System, *, training: bool) -> Preprocess:
        options, images, size = task.options, self.run.images, system.image_size
        low, high = system.pixel_range
        frames = dict(frames=system.frames, frame_stride=images.frame_stride)
        make = functools.partial(Preprocess, size, low=low, high=high, **frames)
        if task.task.kind == "boxes":  # random sizes and places are the model's
            return make(letterbox=True, antialias=images.antialias)
        if training:
            return make(
                random_crop=options.random_crop,
                crop_area=(images.crop_area, 1.0),
                enlarged=0 if options.random_crop else self._train_side(size),
                flip=options.flip,
                randaugment_layers=images.randaugment_layers,
                randaugment_magnitude=images.randaugment_magnitude,
                antialias=images.antialias,
                random_frames=system.frames > 0 and images.random_frames,
            )
        if images.short_side < 0 or not (options.random_crop or images.short_side):
            return make(antialias=images.antialias)
        short_side = images.short_side or round(size * 256 / 224)
        return make(short_side=short_side, antialias=images.antialias)


def _used(preprocess: Preprocess) -> dict[str, Any]:
    """The fields that matter in evaluation."""
    fields = dataclasses.asdict(preprocess)
    del fields["enlarged"], fields["random_frames"]  # only in training
    if not preprocess.frames:
        del fields["frames"], fields["frame_stride"]
    return fields


def seed_of(name: str) -> int:
    """A number for the random draws of a task, whatever else a run trains on."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def built_dataset(source: str) -> str:
    """The dataset of a source like "questions:NAME/SPLIT"; "" for other sources."""
    kind, _, place = source.partition(":")
    return place.partition("/")[0] if kind in _BUILT else ""


def _catalogue_name(source: str) -> str:
    """The dataset of a source like "tfds:NAME[SPLIT]"; "" for other sources."""
    kind, _, place = source.partition(":")
    return re.split(r"[\[/:]", place)[0] if kind == "tfds" else ""


def _filled(source: str, split: str, run: RunConfig) -> str:
    """The source of a split.

    Raises:
      DataError: it is in the folder of samples, which the config does not name.
    """
    samples = run.data.samples_dir
    if "{samples_dir}" in source and not samples:
        raise DataError(f"{source}: config.data.samples_dir is empty")
    filled = source.replace("{split}", split).replace("{raw_dir}", run.data.raw_dir)
    return filled.replace("{samples_dir}", samples)
