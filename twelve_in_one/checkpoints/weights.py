"""Parameters on disk: `params/`, `config.json`, perhaps `unused/` and small text files.

`files.json` lists all files with their sizes, to detect incomplete copies. The parameters
are always float32 arrays in the unrolled layout, so that any device count, sharding and value of
`scan_layers` can restore them.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from twelve_in_one import systems
from twelve_in_one.checkpoints.trees import check_shapes, flatten, unflatten
from twelve_in_one.systems.base import System

PARAMS, UNUSED, CONFIG, FILES = "params", "unused", "config.json", "files.json"
_STRAGGLER_SECONDS, _STRAGGLER_CHECKS = 0.5, 60


class DamagedError(ValueError):
    """Data on disk is incomplete or unreadable; another checkpoint may be fine."""


def is_checkpoint(directory: str | os.PathLike[str]) -> bool:
    """Whether `directory` looks like the output of `save_params`."""
    return (Path(directory) / CONFIG).is_file() and (Path(directory) / PARAMS).is_dir()


def save_params(
    directory: str | os.PathLike[str],
    params: Any,
    system: System,
    unused: Mapping[str, np.ndarray] | None = None,
    *,
    texts: Mapping[str, str | bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes parameters; leaves nothing behind on errors.

    With several processes, all of them call this with the same global arrays.

    Args:
      directory: the directory to make.
      params: nested dict of arrays in the layout of `system`.
      system: the model.
      unused: {released name: array}, see `convert.state_dict.Loaded`.
      texts: {file name: contents} of files to add; texts get a final newline.
      overwrite: replace an existing directory.

    Raises:
      FileExistsError: the directory exists and `overwrite` is False.
      ValueError: the parameters do not fit `system`.
    """
    check_shapes(expected_shapes(system), flatten(params), f"cannot write {directory}")
    if system.scanned:
        params, system = system.unstack(params), system.with_layout(False)
    with replacing(directory, overwrite=overwrite) as temporary:
        if jax.process_index() == 0:
            temporary.mkdir()
            (temporary / CONFIG).write_text(system.to_json() + "\n", encoding="utf-8")
            for name, text in (texts or {}).items():
                content = text if isinstance(text, bytes) else f"{text}\n".encode()
                (temporary / name).write_bytes(content)
        _sync("made")
        save_tree(temporary / PARAMS, params, directory)
        if unused:
            # Orbax joins the keys of nested dicts with dots, like the released names.
            nested = unflatten({tuple(name.split(".")): unused[name] for name in unused})
            save_tree(temporary / UNUSED, nested, directory)
        if jax.process_index() == 0:
            listing = json.dumps(_file_sizes(temporary), indent=2, sort_keys=True)
            (temporary / FILES).write_text(listing + "\n", encoding="utf-8")


def load_params(
    directory: str | os.PathLike[str], *, shardings: Any = None, scan_layers: bool = False
) -> tuple[Any, System, dict[str, np.ndarray]]:
    """Reads the output of `save_params`.

    Args:
      directory: the checkpoint.
      shardings: tree of the parameters' shardings in the requested layout, from
        `sharding.param_shardings`; NumPy arrays on the host if None.
      scan_layers: return the scanned layout.

    Returns:
      The parameters, their system (in the requested layout), and the entries of a converted state
      dict that our model does not use.

    Raises:
      DamagedError: damaged or incompletely copied; names it.
      ValueError: not a checkpoint, or a config that does not fit the arrays; names it.
    """
    directory = Path(os.path.abspath(directory))  # Orbax finds nothing at relative paths
    if not is_checkpoint(directory):
        raise ValueError(
            f"{directory} is not a checkpoint directory: it should hold {CONFIG} and {PARAMS}/"
        )
    system = read_system(directory)
    _check_files(directory)
    stored = stored_arrays(directory / PARAMS)
    check_shapes(expected_shapes(system), flatten(stored), str(directory))
    unused = {}
    if (directory / UNUSED).is_dir():
        tree = restore_tree(directory / UNUSED, stored_arrays(directory / UNUSED))
        unused = {".".join(path): array for path, array in flatten(tree).items()}
    if not scan_layers:
        return restore_tree(directory / PARAMS, stored, shardings), system, unused
    # Stacked on the host: no array on disk corresponds to a stacked one, to be sent to devices.
    params = restore_tree(directory / PARAMS, stored)
    params = jax.tree.map(np.asarray, system.stack(params))
    if shardings is not None:
        params = jax.tree.map(_place, params, shardings)
    return params, system.with_layout(True), unused


