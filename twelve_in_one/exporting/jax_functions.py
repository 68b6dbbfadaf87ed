"""A trained model as functions that JAX runs without this package (`jax.export`), in a folder:

    vqa.jaxexport ...   one function for each head and length of inputs, for several platforms
    params.safetensors  their first argument: a flat dict, "trunk/text_pooler/kernel" -> array
    signature.json      inputs, outputs, the tasks that each serves and their task ids
    README.md, run.py   how to call them
    config.json vocab.txt preprocessing.json tasks.json answers-*.json  see `model_folder`

Parameters are an argument and not constants, so that all functions share one copy. The number of
rows is symbolic: b examples, 2b rows of image pairs, and for retrieval m captions by n images, of
which every pair is scored.
"""

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from twelve_in_one.checkpoints import model_folder
from twelve_in_one.checkpoints.model_folder import Serving
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.checkpoints.weights import CONFIG, replacing
from twelve_in_one.exporting import signature
from twelve_in_one.exporting.signature import PARAMS, Artefact
from twelve_in_one.models.two_stream.config import TwoStreamConfig, to_json
from twelve_in_one.models.two_stream.encoder import unstack_layers
from twelve_in_one.models.two_stream.trunk import TwoStreamModel

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
# Largest difference from `TwoStreamModel.apply`, over the largest score but at least 1. Both are
# compiled from the same operations; what remains is the order of sums.
TOLERANCES = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}
# The first rows of the last.
_CHECKED_SIZES = ({"b": 1, "m": 2, "n": 1}, {"b": 3, "m": 3, "n": 2})
Log = Callable[[str], None]
logger = logging.getLogger(__name__)


def export_jax(
    directory: str | os.PathLike[str],
    params: Any,
    config: TwoStreamConfig,
    serving: Serving,
    *,
    heads: Sequence[str] | None = None,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    overwrite: bool = False,
    log: Log = logger.info,
) -> None:
    """Writes the folder that the module docstring describes; on any error nothing is left behind.

    Every function is loaded from its file again and called with two different numbers of rows; it
    has to agree with `TwoStreamModel.apply` within `TOLERANCES`. The functions are for one device.

    Args:
      directory: to make.
      params: nested dict of arrays in the layout of `config`.
      config: of the model.
      serving: its tasks, vocabulary, answers and preprocessing.
      heads: to export; None takes all that the tasks read.
      platforms: of `PLATFORMS`; the one that this process runs on must be among them.
      overwrite: replace an existing folder.
      log: is told of progress.

    Raises:
      FileExistsError: the directory exists and `overwrite` is False.
      ValueError: an unknown head or platform, a platform missing that the check needs, a function
        that does not agree with the model, several processes, or a call within `sharding.use`.
      OSError: it cannot be written.
    """
    if jax.process_count() > 1 or not jax.sharding.get_abstract_mesh().empty:
        raise ValueError("export_jax is for one process, outside of sharding.use or any other mesh")
    _check_platforms(platforms)
    functions = signature.artefacts(serving.tasks, heads)
    heads = tuple(dict.fromkeys(function.head for function in functions))
    params, config = for_inference(params, config)
    flat = {
        "/".join(path): leaf
        for path, leaf in flatten(params).items()
        if path[0] == "trunk" or path[1] in heads
    }
    serving = dataclasses.replace(
        serving,
        tasks=tuple(task for task in serving.tasks if task.head in heads),
        answers={head: answers for head, answers in serving.answers.items() if head in heads},
    )
    with replacing(directory, overwrite=overwrite) as folder:
        folder.mkdir()
        (folder / CONFIG).write_text(to_json(config) + "\n", encoding="utf-8")
        write_serving(folder, serving)
        start = time.monotonic()
        write_tensors(folder / PARAMS, flat)
        log(f"{PARAMS}: {size_of(folder / PARAMS)} in {time.monotonic() - start:.1f} s")
        stored = jax.device_put(load_file(folder / PARAMS))
        entries = [
            _write(
                folder, function, params, stored, config, platforms, f"{i}/{len(functions)}", log
            )
            for i, function in enumerate(functions, start=1)
        ]
        signature.write(folder, entries, platforms)


def for_inference(params: Any, config: TwoStreamConfig) -> tuple[Any, TwoStreamConfig]:
    """The same model as NumPy arrays in the unrolled layout, without rematerialisation."""
    if config.scan_layers:
        params = unstack_layers(config, params)
    params = jax.tree.map(np.asarray, params)
    return params, dataclasses.replace(config, scan_layers=False, remat="none")


