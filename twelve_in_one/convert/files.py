"""State dict files: PyTorch (`.bin`, `.pt`, `.pth`) and safetensors, read lazily and written whole.

Pickled dictionaries of NumPy arrays (`.pkl`) are read, too, whole.
Reading maps the file where the format allows it; no pickle is executed, and only tensors are
accepted. Writing goes to a temporary sibling that is renamed at the end.
"""

import dataclasses
import functools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from twelve_in_one.checkpoints.weights import replacing
from twelve_in_one.data.formats import safe_pickle, torch_file
from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.models.two_stream.reference_config import to_reference

SAFETENSORS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
# Keys under which training scripts save the weights among other things.
_NESTED_KEYS = ("model_state_dict", "state_dict", "model")
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a file; `np.asarray` reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, LazyArray]:
    """The tensors of a file: safetensors and pickled arrays by suffix, anything else as PyTorch.

    Raises:
      ValueError: truncated, not a checkpoint, or not only tensors; names the file and the
        contents found.
      FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_pickle(path) if path.suffix == ".pkl" else _read_torch(path)


def write_torch(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    overwrite: bool = False,
) -> None:
    """Writes a state dict that `torch.load` reads.

    An array with two names (the tied decoder) is stored once.

    Args:
      path: the file.
      tensors: (name, array) in order; only the copies needed to make them contiguous are held.
      overwrite: replace an existing file.

    Raises:
      FileExistsError: the file exists and `overwrite` is False.
      OSError: it cannot be written, for instance because the disk is full.
      ImportError: PyTorch is not installed.
    """
    torch = _import_torch()
    with replacing(path, overwrite=overwrite) as temporary:
        arrays = _contiguous(tensors)
        with warnings.catch_warnings():
            # Arrays borrowed from JAX or a mapped file are read-only; they are never written to.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            made = {id(array): torch.from_numpy(array) for array in arrays.values()}
        content = {name: made[id(array)] for name, array in arrays.items()}
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how PyTorch reports a full disk
            raise OSError(f"{path}: cannot be written: {_first_line(error)}") from error


def write_safetensors(
    directory: str | os.PathLike[str],
    tensors: Iterable[tuple[str, np.ndarray]],
    config: TwoStreamConfig,
    *,
    overwrite: bool = False,
) -> None:
    """`write_folder` of a two-stream model, in the released code's names and keys."""
    write_folder(directory, tensors, to_reference(config), overwrite=overwrite)


def write_folder(
    directory: str | os.PathLike[str],
    tensors: Iterable[tuple[str, np.ndarray]],
    settings: Mapping[str, Any],
    *,
    prefix: str = "",
    overwrite: bool = False,
) -> None:
    """Writes `model.safetensors` and `config.json`.

    Args:
      directory: the directory to make.
      tensors: (name, array) in order; only the copies needed to make them contiguous are held.
      settings: the contents of config.json.
      prefix: of the names of both files.
      overwrite: replace an existing directory.

    Raises:
      FileExistsError: the directory exists and `overwrite` is False.
      OSError: it cannot be written, for instance because the disk is full.
    """
    with replacing(directory, overwrite=overwrite) as temporary:
        temporary.mkdir()
        file, config = temporary / (prefix + SAFETENSORS_FILE), temporary / (prefix + CONFIG_FILE)
        try:
            save_file(_contiguous(tensors), file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{directory}: cannot be written: {_first_line(error)}") from error
        text = json.dumps(settings, indent=2, sort_keys=True)
        config.write_text(text + "\n", encoding="utf-8")
        file.chmod(config.stat().st_mode)  # the library makes private files


def _contiguous(tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """C-contiguous arrays, copied only if necessary."""
    return {name: np.ascontiguousarray(array) for name, array in tensors}


def _read_safetensors(path: Path) -> dict[str, LazyArray]:
    def read(name: str) -> np.ndarray:
        # Reopen the file for each tensor: an open one keeps every page it has touched.
        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)

    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
            for name in names:
                part = file.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise ValueError(f"{path}: {name!r} has the dtype {part.get_dtype()}")
                dtype = np.dtype(_DTYPES[part.get_dtype()])
                shape = tuple(part.get_shape())
                tensors[name] = LazyArray(shape, dtype, functools.partial(read, name))
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file: {_first_line(error)}"
        ) from error
    return tensors


def _read_pickle(path: Path) -> dict[str, LazyArray]:
    tensors = {}
    for name, value in _state_dict(path, safe_pickle.load(path)).items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            found = getattr(value, "dtype", type(value).__name__)
            raise ValueError(f"{path}: {name!r} is a {found}, not an array of numbers")
        tensors[str(name)] = LazyArray(value.shape, value.dtype, functools.partial(_same, value))
    return tensors


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _state_dict(path: Path, content: Any) -> Mapping[Any, Any]:
    """The weights in what a file holds."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    for key in _NESTED_KEYS:
        if isinstance(content.get(key), Mapping):
            return content[key]
    return content


def _read_torch(path: Path) -> dict[str, LazyArray]:
    tensors = {}
    for name, value in _state_dict(path, torch_file.load(path)).items():
        if not isinstance(value, torch_file.Tensor):
            found = getattr(value, "name", type(value).__name__)
            raise ValueError(f"{path}: {name!r} is a {found}, not a dense tensor")
        if value.dtype not in _DTYPES.values():
            raise ValueError(f"{path}: {name!r} has the dtype {value.dtype}")
        tensors[str(name)] = LazyArray(value.shape, np.dtype(value.dtype), value.read)
    return tensors


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "writing PyTorch files needs PyTorch: pip install 'twelve_in_one[torch]'"
        ) from error
    return torch


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
