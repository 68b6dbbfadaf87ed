"""Takes a trained model to where it is used: python -m twelve_in_one.export --from PATH --to DIR.

* `params`: a model folder of this package from any checkpoint of a run, see `model_folder`.
* `safetensors`: weights under the released names, for other frameworks.
* `jax`: functions that JAX runs without this package, see `exporting/jax_functions.py`.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one.checkpoints import model_folder, state, weights
from twelve_in_one.checkpoints.open_model import for_inference, open_model
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.config.paths import local_path
from twelve_in_one.convert import files
from twelve_in_one.convert.state_dict import to_state_dict
from twelve_in_one.data.serving import Serving
from twelve_in_one.exporting.jax_functions import (
    DEFAULT_PLATFORMS,
    PLATFORMS,
    Log,
    export_jax,
    size_of,
    write_serving,
    write_tensors,
)
from twelve_in_one.models.two_stream.config import to_json
from twelve_in_one.systems.base import System
from twelve_in_one.systems.vilbert import Vilbert

FORMATS = ("params", "safetensors", "jax")
OUR_CONFIG = "two_stream_config.json"
logger = logging.getLogger(__name__)

_EXAMPLES = """\
examples (RUN stands for python -m twelve_in_one.export):
  the final weights of a run, as functions for CPU, GPU and TPU
    RUN --from workdir --to exported --format jax
  the weights that validated best, as a model folder
    RUN --from workdir --to best --format params --round best
  two heads of a model folder, for TPU; the CPU is where they are checked
    RUN --from workdir/model --to vqa --format jax --heads vqa,gqa --platforms cpu,tpu

exit codes: 0 done; 1 refused or failed, nothing was written; 2 wrong usage
"""


def export_params(
    directory: str | os.PathLike[str],
    params: Any,
    system: System,
    serving: Serving,
    *,
    overwrite: bool = False,
    log: Log = logger.info,
) -> None:
    """Writes a model folder, without the optimizer's state; leaves nothing behind on errors.

    Args:
      directory: to make.
      params: nested dict of arrays in the layout of `system`.
      system: the model.
      serving: its tasks, vocabulary, answers and preprocessing.
      overwrite: replace an existing folder.
      log: called with progress messages.

    Raises:
      FileExistsError: the directory exists and `overwrite` is False.
      ValueError: the parameters do not fit `system`.
      OSError: it cannot be written.
    """
    start = time.monotonic()
    model_folder.save(directory, params, system, serving, overwrite=overwrite)
    log(f"{directory}: {size_of(Path(directory))} in {time.monotonic() - start:.1f} s")


def export_safetensors(
    directory: str | os.PathLike[str],
    params: Any,
    system: System,
    serving: Serving,
    *,
    overwrite: bool = False,
    log: Log = logger.info,
) -> None:
    """Writes `model.safetensors` and `config.json` with released names and keys, and the rest.

    Of systems without a release, names and keys are our own.

    `twelve_in_one.convert` reads the folder. The released keys cannot express all of our
    config (`position_offset`, `layer_norm_eps`, `dtype`, `heads`): `two_stream_config.json` does.
    The other files are those of a model folder. Entries that only the released code has are
    drawn as for a new model. Leaves nothing behind on errors.

    Args:
      directory: to make.
      params: nested dict of arrays in the layout of `system`.
      system: the model.
      serving: its tasks, vocabulary, answers and preprocessing.
      overwrite: replace an existing folder.
      log: called with progress messages.

    Raises:
      FileExistsError: the directory exists and `overwrite` is False.
      ValueError: the parameters do not fit `system`.
      OSError: it cannot be written.
    """
    start = time.monotonic()
    params, system = for_inference(params, system)
    config = system.config
    with weights.replacing(directory, overwrite=overwrite) as folder:
        if system.name == Vilbert.name:
            files.write_safetensors(folder, to_state_dict(config, params), config)
            (folder / OUR_CONFIG).write_text(to_json(config) + "\n", encoding="utf-8")
        else:
            folder.mkdir()
            flat = {"/".join(path): leaf for path, leaf in flatten(params).items()}
            write_tensors(folder / "model.safetensors", flat)
            (folder / weights.CONFIG).write_text(system.to_json() + "\n", encoding="utf-8")
        write_serving(folder, serving)
    log(f"{directory}: {size_of(Path(directory))} in {time.monotonic() - start:.1f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.export",
        description="Exports a trained model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="source", type=local_path, required=True, help="a workdir or a model folder")
    add("--to", type=local_path, required=True, help="folder to make")
    add("--format", choices=FORMATS, required=True, help="what to write")
    add("--round", help="of a workdir: a number, best or latest (default: its final weights)")
    add("--heads", help="format jax: some of the heads, with commas (default: all of its tasks)")
    add(
        "--platforms",
        help=f"format jax: some of {','.join(PLATFORMS)} (default: {','.join(DEFAULT_PLATFORMS)})",
    )
    add("--overwrite", action="store_true", help="replace the model that is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, or exits with 2 on wrong usage."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.format != "jax" and (args.heads is not None or args.platforms is not None):
        parser.error("--heads and --platforms are for --format jax")
    try:
        if args.to.exists() and not args.overwrite:
            raise ValueError(f"{args.to} exists; pass --overwrite to replace it")
        if args.to.resolve() in (p.resolve() for p in _inside(args.source)):
            raise ValueError(f"--to {args.to} would replace what --from reads")
        weights.check_replaceable(args.to)  # before the work
        _run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _inside(path: Path) -> list[Path]:
    """A source and all its parent folders."""
    return [path / state.MODEL, path / state.CHECKPOINTS, path, *path.resolve().parents]


def _run(args: argparse.Namespace) -> None:
    start = time.monotonic()
    model = open_model(args.source, args.round)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    tasks = ", ".join(task.name for task in model.serving.tasks)
    _say(f"{model.origin}: {count:,} parameters, tasks {tasks}")
    params, system, serving, _ = model
    options: dict[str, Any] = {"overwrite": args.overwrite, "log": _say}
    if args.format == "params":
        export_params(args.to, params, system, serving, **options)
    elif args.format == "safetensors":
        export_safetensors(args.to, params, system, serving, **options)
    else:
        export_jax(
            args.to,
            params,
            system,
            serving,
            heads=_names(args.heads),
            platforms=_names(args.platforms) or DEFAULT_PLATFORMS,
            **options,
        )
    _say(f"wrote {args.to}, {size_of(args.to)}, in {time.monotonic() - start:.1f} s altogether")


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # leave accelerators to other processes
    sys.exit(main())
