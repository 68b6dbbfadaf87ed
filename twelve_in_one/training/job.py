"""The parts of a run: its data, devices, plan, optimizer and programs.

A run trains on streams: one per task, whose batches come in turn, or one of all tasks, whose
batches are mixed.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one.checkpoints import init_from, state
from twelve_in_one.config import check
from twelve_in_one.config.check import MIXTURE, TaskRun
from twelve_in_one.config.settings import ConfigError, RunConfig
from twelve_in_one.data.image_serving import ImageServing
from twelve_in_one.data.serving import Serving
from twelve_in_one.mixing import plan, stop_and_go
from twelve_in_one.optim import adamw, param_groups, schedules
from twelve_in_one.optim.adafactor import adafactor
from twelve_in_one.optim.sgd import sgd
from twelve_in_one.parallel import processes
from twelve_in_one.parallel.placement import Placement
from twelve_in_one.systems.base import System
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.training import programs

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything about a run that does not change while it runs."""

    run: RunConfig
    workdir: Path
    tasks: tuple[TaskRun, ...]
    inputs: Any  # data.inputs.RunInputs
    serving: Serving | ImageServing
    system: System
    placement: Placement
    groups: tuple[param_groups.ParamGroup, ...]
    optimizer: Any
    rate: schedules.Schedule
    schedule: plan.Schedule
    controller: stop_and_go.Controller
    train_streams: Mapping[str, Any]
    val_streams: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(task.task.name for task in self.tasks)

    @property
    def learnt(self) -> tuple[TaskRun, ...]:
        """The tasks that are trained on; the others are only scored."""
        return tuple(task for task in self.tasks if task.options.learns)

    @property
    def mixed(self) -> bool:
        """Whether all tasks share one stream."""
        return MIXTURE in self.train_streams

    def tasks_of(self, stream: str) -> tuple[TaskRun, ...]:
        """The tasks to score where a training stream is; a mixed one stands for all."""
        if stream == MIXTURE:
            return self.tasks
        return tuple(task for task in self.tasks if task.task.name == stream)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of frozen parameters."""
        return (*self.system.frozen, *self.run.optimizer.frozen)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Stream -> names of the parts of its loss, none if it has one.

        A mixed stream has one at least: its task.
        """
        found = {}
        for stream in self.streams:
            names = tuple(task.name for task in stream.tasks) if self.mixed else ()
            found[stream.name] = self.system.objective(stream.tasks).parts or names
        return found

    @property
    def streams(self) -> tuple[programs.StreamRun, ...]:
        """What programs train on."""
        return stream_runs(self.run, self.tasks)


def open_job(run: RunConfig, workdir: Path) -> Job:
    """Opens data, devices and plan of a run; compiles nothing yet.

    Raises:
      ValueError: settings and data do not fit each other, or data or `init_from` is missing.
    """
    from twelve_in_one.data.inputs import ImageInputs, open_inputs
    from twelve_in_one.training import prepare

    begun = (workdir / state.CHECKPOINTS).exists()
    if jax.process_index() == 0 and not begun:
        prepare.prepare_encoder(run)
    processes.barrier("encoder prepared")
    source = run.init_from.path
    if source and not Path(source).exists() and not begun:
        raise ValueError(f"config.init_from.path: there is no {source}")
    if jax.process_index() == 0:
        prepare.prepare(run, workdir)
    processes.barrier("data prepared")
    tasks = check.task_runs(run)
    inputs = open_inputs(run, workdir)
    if isinstance(inputs, ImageInputs):
        inputs.check_sources()
    system = inputs.system()
    if run.images.tokens and system.token_encoder is not None:
        inputs.use_encoder(init_from.encoder_of(run.init_from, workdir))
    train_streams = inputs.train_streams(system)
    val_streams = {
        task.task.name: inputs.evaluation_stream(task, task.options.val_split, system)
        for task in tasks
    }
    planned = tuple(
        plan.PlannedTask(name, stream.selection.num_examples, stream.selection.num_batches)
        for name, stream in train_streams.items()
    )
    schedule, controller = schedule_of(run, planned)
    groups = system.groups(run.optimizer, run.system.official)
    rate, optimizer = optimizer_of(run, groups)
    return Job(
        run,
        workdir,
        tasks,
        inputs,
        inputs.serving(system),
        system,
        placement_of(run, system),
        groups,
        optimizer,
        rate,
        schedule,
        controller,
        train_streams,
        val_streams,
    )


