"""The inputs that weights depend on: recorded when a run starts, compared wherever they are used.

A workdir's `inputs/` holds it in the files of a model folder (model config, word pieces, answers in
the order of their labels, tasks, lengths, regions) with `trained_on.npz`. Workdirs of earlier
versions hold only `preprocessing.json`; the answers of a finished run are then in its model
folder.
"""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from twelve_in_one import atomic
from twelve_in_one.checkpoints import weights
from twelve_in_one.data import image_serving, trained_on
from twelve_in_one.data.image_serving import ImageServing
from twelve_in_one.data.serving import (
    PREPROCESSING_FILE,
    TASKS_FILE,
    WORDS_FILE,
    Serving,
    answers_file,
    load_serving,
)
from twelve_in_one.data.stored.preprocessing import Preprocessing, check_same, other_stores
from twelve_in_one.systems.base import System

_log = logging.getLogger(__name__)
INPUTS, MODEL = "inputs", "model"
_OF_TASKS = ("head", "kind", "task_id", "rows_per_example")


@dataclasses.dataclass(frozen=True)
class Record:
    """The known inputs of a run.

    Attributes:
      path: folder of the files.
      preprocessing: lengths and regions; None of a system of pictures.
      serving: all inputs; None in workdirs of earlier versions that have no model folder.
      system: the model, None in the same case; its layout may differ from the run's.
    """

    path: Path
    preprocessing: Preprocessing | None
    serving: Serving | ImageServing | None = None
    system: System | None = None


def write(workdir: str | os.PathLike[str], serving: Serving | ImageServing, system: System) -> None:
    """Records the inputs of a run; each file is written atomically."""
    folder = Path(workdir) / INPUTS
    folder.mkdir(parents=True, exist_ok=True)
    if serving.trained_on is not None:
        trained_on.write(folder / trained_on.FILE, serving.trained_on)
    texts = serving.files()
    tasks = texts.pop(TASKS_FILE)
    # Written last: its presence tells `read` that the others exist.
    texts |= {weights.CONFIG: system.to_json(), TASKS_FILE: tasks}
    for name, text in texts.items():
        atomic.write(folder / name, text + "\n" if isinstance(text, str) else text)


def read(workdir: str | os.PathLike[str]) -> Record | None:
    """Reads the output of `write`; None if the run has not started.

    Raises:
      ValueError: a file is missing or damaged; names it.
    """
    for folder in (Path(workdir) / INPUTS, Path(workdir) / MODEL):
        if (folder / TASKS_FILE).is_file():
            serving = load_serving(folder)
            try:
                system = weights.read_system(folder)
            except OSError as error:
                raise ValueError(f"{folder / weights.CONFIG}: {error}") from error
            preprocessing = serving.preprocessing if isinstance(serving, Serving) else None
            return Record(folder, preprocessing, serving, system)
    path = Path(workdir) / PREPROCESSING_FILE
    if not path.is_file():
        return None
    try:
        preprocessing = Preprocessing.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Record(path.parent, preprocessing)


def check(record: Record, offered: Serving | ImageServing, where: Path) -> None:
    """Refuses inputs that differ from those of a run's weights; warns of other stores.

    Args:
      record: of the run.
      offered: the inputs offered now.
      where: the offered data, for the message.

    Raises:
      ValueError: lists the differences, with the fix.
    """
    if isinstance(offered, ImageServing):
        found = image_serving.differences(record.serving, offered)
        if found:
            raise ValueError(f"{record.path}: does not fit the config: {'; '.join(found)}")
        return
    known, now, found = record.serving, offered.preprocessing, []
    if known is not None:  # it says more about these than their hashes do
        found = differences(known, offered, record.path, where)
        same = {key: getattr(record.preprocessing, key) for key in ("vocab_sha256", "vocab_size")}
        now = dataclasses.replace(now, answers_sha256={}, **same)
    try:
        check_same(record.preprocessing, now)
    except ValueError as error:
        found.append(str(error))
    if found:
        raise ValueError(f"{record.path} and {where} do not fit each other: {'; '.join(found)}")
    for line in other_stores(record.preprocessing, now):
        _log.warning("%s", line)


def differences(known: Serving, offered: Serving, path: Path, where: Path) -> list[str]:
    """The differences in words, answers and tasks that both have, with the fix.

    Args:
      known: the inputs of training.
      offered: the inputs offered now.
      path: folder of the files of `known`.
      where: the data folder of `offered`.
    """
    found = []
    name = WORDS_FILE
    words = difference(known.tokenizer.vocabulary, offered.tokenizer.vocabulary, "word piece")
    if words:
        found.append(
            f"{name}: {words}; build the data with `--vocab {path / name}` in a new folder, or a "
            f"data set of your own with `--config.data.vocab={path / name}`"
        )
    for head in sorted(known.answers.keys() & offered.answers.keys()):
        found += answers_differ(head, known, offered, path, where)
    theirs = {task.name: task for task in offered.tasks}
    for task in known.tasks:
        other = theirs.get(task.name, task)
        found += [
            f"{key} of task {task.name}: trained with {getattr(task, key)!r}, offered "
            f"{getattr(other, key)!r}; set it as it was in the config"
            for key in _OF_TASKS
            if getattr(task, key) != getattr(other, key)
        ]
    return found


def answers_differ(
    head: str, known: Serving, offered: Serving, path: Path, where: Path
) -> list[str]:
    """How the answers of a head differ, with the fix: one sentence, or none."""
    name = answers_file(head)
    how = difference(known.answers.get(head, ()), offered.answers.get(head, ()), "answer")
    if not how:
        return []
    return [
        f"{name}: {how}; the order is part of the weights: copy {path / name} to {where / name}, "
        f"or build the data with `--{head}_answers {path / name}`"
    ]


def difference(known: Sequence[str], offered: Sequence[str], noun: str) -> str:
    """The first difference between two lists; "" if there is none."""
    if tuple(known) == tuple(offered):
        return ""
    pairs = enumerate(zip(known, offered, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(known), len(offered)))

    def entry(values: Sequence[str]) -> str:
        return repr(values[at]) if at < len(values) else "none"

    sizes = f"{len(known):,}" if len(known) == len(offered) else f"{len(known):,} and "
    sizes += "" if len(known) == len(offered) else f"{len(offered):,}"
    order = ", the same in another order" if sorted(known) == sorted(offered) else ""
    return (
        f"trained with other {noun}s than are offered ({sizes}{order}); the first that differs is "
        f"{noun} {at}, {entry(known)} in training and {entry(offered)} now"
    )
