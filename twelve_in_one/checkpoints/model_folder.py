"""A trained model as a self-contained folder: weights, vocabularies, tasks, preprocessing.

    params/ config.json files.json      see `weights.py`
    preprocessing.json tasks.json vocab.txt answers-HEAD.json trained_on.npz
                                        see `data.serving`

Training writes it, predictions load it, and it can be shared.
"""

import os
from pathlib import Path
from typing import Any

from twelve_in_one.checkpoints import weights
from twelve_in_one.data import trained_on
from twelve_in_one.data.image_serving import ImageServing
from twelve_in_one.data.serving import Serving, answers_file, load_serving
from twelve_in_one.systems.base import System


def save(
    directory: str | os.PathLike[str],
    params: Any,
    system: System,
    serving: Serving | ImageServing,
    *,
    overwrite: bool = False,
) -> None:
    """Writes the folder; leaves nothing behind on errors.

    Args:
      directory: to make.
      params: nested dict of arrays in the layout of `system`.
      system: the model.
      serving: the rest.
      overwrite: replace an existing folder.

    Raises:
      FileExistsError: the directory exists and `overwrite` is False.
      ValueError: the parameters do not fit `system`.
      OSError: it cannot be written; names it.
    """
    texts = serving.files()
    if serving.trained_on is not None:
        texts[trained_on.FILE] = trained_on.to_bytes(serving.trained_on)
    weights.save_params(directory, params, system, texts=texts, overwrite=overwrite)


def load(
    directory: str | os.PathLike[str], *, shardings: Any = None, scan_layers: bool = False
) -> tuple[Any, System, Serving | ImageServing]:
    """Reads the output of `save`: parameters, system and `Serving`.

    Args:
      directory: the folder.
      shardings: see `weights.load_params`; NumPy arrays if None.
      scan_layers: see `weights.load_params`.

    Raises:
      ValueError: not such a folder, damaged, or inconsistent; names the file.
    """
    serving = load_serving(directory)
    params, system, _ = weights.load_params(directory, shardings=shardings, scan_layers=scan_layers)
    for task in serving.tasks:
        answers, size = serving.answers.get(task.head, ()), system.sizes(task).get("num_labels")
        if size is not None and len(answers) > size:
            raise ValueError(
                f"{Path(directory) / answers_file(task.head)}: {len(answers)} answers, the model "
                f"has {size} labels"
            )
    return params, system, serving
