"""The training loop: rounds of updates with validations between them, following the plan.

This module waits for the devices only to write a log line or a checkpoint.
"""

import collections
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from twelve_in_one.checkpoints import frozen, init_from, state, trees
from twelve_in_one.config.check import MIXTURE
from twelve_in_one.evaluators import suite
from twelve_in_one.logs import metrics_writer, profiling
from twelve_in_one.logs.stopwatch import Stopwatch, duration
from twelve_in_one.logs.window import LogWindow
from twelve_in_one.mixing import mixed, stop_and_go
from twelve_in_one.mixing import plan as task_plan
from twelve_in_one.optim import schedules
from twelve_in_one.parallel import processes, sharding
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.training import programs, steps
from twelve_in_one.training.job import Job, advances_within_round

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Position:
    """The progress of the run: host values that the loop carries from round to round."""

    round: int
    controllers: stop_and_go.State
    scores: dict[str, float]
    window: LogWindow
    seconds: float
    frozen: str = ""  # hash of the frozen parameters
    stages: tuple[mixed.Stage, ...] = ()  # of a mixed stream


def begin(
    job: Job, checkpoints: state.Checkpoints, abstract: Any, abstract_frozen: Any
) -> tuple[steps.TrainState, Any, Position, dict[str, int]]:
    """Loads the starting point: workdir, else init_from, else random weights.

    Returns:
      The state, the frozen parameters, the position of the run, and batches used.

    Raises:
      ValueError: the checkpoint is of another run.
    """
    restored = checkpoints.restore_newest(abstract)
    if restored is not None:
        train_state, progress = restored
        newest = progress.round
        before = progress.controllers or progress.positions
        if set(before) != set(job.names) or set(progress.positions) != set(job.train_streams):
            raise ValueError(
                f"{job.workdir} holds a run of {', '.join(before)} "
                f"{'in' if MIXTURE in progress.positions else 'without'} a mixture, the config is "
                f"of {'a mixture of ' if job.mixed else ''}"
                f"{', '.join(job.names)}: choose another workdir, and begin with init_from"
            )
        if newest > job.run.schedule.num_rounds:
            raise ValueError(
                f"{job.workdir} holds a run at round {newest}, schedule.num_rounds is "
                f"{job.run.schedule.num_rounds}: a run can be made longer, not shorter; choose "
                "another workdir, or more rounds"
            )
        _log.info("resumed at round %d from %s", newest, job.workdir)
        controllers = stop_and_go.from_json(progress.controllers, job.names)
        window = _window(job, progress.window)
        position = Position(newest, controllers, dict(progress.scores), window, progress.seconds)
        position.stages = tuple(
            mixed.Stage(first, tuple(weights)) for first, weights in progress.stages
        )
        rest: Any = {}
        if progress.frozen:
            rest = frozen.read(job.workdir, abstract_frozen, progress.frozen, place=True)
            stored = {str(leaf.dtype) for leaf in jax.tree.leaves(rest)}
            if stored != {job.run.optimizer.frozen_dtype}:
                raise ValueError(
                    f"{job.workdir}: its frozen parameters are stored as {', '.join(stored)}, "
                    f"optimizer.frozen_dtype is {job.run.optimizer.frozen_dtype}: set it as it was"
                )
            position.frozen = progress.frozen
        return train_state, rest, position, dict(progress.positions)
    train_state, rest = programs.random_state(
        job.system, job.optimizer, abstract, job.run.seed, job.frozen, abstract_frozen
    )
    if job.run.init_from.path:
        params = trees.merge(train_state.params, rest)
        params, report = init_from.load(job.run.init_from, params, job.system, job.serving)
        trained, rest = trees.split(params, job.frozen)
        # The programs take these types, whatever the source has.
        train_state = train_state._replace(params=trees.as_dtypes_of(trained, abstract.params))
        rest = trees.as_dtypes_of(rest, abstract_frozen)
        _log.info("weights from %s\n%s", job.run.init_from.path, report)
    else:
        _log.info("random weights, seed %d", job.run.seed)
        if job.frozen:
            _log.warning(
                "parameters that are never trained are random, too, as init_from.path is empty"
            )
    sentences = job.inputs.sentences(job.system)
    if sentences is not None:
        params = trees.merge(train_state.params, rest)
        found = jax.jit(job.system.derived)(params, sentences)
        params |= {
            name: jax.device_put(value, params[name].sharding) for name, value in found.items()
        }
        trained, rest = trees.split(params, job.frozen)
        train_state = train_state._replace(params=trees.as_dtypes_of(trained, abstract.params))
        rest = trees.as_dtypes_of(rest, abstract_frozen)
    position = Position(0, stop_and_go.init(job.names), {}, _window(job), 0.0)
    if job.frozen:
        position.frozen = frozen.write(job.workdir, rest)
    return train_state, rest, position, dict.fromkeys(job.train_streams, 0)


