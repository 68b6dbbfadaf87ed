"""Frozen parameters of a run: stored once per workdir; checkpoints refer to them by hash.

frozen/params/      the arrays, as Orbax writes them
frozen/sha256       of their names, shapes, dtypes and bytes
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twelve_in_one.checkpoints import weights
from twelve_in_one.checkpoints.trees import check_shapes, flatten
from twelve_in_one.parallel import processes

FROZEN, _PARAMS, _HASH = "frozen", "params", "sha256"


def digest(params: Mapping[str, Any]) -> str:
    """SHA-256 of arrays on the host with their names, shapes and dtypes."""
    found = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        found.update(f"{'/'.join(path)} {array.shape} {array.dtype}\n".encode())
        found.update(array.view(np.uint8).data)
    return found.hexdigest()


def write(workdir: str | os.PathLike[str], params: Mapping[str, Any]) -> str:
    """Writes the frozen parameters of a new run; returns their hash.

    With several processes, all of them call this with the same global arrays.

    Raises:
      OSError: they cannot be written.
    """
    folder = Path(os.path.abspath(workdir)) / FROZEN
    with weights.replacing(folder, overwrite=True) as temporary:
        if jax.process_index() == 0:
            temporary.mkdir(parents=True)
        processes.barrier("frozen parameters")
        weights.save_tree(temporary / _PARAMS, params, folder)
        found = digest(weights.restore_tree(temporary / _PARAMS, _shapes(params)))
        if jax.process_index() == 0:
            (temporary / _HASH).write_text(found + "\n", encoding="utf-8")
    return found


def read(
    workdir: str | os.PathLike[str], abstract: Mapping[str, Any], expected: str, *, place: bool
) -> Any:
    """The frozen parameters of a run.

    Args:
      workdir: of the run.
      abstract: tree of `jax.ShapeDtypeStruct`, with shardings if they are to be placed.
      expected: their hash, from a checkpoint.
      place: place them by their shardings; otherwise return NumPy arrays.

    Raises:
      ValueError: they are missing, or differ from those the run was trained with.
    """
    folder = Path(os.path.abspath(workdir)) / FROZEN
    if not (folder / _PARAMS).is_dir():
        raise ValueError(
            f"{folder} is missing: it holds the parameters that the run does not train, without "
            f"which its checkpoints are of no use; put back the folder whose sha256 is {expected}"
        )
    stored = weights.stored_arrays(folder / _PARAMS)
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}
    check_shapes(wanted, flatten(stored), str(folder))
    params = weights.restore_tree(folder / _PARAMS, stored)
    found = digest(params)
    if found != expected:
        raise ValueError(
            f"{folder} holds other parameters than the run was trained with: their sha256 is "
            f"{found[:12]}..., the checkpoint says {expected[:12]}...; put the original back"
        )
    if not place:
        return params

    def put(array: np.ndarray, like: Any) -> jax.Array:
        return jax.make_array_from_callback(array.shape, like.sharding, array.__getitem__)

    return jax.tree.map(put, params, abstract)


def read_encoder(workdir: str | os.PathLike[str]) -> Any:
    """The parameters of a run's frozen encoder as NumPy arrays; None if it has none on disk yet.

    Raises:
      ValueError: they cannot be read.
    """
    path = Path(os.path.abspath(workdir)) / FROZEN / _PARAMS
    if not path.is_dir():
        return None
    stored = weights.stored_arrays(path)
    part = {"encoder": stored["encoder"]}
    return weights.restore_tree(path, part, partial=True)["encoder"]


def _shapes(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
