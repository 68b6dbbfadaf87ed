"""`data.serving` of the systems of pictures: what a model's inputs and outputs mean.

preprocessing.json                  of pictures and texts
tasks.json                          the tasks that it was trained on
labels-TASK.json                    names of the classes, of tasks that have a list
tokenizer.json and a vocabulary     see `data.texts.tokenizer_files`; of systems that write texts
trained_on.npz                      examples and images that it has seen, see `data.trained_on`
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.data import trained_on
from twelve_in_one.data.formats.files import read_json
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts import tokenizer_files
from twelve_in_one.data.texts.tokenizer import SETTINGS_FILE, TextTokenizer
from twelve_in_one.data.trained_on import TrainedOn
from twelve_in_one.data.trained_tasks import TrainedTasks
from twelve_in_one.tasks.image_task import ImageTask

PREPROCESSING_FILE, TASKS_FILE = "preprocessing.json", "tasks.json"
IMAGES = "images"  # key of the preprocessing, by which a folder of this kind is known


@dataclasses.dataclass(frozen=True)
class ImageServing(TrainedTasks):
    """The data needed to give the model inputs and read its outputs.

    Attributes:
      tasks: that it was trained on.
      answers: task -> names of its classes in their order, for tasks with a list.
      images: task -> fields of the `Preprocess` of its pictures in evaluation.
      text: what else decides tokens: {"max_length": L, "cut": ...}; empty without texts.
      tokenizer: of texts; None without.
      trained_on: examples and images of built datasets that it has seen; None if this was not
        recorded.
    """

    tasks: tuple[ImageTask, ...]
    answers: Mapping[str, tuple[str, ...]]
    images: Mapping[str, Mapping[str, Any]]
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: TextTokenizer | None = None
    trained_on: TrainedOn | None = dataclasses.field(default=None, compare=False)

    def files(self) -> dict[str, str | bytes]:
        """{file name: content} of everything but the record of training data."""
        preprocessing = {IMAGES: self.images, "text": self.text}
        found: dict[str, str | bytes] = {
            PREPROCESSING_FILE: json.dumps(preprocessing, indent=2),
            TASKS_FILE: json.dumps([dataclasses.asdict(task) for task in self.tasks], indent=2),
        }
        for name, labels in self.answers.items():
            found[labels_file(name)] = json.dumps(labels, ensure_ascii=False, indent=0)
        return found | (self.tokenizer.files() if self.tokenizer else {})


def labels_file(task: str) -> str:
    """File name of a task's classes."""
    return f"labels-{task}.json"


def is_image_serving(preprocessing: Any) -> bool:
    """Whether the content of a preprocessing.json is that of a system of pictures."""
    return isinstance(preprocessing, dict) and IMAGES in preprocessing


def load(folder: Path) -> ImageServing:
    """Reads everything but the weights.

    Raises:
      ValueError: a file is missing or damaged; names it.
    """
    preprocessing = read_json(folder / PREPROCESSING_FILE, dict)
    raw_tasks = read_json(folder / TASKS_FILE, list)
    try:
        tasks = tuple(ImageTask(**_as_fields(raw)) for raw in raw_tasks)
        images, text = dict(preprocessing[IMAGES]), dict(preprocessing["text"])
        images = {name: _as_fields(fields) for name, fields in images.items()}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / TASKS_FILE} and {PREPROCESSING_FILE}: {error}") from error
    answers = {}
    for task in tasks:
        path = folder / labels_file(task.name)
        if path.is_file():
            labels = read_json(path, list)
            if not all(isinstance(label, str) for label in labels):
                raise ValueError(f"{path}: should be a list of names")
            answers[task.name] = tuple(labels)
        elif task.kind in ("class", "names", "boxes"):
            raise ValueError(f"{path} is missing: the classes of {task.name}")
    has_texts = (folder / SETTINGS_FILE).is_file()
    if text and not has_texts:
        raise DataError(f"{folder / SETTINGS_FILE} is missing: the tokenizer of the model")
    tokenizer = tokenizer_files.load(folder) if has_texts else None
    seen = trained_on.read(folder / trained_on.FILE)
    return ImageServing(tasks, answers, images, text, tokenizer, seen)


def _as_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(x) if isinstance(x, list) else x for key, x in raw.items()}


def differences(known: ImageServing, offered: ImageServing) -> list[str]:
    """What the offered inputs have different from those of training, with the fix."""
    found = []
    if known.tokenizer and offered.tokenizer and known.tokenizer != offered.tokenizer:
        found.append(
            "the tokenizer is another one than in training: name that of the model's folder as "
            "config.text.tokenizer"
        )
    if known.text != offered.text:
        found.append(f"texts were made with {dict(known.text)}, now {dict(offered.text)}")
    theirs = {task.name: task for task in offered.tasks}
    for task in known.tasks:
        other = theirs.get(task.name)
        if other is None:
            continue
        if known.answers.get(task.name) != offered.answers.get(task.name):
            found.append(f"{labels_file(task.name)}: {_first_difference(known, offered, task)}")
        for key in ("kind", "prompt", "templates", "task_id"):
            was, now = getattr(task, key), getattr(other, key)
            if was != now:
                found.append(
                    f"{key} of task {task.name}: trained with {was!r}, now {now!r}; set it as it "
                    "was in the config"
                )
        pictures = known.images.get(task.name), offered.images.get(task.name)
        if pictures[0] != pictures[1]:
            found.append(f"pictures of {task.name}: prepared as {pictures[0]}, now {pictures[1]}")
    return found


def _first_difference(known: ImageServing, offered: ImageServing, task: ImageTask) -> str:
    before: Sequence[str] = known.answers.get(task.name, ())
    now: Sequence[str] = offered.answers.get(task.name, ())
    at = next(
        (i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b),
        min(len(before), len(now)),
    )
    was = [repr(names[at]) if at < len(names) else "none" for names in (before, now)]
    return (
        f"{len(before)} classes in training, {len(now)} now; class {at} was {was[0]}, is {was[1]}: "
        "give the names in their order as config.task.NAME.class_names"
    )