def _window(job: Job, saved: Mapping[str, Any] | None = None) -> LogWindow:
    return LogWindow(job.parts, saved, (MIXTURE,) if job.mixed else ())


def validate(job: Job, compiled: programs.Programs, params: Any, name: str) -> dict[str, Any]:
    """Scores a task on its validation split: score, loss, examples."""
    stream = job.val_streams[name]
    if KINDS[stream.task.kind].embedded:
        summary, _ = suite.score_embedded(
            job.system,
            job.placement,
            params,
            stream,
            compiled=compiled.evaluate[name],
            max_examples=job.run.evaluation.max_validation_examples,
            prefetch=job.run.data.prefetch,
        )
        return summary
    if KINDS[stream.task.kind].detected:
        summary, _ = suite.score_detected(
            job.system,
            job.placement,
            params,
            stream,
            thorough=False,
            compiled=compiled.evaluate[name],
            max_examples=job.run.evaluation.max_validation_examples,
            prefetch=job.run.data.prefetch,
        )
        return summary
    summary, _ = suite.score_stream(
        compiled.evaluate[name],
        params,
        stream,
        job.placement.place,
        max_examples=job.run.evaluation.max_validation_examples,
        prefetch=job.run.data.prefetch,
    )
    return summary


def run_rounds(
    job: Job,
    compiled: programs.Programs,
    train_state: steps.TrainState,
    rest: Any,
    position: Position,
    mixture: Any,
    checkpoints: state.Checkpoints,
    writer: metrics_writer.MetricsWriter,
    stop: processes.StopRequest,
) -> tuple[steps.TrainState, bool]:
    """The training loop; advances `position` and `mixture`, `rest` are the frozen parameters.

    Returns:
      The state, and whether the run is complete: False if it was asked to stop and has saved.

    Raises:
      FloatingPointError: a gradient is not finite, and the config says to raise.
      OSError: a checkpoint cannot be written.
    """
    run, total = job.run, job.run.schedule.num_rounds
    profile = profiling.ProfileWindow(
        run.log.profile_start, run.log.profile_rounds, job.workdir / metrics_writer.EVENTS
    )
    stopwatch = Stopwatch(position.round, position.seconds)
    updates = _Updates(job, compiled, rest, mixture, position.window, stopwatch)
    saved = position.round if checkpoints.latest() == position.round else -1
    plan: collections.deque[tuple[str, ...]] = collections.deque()
    _reweigh(job, position, mixture, resumed=True)

    def whole(train_state: steps.TrainState) -> Any:
        return trees.merge(train_state.params, rest)

    def save() -> None:
        nonlocal saved
        if saved == position.round:
            return
        _settle(job, position)
        position.seconds = stopwatch.total()
        checkpoints.save(train_state, _progress(position, mixture.positions))
        saved = position.round

    with contextlib.closing(profile):
        while position.round < total:
            number = position.round
            if not plan:
                holds = task_plan.rounds_until_validation(job.schedule, number)
                state_of = _controllers_of_streams(job, position.controllers)
                plan.extend(task_plan.plan(job.schedule, state_of, number, holds))
            names = plan.popleft()
            profile.step(number, train_state.params)
            train_state = updates.round(train_state, names)
            position.round = number + 1
            stopping = stop.agreed(number)
            if position.round % run.log.every_rounds == 0 or position.round == total:
                _log_training(job, train_state, position, stopwatch, updates.done, writer)
            due = [
                task.task.name
                for stream in task_plan.validations(job.schedule, number)
                for task in job.tasks_of(stream)
            ]
            if due:
                with stopwatch.pause():
                    _validate_all(job, compiled, whole(train_state), due, position, writer)
                _reweigh(job, position, mixture)
            if number in job.schedule.official_resets:
                position.controllers = stop_and_go.reset(position.controllers)
            if (
                stopping
                or position.round == total
                or (position.round % run.checkpoint.every_rounds == 0)
            ):
                with stopwatch.pause():
                    save()
            if stopping and position.round < total:
                _log.info("stopped at round %d (%s)", position.round, stop.reason or "asked")
                return train_state, False
    return train_state, True


