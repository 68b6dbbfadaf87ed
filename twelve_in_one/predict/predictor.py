"""Asks a trained model about images: answers, rankings, boxes, verdicts.

Inputs are encoded by the functions that made the training batches, and a prediction sees the same
rows as an evaluation of the same example.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from twelve_in_one.data.encode.examples import Example
from twelve_in_one.data.regions.store import RegionStore
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.image_rows import LoadedRecord
from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.predict.arguments import boxes_of_each, chosen_mask, is_list, paired
from twelve_in_one.predict.engine import Engine, Progress, make_example, silent
from twelve_in_one.predict.forward import Forward
from twelve_in_one.predict.inputs import Boxes, Image, ImageReader, SeenImage
from twelve_in_one.predict.results import (
    Answer,
    Attention,
    Grounding,
    Pointing,
    Ranking,
    Verdict,
)
from twelve_in_one.tasks.task import Task, label_names


class Predictor:
    """A trained model that answers about images.

    Every method takes one image (or pair) and one text and returns one result; given a list for
    either it returns a list, one result per element. Two lists are paired element by element and
    must have the same length; a single value goes with every element of a list. An image is a
    path, a PIL image, uint8[H, W, 3] or `Regions`, see `inputs`.

    All methods raise ValueError if the model was not trained on the task, an image or box cannot be
    used, or lists differ in length, and ImportError, naming the package to install, if texts or
    pictures need a missing library. They warn of texts that are too long for the model; the end is
    cut off, as in training.

    `task` is the name of one of the model's tasks. None takes the only one that a method can use,
    or of several the first one named in its description.

    Attributes:
      serving: tasks, words, answers, preprocessing.
      config: of the model.
    """

    def __init__(
        self,
        params: Any,
        config: TwoStreamConfig,
        serving: Serving,
        *,
        extractor: Any = None,
        layout: str = "dp",
        model: int = 1,
        devices: Sequence[jax.Device] | None = None,
        max_batch: int = 64,
        progress: Progress = silent,
    ):
        """Takes a model; arguments as in `load`."""
        if max_batch < 1:
            raise ValueError(f"max_batch must be positive, got {max_batch}")
        dim = serving.preprocessing.region_feature_dim
        if dim not in (0, config.region_feature_dim):
            raise ValueError(
                f"the model takes region features of size {config.region_feature_dim}, its "
                f"preprocessing says {dim}"
            )
        self.serving = serving
        self.config = config
        self._engine = Engine(
            Forward(params, config, layout=layout, model=model, devices=devices),
            ImageReader(serving.preprocessing, extractor),
            serving,
            max_batch,
            progress,
        )

    def read(self, image: Image) -> SeenImage:
        """The model's input from an image; its `regions` may be passed instead of the image."""
        return self._engine.reader.read(image)

    def check_store(self, store: RegionStore) -> None:
        """Refuses a store of regions that another detector filled than the model was trained on.

        Raises:
          ValueError: the store and the model name two detectors.
        """
        for part in store.parts:
            what = f"{part.name} has those of {part.extractor}"
            self._engine.reader.check_extractor(part.extractor, what)

    def answer(
        self,
        image: Image | Sequence[Image],
        question: str | Sequence[str],
        task: str | None = None,
        *,
        top: int = 5,
        attention: bool = False,
    ) -> Answer | list[Answer]:
        """Answers questions with answers from the model's vocabulary.

        Args:
          image: one or several.
          question: one or several.
          task: "vqa", "vgqa" or "gqa", which differ in answers and style.
          top: number of best answers to list.
          attention: also return attention maps.
        """
        shape = self._engine.task(task, "vqa", kind="answer")
        if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
            raise ValueError(f"top must be a whole number from 1 on, got {top!r}")
        answers = label_names(shape, self.serving.answers)
        (images, texts), single = paired(image=image, question=question)
        seen = self._engine.read(images, shape)
        examples = _examples(self._engine.records(seen)[0], texts)
        rows = self._engine.rows(shape, examples, attention=attention)
        found = []
        for one, text, row in zip(seen, texts, rows, strict=True):
            # A head may have room for more labels than there are answers.
            logits = row.logits[: len(answers)]
            order = np.argsort(-logits, kind="stable")[:top]
            best = tuple((answers[i], float(_sigmoid(logits[i]))) for i in order)
            found.append(Answer(text, (one,), row.attention, *best[0], best))
        return found[0] if single else found

    def score_matrix(
        self, images: Sequence[Image], captions: Sequence[str], task: str | None = None
    ) -> np.ndarray:
        """float32[M, N], how well each of M captions fits each of N images.

        Args:
          images: N.
          captions: M.
          task: "coco" or "flickr30k".
        """
        shape = self._engine.task(task, "coco", kind="match")
        if not is_list(images) or not is_list(captions):
            raise ValueError("score_matrix takes a list of images and a list of captions")
        return self._engine.scores(shape, self._engine.read(images, shape), captions)

    def rank(
        self,
        images: Sequence[Image],
        caption: str | Sequence[str],
        task: str | None = None,
        *,
        attention: bool = False,
    ) -> Ranking | list[Ranking]:
        """Ranks images by how well they fit a caption, or each of several.

        Args:
          images: N.
          caption: one or several; every one is scored with every image.
          task: "coco" or "flickr30k".
          attention: also return the attention maps of each caption's best image.
        """
        shape = self._engine.task(task, "coco", kind="match")
        captions = list(caption) if is_list(caption) else [caption]
        if not is_list(images) or not images:
            raise ValueError("rank takes a list of images, one at least")
        seen = self._engine.read(images, shape)
        # Once each: equal rows of a batch may get scores that differ in the last bit.
        distinct = list({id(image): image for image in seen}.values())
        column = {id(image): number for number, image in enumerate(distinct)}
        scores = self._engine.scores(shape, distinct, captions)
        scores = scores[:, [column[id(image)] for image in seen]]
        orders = np.argsort(-scores, axis=1, kind="stable")
        maps: list[tuple[Attention, ...]] = [()] * len(captions)
        if attention:
            one = dataclasses.replace(shape, rows_per_example=1)
            records = self._engine.records([seen[order[0]] for order in orders])[0]
            examples = [
                make_example(record, text, options=((record, text),))
                for record, text in zip(records, captions, strict=True)
            ]
            maps = [row.attention for row in self._engine.rows(one, examples, attention=True)]
        found = [
            Ranking(text, tuple(seen), maps[i], orders[i], scores[i])
            for i, text in enumerate(captions)
        ]
        return found if is_list(caption) else found[0]

    def ground(
        self,
        image: Image | Sequence[Image],
        phrase: str | Sequence[str],
        task: str | None = None,
        *,
        boxes: Boxes | Sequence[Boxes] | None = None,
        attention: bool = False,
    ) -> Grounding | list[Grounding]:
        """Finds the region that a phrase means in an image, including the whole image.

        Args:
          image: one or several.
          phrase: one or several.
          task: "refcoco", "refcoco+" or "refcocog".
          boxes: choose among these, numbered from 1, and the whole image, instead of the detected
            regions, like models trained on annotated boxes; [G, 4] corners in pixels or
            `Regions`; for several images a list with those of each.
          attention: also return attention maps.
        """
        shape = self._engine.task(task, "refcoco", kind="region")
        (images, texts, given), single = paired(
            image=image, phrase=phrase, boxes=boxes_of_each(image, boxes)
        )
        seen = self._engine.read(images, shape, given=boxes is not None)
        records, _ = self._engine.records(seen, given, max_boxes=shape.max_regions - 1)
        rows = self._engine.rows(
            shape,
            _examples(records, texts),
            candidates="detected" if boxes is None else "annotated",
            attention=attention,
        )
        found = []
        for one, text, row in zip(seen, texts, rows, strict=True):
            logits, corners = row.logits[row.region_mask], row.boxes[row.region_mask]
            scores, best = _sigmoid(logits), int(np.argmax(logits))
            found.append(
                Grounding(text, (one,), row.attention, *_at(corners, scores, best), corners, scores)
            )
        return found[0] if single else found

    def point(
        self,
        image: Image | Sequence[Image],
        question: str | Sequence[str],
        boxes: Boxes | Sequence[Boxes],
        task: str | None = None,
        *,
        choices: Sequence[Any] | None = None,
        attention: bool = False,
    ) -> Pointing | list[Pointing]:
        """Chooses among given boxes.

        Args:
          image: one or several.
          question: one or several; a whole dialogue for "guesswhat".
          boxes: [G, 4] corners in pixels or `Regions` with features; for several images a list with
            those of each. The model sees all of them.
          task: "visual7w" or "guesswhat".
          choices: positions of the boxes that may be chosen; for several results a list with those
            of each; None for all.
          attention: also return attention maps.
        """
        shape = self._engine.task(task, "visual7w", kind="choice")
        if boxes is None:
            raise ValueError(f"{shape.name} chooses among given boxes: pass boxes")
        (images, texts, given), single = paired(
            image=image, question=question, boxes=boxes_of_each(image, boxes)
        )
        allowed = [choices] * len(images) if single or choices is None else list(choices)
        if len(allowed) != len(images):
            raise ValueError(f"{len(allowed)} lists of choices for {len(images)} results")
        seen = self._engine.read(images, shape)
        first = shape.detected_slots
        records, regions = self._engine.records(seen, given, max_boxes=shape.max_regions - first)
        masks = [chosen_mask(x, len(r.boxes)) for x, r in zip(allowed, regions, strict=True)]
        rows = self._engine.rows(shape, _examples(records, texts), attention=attention)
        found = []
        for one, text, mask, offered, row in zip(seen, texts, masks, regions, rows, strict=True):
            logits = row.logits[first : first + len(mask)]
            best = int(np.flatnonzero(mask)[np.argmax(logits[mask])])
            scores = np.where(mask, _sigmoid(logits), np.float32(np.nan))
            corners = np.asarray(offered.boxes, np.float32)
            found.append(
                Pointing(text, (one,), row.attention, *_at(corners, scores, best), corners, scores)
            )
        return found[0] if single else found

    def entails(
        self,
        image: Image | Sequence[Image],
        hypothesis: str | Sequence[str],
        task: str | None = None,
        *,
        attention: bool = False,
    ) -> Verdict | list[Verdict]:
        """Says whether an image entails a sentence, contradicts it, or neither ("neutral").

        Args:
          image: one or several.
          hypothesis: one or several.
          task: "snli_ve", or one like it, perhaps with its own labels.
          attention: also return attention maps.
        """
        shape = self._engine.task(task, "snli_ve", kind="verdict", rows_per_example=1)
        (images, texts), single = paired(image=image, hypothesis=hypothesis)
        groups = [(one,) for one in self._engine.read(images, shape)]
        found = self._verdicts(shape, groups, texts, attention)
        return found[0] if single else found

    def compare(
        self,
        left: Image | Sequence[Image],
        right: Image | Sequence[Image],
        sentence: str | Sequence[str],
        task: str | None = None,
        *,
        attention: bool = False,
    ) -> Verdict | list[Verdict]:
        """Says whether a sentence is true of a pair of images.

        Args:
          left: one or several.
          right: one or several.
          sentence: one or several.
          task: "nlvr2", or one like it, perhaps with its own labels.
          attention: also return attention maps, those of the left image and of the right one.
        """
        shape = self._engine.task(task, "nlvr2", kind="verdict", rows_per_example=2)
        (lefts, rights, texts), single = paired(left=left, right=right, sentence=sentence)
        seen = self._engine.read([*lefts, *rights], shape)
        groups = list(zip(seen[: len(lefts)], seen[len(lefts) :], strict=True))
        found = self._verdicts(shape, groups, texts, attention)
        return found[0] if single else found

    def _verdicts(
        self,
        task: Task,
        groups: Sequence[tuple[SeenImage, ...]],
        texts: Sequence[str],
        attention: bool,
    ) -> list[Verdict]:
        names = label_names(task, self.serving.answers)
        labels = (False, True) if task.head == "image_pair" else names
        examples = _examples([self._engine.record(group) for group in groups], texts)
        rows = self._engine.rows(task, examples, attention=attention)
        found = []
        for images, text, row in zip(groups, texts, rows, strict=True):
            shares = _log_sigmoid(row.logits)
            shares = np.exp(shares - shares.max())
            shares = (shares / shares.sum()).tolist()
            best = int(np.argmax(row.logits))
            probabilities = dict(zip(names, shares, strict=True))
            found.append(
                Verdict(text, images, row.attention, labels[best], shares[best], probabilities)
            )
        return found


def _examples(records: Sequence[LoadedRecord], texts: Sequence[str]) -> list[Example]:
    return [make_example(record, text) for record, text in zip(records, texts, strict=True)]


def _at(boxes: np.ndarray, scores: np.ndarray, best: int) -> tuple[tuple[float, ...], float, int]:
    return tuple(map(float, boxes[best])), float(scores[best]), best


def _log_sigmoid(logits: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -logits.astype(np.float64))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(_log_sigmoid(logits)).astype(np.float32)
