"""Scores a model on the tasks that it was trained on, by their official protocols.

    python -m twelve_in_one.evaluate --workdir DIR [--round best] [--follow]
    python -m twelve_in_one.evaluate --model DIR/model --data_dir DATA --features detected

Retrieval ranks all images of the split for every caption. The score of RefCOCO, RefCOCO+ and
RefCOCOg is the share of predicted boxes with IoU > 0.5 among detected regions, beside what the
detector's best box would score. Prints a table, the figures of the benchmarks' own programs and how
much of what is tested the model has seen in training, and writes the same as JSON. Records that it
was trained on are left out of the scores, unless with `--keep_trained_on`. `--follow` evaluates
every new checkpoint of a job that is running or yet to start, until it is complete. `--submissions`
also writes the predictions, in the form of the test servers for VQA, GQA and NLVR2. Several
processes share the work, see launch/.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one import atomic, extras
from twelve_in_one.checkpoints import init_from, inputs_record, model_folder, state
from twelve_in_one.config.paths import local_path
from twelve_in_one.data.builders.report import Progress
from twelve_in_one.data.pipeline import TaskStream, hide_accelerators
from twelve_in_one.evaluators import submissions, suite
from twelve_in_one.evaluators.baselines import BASELINES
from twelve_in_one.evaluators.follow import follow, seen_by_first
from twelve_in_one.evaluators.target import (
    REPORTED,
    Subject,
    baselines_of,
    check_inputs,
    of_model,
    of_workdir,
    open_stream,
    splits_to_score,
)
from twelve_in_one.parallel import processes, sharding
from twelve_in_one.report.results import parse_results, results_table, unscored_lines
from twelve_in_one.systems import SYSTEMS
from twelve_in_one.systems.base import System
from twelve_in_one.tasks.task import Task
from twelve_in_one.training.programs import Placement


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; refuses mistakes that show before any file is opened."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=local_path, help="of a run, complete or not")
    source.add_argument("--model", type=local_path, help="a model folder, as training leaves it")
    add("--data_dir", type=local_path, help="built datasets; that of the run by default")
    add("--features", help="name of the region features; those of the run by default")
    add("--tasks", help="comma-separated; all by default")
    add(
        "--split",
        help="a split, 'test' for all test splits, or 'reported' (default) for those of the "
        "paper's tables; with --follow the default is val",
    )
    add("--round", default="latest", help="of a run: a number, 'best' or 'latest' (default)")
    add("--follow", action="store_true", help="evaluate each new checkpoint of a running job")
    add("--idle_minutes", type=float, default=60.0, help="--follow gives up after; default 60")
    add("--poll_seconds", type=float, default=10.0, help="--follow looks every; default 10")
    add(
        "--submissions", type=local_path, help="folder for the predictions, a file a task and split"
    )
    add(
        "--candidates",
        choices=("detected", "annotated"),
        help="of referring expressions; 'annotated' is another protocol, with higher numbers",
    )
    add("--max_examples", type=int, default=0, help="of a split; 0 (default) takes all")
    add(
        "--keep_trained_on",
        action="store_true",
        help="also score records that the model was trained on, which are left out by default",
    )
    add("--text_baselines", action="store_true", help="also score chance, majority and words; slow")
    add("--batch_size", type=int, default=0, help="0 (default) takes each task's own")
    add("--layout", choices=tuple(sharding.LAYOUTS), help="of the parameters on the devices")
    add("--model_axis", type=int, default=0, help="devices along the mesh's model axis")
    add(
        "--output",
        type=local_path,
        help="results as JSON; default evaluation-<round>-<split>.json in the workdir, or "
        "<model>-<split>.json beside the model",
    )
    add("--coordinator", help="host:port of process 0, of several")
    add("--num_processes", type=int, help="how many processes there are")
    add("--process_id", type=int, help="which of them this is")
    args = parser.parse_args(argv)
    if args.model and not (args.data_dir and args.features):
        parser.error("--model needs --data_dir and --features")
    if args.model and (args.follow or args.round != "latest"):
        parser.error("--follow and --round need --workdir")
    if args.round not in ("best", "latest") and not args.round.isdecimal():
        parser.error(f"--round should be a number, 'best' or 'latest', is {args.round!r}")
    for name in ("max_examples", "batch_size", "model_axis", "idle_minutes", "poll_seconds"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} should not be negative, is {getattr(args, name)}")
    if args.submissions and args.max_examples:
        parser.error("--submissions needs all examples: leave --max_examples out")
    if args.submissions and args.follow:
        parser.error("--submissions are of one round: leave --follow out")
    args.split = args.split or ("val" if args.follow else REPORTED)
    return args


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      ValueError: model, data or options do not fit each other.
      ImportError: the `data` extra is not installed.
      OSError: a file cannot be read or written.
    """
    extras.require("reading built datasets", "data")
    if args.workdir and args.follow:
        _await_config(args)
    if args.workdir and _is_of_pictures(args.workdir):
        _run_pictures(args)
        return
    last_round = 0
    if args.model:
        subject = of_model(args.model, args.data_dir, args.features)
    else:
        subject, last_round = of_workdir(args.workdir, args.data_dir, args.features)
    if args.candidates:
        everywhere = {task.name: args.candidates for task in subject.tasks}
        subject = dataclasses.replace(subject, candidates=everywhere)
    subject = dataclasses.replace(
        subject, folder=dataclasses.replace(subject.folder, keep_trained_on=args.keep_trained_on)
    )
    for note in subject.notes:
        _say(f"note: {note}")
    hide_accelerators()  # slow, so wrong paths are reported before it
    known = {task.name: task for task in subject.tasks}
    names = args.tasks.split(",") if args.tasks else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{subject.name} knows no task {unknown}; it knows {', '.join(known)}")
    tasks = [known[name] for name in names]
    splits, missing = splits_to_score(subject, tasks, args.split)
    if missing:
        _say(f"not built, and left out: {', '.join(missing)}")
    if not splits:
        raise ValueError(f"{subject.folder.path}: there is no split {args.split!r} to score")
    for note in check_inputs(subject, [known[name] for name in splits], splits):
        _say(f"note: {note}")
    placement = Placement.make(
        subject.system.abstract(),
        args.layout or subject.layout,
        args.model_axis or subject.model_axis,
    )
    baselines = None
    if args.text_baselines:
        baselines = baselines_of(subject.folder, subject.candidates, args.max_examples)
    written: list[Path] = []

    def keep(stream: TaskStream, split: str, predictions: Any) -> None:
        written.append(submissions.write(args.submissions, stream, split, predictions))

    if args.submissions and not args.keep_trained_on:
        _refuse_gaps(subject, placement, known, splits)

    def score(params: Any) -> dict[str, Any]:
        found = suite.evaluate_all(
            subject.system,
            placement,
            params,
            splits,
            lambda name, split: open_stream(
                subject, placement, known[name], split, args.batch_size
            ),
            options=subject.options,
            max_examples=args.max_examples,
            prefetch=subject.prefetch,
            baselines=baselines,
            keep=keep if args.submissions else None,
            progress=Progress("evaluate") if jax.process_index() == 0 else None,
        )
        return {"split": args.split} | found

    if args.model:
        params, _, _ = model_folder.load(
            args.model, shardings=placement.params, scan_layers=subject.system.scanned
        )
        beside = args.model.with_name(f"{args.model.name}-{args.split}.json")
        _report(score(params), args.output or beside)
    else:
        _of_rounds(args, subject.system, placement, score, last_round)
    for path in written:
        _say(f"wrote {path}")