def read_system(directory: str | os.PathLike[str]) -> System:
    """The model of the parameters in a folder, unrolled.

    Raises:
      OSError: there is no config.
      ValueError: it cannot be read; names it.
    """
    path = Path(directory) / CONFIG
    try:
        return systems.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a path for writing a file or directory, which becomes `path` on success.

    On errors the written files are removed, and `path` stays as it was.

    Raises:
      FileExistsError: `path` exists, and `overwrite` is False or this package did not write it.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another path or allow overwriting it")
    check_replaceable(path)
    primary = jax.process_index() == 0
    new_parents = [parent for parent in path.parents if not parent.exists()]
    if jax.process_count() == 1:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    else:  # every process must derive the same name
        folder = path.parent / f".{path.name}.partial"
        if primary:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
    try:
        yield folder / path.name
        _sync("written")
        if primary:
            _rename(folder / path.name, path, aside=folder / "replaced")
    finally:
        if primary:
            shutil.rmtree(folder, ignore_errors=True)
            if not path.exists():
                for parent in new_parents:
                    with contextlib.suppress(OSError):  # other files may have been added
                        parent.rmdir()
    _sync("renamed")


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Refuses to overwrite anything but empty folders and models written by this package.

    Raises:
      FileExistsError: names the files at risk.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(entry.name for entry in path.iterdir())
        if not found or _is_model_folder(path):
            return
        holds = f"a folder with {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}"
    elif not path.exists() or not path.stat().st_size or _is_state_dict(path):
        return
    else:
        holds = "another file"
    raise FileExistsError(
        f"{path} is {holds}, no model that this package wrote, and is not replaced: choose another "
        "path, or delete it first"
    )


def _is_model_folder(path: Path) -> bool:
    """Whether it is a checkpoint, a model folder or an export; a workdir, with its run, is not."""
    if (path / FILES).is_file() or (path / "signature.json").is_file():
        return True
    weights = (path / PARAMS).is_dir() or (path / "model.safetensors").is_file()
    return (path / CONFIG).is_file() and weights


def _is_state_dict(path: Path) -> bool:
    """Whether a file has the format of `torch.save`: an archive with a pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _rename(new: Path, path: Path, aside: Path) -> None:
    """Renames `new` to `path`; moves a directory of that name `aside`, replaces files."""
    if path.exists() and (path.is_dir() or new.is_dir()):
        path.rename(aside)
    try:
        new.replace(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise


def _sync(stage: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"checkpoint {stage}")


def expected_shapes(system: System) -> Mapping[tuple[str, ...], tuple[int, ...]]:
    """{path: shape} of a model's parameters."""
    abstract = nn.unbox(system.abstract())
    return {path: leaf.shape for path, leaf in flatten(abstract).items()}


def _place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _file_sizes(directory: Path) -> dict[str, int]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}