def _controllers_of_streams(job: Job, controllers: stop_and_go.State) -> stop_and_go.State:
    """A mixed stream stops only when all of its tasks have."""
    if not job.mixed:
        return controllers
    stopped = all(controllers[task.task.name].stopped for task in job.learnt)
    return {MIXTURE: stop_and_go.TaskState(stopped=stopped)}


def _reweigh(job: Job, position: Position, mixture: Any, *, resumed: bool = False) -> None:
    """Brings a mixed stream to the weights that the controllers ask for, from the next batch on.

    Args:
      job: the run.
      position: of the run; holds the stages so far.
      mixture: the `data.mixture.Mixture` to change.
      resumed: also if the weights stay, as the stream does not know earlier stages yet.
    """
    if not job.mixed:
        return
    stream = job.train_streams[MIXTURE]
    (first,) = stream.selection.order.stages
    names = [task.task.name for task in job.learnt]
    weights = dict(zip(names, first.weights, strict=True))
    if job.schedule.kind == "stop_and_go":
        weights = mixed.weights_now(weights, position.controllers, job.schedule.gap) or weights
    now = mixed.Stage(mixture.positions[MIXTURE], tuple(weights.values()))
    stages = position.stages or (first,)
    if now.weights != stages[-1].weights:
        kept = tuple(stage for stage in stages if stage.first_batch < now.first_batch)
        stages = (*kept, now)
    if stages != position.stages or resumed:
        if stages != (first,):
            mixture.replace(MIXTURE, stream.with_stages(stages))
            shares = ", ".join(
                f"{name} {weight:.3f}" for name, weight in zip(names, now.weights, strict=True)
            )
            _log.info("weights from batch %d on: %s", now.first_batch, shares)
        position.stages = stages


class _Updates:
    """Updates on the batches of a mixture. Never waits for a number from the devices."""

    def __init__(
        self,
        job: Job,
        compiled: programs.Programs,
        rest: Any,
        mixture: Any,
        window: LogWindow,
        stopwatch: Stopwatch,
    ):
        self._job, self._compiled, self._rest, self._mixture = job, compiled, rest, mixture
        self._window, self._stopwatch = window, stopwatch
        everywhere = job.placement.everywhere
        self._key = everywhere(jax.random.key(job.run.seed))
        self._flag = {value: everywhere(jax.numpy.bool_(value)) for value in (False, True)}
        self._ahead: collections.deque[jax.Array] = collections.deque()
        self._most_ahead = sharding.max_in_flight()
        self.done = sum(mixture.positions.values())

    def round(self, train_state: steps.TrainState, names: Sequence[str]) -> steps.TrainState:
        """Runs one round: each task's update in turn, or one update from the sum of gradients."""
        compiled, total = self._compiled, None
        with jax.transfer_guard(self._job.run.parallel.transfer_guard):
            for i, name in enumerate(names):
                last = i == len(names) - 1
                found = self._run(train_state, name)
                if compiled.update is None:
                    train_state = found
                elif compiled.add is None:
                    train_state = compiled.update(
                        train_state, found, self._flag[i > 0], self._flag[last]
                    )
                else:
                    total = found if total is None else compiled.add(total, found)
                    if last:
                        train_state = compiled.update(
                            train_state, total, self._flag[False], self._flag[True]
                        )
                self._wait(train_state)
        return train_state

    def _wait(self, train_state: steps.TrainState) -> None:
        """Waits until the devices' queue of programs is within its limit."""
        if not self._most_ahead:
            jax.block_until_ready(train_state.step)
        elif len(self._ahead) > self._most_ahead:
            jax.block_until_ready(self._ahead.popleft())

    def _starved(self) -> bool:
        return not self._ahead or self._ahead[-1].is_ready()

    def _run(self, train_state: steps.TrainState, name: str) -> Any:
        """The gradient of the task's next batch; in a run of one task, the state after it."""
        with self._stopwatch.waiting(self._starved):
            batch = self._mixture.next(name)
        with profiling.annotate(name, self.done):
            step, placed = self._compiled.grad[name], self._job.placement.place(batch)
            if self._compiled.update is None:
                found, metrics = step(train_state, placed, self._key, self._rest)
            else:
                found, metrics = step(
                    train_state.params, train_state.step, placed, self._key, self._rest
                )
        self._window.add(name, self.done, metrics.sums, metrics.grad_norm)
        if self._most_ahead:
            self._ahead.append(metrics.grad_norm)  # unlike the state it is not donated
        self._stopwatch.examples += self._job.train_streams[name].selection.batch_size
        self.done += 1
        return found


