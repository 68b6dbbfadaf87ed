"""Trains one model on several datasets, evaluates it and reports.

    python -m twelve_in_one.train --config=world --workdir=DIR [--config.seed=1 ...]

    from twelve_in_one import configs
    from twelve_in_one.train import train
    train(configs.get("world"), "DIR")

Running the same command again resumes the run: weights come from the workdir's newest checkpoint,
else from `init_from`, else they are random. SIGTERM, Ctrl-C and preemption save, and exit with 0.

The steps: settings, data, devices, programs, state; rounds of updates with validations between
them, following the plan of stop-and-go; evaluation, model and report.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from twelve_in_one import configs, extras
from twelve_in_one.checkpoints import inputs_record, lock, model_folder, state, trees
from twelve_in_one.checkpoints.init_from import trained_on_of
from twelve_in_one.config import check, defaults
from twelve_in_one.config.diff import differences
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.data import trained_on
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.trained_on import TrainedOn
from twelve_in_one.logs import metrics_writer
from twelve_in_one.parallel import processes, sharding
from twelve_in_one.training import dry_run, finish
from twelve_in_one.training.job import Job, abstract_of, compile_job, open_job
from twelve_in_one.training.loop import begin, run_rounds

_log = logging.getLogger(__name__)
# Settings that do not affect what a run learns.
_MAY_CHANGE = (
    "checkpoint", "compilation_cache", "data.cache_megabytes", "data.dir", "data.held_out_dir",
    "data.prefetch", "data.raw_dir", "data.samples_dir", "evaluation.keep_trained_on",
    "images.encoder", "images.tokens", "log",
)  # fmt: skip


class ConfigParser(flags.ArgumentParser):
    """Loads a config, and adds the tasks on the user's own datasets that arguments name."""

    def __init__(self, library: flags.ArgumentParser, argv: Sequence[str]):
        self._library = library
        self._own = _own_tasks(argv)

    def parse(self, argument: str) -> Any:
        """Returns the config.

        Raises:
          ValueError: it cannot be loaded, or a task is like none of the twelve.
        """
        config = self._library.parse(argument)
        for name, like in self._own.items():
            if name not in config.task:
                with config.unlocked():
                    defaults.add_own_task(config, name, like=like)
        return config


def _own_tasks(argv: Sequence[str]) -> dict[str, str]:
    """Name of each task with a `like` argument -> its value."""
    found = {}
    for argument, following in zip(argv, (*argv[1:], ""), strict=True):
        match = re.fullmatch(r"--?config\.task\.(\w+)\.like(=(.*))?", argument)
        if match:
            found[match[1]] = match[3] if match[2] else following
    return found


def train(
    config: Any, workdir: str | os.PathLike[str], *, only_describe: bool = False
) -> finish.Results | None:
    """Runs the whole job, like the command, but in this process and with exceptions.

    Unless logging is set up, progress is printed: one line per log interval, with rate and time
    left. Ctrl-C, or a notebook's stop button, saves after the round; the same call resumes.

    Args:
      config: a ConfigDict, e.g. of `configs.get`.
      workdir: of the run, made if missing; an existing run is resumed.
      only_describe: print what would be done, and return.

    Returns:
      The results, the contents of `results.json`; None if it was asked to stop early.

    Raises:
      ValueError: the config, data or a checkpoint cannot be used.
      FloatingPointError: see `run_rounds`.
      ImportError: the `data` extra is not installed.
      OSError: a file cannot be written, or another process trains in the workdir.
    """
    if not logging.getLogger("twelve_in_one").hasHandlers():
        _print_log()
    if "://" in str(workdir):
        raise ValueError(f"workdir {workdir}: mount the bucket, and give its path")
    workdir = Path(workdir).expanduser()
    run = check.check(config)
    extras.require("training", "data")
    _hide_accelerators_from_tensorflow()
    _use_compilation_cache(run)
    try:
        job = open_job(run, workdir)
    except DataError as error:
        if not only_describe:
            raise
        print(dry_run.describe_without_data(run, workdir, error))
        return None
    _log.info(
        "%s parameters, %d tasks, mesh %s",
        f"{job.system.num_parameters:,}",
        len(job.tasks),
        dict(job.placement.mesh.shape),
    )
    with sharding.use(job.placement.mesh, job.placement.layout):
        if only_describe:
            _record_of(job)
            abstract = abstract_of(job)
            print(dry_run.describe(job, *compile_job(job, *abstract), *abstract))
            return None
        _tell_cut_texts(job)
        return _train(config, job)