def _check_files(directory: Path) -> None:
    try:
        expected = json.loads((directory / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{directory} is incomplete: {FILES}: {error}") from error
    found = _file_sizes(directory)
    for name, size in expected.items():
        if found.get(name) != size:
            state = f"has {found[name]} bytes" if name in found else "is missing"
            raise DamagedError(
                f"{directory} is damaged or was not copied whole: {name} {state}, should have "
                f"{size} bytes"
            )


class _Borrowed(np.ndarray):
    """An array that Orbax does not copy before writing.

    The copy guards against changes during an asynchronous write; ours is synchronous, and the copy
    would double the memory needed.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Borrowed":
        return self


def save_tree(path: Path, tree: Any, destination: str | os.PathLike[str]) -> None:
    """Writes arrays at `path` with Orbax.

    Args:
      path: to make.
      tree: nested dict of arrays.
      destination: named in the error.

    Raises:
      OSError: they cannot be written.
    """

    def borrowed(leaf: Any) -> Any:
        return leaf.view(_Borrowed) if isinstance(leaf, np.ndarray) else leaf

    with _orbax(OSError, f"{destination} cannot be written") as (ocp, checkpointer):
        try:
            checkpointer.save(path, args=ocp.args.PyTreeSave(jax.tree.map(borrowed, tree)))
        except Exception:
            await_stragglers(path.parent)
            raise


def stored_arrays(path: Path) -> Any:
    """Tree of `jax.ShapeDtypeStruct` of the arrays that Orbax wrote at `path`.

    Raises:
      DamagedError: there are none, or they cannot be read; names it.
    """
    with _orbax(DamagedError, f"{path} cannot be read") as (_, checkpointer):
        metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:  # Orbax's result for any read failure
            await_stragglers(path)
            raise FileNotFoundError("the list of its arrays is missing or damaged")
        tree = metadata.tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def restore_tree(path: Path, target: Any, shardings: Any = None, *, partial: bool = False) -> Any:
    """Arrays of the structure `target`: NumPy arrays, or global arrays with `shardings`.

    Args:
      path: of the arrays written by Orbax.
      target: tree of `jax.ShapeDtypeStruct`.
      shardings: tree of the arrays' shardings.
      partial: `target` may be a part of the stored tree.

    Raises:
      DamagedError: it cannot be read; names it.
    """
    with _orbax(DamagedError, f"{path} cannot be read") as (ocp, checkpointer):
        if shardings is None:
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        else:
            restore_args = jax.tree.map(
                lambda leaf, sharding: ocp.ArrayRestoreArgs(
                    sharding=sharding, global_shape=leaf.shape
                ),
                target,
                shardings,
            )
        args = ocp.args.PyTreeRestore(
            item=target, restore_args=restore_args, partial_restore=partial
        )
        try:
            return checkpointer.restore(path, args=args)
        except Exception:
            await_stragglers(path)
            raise


@contextlib.contextmanager
def _orbax(error_type: type[Exception], message: str) -> Iterator[tuple[Any, Any]]:
    """Yields Orbax and a checkpointer; see `orbax_errors`."""
    import orbax.checkpoint as ocp  # slow to import

    with (
        orbax_errors(error_type, message),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        yield ocp, checkpointer


@contextlib.contextmanager
def orbax_errors(error_type: type[Exception], message: str) -> Iterator[None]:
    """Within this context Orbax is quiet, and all its exceptions become one error.

    When one transfer fails, Orbax closes its event loop at once and logs a traceback per thread;
    the other transfers find no loop to report to, and Python prints this for each of them. Later
    failures are printed when they are garbage-collected, perhaps much later.
    """

    def foreign(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    def report(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    hook, logger = sys.unraisablehook, logging.getLogger("absl")
    logger.addFilter(foreign)
    logging.getLogger("asyncio").addFilter(_is_no_transfer)
    sys.unraisablehook = report
    try:
        yield
    except Exception as error:  # of many types, some from C++
        first_line = (str(error).splitlines() or [""])[0]
        raise error_type(f"{message}: {type(error).__name__}: {first_line}") from error
    finally:
        logger.removeFilter(foreign)
        sys.unraisablehook = hook


def _is_no_transfer(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "tensorstore_spec" in str(record.exc_info[1]))


def await_stragglers(directory: Path) -> None:
    """Waits until no file in `directory` has changed for a while, after a failure in it."""
    before = None
    for _ in range(_STRAGGLER_CHECKS):
        now = _file_sizes(directory)
        if now == before:
            return
        before = now
        time.sleep(_STRAGGLER_SECONDS)