def write_serving(folder: Path, serving: Serving) -> None:
    """Puts vocabulary, tasks, preprocessing and answers into a folder, as `model_folder` does."""
    for name, text in model_folder.serving_texts(serving).items():
        (folder / name).write_text(text + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Writes a safetensors file that may be read by whom the umask allows.

    Raises:
      OSError: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    path.chmod(mode)  # the library's file is private


def size_of(path: Path) -> str:
    """Size of a file or folder for people."""
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
    config: TwoStreamConfig,
    platforms: Sequence[str],
    number: str,
    log: Log,
) -> dict[str, Any]:
    """Exports, writes and checks one function; returns its entry in the signature."""
    start = time.monotonic()
    scope = export.SymbolicScope()
    inputs = {
        name: jax.ShapeDtypeStruct(_symbolic(shape, scope), dtype)
        for name, (shape, dtype) in function.inputs(config).items()
    }
    arrays = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in stored.items()}
    score = jax.jit(functools.partial(_score, config, function))
    exported = export.export(score, platforms=platforms)(arrays, inputs)
    path = folder / function.file
    path.write_bytes(exported.serialize())
    log(f"{number} {path.name}: {size_of(path)} in {time.monotonic() - start:.1f} s; checking ...")
    start = time.monotonic()
    difference = _check(path, function, params, stored, config)
    log(
        f"{number} {path.name}: as the model, but for {difference:.1g} of the largest score; "
        f"checked in {time.monotonic() - start:.1f} s"
    )
    shape = tuple(x if isinstance(x, int) else str(x) for x in exported.out_avals[0].shape)
    return signature.entry(function, config, shape, difference)


def _symbolic(shape: signature.Shape, scope: export.SymbolicScope) -> tuple[Any, ...]:
    return export.symbolic_shape(", ".join(map(str, shape)), scope=scope)


def _score(
    config: TwoStreamConfig,
    function: Artefact,
    arrays: Mapping[str, jax.Array],
    inputs: Mapping[str, jax.Array],
) -> jax.Array:
    """What is exported: float32 scores of one head without dropout, [m, n] if of all pairs."""
    params = unflatten({tuple(name.split("/")): array for name, array in arrays.items()})
    scores, _ = TwoStreamModel(config).apply(
        {"params": params}, **inputs, heads=(function.head,), all_pairs=function.all_pairs
    )
    logits = scores[function.head].astype(jnp.float32)
    if function.all_pairs:
        # [m * n] -> [m, n]
        logits = logits.reshape(inputs["tokens"].shape[0], inputs["regions"].shape[0])
    return logits


def _check(
    path: Path,
    function: Artefact,
    params: Any,
    stored: Mapping[str, jax.Array],
    config: TwoStreamConfig,
) -> float:
    """Largest difference between the file and the model, over the largest score but at least 1.

    Raises:
      ValueError: it exceeds the tolerance or is no number.
    """
    inputs = _noise(function, config, _CHECKED_SIZES[-1])
    expected = _model_scores(function, params, config, inputs)
    score = jax.jit(export.deserialize(path.read_bytes()).call)
    worst = 0.0
    for sizes in _CHECKED_SIZES:
        shapes = _shapes(function, config, sizes)
        part = {name: x[: shapes[name][0]] if x.ndim else x for name, x in inputs.items()}
        found = np.asarray(score(stored, part))
        wanted = expected[: sizes["b"]]
        if function.all_pairs:
            wanted = expected[: sizes["m"], : sizes["n"]]
        difference = float(np.max(np.abs(found - wanted)) / max(1.0, np.max(np.abs(wanted))))
        if found.shape != wanted.shape or not difference <= TOLERANCES[config.dtype]:
            raise ValueError(
                f"{path.name} differs from the model by {difference:.3g} of its largest score on "
                f"inputs of {sizes}; {TOLERANCES[config.dtype]:g} is allowed. Nothing was exported"
            )
        worst = max(worst, difference)
    return worst


def _model_scores(
    function: Artefact, params: Any, config: TwoStreamConfig, inputs: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The model on the same inputs; all pairs as plain rows, without the fast path."""
    model, head, rows = TwoStreamModel(config), function.head, dict(inputs)
    m, n = len(inputs["tokens"]), len(inputs["regions"])
    if function.all_pairs:
        captions, images = np.divmod(np.arange(m * n), n)
        for name, x in inputs.items():
            if x.ndim:
                rows[name] = x[captions if name in ("tokens", "token_mask") else images]

    @jax.jit
    def apply(params: Any, rows: Mapping[str, jax.Array]) -> jax.Array:
        return model.apply({"params": params}, **rows, heads=(head,))[0][head]

    scores = np.asarray(apply(params, rows), np.float32)
    return scores.reshape(m, n) if function.all_pairs else scores


def _shapes(
    function: Artefact, config: TwoStreamConfig, sizes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs for given sizes of the letters."""
    known = {**sizes, "2*b": 2 * sizes["b"]}
    return {
        name: tuple(known[size] if isinstance(size, str) else size for size in shape)
        for name, (shape, _) in function.inputs(config).items()
    }


def _noise(
    function: Artefact, config: TwoStreamConfig, sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Inputs drawn at random, with padding in every other row."""
    rng = np.random.default_rng(0)
    shapes, inputs = _shapes(function, config, sizes), {}
    for name, (_, dtype) in function.inputs(config).items():
        shape = shapes[name]
        if name == "task_id":
            values = np.asarray(function.tasks[0].task_id)
        elif name == "tokens":
            values = rng.integers(0, config.vocab_size, shape)
        elif dtype == "bool":
            values = np.ones(shape, bool)
            values[::2, 1 + shape[1] // 2 :] = False
        else:
            values = rng.normal(size=shape)
        inputs[name] = values.astype(dtype)
    return inputs