def _progress(position: Position, positions: Mapping[str, int]) -> state.Progress:
    return state.Progress(
        position.round,
        dict(positions),
        stop_and_go.to_json(position.controllers),
        position.scores,
        position.window.to_json(),
        position.seconds,
        position.frozen,
        [[stage.first_batch, list(stage.weights)] for stage in position.stages],
    )


def _settle(job: Job, position: Position) -> None:
    bad = position.window.settle()
    if bad and job.run.optimizer.on_nonfinite == "raise":
        raise FloatingPointError(
            f"not finite by round {position.round}: {'; '.join(bad[:5])}. These updates were not "
            "made. Lower optimizer.learning_rate or set optimizer.clip_norm; "
            "optimizer.on_nonfinite=skip leaves such updates out and counts them"
        )
    for line in bad:
        _log.warning("left out an update: %s", line)


def _log_training(
    job: Job,
    train_state: steps.TrainState,
    position: Position,
    stopwatch: Stopwatch,
    updates: int,
    writer: metrics_writer.MetricsWriter,
) -> None:
    _settle(job, position)
    means, rounds = position.window.means(), position.round
    done, skipped = (int(x) for x in jax.device_get((train_state.clock, train_state.skipped)))
    now = stopwatch.lap(rounds)
    last_clock = schedules.update_clock(
        max(done - 1, 0), official_advance_within_round=advances_within_round(job.run)
    )
    record = {
        "event": "train",
        "round": rounds,
        "updates": updates,
        **means,
        "updates_of": position.window.updates,
        "learning_rate": float(job.rate(last_clock)),
        "skipped": skipped,
        "timing": now,
    }
    writer.write(record)
    position.window.clear()
    left = (job.run.schedule.num_rounds - rounds) / now["rounds_per_s_overall"]
    stopped = [name for name, s in position.controllers.items() if s.stopped]
    scores = [means["score"][name] for name in job.names if name in means["score"]]
    show_stopped = stopped and job.schedule.kind == "stop_and_go"
    _log.info(
        "round %d/%d  %.1f updates/s  %.0f examples/s  data wait %.1f %%  ETA %s  "
        "mean score %.3f%s",
        rounds,
        job.run.schedule.num_rounds,
        now["updates_per_s"],
        now["examples_per_s"],
        100 * now["data_wait"],
        duration(left),
        sum(scores) / max(len(scores), 1),
        f"  stopped: {', '.join(stopped)}" if show_stopped else "",
    )


def _validate_all(
    job: Job,
    compiled: programs.Programs,
    params: Any,
    due: Sequence[str],
    position: Position,
    writer: metrics_writer.MetricsWriter,
) -> None:
    lines, begun = [], time.perf_counter()
    learnt = {task.task.name for task in job.learnt}
    for name in due:
        start = time.perf_counter()
        found = validate(job, compiled, params, name)
        before = after = position.controllers[name]
        if name in learnt:
            after = stop_and_go.update(job.controller, before, found["score"])
        position.controllers = {**position.controllers, name: after}
        position.scores[name] = found["score"]
        writer.write(
            {
                "event": "validation",
                "round": position.round,
                "task": name,
                "score": found["score"],
                "loss": found["loss"],
                "examples": found["examples"],
                "stopped": after.stopped,
                "best": after.best,
                "timing": {"seconds": time.perf_counter() - start},
            }
        )
        changes = {(False, True): " stops", (True, False): " goes again"}
        change = changes.get((before.stopped, after.stopped), "")
        lines.append(f"{name} {found['score']:.3f}{change}")
    seconds = time.perf_counter() - begun
    _log.info("round %d  validation (%.1f s): %s", position.round, seconds, ", ".join(lines))