def _train(config: Any, job: Job) -> finish.Results | None:
    from twelve_in_one.data.mixture import Mixture
    from twelve_in_one.data.pipeline import yield_often

    yield_often()
    run, workdir = job.run, job.workdir
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.held(workdir))
        processes.barrier("workdir")
        before = _record_of(job)
        wandb = None
        if run.log.wandb_project:  # one run there per workdir, however often it is resumed
            name = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
            wandb = {"project": run.log.wandb_project, "id": name, "resume": "allow"}
        stop = stack.enter_context(processes.stop_on_signals())
        checkpoints = stack.enter_context(state.Checkpoints(workdir, run.checkpoint))
        abstract = abstract_of(job)
        # First, as unfit weights show within seconds, while programs take minutes.
        train_state, rest, position, used = begin(job, checkpoints, *abstract)
        compiled, table = compile_job(job, *abstract)
        seen = _trained_on(job, position.round, before)
        job = dataclasses.replace(job, serving=dataclasses.replace(job.serving, trained_on=seen))
        if jax.process_index() == 0:
            if position.round:
                _tell_changes(state.read_config(workdir), run)
            # First, as `evaluate --follow` waits for the config.
            inputs_record.write(workdir, job.serving, job.system)
            state.write_config(workdir, config)
            # A run killed before its first checkpoint leaves nothing behind.
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
                    "parameters": job.system.num_parameters,
                    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                    "timing": {
                        "command": " ".join(sys.argv),
                        "compile_s": sum(program.seconds for program in table),
                    },
                }
            )
        mixture = Mixture(job.train_streams, used, prefetch=run.data.prefetch)
        train_state, complete = run_rounds(
            job, compiled, train_state, rest, position, mixture, checkpoints, writer, stop
        )
        checkpoints.wait()
        if not complete:
            return None
        params = trees.merge(train_state.params, rest)
        model_folder.save(
            workdir / state.MODEL,
            params,
            job.system,
            job.serving,
            overwrite=True,
        )
        return finish.finish(job, compiled, params, position, mixture.positions, writer)


def _record_of(job: Job) -> inputs_record.Record | None:
    """The inputs that the workdir's weights were trained with, which the job must match.

    Raises:
      ValueError: the job has different inputs.
    """
    if not state.all_rounds(job.workdir):
        return None
    record = inputs_record.read(job.workdir)
    if record is not None:
        inputs_record.check(record, job.serving, job.inputs.path)
    return record


def _trained_on(job: Job, round: int, before: inputs_record.Record | None) -> TrainedOn:
    """The training examples behind the final weights: this data, and earlier ones."""
    now = job.inputs.trained_on(job.train_streams)
    if round:  # from data that may have been different
        known = before.serving.trained_on if before is not None and before.serving else None
        early = known or now | trained_on.nothing("what the first rounds were trained on")
        return early if round >= job.run.schedule.num_rounds else early | now
    source = job.run.init_from.path
    return now | trained_on_of(Path(source)) if source else now


def _tell_cut_texts(job: Job) -> None:
    """Logs for each task how many of its training texts are cut or left out, if any."""
    if jax.process_index() == 0:
        for found in job.inputs.cut_texts(job.train_streams):
            if found.num_cut or found.num_left_out:
                _log.warning("%s", found)


def _tell_changes(before: RunConfig, run: RunConfig) -> None:
    """Logs how a resumed run differs from before; its results then belong to no single config."""
    for line in differences(before, run, ignore=_MAY_CHANGE):
        _log.warning("resumed with another setting: %s", line)