def _is_of_pictures(workdir: Path) -> bool:
    return SYSTEMS[state.read_config(workdir).system.name].pixels


def _run_pictures(args: argparse.Namespace) -> None:
    """`run` for a system of pictures.

    Raises:
      ValueError: options of other systems, or inputs that are not those of training.
    """
    refused = [
        f"--{name}"
        for name in (
            "data_dir",
            "features",
            "candidates",
            "keep_trained_on",
            "layout",
            "batch_size",
            "model_axis",
        )
        if getattr(args, name)
    ]
    if refused:
        raise ValueError(f"{', '.join(refused)}: not for models of pictures; see their config")
    from twelve_in_one.data.inputs import open_inputs

    config = state.read_config(args.workdir)
    hide_accelerators()
    inputs = open_inputs(config, args.workdir)
    system = inputs.system()
    if config.images.tokens and system.token_encoder is not None:
        inputs.use_encoder(init_from.encoder_of(config.init_from, args.workdir))
    record = inputs_record.read(args.workdir)
    if record is not None:
        inputs_record.check(record, inputs.serving(system), inputs.path)
        inputs = inputs.for_tests(record.serving.trained_on, True)
    known = {task.task.name: task for task in inputs.tasks}
    names = args.tasks.split(",") if args.tasks else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{args.workdir} knows no task {unknown}; it knows {', '.join(known)}")
    splits = {}
    for name in names:
        options = known[name].options
        wanted = options.test_splits if args.split in (REPORTED, "test") else (args.split,)
        splits[name] = inputs.splits(known[name], wanted)
        if not splits[name]:
            raise ValueError(f"{name} has no split {', '.join(wanted)}")
    placement = Placement.make(system.abstract(), config.parallel.layout, config.parallel.model)
    limit, written = args.max_examples, []
    baselines = BASELINES[inputs.kind](inputs, limit) if args.text_baselines else None

    def keep(stream: Any, split: str, outcome: Any) -> None:
        written.append(submissions.write_texts(args.submissions, stream, split, outcome))

    def score(params: Any) -> dict[str, Any]:
        found = suite.evaluate_all(
            system,
            placement,
            params,
            splits,
            lambda name, split: inputs.evaluation_stream(known[name], split, system),
            options=config.evaluation,
            max_examples=limit,
            prefetch=config.data.prefetch,
            baselines=baselines,
            keep=keep if args.submissions else None,
            progress=Progress("evaluate") if jax.process_index() == 0 else None,
        )
        return {"split": args.split} | found

    _of_rounds(args, system, placement, score, config.schedule.num_rounds)
    for path in written:
        _say(f"wrote {path}")


