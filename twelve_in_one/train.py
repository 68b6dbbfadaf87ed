"""Trains one model on several datasets, evaluates it and reports.

    python -m twelve_in_one.train --config=configs/world.py --workdir=DIR [--config.seed=1 ...]

The same command again goes on where the run was: weights come from the workdir's newest checkpoint,
else from `init_from`, else at random. SIGTERM, Ctrl-C and preemption save, and exit with 0.

The story: settings, data, devices, programs, state; rounds of updates with validations between
them, as the plan of stop-and-go says; evaluation, model and report.
"""

import contextlib
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from twelve_in_one import (
    config_check,
    distributed,
    dry_run,
    metrics_writer,
    model_folder,
    results,
    sharding,
    state,
    workdir_lock,
)
from twelve_in_one.config_diff import differences
from twelve_in_one.data.preprocessing import check_same
from twelve_in_one.job import Job, compile_job, open_job
from twelve_in_one.loop import begin, run_rounds
from twelve_in_one.models.two_stream import count_parameters
from twelve_in_one.paths import expand
from twelve_in_one.run_config import RunConfig

_log = logging.getLogger(__name__)
# What a run learns does not depend on these.
_MAY_CHANGE = (
    "checkpoint", "compilation_cache", "data.cache_megabytes", "data.dir", "data.held_out_dir",
    "data.prefetch", "data.raw_dir", "data.samples_dir", "log",
)  # fmt: skip

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings of the run.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, made if missing.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print plan, shapes, programs, memory and an estimate of the time, and end."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, of several.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is.")


def train(config: Any, workdir: Path, *, only_describe: bool = False) -> dict[str, Any] | None:
    """Runs the whole job; returns its results, or None if it was asked to stop before the end.

    Args:
      config: a ConfigDict, see `configs/`.
      workdir: of the run.
      only_describe: print what would be done, and return.

    Raises:
      ValueError: the config, data or a checkpoint cannot be used.
      FloatingPointError: see `run_rounds`.
      OSError: something cannot be written, or another process trains in the workdir.
    """
    run = config_check.check(config)
    _use_compilation_cache(run)
    job = open_job(run, workdir)
    _log.info(
        "%s parameters, %d tasks, mesh %s",
        f"{count_parameters(job.placement.model):,}",
        len(job.tasks),
        dict(job.placement.mesh.shape),
    )
    with sharding.use(job.placement.mesh, job.placement.layout):
        if only_describe:
            print(dry_run.describe(job, *compile_job(job)))
            return None
        return _train(config, job)


def _train(config: Any, job: Job) -> dict[str, Any] | None:
    from twelve_in_one.data.mixture import Mixture
    from twelve_in_one.data.pipeline import yield_often

    yield_often()
    run, workdir = job.run, job.workdir
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(workdir_lock.held(workdir))
        distributed.barrier("workdir")
        before = state.read_preprocessing(workdir)
        if before is not None:
            check_same(before, job.serving.preprocessing)
        wandb = None
        if run.log.wandb_project:  # one run there for one workdir, however often it is resumed
            name = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
            wandb = {"project": run.log.wandb_project, "id": name, "resume": "allow"}
        stop = stack.enter_context(distributed.stop_on_signals())
        checkpoints = stack.enter_context(state.Checkpoints(workdir, run.checkpoint))
        compiled, table, abstract = compile_job(job)
        train_state, position, used = begin(job, checkpoints, abstract)
        if jax.process_index() == 0:
            if position.round:
                _tell_changes(state.read_config(workdir), run)
            state.write_config(workdir, config)
            state.write_preprocessing(workdir, job.serving.preprocessing)
            # Of a run that was killed before its first checkpoint nothing is left.
            metrics_writer.truncate(workdir, position.round or -1)
        writer = stack.enter_context(
            metrics_writer.open_writer(workdir, tensorboard=run.log.tensorboard, wandb=wandb)
        )
        if position.round == 0:
            writer.write(
                {
                    "event": "start",
                    "round": 0,
                    "tasks": list(job.names),
                    "parameters": count_parameters(job.placement.model),
                    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                    "timing": {
                        "command": " ".join(sys.argv),
                        "compile_s": sum(program.seconds for program in table),
                    },
                }
            )
        mixture = Mixture(job.train_streams, used, prefetch=run.data.prefetch)
        train_state, complete = run_rounds(
            job, compiled, train_state, position, mixture, checkpoints, writer, stop
        )
        checkpoints.wait()
        if not complete:
            return None
        model_folder.save(
            workdir / state.MODEL,
            train_state.params,
            job.placement.model,
            job.serving,
            overwrite=True,
        )
        return results.finish(job, compiled, train_state, position, mixture.positions, writer)