def stream_runs(run: RunConfig, tasks: Sequence[TaskRun]) -> tuple[programs.StreamRun, ...]:
    """The training streams of a run, as programs see them."""
    if run.mixture.weighting:
        learnt = tuple(task.task for task in tasks if task.options.learns)
        return (programs.StreamRun(MIXTURE, learnt, 1.0, run.mixture.accumulate),)
    scales = check.loss_scales(tasks)
    return tuple(
        programs.StreamRun(
            task.task.name, (task.task,), scales[task.task.name], task.options.accumulate
        )
        for task in tasks
    )


def placement_of(run: RunConfig, system: System) -> Placement:
    """Where the settings put the parameters on the devices of all processes.

    Raises:
      ValueError: see `Placement.make`.
    """
    options = run.parallel
    return Placement.make(
        system.abstract(),
        options.layout,
        options.model,
        devices=options.devices,
        slices=options.slices,
    )


def schedule_of(
    run: RunConfig, planned: tuple[plan.PlannedTask, ...]
) -> tuple[plan.Schedule, stop_and_go.Controller]:
    """The plan of a run and the rule that stops its tasks."""
    options = dataclasses.asdict(run.schedule)
    controller = {
        key: options.pop(key) for key in ("patience", "threshold", "continue_threshold", "cooldown")
    }
    resets = run.system.official.resets
    schedule = plan.Schedule(planned, seed=run.seed, official_resets=resets, **options)
    return schedule, stop_and_go.Controller(**controller)


def advances_within_round(run: RunConfig) -> bool:
    """Whether the learning rate changes within a round, as in the released task training."""
    pretrains = any(KINDS[task.task.kind].pretrains for task in check.task_runs(run))
    return run.system.official.schedule and not pretrains


def optimizer_of(
    run: RunConfig, groups: tuple[param_groups.ParamGroup, ...]
) -> tuple[schedules.Schedule, Any]:
    """The learning rate as a function of the clock, and the optimizer."""
    options, official, rounds = run.optimizer, run.system.official, run.schedule.num_rounds
    within_round = advances_within_round(run)
    stepped = options.schedule == "step"
    factor = schedules.make(
        options.schedule,
        rounds,
        options.warmup_share * rounds,
        boundaries=options.step_rounds if stepped else (),
        decay=options.step_factor if stepped else 0.2,
        official_advance_before_update=official.schedule and not within_round,
        official_advance_within_round=within_round,
        official_epoch_rounds=(official.epoch_rounds or None) if stepped else None,
    )

    def rate(clock: Any) -> Any:
        return options.learning_rate * factor(clock)

    if options.name == "adafactor":
        return rate, adafactor(options.learning_rate, factor, groups, momentum=options.b1)
    if options.name in ("sgd", "nesterov"):
        nesterov = options.name == "nesterov"
        return rate, sgd(rate, groups, momentum=options.b1, nesterov=nesterov)
    numbers = dict(b1=options.b1, b2=options.b2, eps=options.eps)
    if options.name == "radam":
        return rate, adamw.radam(
            rate, groups, **numbers, official_shared_step_size=official.shared_step_size
        )
    return rate, adamw.adamw(
        rate,
        groups,
        **numbers,
        official_no_bias_correction=official.no_bias_correction,
        official_decay_after_update=official.decay_after_update,
        official_uncorrected_eps=official.uncorrected_eps,
        official_unreached=official.unreached,
    )


def abstract_of(job: Job) -> tuple[Any, Any]:
    """`programs.abstract_state` and `programs.abstract_frozen` of a run.

    Raises:
      ConfigError: a pattern of frozen parameters matches none.
    """
    try:
        state = programs.abstract_state(job.system, job.placement, job.optimizer, job.frozen)
    except ValueError as error:
        raise ConfigError([f"optimizer.frozen: {error}"]) from error
    return state, programs.abstract_frozen(
        job.system, job.placement, job.frozen, job.run.optimizer.frozen_dtype
    )


def compile_job(
    job: Job, state: Any, frozen: Any
) -> tuple[programs.Programs, tuple[programs.Program, ...]]:
    """Compiles all programs of the run, from its `abstract_of`; also returns the compile list."""
    planned = programs.plan_all(
        job.system,
        job.placement,
        job.streams,
        job.tasks,
        job.optimizer,
        state,
        frozen,
        {name: stream.batch(0) for name, stream in job.train_streams.items()},
        job.val_streams,
        clip_norm=job.run.optimizer.clip_norm,
        fused=job.run.optimizer.update == "fused",
        official_schedule=advances_within_round(job.run),
    )
    return programs.compile_all(planned, job.placement, _log.info)