def _refuse_gaps(
    subject: Subject,
    placement: Placement,
    known: Mapping[str, Task],
    splits: Mapping[str, Sequence[str]],
) -> None:
    """Submissions need all records, including those that the model was trained on."""
    for name, wanted in splits.items():
        for split in wanted:
            seen = open_stream(subject, placement, known[name], split).selection.seen
            if seen is not None and seen.left_out:
                raise ValueError(
                    f"{name}/{split}: {seen.records:,} of {seen.of_records:,} records were trained "
                    "on and would be left out, but --submissions needs all: add --keep_trained_on"
                )


def _await_config(args: argparse.Namespace) -> None:
    """Waits until the job has written its config, which follows the compilation of its programs.

    Raises:
      ValueError: it did not within `--idle_minutes`.
    """
    path, start, told = args.workdir / state.CONFIG, time.monotonic(), False
    while not seen_by_first(path.is_file):
        if processes.broadcast(time.monotonic() - start >= 60 * args.idle_minutes):
            raise ValueError(
                f"{path}: not there after {args.idle_minutes:g} minutes; is {args.workdir} the "
                "workdir of a run?"
            )
        if not told:
            _say(f"waiting for {path}, which a run writes once it has compiled its programs")
            told = True
        time.sleep(args.poll_seconds)


def _of_rounds(
    args: argparse.Namespace,
    system: System,
    placement: Placement,
    score: Callable[[Any], dict[str, Any]],
    last_round: int,
) -> None:
    """Evaluates one round of a run, or all that appear."""

    def restore(round: int) -> Any:
        state.read_progress(args.workdir, round)  # first, so that damage shows early
        return state.restore_params(args.workdir, round, system, placement.params)

    def evaluate(round: int, params: Any) -> dict[str, Any]:
        updates = sum(state.read_progress(args.workdir, round).positions.values())
        return {"round": round, "updates": updates} | score(params)

    if args.follow:

        def one(round: int, params: Any) -> dict[str, Any]:
            found = evaluate(round, params)
            _say(f"round {round}:\n{_table(found)}")
            return found

        follow(
            args.workdir,
            args.split,
            restore,
            one,
            last_round=last_round,
            idle_seconds=60 * args.idle_minutes,
            poll_seconds=args.poll_seconds,
        )
        return
    rounds = seen_by_first(lambda: _rounds_to_try(args))
    chosen, params = state.first_readable(args.workdir, rounds, restore)
    name = f"evaluation-{chosen}-{args.split}.json"
    _report(evaluate(chosen, params), args.output or args.workdir / name)


def _rounds_to_try(args: argparse.Namespace) -> list[int]:
    if not state.all_rounds(args.workdir):
        raise ValueError(
            f"{args.workdir}: there is no checkpoint yet; --follow waits for the first"
        )
    return state.choose_rounds(args.workdir, args.round)


def _report(found: dict[str, Any], path: Path) -> None:
    if jax.process_index() == 0:
        print(_table(found))
        atomic.write(path, json.dumps(found, indent=2) + "\n")
        _say(f"wrote {path}")


def _table(found: dict[str, Any]) -> str:
    lines = [results_table(found)] if found["tasks"] else unscored_lines(parse_results(found))
    return "\n".join([*lines, *found["cut_texts"]])


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, or 1 after an error that the user can fix."""
    args = parse_arguments(argv)
    try:
        processes.initialize(
            coordinator=args.coordinator,
            num_processes=args.num_processes,
            process_id=args.process_id,
        )
        run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
