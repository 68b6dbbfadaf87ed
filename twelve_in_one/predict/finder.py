"""Finds things in images by any names.

Letters: B images, S side of the canvas, C names, T sentences for a name, L tokens, E size of
vectors, K boxes.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from twelve_in_one.data.image_serving import ImageServing
from twelve_in_one.data.images.letterbox import covered
from twelve_in_one.data.texts.sequences import encode_sequences
from twelve_in_one.models.mammut_detector import Classes
from twelve_in_one.predict.arguments import Once, is_list, paired
from twelve_in_one.predict.engine import Progress, silent
from twelve_in_one.predict.inputs import Image, read_pixels
from twelve_in_one.predict.pixels import preparer
from twelve_in_one.predict.results import Things
from twelve_in_one.predict.writer import seen_image
from twelve_in_one.systems.mammut_detector import MammutDetectorSystem

_SHOWN = 5  # names in a message
_KEPT = 8  # lists of names whose vectors are kept


class Finder:
    """A trained detector whose classes are texts.

    Attributes:
      serving: task, tokenizer, names of training and preprocessing.
      config: of the model.
    """

    def __init__(
        self,
        params: Any,
        system: MammutDetectorSystem,
        serving: ImageServing,
        *,
        max_batch: int = 64,
        progress: Progress = silent,
    ):
        """Takes a model; arguments as in `load`."""
        if max_batch < 1:
            raise ValueError(f"max_batch must be positive, got {max_batch}")
        self.serving, self.config = serving, system.config
        self._params, self._system = params, system
        self._max_batch, self._progress = max_batch, progress
        self._task = serving.tasks[0]
        self._detect = jax.jit(system.detect)
        self._vectors = jax.jit(system.class_vectors)
        self._classes = functools.lru_cache(maxsize=_KEPT)(self._classes_of)

    def detect(
        self,
        image: Image | Sequence[Image],
        names: Sequence[str] | None = None,
        *,
        top: int = 20,
        least: float = 0.0,
        templates: Sequence[str] | None = None,
    ) -> Things | list[Things]:
        """Finds things.

        Scores of boxes are shares among the names and the background, times how much a box looks
        like one of anything; they depend on the list. A name that is in the list twice counts once.

        Args:
          image: one or several: a path, a PIL image or uint8[H, W, 3].
          names: of what to look for; None for those of training.
          top: boxes of an image, at most.
          least: score.
          templates: sentences with {} for the name; None for those of training.

        Raises:
          ValueError: no names, or one that is empty; a template without {}; an image that cannot be
            read; or other names for a model that was trained without those of its classes.
        """
        if top < 1:
            raise ValueError(f"top must be positive, got {top}")
        if names is not None and (not is_list(names) or not names):
            raise ValueError(f"names should be a list of at least one, got {names!r}")
        learnt = self.serving.answers[self._task.name]
        if names is not None and self.config.detector.classifier != "text":
            raise ValueError(
                f"this model knows its {len(learnt)} classes by trained vectors, and no other names"
            )
        wanted = self._distinct(tuple(names)) if names is not None else learnt
        sentences = tuple(templates or self._task.templates)
        if not all("{}" in text for text in sentences):
            raise ValueError(f"templates should have {{}} for the name, got {sentences}")
        classes = None if names is None else self._classes(wanted, sentences)
        (images, _), single = paired(image=image, names=Once(None))
        results = []
        prepare, side = self._prepare(self._task.name), self._system.image_size
        for start in range(0, len(images), self._max_batch):
            part = images[start : start + self._max_batch]
            pixels = [read_pixels(one) for one in part]
            sizes = [(x.shape[1], x.shape[0]) for x in pixels]
            lines = [covered(size, side)[::-1] for size in sizes]
            count = min(1 << (len(part) - 1).bit_length(), self._max_batch)
            rows = [*range(len(part)), *[0] * (count - len(part))]  # few sizes of batches
            made = [prepare(x) for x in pixels]
            batch = {
                "images": np.stack([made[row] for row in rows]),
                "size": np.array([lines[row] for row in rows], np.float32),
                "_mask": np.ones(count, bool),
            }
            found = jax.device_get(self._detect(self._params, batch, classes))
            for row, (one, size) in enumerate(zip(part, sizes, strict=True)):
                keep = np.flatnonzero(found.valid[row] & (found.scores[row] >= least))[:top]
                factors = np.tile(np.array(size) / lines[row][::-1], 2)
                results.append(
                    Things(
                        ", ".join(wanted) if len(wanted) <= _SHOWN else f"{len(wanted)} names",
                        (seen_image(one, pixels[row]),),
                        (),
                        tuple(wanted[i] for i in found.classes[row][keep]),
                        found.scores[row][keep],
                        (found.boxes[row][keep] * factors).astype(np.float32),
                    )
                )
            self._progress("images", start + len(part), len(images))
        return results[0] if single else results

    def _distinct(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The names without repetitions, also of what differs in case alone.

        Raises:
          ValueError: one is empty.
        """
        words = self.serving.tokenizer
        ids = words.encode_batch(names)
        empty = [name for name, tokens in zip(names, ids, strict=True) if not tokens]
        if empty:
            raise ValueError(f"names: {empty[0]!r} is empty; leave it out")
        odd = [n for n, tokens in zip(names, ids, strict=True) if words.unk_id in tokens]
        if odd:
            warnings.warn(
                f"the model's vocabulary cannot write all of {', '.join(odd[:_SHOWN])}"
                + (f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else "")
                + ": it will not know what they mean",
                stacklevel=3,
            )
        first: dict[tuple[int, ...], str] = {}
        for name, tokens in zip(names, ids, strict=True):
            first.setdefault(tokens, name)
        return tuple(first.values())

    def _classes_of(self, names: tuple[str, ...], templates: tuple[str, ...]) -> Classes:
        """Their vectors, padded so that lists of few lengths are compiled."""
        texts = [text.replace("{}", name) for name in names for text in templates]
        length = self._system.sizes(self._task)["max_tokens"]
        encoded = encode_sequences(
            self.serving.tokenizer, [""] * len(texts), texts, length, names=[*map(repr, texts)]
        )
        if encoded.cut.any():
            long = texts[int(encoded.cut.argmax())]
            raise ValueError(f"{long!r} has more than the {length - 1} tokens the model reads")
        tokens = encoded.labels.reshape(len(names), len(templates), -1)
        count = 1 << (len(names) - 1).bit_length()
        padded = np.concatenate([tokens, np.repeat(tokens[:1], count - len(names), axis=0)])
        # Of names that a user lists nobody says which were learnt: all count as novel.
        return Classes(
            self._vectors(self._params, padded), np.ones(count, bool), np.arange(count) < len(names)
        )

    @functools.cached_property
    def _prepare(self) -> Callable[[str], Callable[[np.ndarray], np.ndarray]]:
        return preparer(self.serving.images)
