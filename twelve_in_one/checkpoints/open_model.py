"""Reads a model from any location: its folder, a finished run, or a checkpoint of a run."""

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from twelve_in_one.checkpoints import inputs_record, model_folder, state, weights
from twelve_in_one.checkpoints.weights import DamagedError
from twelve_in_one.config.check import task_runs
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.data.run_inputs import feature_dim, open_data, serving_of, system_of
from twelve_in_one.data.serving import Serving, load_serving
from twelve_in_one.systems.base import System

logger = logging.getLogger(__name__)


class Model(NamedTuple):
    """A model from any location.

    Attributes:
      params: nested dict of NumPy arrays, unrolled layout.
      system: the model.
      serving: its tasks, vocabulary, answers and preprocessing.
      origin: where the weights come from, for messages.
    """

    params: Any
    system: System
    serving: Serving
    origin: str


def open_model(path: str | os.PathLike[str], round_name: str | None = None) -> Model:
    """Reads a model folder, or the weights of a run.

    Args:
      path: a model folder or a workdir.
      round_name: of a workdir: "latest", "best" or the number of a round that was checkpointed;
        None takes its final weights, or the latest if it has not finished. If those are damaged,
        an older one is taken, with a warning.

    Raises:
      ValueError: it is neither, it has no such checkpoint, or its files are damaged.
    """
    folder = Path(path)
    if not folder.exists():
        raise ValueError(f"{folder} does not exist; give a workdir or a model folder")
    if weights.is_checkpoint(folder):
        if round_name is not None:
            raise ValueError(
                f"{folder} is a model folder, which has no rounds: leave out --round or give the "
                "workdir of the run"
            )
        return Model(*model_folder.load(folder), str(folder))
    final = folder / state.MODEL
    finished = weights.is_checkpoint(final)
    if finished and round_name is None:
        try:
            return Model(*model_folder.load(final), str(final))
        except DamagedError as error:
            if not state.all_rounds(folder):
                raise
            logger.warning("damaged model: %s; going on from a checkpoint of the run", error)
    if not state.all_rounds(folder):
        raise ValueError(
            f"{folder} has no checkpoint: give a workdir, which has {state.CHECKPOINTS}/ or "
            f"{state.MODEL}/, or a model folder, which has {weights.CONFIG} and "
            f"{weights.PARAMS}/"
        )
    candidates = state.choose_rounds(folder, round_name or "latest")
    run = state.read_config(folder)
    if finished:
        system, serving = weights.read_system(final), load_serving(final)
    else:
        system, serving = _of_record(folder) or _of_data(run, folder)
    system = system.with_layout(run.model.get("scan_layers", False))
    chosen, params = state.first_readable(
        folder, candidates, lambda round: state.restore_params(folder, round, system)
    )
    return Model(*for_inference(params, system), serving, f"{folder}, round {chosen}")


def for_inference(params: Any, system: System) -> tuple[Any, System]:
    """The same model as NumPy arrays in the unrolled layout, without its training-only parts."""
    if system.scanned:
        params = system.unstack(params)
    return jax.tree.map(np.asarray, params), system.for_inference()


def _of_record(folder: Path) -> tuple[System, Serving] | None:
    """Model and inputs of an unfinished run, as recorded when it started."""
    record = inputs_record.read(folder)
    if record is None or record.serving is None:
        return None
    return record.system, record.serving


def _of_data(run: RunConfig, workdir: Path) -> tuple[System, Serving]:
    """The same for a workdir of an earlier version, from its training data."""
    tasks, data = task_runs(run), open_data(run, workdir)
    shapes = [task.task for task in tasks]
    system = system_of(run, data, shapes, feature_dim(data, tasks))
    serving = serving_of(data, tasks, system)
    record = inputs_record.read(workdir)
    if record is not None:
        inputs_record.check(record, serving, data.path)
    return system, serving