def _tell_changes(before: RunConfig, run: RunConfig) -> None:
    """Says what a resumed run does otherwise than before; its results are then of no one config."""
    for line in differences(before, run, ignore=_MAY_CHANGE):
        _log.warning("resumed with another setting: %s", line)


def _use_compilation_cache(run: RunConfig) -> None:
    """Keeps compiled programs on disk: what was compiled once is loaded at the next start."""
    if not run.compilation_cache:
        return
    folder = run.compilation_cache
    if folder == "auto":
        folder = str(Path.home() / ".cache" / "twelve_in_one" / "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with all misspelt `--config.x.y` at once and without a traceback."""
    argv = [
        f"--config={expand(argument.partition('=')[2])}"
        if argument.startswith(("--config=", "-config="))
        else argument
        for argument in argv
    ]
    overrides = [argument for argument in argv if argument.startswith(("--config.", "-config."))]
    file = _config_file(argv)
    if overrides and file is None:
        sys.exit(f"error: {overrides[0]}: say which config this changes, --config=configs/NAME.py")
    if file is not None:
        name = file.partition(":")[0]
        if not Path(name).is_file():
            sys.exit(f"error: --config={file}: there is no file {name}")
        probe = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=probe)
        # Where the library looks for overrides.
        given, sys.argv = sys.argv, [argv[0], f"--config={file}"]
        try:
            probe(sys.argv)
        except flags.Error as error:
            sys.exit(f"error: --config={file}: {_innermost(error)}")
        finally:
            sys.argv = given
        errors = config_check.unknown_overrides(overrides, probe.config)
        if errors:
            sys.exit("error: " + "\n".join(errors))
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {error}\n--help lists the options")


def _config_file(argv: Sequence[str]) -> str | None:
    """What `--config` is, in one word or two; the last counts."""
    found = None
    for argument, following in zip(argv, (*argv[1:], ""), strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            found = value if equals else following
    return found


def _innermost(error: BaseException) -> str:
    """The cause's own words: the library puts a traceback around them."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error)


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; options start with --")
    set_up_logging()
    try:
        where = distributed.initialize(
            coordinator=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
        )
        _log.info("%s", where)
        if jax.process_index():  # the others would say the same
            logging.getLogger("twelve_in_one").setLevel(logging.WARNING)
        if "://" in _WORKDIR.value:
            raise ValueError(f"--workdir={_WORKDIR.value}: mount the bucket, and give its path")
        _hide_accelerators_from_tensorflow()
        found = train(_CONFIG.value, Path(expand(_WORKDIR.value)), only_describe=_DRY_RUN.value)
    except (ValueError, OSError, FloatingPointError) as error:
        _log.debug("where it happened", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if found is None and not _DRY_RUN.value:
        sys.exit(distributed.exit_code_when_stopped())


def set_up_logging() -> None:
    """Lines of this package, and of the libraries only what they warn of."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    log = logging.getLogger("twelve_in_one")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _hide_accelerators_from_tensorflow() -> None:
    """TensorFlow would take a GPU's whole memory for itself, to read files."""
    from twelve_in_one.data.pipeline import hide_accelerators

    hide_accelerators()


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
