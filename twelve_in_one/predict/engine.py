"""From images and texts to logits, in batches: the shared part of all predictions.

Letters: M captions, N images, R regions per example, L labels.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data.encode.examples import (
    Encoding,
    Example,
    encode_images,
    encode_inputs,
    encode_texts,
)
from twelve_in_one.data.encode.pictures import PictureInput
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.image_rows import LoadedRecord
from twelve_in_one.data.stored.records import Annotation, Regions
from twelve_in_one.models.two_stream.grid import cell_places
from twelve_in_one.predict.forward import Forward, Maps
from twelve_in_one.predict.inputs import Boxes, Image, ImageReader, SeenImage, make_loaded
from twelve_in_one.predict.results import Attention
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.task import Task

Progress = Callable[[str, int, int], None]

_MAX_CAPTIONS = 8  # per block of the score matrix
# Attention maps of dialogues about 306 regions take 60 MB per example at the base size.
_MAX_BATCH_WITH_MAPS = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """The model's output for one example.

    Attributes:
      logits: float32[L] or [R].
      region_mask: bool[R]; for a pair, that of the right image.
      boxes: float32[R, 4] in pixels; for a pair, those of the right image.
      attention: one for each trunk row; empty unless requested.
    """

    logits: np.ndarray
    region_mask: np.ndarray
    boxes: np.ndarray
    attention: tuple[Attention, ...]


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model with all its preprocessing.

    Attributes:
      forward: the model on its devices.
      reader: of images.
      serving: tasks and words.
      max_batch: examples that go through the model at a time.
      progress: called with the name of the step, the amount done and the total.
    """

    forward: Forward
    reader: ImageReader
    serving: Serving
    max_batch: int
    progress: Progress

    def task(self, name: str | None, default: str, **wanted: Any) -> Task:
        """The task called `name`, whose fields must equal `wanted`.

        Args:
          name: None takes the only fitting one, or `default` of several.
          default: name of a task.
          **wanted: fields.

        Raises:
          ValueError: the model was not trained on it, or it is of another kind.
        """

        def fits(task: Task) -> bool:
            return all(getattr(task, field) == value for field, value in wanted.items())

        if name is None:
            names = [task.name for task in self.serving.tasks if fits(task)]
            name = names[0] if len(names) == 1 else default
            if not names:
                known = ", ".join(f"{task.name} ({task.kind})" for task in self.serving.tasks)
                raise ValueError(f"no task of this model can do that; it was trained on {known}")
        task = self.serving.task(name)
        if not fits(task):
            known = ", ".join(other.name for other in self.serving.tasks if fits(other))
            raise ValueError(
                f"task {name!r} ({task.title}) asks something else; tasks of this model that can "
                f"be used here: {known or 'none'}"
            )
        return task

    def read(self, images: Sequence[Image], task: Task, *, given: bool = False) -> list[SeenImage]:
        """Reads each distinct image once, and looks for regions if the task shows any to the model.

        Args:
          images: to read.
          task: of the model.
          given: whether given boxes take the place of regions that are found.
        """
        grid, slots = self.forward.config.grid, task.max_regions
        if KINDS[task.kind].choices:
            slots = task.detected_slots
        find = grid is None or grid.region_features or (slots > 1 and not given)
        found: dict[Any, SeenImage] = {}
        keys = [str(x) if isinstance(x, str | Path) else id(x) for x in images]
        for done, (key, image) in enumerate(zip(keys, images, strict=True), 1):
            if key not in found:
                found[key] = self.reader.read(image, find=find)
            self.progress("images", done, len(images))
        return [found[key] for key in keys]

    def records(
        self,
        images: Sequence[SeenImage],
        boxes: Sequence[Boxes] | None = None,
        *,
        max_boxes: int = 0,
    ) -> tuple[list[LoadedRecord], list[Regions | None]]:
        """One record per image with its given boxes and their features; made once for equal inputs.

        Raises:
          ValueError: more than `max_boxes` boxes, or unusable ones.
        """
        given = [None] * len(images) if boxes is None else boxes
        made: dict[tuple[int, int], tuple[LoadedRecord, Regions | None]] = {}
        keys = [(id(image), id(corners)) for image, corners in zip(images, given, strict=True)]
        for key, image, corners in zip(keys, images, given, strict=True):
            if key in made:
                continue
            regions = None if corners is None else self.reader.boxes(image, corners)
            if regions is not None and len(regions.boxes) > max_boxes:
                raise ValueError(
                    f"{image.name}: {len(regions.boxes)} boxes, the model takes {max_boxes} at most"
                )
            made[key] = self.record((image,), regions), regions
        return [made[key][0] for key in keys], [made[key][1] for key in keys]

    def record(self, images: Sequence[SeenImage], boxes: Regions | None = None) -> LoadedRecord:
        """`make_loaded`, with the pictures if the model reads them.

        Raises:
          ValueError: see `make_loaded`; or only regions are known of an image.
        """
        record = make_loaded(images, boxes)
        if self.forward.config.grid is None:
            return record
        pictures = tuple(image.picture() for image in images)
        return dataclasses.replace(record, pictures=pictures)

    def rows(
        self,
        task: Task,
        examples: Sequence[Example],
        *,
        attention: bool,
        candidates: str = "detected",
    ) -> Iterator[Row]:
        """Runs examples through the model; see `Encoding` for `candidates`."""
        encoding = self._encoding(task, candidates=candidates)
        self._check_texts(task, [example.annotation.text for example in examples])
        most = min(self.max_batch, _MAX_BATCH_WITH_MAPS) if attention else self.max_batch
        for start in range(0, len(examples), most):
            chunk = examples[start : start + most]
            size = self.forward.padded_size(len(chunk))
            batch, boxes = encode_inputs(encoding, chunk, size)
            logits, maps = self.forward.logits(task, batch, attention=attention)
            logits = logits.reshape(size, -1)
            regions = batch["region_mask"].reshape(size, task.rows_per_example, -1)
            for i, example in enumerate(chunk):
                attended = self._attention(task, batch, boxes[i], maps, i, example)
                yield Row(logits[i], regions[i, -1], boxes[i], attended)
            self.progress(task.name, start + len(chunk), len(examples))

    def scores(
        self, task: Task, images: Sequence[SeenImage], captions: Sequence[str]
    ) -> np.ndarray:
        """float32[M, N] for every caption and every image, in blocks of both."""
        for caption in captions:
            check_text(caption)
        self._check_texts(task, captions)
        encoding = self._encoding(task)
        scores = np.zeros((len(captions), len(images)), np.float32)
        for start in range(0, len(images), self.max_batch):
            chunk = images[start : start + self.max_batch]
            examples = [make_example(record, "") for record in self.records(chunk)[0]]
            # Padding images repeat the first one.
            examples += examples[:1] * (self.forward.padded_size(len(chunk)) - len(chunk))
            regions = encode_images(encoding, examples)
            for first in range(0, len(captions), _MAX_CAPTIONS):
                texts = captions[first : first + _MAX_CAPTIONS]
                rows = encode_texts(encoding, texts, 1 << (len(texts) - 1).bit_length())
                inputs = {**rows, **regions, "task_id": np.int32(task.task_id)}
                block = self.forward.pair_scores(task, inputs)[: len(texts), : len(chunk)]
                scores[first : first + len(texts), start : start + len(chunk)] = block
                done = start * len(captions) + len(chunk) * (first + len(texts))
                self.progress(f"{task.name} pairs", done, scores.size)
        return scores

    def _encoding(self, task: Task, **options: Any) -> Encoding:
        config = self.forward.config
        if config.grid is not None:
            options["picture"] = PictureInput(**config.grid.picture)
        return Encoding(task, self.serving.tokenizer, config.region_feature_dim, **options)

    def _attention(
        self,
        task: Task,
        batch: dict[str, np.ndarray],
        boxes: np.ndarray,
        maps: Maps,
        number: int,
        example: Example,
    ) -> tuple[Attention, ...]:
        """Maps of the trunk rows of example `number` of a batch, without padding.

        Cells of a grid follow the regions.
        """
        if not maps:
            return ()
        found = []
        k = task.rows_per_example
        for part in range(k):
            index = (number, part) if k > 1 else number
            text, regions = batch["token_mask"][index], batch["region_mask"][index]
            words = [self.serving.tokenizer.vocabulary[i] for i in batch["tokens"][index][text]]
            if self.forward.config.num_tasks:
                words.insert(1, "[TASK]")
                text = np.insert(text, 1, True)
            image = example.record.images[part]
            corners = boxes[regions] if k == 1 else image.boxes[: int(regions.sum())]
            if self.forward.config.grid is not None:
                cells, real = self._cells(batch["picture_size"][index], image.boxes[0, 2:])
                corners, regions = np.concatenate([corners, cells]), np.append(regions, real)
            cut = {}
            for name, weights in maps.items():
                queries, keys = _readers_and_read(name, text, regions)
                cut[name] = weights[number * k + part][:, queries][:, :, keys]
            found.append(Attention(tuple(words), corners, cut))
        return tuple(found)

    def _cells(self, shown: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float32[., 4] in pixels of the cells that show some of a picture, and bool[G].

        Args:
          shown: its `picture_size` in the batch.
          size: its width and height.
        """
        places, real = map(np.asarray, cell_places(self.forward.config.grid, shown[None]))
        return places[0, real[0], :4] * np.tile(size, 2), real[0]

    def _check_texts(self, task: Task, texts: Sequence[str]) -> None:
        """Refuses empty texts; warns of long ones, and of those without known words.

        Raises:
          ValueError: a text is empty.
        """
        empty = [number for number, text in enumerate(texts, 1) if not text.strip()]
        if empty:
            raise ValueError(f"text {empty[0]} of {len(texts)} is empty")
        tokenizer = self.serving.tokenizer
        ids, real = tokenizer.encode_batch(texts, task.max_tokens)
        known = (real & (ids != tokenizer.unk_id)).sum(axis=1) > 2  # besides [CLS] and [SEP]
        if not known.all():
            first = texts[int(np.argmin(known))]
            warnings.warn(f"the model knows no word of {first!r}", stacklevel=4)
        counts = tokenizer.token_counts(texts)
        long = np.flatnonzero(counts > task.max_tokens)
        if len(long):
            warnings.warn(
                f"{len(long)} of {len(texts)} texts have more than the {task.max_tokens} tokens "
                f"that {task.name} takes; their ends are cut off. The first: {texts[long[0]]!r}",
                stacklevel=4,
            )


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


def make_example(
    record: LoadedRecord, text: str, options: tuple[tuple[LoadedRecord, str], ...] = ()
) -> Example:
    """An example with an unknown answer."""
    check_text(text)
    return Example(record, Annotation("given", "given", text), options)


def check_text(text: Any) -> None:
    """Raises a ValueError unless it is a text."""
    if not isinstance(text, str):
        raise ValueError(f"a text was expected, got {text!r}")


def _readers_and_read(
    name: str, text: np.ndarray, regions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the queries and of the keys of an attention map."""
    if name.endswith("_text_reads_visual"):
        return text, regions
    if name.endswith("_visual_reads_text"):
        return regions, text
    return (text, text) if name.startswith("text_") else (regions, regions)