def _use_compilation_cache(run: RunConfig) -> None:
    """Keeps compiled programs on disk, to load them at the next start."""
    if not run.compilation_cache:
        return
    folder = run.compilation_cache
    if folder == "auto":
        folder = str(Path.home() / ".cache" / "twelve_in_one" / "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def define_config_flag() -> None:
    """The option `--config`, whose values `parse_flags` reads."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Settings of the run: the path of a config, or the name of one that ships, "
        f"NAME or NAME:ARGUMENT.\n{configs.listing()}",
        lock_config=True,
    )


def define_flags() -> None:
    """The command's options. Importing this module defines none: other programs have their own."""
    define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the run, made if missing.")
    flags.DEFINE_bool(
        "dry_run", False, "Print plan, shapes, programs, memory and an estimate of time, and end."
    )
    flags.DEFINE_string("coordinator", None, "host:port of process 0, of several.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are.")
    flags.DEFINE_integer("process_id", None, "Which of them this is.")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with configs by name; reports all misspelt `--config.x.y` at once, without a
    traceback.
    """
    overrides = [argument for argument in argv if argument.startswith(("--config.", "-config."))]
    given = _config_of(argv)
    if overrides and given is None:
        sys.exit(f"error: {overrides[0]}: say which config this changes, --config=NAME")
    if given is not None:
        try:
            file = configs.locate(given)
        except ValueError as error:
            sys.exit(f"error: --config={given}: {error}")
        argv = _with_config(argv, file)
        probe = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=probe)
        for values in (probe, flags.FLAGS):
            values["config"].parser = ConfigParser(values["config"].parser, argv)
        # The library looks here for overrides.
        before, sys.argv = sys.argv, [argv[0], f"--config={file}"]
        try:
            probe(sys.argv)
        except flags.Error as error:
            sys.exit(f"error: --config={given}: {_innermost(error)}")
        finally:
            sys.argv = before
        errors = check.unknown_overrides(overrides, probe.config)
        if errors:
            sys.exit("error: " + "\n".join(errors))
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {error}\n--help lists the options")


def _config_of(argv: Sequence[str]) -> str | None:
    """The value of `--config`, given in one argument or two; the last counts."""
    found = None
    for argument, following in zip(argv, (*argv[1:], ""), strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            found = value if equals else following
    return found


def _with_config(argv: Sequence[str], file: str) -> list[str]:
    """The same command line with its config file as one argument, first: overrides follow."""
    rest, skip = [], False
    for argument in argv[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        if skip:
            skip = False
        elif name == "config" and argument.startswith("-"):
            skip = not equals
        else:
            rest.append(argument)
    return [argv[0], f"--config={file}", *rest]


def _innermost(error: BaseException) -> str:
    """The cause's own message: the library wraps a traceback around it."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error)


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; options start with --")
    options = flags.FLAGS
    set_up_logging()
    try:
        where = processes.initialize(
            coordinator=options.coordinator,
            num_processes=options.num_processes,
            process_id=options.process_id,
        )
        _log.info("%s", where)
        if jax.process_index():  # the others would log the same
            logging.getLogger("twelve_in_one").setLevel(logging.WARNING)
        found = train(options.config, options.workdir, only_describe=options.dry_run)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        _log.debug("where it happened", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if found is None and not options.dry_run:
        sys.exit(processes.exit_code_when_stopped())
    if found is not None and jax.process_index() == 0:
        print(found)


def set_up_logging() -> None:
    """Sends log lines of this package, and only warnings of libraries, to stderr."""
    _handle_log(logging.StreamHandler(), "%(asctime)s  %(message)s")


def _print_log() -> None:
    """Sends the same to stdout, which a notebook shows as text rather than as errors."""
    _handle_log(logging.StreamHandler(sys.stdout), "%(message)s")


def _handle_log(handler: logging.Handler, form: str) -> None:
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler.setFormatter(logging.Formatter(form, "%H:%M:%S"))
    log = logging.getLogger("twelve_in_one")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _hide_accelerators_from_tensorflow() -> None:
    """Otherwise TensorFlow would take a GPU's whole memory, just to read files."""
    from twelve_in_one.data.pipeline import hide_accelerators

    hide_accelerators()


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
