"""Takes a trained model to where it is used: python -m twelve_in_one.export --from PATH --to DIR.

* `params`: a model folder of this package from any checkpoint of a run, see `model_folder`.
* `safetensors`: weights under the released names, for other frameworks.
* `jax`: functions that JAX runs without this package, see `jax_artefact`.
"""

import argparse
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from twelve_in_one.checkpoints import inputs_record, model_folder, state, weights
from twelve_in_one.checkpoints.model_folder import Serving
from twelve_in_one.checkpoints.weights import DamagedError
from twelve_in_one.config.check import task_runs
from twelve_in_one.config.paths import local_path
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.convert import files
from twelve_in_one.convert.state_dict import to_state_dict
from twelve_in_one.exporting.jax_functions import (
    DEFAULT_PLATFORMS,
    PLATFORMS,
    Log,
    export_jax,
    for_inference,
    size_of,
    write_serving,
)
from twelve_in_one.models.two_stream.config import TwoStreamConfig, from_json, to_json

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


class Model(NamedTuple):
    """A model to export.

    Attributes:
      params: nested dict of NumPy arrays, unrolled layout.
      config: of the model.
      serving: its tasks, vocabulary, answers and preprocessing.
      origin: where the weights are from, for people.
    """

    params: Any
    config: TwoStreamConfig
    serving: Serving
    origin: str


def open_model(path: str | os.PathLike[str], round_name: str | None = None) -> Model:
    """Reads a model folder, or the weights of a run.

    Args:
      path: a model folder or a workdir.
      round_name: of a workdir: "latest", "best" or the number of a round that was checkpointed;
        None takes its final weights, or the latest if it has not finished. Where those are damaged
        an older one is taken, with a warning.

    Raises:
      ValueError: it is neither, it has no such checkpoint, or something in it is damaged.
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
        config = from_json((final / weights.CONFIG).read_text(encoding="utf-8"))
        serving = model_folder.load_serving(final)
    else:
        config, serving = _of_record(folder) or _of_data(run, folder)
    config = dataclasses.replace(config, scan_layers=run.model.get("scan_layers", False))
    chosen, params = state.first_readable(
        folder, candidates, lambda round: state.restore_params(folder, round, config)
    )
    return Model(*for_inference(params, config), serving, f"{folder}, round {chosen}")


def _of_record(folder: Path) -> tuple[TwoStreamConfig, Serving] | None:
    """Model and inputs of a run that has not ended, as it noted them when it began."""
    record = inputs_record.read(folder)
    if record is None or record.serving is None:
        return None
    return record.model, record.serving


def _of_data(run: RunConfig, workdir: Path) -> tuple[TwoStreamConfig, Serving]:
    """The same of a workdir of an earlier version, from the data that it trains on."""
    from twelve_in_one.training.inputs import feature_dim, model_of, open_data, serving_of

    tasks, data = task_runs(run), open_data(run, workdir)
    shapes = [task.task for task in tasks]
    config = model_of(run.model, data, shapes, feature_dim(data, tasks))
    serving = serving_of(data, tasks, config.region_feature_dim)
    record = inputs_record.read(workdir)
    if record is not None:
        inputs_record.check(record, serving, data.path)
    return config, serving


def export_params(
    directory: str | os.PathLike[str],
    params: Any,
    config: TwoStreamConfig,
    serving: Serving,
    *,
    overwrite: bool = False,
    log: Log = logger.info,
) -> None:
    """Writes a model folder, without the optimizer's state; on any error nothing is left behind.

    Args:
      directory: to make.
      params: nested dict of arrays in the layout of `config`.
      config: of the model.
      serving: its tasks, vocabulary, answers and preprocessing.
      overwrite: replace an existing folder.
      log: is told of progress.

    Raises:
      FileExistsError: the directory exists and `overwrite` is False.
      ValueError: the parameters do not fit `config`.
      OSError: it cannot be written.
    """
    start = time.monotonic()
    model_folder.save(directory, params, config, serving, overwrite=overwrite)
    log(f"{directory}: {size_of(Path(directory))} in {time.monotonic() - start:.1f} s")


def export_safetensors(
    directory: str | os.PathLike[str],
    params: Any,
    config: TwoStreamConfig,
    serving: Serving,
    *,
    overwrite: bool = False,
    log: Log = logger.info,
) -> None:
    """Writes `model.safetensors` and `config.json` with the released names and keys, and the rest.

    `twelve_in_one.convert` reads the folder. The released keys cannot say all of our config
    (`position_offset`, `layer_norm_eps`, `dtype`, `heads`): `two_stream_config.json` does. What
    else is in the folder is as in a model folder. Entries that only the released code has are
    drawn as for a new model. On any error nothing is left behind.

    Args:
      directory: to make.
      params: nested dict of arrays in the layout of `config`.
      config: of the model.
      serving: its tasks, vocabulary, answers and preprocessing.
      overwrite: replace an existing folder.
      log: is told of progress.

    Raises:
      FileExistsError: the directory exists and `overwrite` is False.
      ValueError: the parameters do not fit `config`.
      OSError: it cannot be written.
    """
    start = time.monotonic()
    params, config = for_inference(params, config)
    with weights.replacing(directory, overwrite=overwrite) as folder:
        files.write_safetensors(folder, to_state_dict(config, params), config)
        (folder / OUR_CONFIG).write_text(to_json(config) + "\n", encoding="utf-8")
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
    """A source and all that it lies in."""
    return [path / state.MODEL, path / state.CHECKPOINTS, path, *path.resolve().parents]


def _run(args: argparse.Namespace) -> None:
    start = time.monotonic()
    model = open_model(args.source, args.round)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    tasks = ", ".join(task.name for task in model.serving.tasks)
    _say(f"{model.origin}: {count:,} parameters, tasks {tasks}")
    params, config, serving, _ = model
    options: dict[str, Any] = {"overwrite": args.overwrite, "log": _say}
    if args.format == "params":
        export_params(args.to, params, config, serving, **options)
    elif args.format == "safetensors":
        export_safetensors(args.to, params, config, serving, **options)
    else:
        export_jax(
            args.to,
            params,
            config,
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
    jax.config.update("jax_platforms", "cpu")  # leave accelerators to those who compute
    sys.exit(main())
