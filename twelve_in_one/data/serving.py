"""The data needed to give a model inputs and read its outputs, and the small files that hold them.

preprocessing.json                  preprocessing of the inputs
tasks.json                          the tasks that it was trained on, with their shapes
vocab.txt                           word pieces
answers-HEAD.json                   answers, or the user's own labels, of heads that have any
trained_on.npz                      examples and images that it has seen, see `data.trained_on`
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.data import image_serving, trained_on
from twelve_in_one.data.encode.text import Tokenizer, load_tokenizer
from twelve_in_one.data.formats.files import read_json, read_text
from twelve_in_one.data.image_serving import ImageServing
from twelve_in_one.data.stored.preprocessing import Preprocessing, answers_sha256
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.trained_on import TrainedOn
from twelve_in_one.data.trained_tasks import TrainedTasks
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.own import ANSWER_HEADS
from twelve_in_one.tasks.task import VERDICTS, Task
from twelve_in_one.tasks.twelve import TWELVE

PREPROCESSING_FILE, TASKS_FILE, WORDS_FILE = "preprocessing.json", "tasks.json", "vocab.txt"


@dataclasses.dataclass(frozen=True)
class Serving(TrainedTasks):
    """The data needed to give the model inputs and read its outputs.

    Attributes:
      tasks: that it was trained on, with the lengths used.
      tokenizer: of its texts.
      answers: head -> answers in the order of its labels, for heads that have answers.
      preprocessing: of the inputs.
      trained_on: examples and images that it has seen; None if this was not recorded.
    """

    tasks: tuple[Task, ...]
    tokenizer: Tokenizer
    answers: Mapping[str, tuple[str, ...]]
    preprocessing: Preprocessing
    trained_on: TrainedOn | None = dataclasses.field(default=None, compare=False)

    def files(self) -> dict[str, str | bytes]:
        """{file name: content} of everything but the record of training data."""
        found: dict[str, str | bytes] = {
            PREPROCESSING_FILE: self.preprocessing.to_json(),
            TASKS_FILE: json.dumps([dataclasses.asdict(task) for task in self.tasks], indent=2),
            WORDS_FILE: "\n".join(self.tokenizer.vocabulary),
        }
        for head, answers in self.answers.items():
            found[answers_file(head)] = json.dumps(answers, ensure_ascii=False, indent=0)
        return found


def load_serving(directory: str | os.PathLike[str]) -> Serving | ImageServing:
    """Reads everything but the weights.

    Raises:
      ValueError: a file is missing or damaged; names it.
    """
    folder = Path(directory)
    texts = {}
    for name in (PREPROCESSING_FILE, TASKS_FILE):
        try:
            texts[name] = read_text(folder / name)
        except DataError as error:
            raise ValueError(f"{error}; a model folder is what training saves as model/") from error
    if image_serving.is_image_serving(_json_or_none(texts[PREPROCESSING_FILE])):
        return image_serving.load(folder)
    try:
        preprocessing = Preprocessing.from_json(texts[PREPROCESSING_FILE])
    except ValueError as error:
        raise ValueError(f"{folder / PREPROCESSING_FILE}: {error}") from error
    try:
        tasks = tuple(_task(raw) for raw in json.loads(texts[TASKS_FILE]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / TASKS_FILE}: {error}") from error
    tokenizer = load_tokenizer(folder / WORDS_FILE, lower_case=preprocessing.lower_case)
    if tokenizer.sha256 != preprocessing.vocab_sha256:
        raise ValueError(
            f"{folder / WORDS_FILE} is not the vocabulary that the weights were trained with: its "
            f"hash is {tokenizer.sha256[:12]}..., {PREPROCESSING_FILE} says "
            f"{preprocessing.vocab_sha256[:12]}"
        )
    answers = {}
    heads = {task.head: task.kind for task in tasks if task.head not in VERDICTS}
    for head in dict.fromkeys((*ANSWER_HEADS, *heads)):
        path = folder / answers_file(head)
        if path.is_file():
            answers[head] = _read_answers(path, preprocessing.answers_sha256.get(head))
        elif head in heads and KINDS[heads[head]].noun:
            raise ValueError(f"{path} is missing, and {TASKS_FILE} has tasks that answer")
    seen = trained_on.read(folder / trained_on.FILE)
    return Serving(tasks, tokenizer, answers, preprocessing, seen)


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _task(raw: Any) -> Task:
    task = Task(**raw)
    for name, value in dataclasses.asdict(task).items():
        kind = type(getattr(TWELVE[0], name))
        if not isinstance(value, kind):
            raise TypeError(f"{name} should be {kind.__name__}, got {value!r}")
    return task


def answers_file(head: str) -> str:
    """File name of a head's answers."""
    return f"answers-{head}.json"


def _read_answers(path: Path, sha256: str | None) -> tuple[str, ...]:
    answers = read_json(path, list)
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{path}: should be a list of answers")
    if sha256 is not None and answers_sha256(answers) != sha256:
        raise ValueError(
            f"{path} does not hold the answers that the weights were trained with, in their order: "
            f"its hash is {answers_sha256(answers)[:12]}..., {PREPROCESSING_FILE} says "
            f"{sha256[:12]}; put the original file back"
        )
    return tuple(answers)
