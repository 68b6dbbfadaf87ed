"""Asks a text decoder about images: captions, answers, classes, and what is written there.

Letters: B images, S side of a picture, T frames of a clip, L tokens, C texts of a list.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twelve_in_one.data.image_serving import ImageServing
from twelve_in_one.data.texts.class_names import check_class_names
from twelve_in_one.models import generate, text_list
from twelve_in_one.predict.arguments import Once, paired
from twelve_in_one.predict.engine import Progress, silent
from twelve_in_one.predict.inputs import Image, SeenImage, name_of, no_regions, read_pixels
from twelve_in_one.predict.pixels import preparer
from twelve_in_one.predict.results import Text
from twelve_in_one.systems.text_system import TextSystem
from twelve_in_one.tasks.image_task import ImageTask

# A video file, a folder of frames, or uint8[N, H, W, 3].
Video = str | Path | np.ndarray


class Writer:
    """A trained text decoder that writes about images.

    Every method takes one image and returns one result; given a list of images, or of questions,
    it returns a list, one result per element. An image is a path, a PIL image or uint8[H, W, 3]. A
    model of clips takes one for a clip in which nothing happens.
    Rows do not depend on each other: one image and a thousand give the same texts.

    All methods raise ValueError if the model was not trained on such a task, an image cannot be
    used, a question is too long, or lists differ in length.

    `task` is the name of one of the model's tasks; None takes the first that fits the method.

    Attributes:
      serving: tasks, tokenizer, classes and preprocessing.
      config: of the model.
    """

    def __init__(
        self,
        params: Any,
        system: TextSystem,
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
        # An image's tokens are encoded once for both, and programs are kept by shape.
        self._write = jax.jit(self._written, static_argnames=("beams",))
        self._rank = jax.jit(self._ranked)

    def caption(
        self, image: Image | Sequence[Image], task: str | None = None, *, beams: int | None = None
    ) -> Text | list[Text]:
        """Describes images.

        Args:
          image: one or several.
          task: one of group "caption".
          beams: of the search; None takes the model's setting, 1 writes greedily.
        """
        found = self._task(task, "caption")
        (images, questions), single = paired(image=image, question="")
        width = self.config.beams if beams is None else beams
        return self._texts(found, images, questions, single, beams=width)

    def answer(
        self,
        image: Image | Sequence[Image],
        question: str | Sequence[str],
        task: str | None = None,
        *,
        answers: Sequence[str] | None = None,
    ) -> Text | list[Text]:
        """Answers questions.

        Args:
          image: one or several.
          question: one or several.
          task: one of group "vqa", or of "ocr" for what is written in the image.
          answers: write one of these; None writes anything.
        """
        found = self._task(task, "vqa", "ocr")
        (images, questions), single = paired(image=image, question=question)
        return self._texts(found, images, questions, single, allowed=answers)

    def caption_video(
        self, video: Video | Sequence[Video], task: str | None = None, *, beams: int | None = None
    ) -> Text | list[Text]:
        """Describes clips; see `caption`.

        Args:
          video: one or several: a video file, a folder of frames, or uint8[N, H, W, 3].
          task: one of group "caption".
          beams: of the search.
        """
        self._check_clips()
        return self.caption(video, task, beams=beams)

    def answer_video(
        self,
        video: Video | Sequence[Video],
        question: str | Sequence[str],
        task: str | None = None,
        *,
        answers: Sequence[str] | None = None,
    ) -> Text | list[Text]:
        """Answers questions about clips; see `answer` and `caption_video`."""
        self._check_clips()
        return self.answer(video, question, task, answers=answers)

    def _check_clips(self) -> None:
        if not self._system.frames:
            raise ValueError("the model reads single pictures: it was not trained on clips")

    def read(
        self, image: Image | Sequence[Image], question: str | Sequence[str], task: str | None = None
    ) -> Text | list[Text]:
        """Answers questions about what is written in images: tasks of group "ocr"."""
        found = self._task(task, "ocr")
        (images, questions), single = paired(image=image, question=question)
        return self._texts(found, images, questions, single)

    def classify(
        self,
        image: Image | Sequence[Image],
        labels: Sequence[str] | None = None,
        task: str | None = None,
        *,
        top: int = 5,
    ) -> Text | list[Text]:
        """Ranks classes by the probability of their names.

        Args:
          image: one or several.
          labels: names to choose from; None for those that the task was trained on.
          task: one of group "classify".
          top: number of best classes to list.
        """
        found = self._task(task, "classify")
        (images, _), single = paired(image=image, labels=Once(None))
        names = tuple(labels if labels is not None else self.serving.answers[found.name])
        table = self._table(names)
        results = []
        for start, batch, seen in self._batches(found, images, [""] * len(images)):
            scores = jax.device_get(self._rank(self._params, batch, table))[: len(seen)]
            for row, one in zip(scores, seen, strict=True):
                order = np.argsort(-row, kind="stable")[:top]
                best = tuple((names[i], float(np.exp(row[i]))) for i in order)
                results.append(Text(found.title, (one,), (), best[0][0], best[0][1], best))
            self._progress("images", start + len(seen), len(images))
        return results[0] if single else results

    def _task(self, name: str | None, *groups: str) -> ImageTask:
        fitting = [task for task in self.serving.tasks if task.group in groups]
        if name is None and fitting:
            return fitting[0]
        chosen = [task for task in fitting if task.name == name]
        if not chosen:
            known = ", ".join(f"{task.name} ({task.group})" for task in self.serving.tasks)
            raise ValueError(
                f"the model has no task {name or ''} of group {' or '.join(groups)}: it learnt "
                f"{known}"
            )
        return chosen[0]

    def _texts(
        self,
        task: ImageTask,
        images: Sequence[Image],
        questions: Sequence[str],
        single: bool,
        *,
        allowed: Sequence[str] | None = None,
        beams: int = 1,
    ) -> Any:
        table = None if allowed is None else self._table(tuple(allowed))
        results: list[Text] = []
        for start, batch, seen in self._batches(task, images, questions):
            written = jax.device_get(self._write(self._params, batch, table, beams=beams))
            for row, one in enumerate(seen):
                question = questions[start + row] or task.title
                results.append(self._text(written, row, batch, question, one))
            self._progress("images", start + len(seen), len(images))
        return results[0] if single else results

    def _text(
        self, written: generate.Texts, row: int, batch: Any, question: str, image: SeenImage
    ) -> Text:
        words, first = self.serving.tokenizer, int(batch["prompt_length"][row])
        own = written.tokens[row, first:]
        count = int((written.log_probabilities[row, first:] != 0).sum())
        pieces = tuple(
            ("" if token == words.eos_id else words.decode([token]), float(log_probability))
            for token, log_probability in zip(
                own[:count], written.log_probabilities[row, first:], strict=False
            )
        )
        text, probability = words.decode(own), float(np.exp(written.score[row]))
        finished = bool(written.finished[row])
        top = ((text, probability),)
        return Text(question, (image,), (), text, probability, top, pieces, finished)

    def _table(self, names: tuple[str, ...]) -> np.ndarray:
        """int32[C, T] of texts to choose from."""
        words = self.serving.tokenizer
        check_class_names(words, names, where="texts to choose from")
        ids = [(*tokens, words.eos_id) for tokens in words.encode_batch(names)]
        return text_list.text_table(ids, self._system.options)

    def _batches(self, task: ImageTask, images: Sequence[Image], questions: Sequence[str]) -> Any:
        """(number of the first row, batch, its images), of at most `max_batch` rows."""
        for start in range(0, len(images), self._max_batch):
            part = images[start : start + self._max_batch]
            asked = questions[start : start + self._max_batch]
            seen, rows = [], []
            for image, question in zip(part, asked, strict=True):
                frames = self._frames(task, image)
                # Shown as a strip of its frames, if it is a clip.
                clip = len(frames) > 1
                source = np.concatenate(frames, axis=1) if clip else image
                size = frames[0].shape[1] * len(frames), frames[0].shape[0]
                seen.append(SeenImage(name_of(image), source, no_regions(*size)))
                rows.append(self._row(task, frames, question, seen[-1].name))
            # Few sizes of batches, so that few programs are compiled.
            count = min(1 << (len(rows) - 1).bit_length(), self._max_batch)
            rows += [rows[0]] * (count - len(rows))
            yield start, {key: np.stack([row[key] for row in rows]) for key in rows[0]}, seen

    def _row(
        self, task: ImageTask, frames: Sequence[np.ndarray], question: str, name: str
    ) -> dict[str, np.ndarray]:
        words, sizes = self.serving.tokenizer, self._system.sizes(task)
        limit = sizes["max_question"]  # 0 if questions are part of the prompt
        prompt = " ".join(x for x in (self._system.prompt(task), not limit and question) if x)
        prepared = [self._prepare(task.name)(pixels) for pixels in frames]
        row = {"images": np.stack(prepared) if self._system.frames else prepared[0]}
        row["tokens"] = np.full(sizes["max_tokens"], words.pad_id, np.int32)
        ids = self._ids(prompt, sizes["max_prompt"], name)
        row["tokens"][: len(ids)] = ids
        row["prompt_length"] = np.int32(len(ids))
        row["condition"] = np.int32(sizes["condition"])
        if limit:
            row["question"] = np.full(limit, words.pad_id, np.int32)
            ids = self._ids(question, limit, name)
            row["question"][: len(ids)] = ids
        return row

    def _frames(self, task: ImageTask, image: Any) -> list[np.ndarray]:
        """uint8[H, W, 3] of a picture, or of T frames of a clip, as in evaluation."""
        count = self._system.frames
        if not count:
            return [read_pixels(image)]

        from twelve_in_one.data.images import clips
        from twelve_in_one.data.images.image_set import ImageExample
        from twelve_in_one.data.images.load import load_bytes

        stride = self.serving.images[task.name]["frame_stride"]
        if isinstance(image, np.ndarray) and image.ndim == 4:
            return [image[i] for i in clips.pick(len(image), count, stride, None)]
        if isinstance(image, str | Path) and clips.is_clip(Path(image)):
            example = ImageExample(b"", str(image), clip=Path(image))
            encoded = clips.frames_of(example, count, stride)
            return [load_bytes(data, str(image)) for data in encoded]
        return [read_pixels(image)] * count

    def _ids(self, text: str, limit: int, name: str) -> list[int]:
        ids = self.serving.tokenizer.encode(text)
        if len(ids) > limit:
            raise ValueError(f"{name}: {text!r} has {len(ids)} tokens, the model takes {limit}")
        return ids

    @functools.cached_property
    def _prepare(self) -> Callable[[str], Callable[[np.ndarray], np.ndarray]]:
        """Task -> pixels uint8[H, W, 3] -> float32[S, S, 3], as in evaluation."""
        return preparer(self.serving.images)

    def _written(self, params: Any, batch: Any, allowed: Any, *, beams: int) -> generate.Texts:
        tokens = self._system.encode(params, batch)
        return self._system.write(params, tokens, batch, allowed, beams=beams)

    def _ranked(self, params: Any, batch: Any, table: Any) -> jax.Array:
        tokens = self._system.encode(params, batch)
        return self._system.rank(params, tokens, batch, table)


def seen_image(image: Image, pixels: np.ndarray) -> SeenImage:
    """An image without regions."""
    size = pixels.shape[1], pixels.shape[0]
    return SeenImage(name_of(image), image, no_regions(*size))
