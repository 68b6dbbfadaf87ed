"""Compares images and texts by their vectors: retrieval from an index file, classes by name.

Letters: N images, M texts, E size of a vector.
"""

import dataclasses
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twelve_in_one import atomic
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.class_names import check_class_names
from twelve_in_one.data.texts.sequences import encode_sequences
from twelve_in_one.predict.arguments import Once, is_list, paired
from twelve_in_one.predict.inputs import Image, name_of, read_pixels
from twelve_in_one.predict.results import Retrieval, Text
from twelve_in_one.predict.writer import Writer, seen_image
from twelve_in_one.systems.text_system import TextSystem
from twelve_in_one.tasks.image_task import ImageTask

_TEMPLATE = "a photo of a {}."


@dataclasses.dataclass(frozen=True)
class Index:
    """Images to search.

    Attributes:
      names: N of them.
      vectors: float32[N, E], unit vectors.
      model: identity of the model that made them.
    """

    names: tuple[str, ...]
    vectors: np.ndarray
    model: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz file of the three arrays; no other program is needed to read it.

        Raises:
          ValueError: the name has another ending.
          OSError: it cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{path}: the name of an index ends with .npz")
        with atomic.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file, names=np.array(self.names), vectors=self.vectors, model=np.array(self.model)
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Index":
        """Reads a file that `save` wrote.

        Raises:
          ValueError: there is none, or it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names, vectors, model = (arrays[key] for key in ("names", "vectors", "model"))
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such index; make one with predict index") from error
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: is no index, or a damaged one: {error}") from error
        if vectors.ndim != 2 or len(names) != len(vectors):
            raise ValueError(f"{path}: has {len(names)} names for vectors {vectors.shape}")
        return cls(tuple(names.tolist()), vectors, str(model))


class Embedder(Writer):
    """A trained model that makes vectors of images and of texts, and writes texts too.

    Retrieval and `classify` compare vectors by their cosine; the other methods are `Writer`'s.
    """

    def __init__(self, params: Any, system: TextSystem, serving: Any, **options: Any):
        """Takes a model; arguments as in `load`."""
        super().__init__(params, system, serving, **options)
        self._embed = jax.jit(system.embed)

    @functools.cached_property
    def identity(self) -> str:
        """Differs between models: a hash of weights, config, tokenizer and preprocessing."""
        found = hashlib.sha256(self._system.to_json().encode())
        words = self.serving.tokenizer.files()
        for name in sorted(words):
            content = words[name]
            found.update(content if isinstance(content, bytes) else content.encode())
        found.update(json.dumps(self.serving.images[self._pairs.name], sort_keys=True).encode())
        for path, value in sorted(flatten(self._params).items()):
            found.update("/".join(path).encode())
            found.update(np.ascontiguousarray(jax.device_get(value)).tobytes())
        return found.hexdigest()

    @property
    def _pairs(self) -> ImageTask:
        """The task whose pictures and texts are compared: one of group "pairs", or the first."""
        fitting = [task for task in self.serving.tasks if task.group == "pairs"]
        return (fitting or list(self.serving.tasks))[0]

    def embed_image(self, image: Image | Sequence[Image]) -> np.ndarray:
        """Unit vectors of images: float32[E] of one, float32[N, E] of a list."""
        (images,), single = paired(image=image)
        found = []
        for start, batch, seen in self._batches(self._pairs, images, [""] * len(images)):
            given = {"images": batch["images"], "_mask": np.ones(len(batch["images"]), bool)}
            vectors = jax.device_get(self._embed(self._params, given).images)
            found.append(vectors[: len(seen)])
            self._progress("images", start + len(seen), len(images))
        vectors = np.concatenate(found)
        return vectors[0] if single else vectors

    def embed_text(self, text: str | Sequence[str]) -> np.ndarray:
        """Unit vectors of texts: float32[E] of one, float32[M, E] of a list.

        Raises:
          ValueError: a text is empty, or too long to be read whole.
        """
        (texts,), single = paired(text=text)
        words, length = self.serving.tokenizer, self._system.sizes(self._pairs)["max_tokens"]
        names = [repr(text) for text in texts]
        encoded = encode_sequences(words, [""] * len(texts), texts, length, names=names)
        if encoded.cut.any():
            long = texts[int(encoded.cut.argmax())]
            raise DataError(f"{long!r} has more than the {length - 1} tokens that the model reads")
        found = []
        for start in range(0, len(texts), self._max_batch):
            rows = encoded.labels[start : start + self._max_batch]
            count = min(1 << (len(rows) - 1).bit_length(), self._max_batch)
            padded = np.concatenate([rows, np.repeat(rows[:1], count - len(rows), axis=0)])
            vectors = jax.device_get(self._embed(self._params, {"tokens": padded}).texts)
            found.append(vectors[: len(rows)])
        vectors = np.concatenate(found)
        return vectors[0] if single else vectors

    def index(self, images: Sequence[Image], path: str | os.PathLike[str] | None = None) -> Index:
        """Makes an index of images to search, and writes it to `path` if given.

        Raises:
          ValueError: see `Index.save`; or no image.
        """
        if not is_list(images) or not images:
            raise ValueError("an index is of a list of images, at least one")
        found = Index(
            tuple(name_of(image) for image in images), self.embed_image(images), self.identity
        )
        if path is not None:
            found.save(path)
        return found

    def retrieve(
        self,
        images: Index | str | os.PathLike[str] | Sequence[Image],
        text: str | Sequence[str],
        *,
        top: int = 5,
    ) -> Retrieval | list[Retrieval]:
        """Finds the images that a text describes.

        Args:
          images: an index, its file, or the images themselves.
          text: one or several.
          top: number of images to list.

        Raises:
          ValueError: the index is damaged, or of another model.
        """
        if isinstance(images, str | os.PathLike):
            place, images = str(images), Index.load(images)
        else:
            place = "the index"
        if not isinstance(images, Index):
            images = self.index(images)
        if images.model != self.identity:
            raise ValueError(
                f"{place} was made by another model ({images.model[:12]}) than this one "
                f"({self.identity[:12]}): make it again with predict index"
            )
        (texts,), single = paired(text=text)
        scores = self.embed_text(texts) @ images.vectors.T
        results = []
        for asked, row in zip(texts, scores, strict=True):
            order = np.argsort(-row, kind="stable")[:top]
            found = tuple((images.names[i], float(row[i])) for i in order)
            results.append(Retrieval(asked, (), (), found))
        return results[0] if single else results

    def classify(
        self,
        image: Image | Sequence[Image],
        labels: Sequence[str] | None = None,
        task: str | None = None,
        *,
        templates: Sequence[str] | None = None,
        top: int = 5,
    ) -> Text | list[Text]:
        """Says which class an image shows, by the vectors of sentences that name the classes.

        Args:
          image: one or several.
          labels: names to choose from; None for those of the task.
          task: one of group "zero_shot".
          templates: sentences with {} for the name; None for those of the task.
          top: number of best classes to list.

        Raises:
          ValueError: no names, or two that are equal.
        """
        known = [one for one in self.serving.tasks if one.group == "zero_shot"]
        if labels is None or task is not None or (templates is None and known):
            found = self._task(task, "zero_shot")
            names = self.serving.answers[found.name] if labels is None else tuple(labels)
            templates = templates or found.templates
        else:
            names, templates = tuple(labels), templates or (_TEMPLATE,)
        check_class_names(self.serving.tokenizer, names, where="classes to choose from")
        sentences = [text.replace("{}", name) for name in names for text in templates]
        means = self.embed_text(sentences).reshape(len(names), len(templates), -1).mean(axis=1)
        classes = means / np.linalg.norm(means, axis=1, keepdims=True)
        (images, _), single = paired(image=image, labels=Once(None))
        vectors = self.embed_image(images)
        scale = float(jax.device_get(self._scale))
        results = []
        for one, row in zip(images, vectors @ classes.T, strict=True):
            logits = scale * (row - row.max())
            shares = np.exp(logits) / np.exp(logits).sum()
            order = np.argsort(-row, kind="stable")[:top]
            best = tuple((names[i], float(shares[i])) for i in order)
            results.append(Text("class", (seen_image(one, read_pixels(one)),), (), *best[0], best))
        return results[0] if single else results

    @functools.cached_property
    def _scale(self) -> jax.Array:
        words = self.serving.tokenizer
        length = self._system.sizes(self._pairs)["max_tokens"]
        tokens = np.full((1, length), words.eos_id, np.int32)
        return self._embed(self._params, {"tokens": tokens}).scale[0]
