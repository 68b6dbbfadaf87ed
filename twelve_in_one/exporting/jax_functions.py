"""A trained model as functions that JAX runs without this package (`jax.export`), in a folder:

    vqa.jaxexport ...   one function per head and input length, for several platforms
    params.safetensors  their first argument: a flat dict, "trunk/text_pooler/kernel" -> array
    signature.json      inputs, outputs, tasks and task ids of each function
    README.md, run.py   how to call them
    config.json vocab.txt preprocessing.json tasks.json answers-*.json  see `model_folder`

Parameters are an argument, not constants, so that all functions share one copy. The number of
rows is symbolic: b examples, 2b rows of image pairs, and for retrieval all pairs of m captions
and n images.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from twelve_in_one.checkpoints.open_model import for_inference
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.checkpoints.weights import CONFIG, replacing
from twelve_in_one.data.serving import Serving
from twelve_in_one.exporting import signature
from twelve_in_one.exporting.signature import PARAMS, Artefact
from twelve_in_one.systems.base import Function, Shape, System

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
# Largest difference from `Function.plain`, divided by the largest score or 1 if larger. Both
# are compiled from the same operations; only the order of sums differs.
TOLERANCES = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}
# The first rows of the previous one.
_CHECKED_SIZES = ({"b": 1, "m": 2, "n": 1}, {"b": 3, "m": 3, "n": 2})
Log = Callable[[str], None]
logger = logging.getLogger(__name__)


def export_jax(
    directory: str | os.PathLike[str],
    params: Any,
    system: System,
    serving: Serving,
    *,
    heads: Sequence[str] | None = None,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    overwrite: bool = False,
    log: Log = logger.info,
) -> None:
    """Writes the folder that the module docstring describes; leaves nothing behind on errors.

    Every function is reloaded from its file and called with two different numbers of rows; it
    must agree with `Function.plain` within `TOLERANCES`. The functions are for one device.

    Args:
      directory: to make.
      params: nested dict of arrays in the layout of `system`.
      system: the model.
      serving: its tasks, vocabulary, answers and preprocessing.
      heads: to export; None takes all heads of the tasks.
      platforms: of `PLATFORMS`; must include the platform of this process.
      overwrite: replace an existing folder.
      log: called with progress messages.

    Raises:
      FileExistsError: the directory exists and `overwrite` is False.
      ValueError: an unknown head or platform, no platform for the check, a function
        that disagrees with the model, several processes, or a call within `sharding.use`.
      OSError: it cannot be written.
    """
    if jax.process_count() > 1 or not jax.sharding.get_abstract_mesh().empty:
        raise ValueError("export_jax is for one process, outside of sharding.use or any other mesh")
    _check_platforms(platforms)
    params, system = for_inference(params, system)
    functions = signature.artefacts(system, serving.tasks, heads)
    heads = tuple(dict.fromkeys(head for function in functions for head in function.heads))
    used = tuple(prefix for function in functions for prefix in function.function.params)
    flat = {"/".join(path): leaf for path, leaf in flatten(params).items()}
    flat = {name: leaf for name, leaf in flat.items() if name.startswith(used)}
    serving = dataclasses.replace(
        serving,
        tasks=tuple(task for task in serving.tasks if task.head in heads),
        answers={head: answers for head, answers in serving.answers.items() if head in heads},
    )
    with replacing(directory, overwrite=overwrite) as folder:
        folder.mkdir()
        (folder / CONFIG).write_text(system.to_json() + "\n", encoding="utf-8")
        write_serving(folder, serving)
        start = time.monotonic()
        write_tensors(folder / PARAMS, flat)
        log(f"{PARAMS}: {size_of(folder / PARAMS)} in {time.monotonic() - start:.1f} s")
        stored = jax.device_put(load_file(folder / PARAMS))
        tolerance = TOLERANCES[getattr(system.config, "dtype", "float32")]
        entries = [
            _write(
                folder, function, params, stored, tolerance, platforms, f"{i}/{len(functions)}", log
            )
            for i, function in enumerate(functions, start=1)
        ]
        letters = {k: v for function in functions for k, v in function.function.letters.items()}
        signature.write(folder, entries, letters, platforms)


def write_serving(folder: Path, serving: Serving) -> None:
    """Writes vocabulary, tasks, preprocessing and answers to a folder, like `model_folder`."""
    for name, text in serving.files().items():
        content = f"{text}\n".encode() if isinstance(text, str) else text
        (folder / name).write_bytes(content)


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Writes a safetensors file with the permissions of the umask.

    Raises:
      OSError: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    path.chmod(mode)  # the library makes private files


def size_of(path: Path) -> str:
    """Readable size of a file or folder."""
    parts = path.rglob("*") if path.is_dir() else [path]
    return f"{sum(part.stat().st_size for part in parts if part.is_file()) / 1e6:,.1f} MB"


def _check_platforms(platforms: Sequence[str]) -> None:
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown:
        raise ValueError(f"platforms {', '.join(unknown)}: known are {', '.join(PLATFORMS)}")
    here = export.default_export_platform()
    if here not in platforms:
        raise ValueError(
            f"platforms {', '.join(platforms) or 'none'}: add {here}, on which this process runs, "
            "or what is written cannot be checked"
        )


def _write(
    folder: Path,
    function: Artefact,
    params: Any,
    stored: Mapping[str, jax.Array],
    tolerance: float,
    platforms: Sequence[str],
    number: str,
    log: Log,
) -> dict[str, Any]:
    """Exports, writes and checks one function; returns its entry in the signature."""
    start = time.monotonic()
    scope = export.SymbolicScope()
    inputs = {
        name: jax.ShapeDtypeStruct(_symbolic(item.shape, scope), item.dtype)
        for name, item in function.function.inputs.items()
    }
    arrays = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in stored.items()}

    def score(arrays: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array]) -> jax.Array:
        tree = unflatten({tuple(name.split("/")): array for name, array in arrays.items()})
        return function.function.scores(tree, inputs)

    exported = export.export(jax.jit(score), platforms=platforms)(arrays, inputs)
    path = folder / function.file
    path.write_bytes(exported.serialize())
    log(f"{number} {path.name}: {size_of(path)} in {time.monotonic() - start:.1f} s; checking ...")
    start = time.monotonic()
    difference = _check(path, function.function, params, stored, tolerance)
    log(
        f"{number} {path.name}: as the model, but for {difference:.1g} of the largest score; "
        f"checked in {time.monotonic() - start:.1f} s"
    )
    outputs = [
        (tuple(x if isinstance(x, int) else str(x) for x in aval.shape), str(aval.dtype))
        for aval in exported.out_avals
    ]
    named = jax.tree.unflatten(exported.out_tree, range(len(outputs)))
    described = {k: outputs[i] for k, i in named.items()} if isinstance(named, dict) else outputs[0]
    return signature.entry(function, described, difference)


def _symbolic(shape: Shape, scope: export.SymbolicScope) -> tuple[Any, ...]:
    return export.symbolic_shape(", ".join(map(str, shape)), scope=scope)


def _check(
    path: Path, function: Function, params: Any, stored: Mapping[str, jax.Array], tolerance: float
) -> float:
    """Largest difference between file and model, divided by the largest score or 1 if larger.

    Raises:
      ValueError: it exceeds the tolerance or is not a number, or whole numbers differ.
    """
    inputs = function.noise(_with_products(_CHECKED_SIZES[-1]))
    expected = jax.device_get(jax.jit(function.plain)(params, inputs))
    score = jax.jit(export.deserialize(path.read_bytes()).call)
    worst = 0.0
    for sizes in _CHECKED_SIZES:
        known = _with_products(sizes)
        part = {
            name: x[: known[shape[0]]] if (shape := function.inputs[name].shape) else x
            for name, x in inputs.items()
        }
        found = jax.device_get(score(stored, part))
        rows = (slice(sizes["b"]),)
        if {"m", "n"} <= function.letters.keys():  # scores of all pairs
            rows = slice(sizes["m"]), slice(sizes["n"])
        for ours, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            difference, allowed = _difference(ours, whole[rows], tolerance)
            if not difference <= allowed:
                raise ValueError(
                    f"{path.name} differs from the model by {difference:.3g} of its largest score "
                    f"on inputs of {sizes}; {allowed:g} is allowed. Nothing was exported"
                )
            worst = max(worst, difference)
    return worst


def _difference(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> tuple[float, float]:
    """The largest difference of two arrays, and the one allowed; whole numbers are equal."""
    if found.shape != wanted.shape:
        return np.inf, tolerance
    if np.issubdtype(wanted.dtype, np.integer):
        return float(np.any(found != wanted)), 0.0
    return float(np.max(np.abs(found - wanted)) / max(1.0, np.max(np.abs(wanted)))), tolerance


def _with_products(sizes: Mapping[str, int]) -> dict[str, int]:
    return {**sizes, "2*b": 2 * sizes["b"]}
