"""Finds a trained model on disk and puts it on the devices."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one.checkpoints import model_folder, weights
from twelve_in_one.checkpoints.saved_rounds import all_rounds
from twelve_in_one.convert import detectors
from twelve_in_one.parallel.sharding import make_mesh, param_shardings
from twelve_in_one.predict.embedder import Embedder
from twelve_in_one.predict.engine import Progress, silent
from twelve_in_one.predict.finder import Finder
from twelve_in_one.predict.predictor import Predictor
from twelve_in_one.predict.writer import Writer
from twelve_in_one.systems.lit_decoder import LitDecoderSystem
from twelve_in_one.systems.mammut import MammutSystem
from twelve_in_one.systems.mammut_detector import MammutDetectorSystem
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.systems.vilbert_grid import GridVilbert


def _predictor(
    params: Any, system: Vilbert, serving: Any, options: Mapping[str, Any], **rest: Any
) -> Predictor:
    return Predictor(params, system.config, serving, **options, **rest)


_PREDICTORS: Mapping[str, Callable[..., Predictor | Writer | Finder]] = {
    Vilbert.name: _predictor,
    GridVilbert.name: _predictor,
    LitDecoderSystem.name: lambda params, system, serving, options, **rest: Writer(
        params, system, serving, **rest
    ),
    MammutSystem.name: lambda params, system, serving, options, **rest: Embedder(
        params, system, serving, **rest
    ),
    MammutDetectorSystem.name: lambda params, system, serving, options, **rest: Finder(
        params, system, serving, **rest
    ),
}


def load(
    path: str | os.PathLike[str],
    *,
    detector: str | None = None,
    extractor: Any = None,
    layout: str = "dp",
    model: int = 1,
    devices: Sequence[jax.Device] | None = None,
    max_batch: int = 64,
    progress: Progress = silent,
) -> Predictor | Writer | Finder:
    """Loads a trained model: a `Predictor`, or a `Writer` of one that writes texts, which is an
    `Embedder` if it also makes vectors of images and texts, or a `Finder` of one that finds things.

    Args:
      path: a model folder (see `model_folder`), or the workdir of a run that has ended; if its
        model is damaged, its newest intact checkpoint is taken, with a warning.
      detector: finds regions in pictures: "x152:FILE", "c4:FILE", "small" and others, see
        `convert.detectors.HELP`; it must be the one that the model was trained with.
      extractor: instead of it, a `data.regions.extractor.RegionExtractor` that turns pictures into
        regions; None for the one that the model was trained with, if that needs no weights.
      layout: of the parameters, one of `sharding.LAYOUTS`.
      model: devices along the `model` axis.
      devices: to use; all of this process if None.
      max_batch: examples that go through the model at a time.
      progress: called with the name of the step, the amount done and the total.

    Raises:
      ValueError: no such folder, damaged, or a detector or extractor that does not fit.
      OSError: a detector's file cannot be read.
    """
    if detector is not None and extractor is not None:
        raise ValueError("pass detector or extractor, not both")
    folder = Path(path)
    if (folder / "model").is_dir():
        folder = folder / "model"
    elif not weights.is_checkpoint(folder):
        unfinished = (folder / "checkpoints").is_dir()
        raise ValueError(
            f"{folder}: "
            + ("this run has not ended yet: " if unfinished else "")
            + "holds no trained model; pass a model folder, or a workdir with model/ in it"
        )
    try:
        system = weights.read_system(folder)
    except OSError as error:
        raise ValueError(f"{folder / weights.CONFIG}: {error}") from error
    if system.name not in _PREDICTORS:
        raise ValueError(
            f"{folder} holds a model of {system.name}, which answers no questions here"
        )
    if detector is not None and system.pixels:
        raise ValueError(f"{folder}: a model of {system.name} reads pictures without a detector")
    mesh = make_mesh(model=model, devices=jax.local_devices() if devices is None else devices)
    shardings = param_shardings(system.abstract(), mesh, layout)
    try:
        params, system, serving = model_folder.load(folder, shardings=shardings)
    except weights.DamagedError:
        if not all_rounds(path):
            raise
        from twelve_in_one.checkpoints.open_model import open_model  # for this alone

        params, system, serving, _ = open_model(path)  # warns, and takes a checkpoint of the run
        params = jax.device_put(params, shardings)
    if detector not in (None, detectors.PIXELS):
        one = (jax.local_devices() if devices is None else devices)[:1]
        extractor = detectors.open_detector(detector, devices=one)
    options = dict(extractor=extractor, layout=layout, model=model, devices=devices)
    make = _PREDICTORS[system.name]
    return make(params, system, serving, options, max_batch=max_batch, progress=progress)
