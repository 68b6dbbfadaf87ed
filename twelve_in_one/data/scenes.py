"""Examples of all twelve kinds of task as arrays, drawn from a rule: no pixels and no language.

A scene is a handful of objects, each a colour and a shape; a region's feature is a noisy code of
both. Every task asks about colours and shapes, in the shapes and with the targets that the real
dataset has, so that model, heads, losses and optimizer can be exercised together, learning
included, on a machine without any dataset. Numbers reached here say that the machinery learns,
nothing more.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from twelve_in_one.tasks.base import Task

NUM_COLOURS = NUM_SHAPES = 6
MIN_OBJECTS, MAX_OBJECTS = 3, 5
CLS, SEP = 1, 2
_FIRST_COLOUR = 3
_FIRST_SHAPE = _FIRST_COLOUR + NUM_COLOURS
_FIRST_TASK_WORD = _FIRST_SHAPE + NUM_SHAPES
VOCAB_SIZE = _FIRST_TASK_WORD + 32
NUM_REGIONS = 1 + MAX_OBJECTS
NUM_TOKENS = 5
_CODE_SEED = 1912  # the objects' codes are part of the rule, the same for every split
_NOISE = 0.5

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scenes:
    """B scenes.

    Attributes:
      colours: int[B, MAX_OBJECTS].
      shapes: int[B, MAX_OBJECTS]; shapes within a scene differ, so a shape names one object.
      absent: int[B] a shape that the scene does not have.
      count: int[B] objects in each scene.
    """

    colours: np.ndarray
    shapes: np.ndarray
    absent: np.ndarray
    count: np.ndarray

    @property
    def real(self) -> np.ndarray:
        """bool[B, MAX_OBJECTS], True for objects that exist."""
        return np.arange(MAX_OBJECTS)[None] < self.count[:, None]

    def pick(self, rng: np.random.Generator) -> np.ndarray:
        """An object of each scene: int[B]."""
        return rng.integers(0, self.count)


def draw_scenes(rng: np.random.Generator, size: int) -> Scenes:
    """`size` random scenes."""
    order = rng.permuted(np.tile(np.arange(NUM_SHAPES), (size, 1)), axis=1)
    colours = rng.integers(0, NUM_COLOURS, (size, MAX_OBJECTS))
    count = rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1, size)
    return Scenes(colours, order[:, :MAX_OBJECTS], order[:, -1], count)


def _image(scenes: Scenes, rng: np.random.Generator, feature_dim: int) -> Batch:
    """Region features, boxes and mask of scenes; region 0 is the mean, region 1 + i object i."""
    codes = np.random.default_rng(_CODE_SEED).normal(size=(NUM_COLOURS + NUM_SHAPES, feature_dim))
    real = scenes.real[..., None]
    features = codes[scenes.colours] + codes[NUM_COLOURS + scenes.shapes]
    features = np.where(real, features + _NOISE * rng.normal(size=features.shape), 0.0)
    mean = features.sum(axis=1, keepdims=True) / scenes.count[:, None, None]
    corner = rng.random((*scenes.shapes.shape, 2)) * 0.7
    size = 0.1 + 0.2 * rng.random(corner.shape)
    boxes = np.concatenate([corner, corner + size, size.prod(axis=-1, keepdims=True)], axis=-1)
    boxes = np.where(real, boxes, 0.0)
    whole = np.broadcast_to(np.array([0.0, 0.0, 1.0, 1.0, 1.0]), (len(boxes), 1, 5))
    return {
        "regions": np.concatenate([mean, features], axis=1).astype(np.float32),
        "boxes": np.concatenate([whole, boxes], axis=1).astype(np.float32),
        "region_mask": np.concatenate([np.ones_like(scenes.real[:, :1]), scenes.real], axis=1),
    }


def _text(task: Task, colour: np.ndarray | None, shape: np.ndarray | None, size: int) -> Batch:
    """CLS, a word of the task, the colour and the shape that are named, SEP, padding."""
    words = [np.full(size, CLS), np.full(size, _FIRST_TASK_WORD + task.task_id)]
    if colour is not None:
        words.append(_FIRST_COLOUR + colour)
    if shape is not None:
        words.append(_FIRST_SHAPE + shape)
    words.append(np.full(size, SEP))
    tokens = np.zeros((size, NUM_TOKENS), np.int32)
    tokens[:, : len(words)] = np.stack(words, axis=1)
    return {"tokens": tokens, "token_mask": tokens > 0}


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return values[np.arange(len(values)), index]


def _other_colour(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    return (colour + rng.integers(1, NUM_COLOURS, len(colour))) % NUM_COLOURS


def _answer(task: Task, rng: np.random.Generator, size: int, dim: int, num_labels: int) -> Batch:
    """Colour of a shape (VQA; VG-QA with answers of its own), is it so (GQA)."""
    scenes = draw_scenes(rng, size)
    index = scenes.pick(rng)
    colour, shape = _at(scenes.colours, index), _at(scenes.shapes, index)
    if task.name == "gqa":
        label = rng.integers(0, 2, size)
        text = _text(task, np.where(label == 1, colour, _other_colour(rng, colour)), shape, size)
    else:
        label = colour if task.name == "vqa" else NUM_COLOURS + colour
        text = _text(task, None, shape, size)
    return (
        text | _image(scenes, rng, dim) | {"targets": np.eye(num_labels, dtype=np.float32)[label]}
    )


def _region(task: Task, rng: np.random.Generator, size: int, dim: int, _: int) -> Batch:
    """Which region is the shape."""
    scenes = draw_scenes(rng, size)
    index = scenes.pick(rng)
    colour = _at(scenes.colours, index) if task.name == "refcoco" else None
    text = _text(task, colour, _at(scenes.shapes, index), size)
    targets = np.eye(NUM_REGIONS, dtype=np.float32)[1 + index]
    return text | _image(scenes, rng, dim) | {"targets": targets}


def _choice(task: Task, rng: np.random.Generator, size: int, dim: int, _: int) -> Batch:
    """Which of the objects, in random order, is the shape."""
    scenes = draw_scenes(rng, size)
    index = scenes.pick(rng)
    num_choices = min(task.num_choices, MAX_OBJECTS)
    # Real objects first, each part shuffled; where they outnumber the slots the answer must stay.
    order = np.where(scenes.real, rng.random(scenes.real.shape), 2.0)
    order[np.arange(size), index] = -1.0
    chosen = np.argsort(order, axis=1)[:, :num_choices]
    real = np.take_along_axis(scenes.real, chosen, axis=1)
    shuffle = np.argsort(rng.random(chosen.shape), axis=1)
    chosen, real = (np.take_along_axis(x, shuffle, axis=1) for x in (chosen, real))
    text = _text(task, None, _at(scenes.shapes, index), size)
    return text | _image(scenes, rng, dim) | {
        "choices": (1 + chosen).astype(np.int32),
        "choice_mask": real,
        "targets": (chosen == index[:, None]).astype(np.float32),
    }  # fmt: skip


def _match(task: Task, rng: np.random.Generator, size: int, dim: int, _: int) -> Batch:
    """Four pairs of image and caption of which one fits, at a random place."""
    scenes = draw_scenes(rng, 4 * size)
    index = scenes.pick(rng)
    colour, shape = _at(scenes.colours, index), _at(scenes.shapes, index)
    place = rng.integers(0, 4, size)
    fits = (np.arange(4)[None] == place[:, None]).reshape(-1)
    text = _text(task, np.where(fits, colour, _other_colour(rng, colour)), shape, 4 * size)
    rows = text | _image(scenes, rng, dim)
    folded = {key: x.reshape(size, 4, *x.shape[1:]) for key, x in rows.items()}
    return folded | {"targets": place.astype(np.int32)}


def _verdict(task: Task, rng: np.random.Generator, size: int, dim: int, _: int) -> Batch:
    """Has the shape one colour in both images (NLVR2); is the object there (SNLI-VE)."""
    scenes = draw_scenes(rng, size)
    index = scenes.pick(rng)
    colour, shape = _at(scenes.colours, index), _at(scenes.shapes, index)
    if task.name == "nlvr2":
        label = rng.integers(0, 2, size)
        colours = rng.integers(0, NUM_COLOURS, scenes.colours.shape)
        colours[np.arange(size), index] = np.where(label == 1, colour, _other_colour(rng, colour))
        right = dataclasses.replace(scenes, colours=colours)
        images = [_image(side, rng, dim) for side in (scenes, right)]
        image = {key: np.stack([side[key] for side in images], axis=1) for key in images[0]}
        text = _text(task, None, shape, size)
        text = {key: np.repeat(x[:, None], 2, axis=1) for key, x in text.items()}
        return text | image | {"targets": np.eye(2, dtype=np.float32)[label]}
    # Contradiction: another colour. Neutral: a shape that is not there. Entailment: as it is.
    label = rng.integers(0, 3, size)
    colour = np.where(label == 0, _other_colour(rng, colour), colour)
    text = _text(task, colour, np.where(label == 1, scenes.absent, shape), size)
    return text | _image(scenes, rng, dim) | {"targets": np.eye(3, dtype=np.float32)[label]}


_KINDS: dict[str, Callable[[Task, np.random.Generator, int, int, int], Batch]] = {
    "answer": _answer,
    "region": _region,
    "choice": _choice,
    "match": _match,
    "verdict": _verdict,
}


def draw_batch(task: Task, seed: tuple[int, ...], size: int, *, dim: int, num_labels: int) -> Batch:
    """A batch of `task`, see `tasks.base` for its keys.

    Args:
      task: one of the twelve.
      seed: the batch is a function of it and of the other arguments.
      size: examples B.
      dim: region feature size F.
      num_labels: answers L of the task's head; used by kind "answer".

    Raises:
      ValueError: too few labels for the answers.
    """
    if task.kind == "answer" and num_labels < 2 * NUM_COLOURS:
        raise ValueError(f"{task.name}: scenes need {2 * NUM_COLOURS} labels, got {num_labels}")
    rng = np.random.default_rng((task.task_id, *seed))
    batch = _KINDS[task.kind](task, rng, size, dim, num_labels)
    return batch | {"task_id": np.int32(task.task_id), "_mask": np.ones(size, bool)}
