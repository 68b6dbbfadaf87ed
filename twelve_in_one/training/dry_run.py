"""Describes a run as text: plan, shapes, cut texts, groups, programs, memory and time."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from twelve_in_one.checkpoints import trees
from twelve_in_one.config.check import MIXTURE
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.logs import profiling
from twelve_in_one.logs.stopwatch import duration
from twelve_in_one.mixing import mixed, plan, stop_and_go
from twelve_in_one.mixing.mixed import Size
from twelve_in_one.optim import param_groups
from twelve_in_one.parallel.placement import HOST_ONLY, Placement
from twelve_in_one.systems.base import System
from twelve_in_one.training import programs
from twelve_in_one.training.job import Job, optimizer_of, placement_of, schedule_of

_PLANNED_ROUNDS, _REPEATS = 2000, 3


def describe(
    job: Job,
    compiled: programs.Programs,
    table: Sequence[programs.Program],
    abstract: Any,
    frozen: Any,
) -> str:
    """Returns the text. Runs every program a few times on real batches; changes nothing on disk."""
    batches = {name: stream.batch(0) for name, stream in job.train_streams.items()}
    rounds = min(_PLANNED_ROUNDS, job.schedule.num_rounds)
    sections = (
        ("plan", plan.format_plan(job.schedule, stop_and_go.init(job.names), 0, rounds)),
        ("batches", _shapes(job, batches)),
        ("texts", "\n".join(map(str, job.inputs.cut_texts(job.train_streams))) or "none"),
        ("parameters", param_groups.describe(abstract.params, job.groups)),
        ("programs", programs.compile_list(table)),
        ("memory", _memory(job.system, job.placement, job.optimizer, abstract, frozen)),
        ("time", _time(job, compiled, abstract, frozen, batches)),
    )
    return _text(sections)


def describe_without_data(run: RunConfig, workdir: Path, why: Exception) -> str:
    """What is known of a run whose data is not there, and what is missing, as text.

    Args:
      run: the settings.
      workdir: of the run.
      why: the error of opening the data.

    Raises:
      ConfigError: a size in the settings does not fit.
    """
    from twelve_in_one.data.outline import outline

    known = outline(run, workdir, why)
    system = known.system
    names = [name for name in run.tasks if run.task[name].learns]
    sections = [("missing", "\n".join(known.missing))]
    by_image = run.mixture.weighting == "images"
    unknown = [
        name
        for name in names
        if name not in known.sizes or (by_image and not known.sizes[name].images)
    ]
    if unknown:
        sections.append(("plan", f"needs the size of the training set of {', '.join(unknown)}"))
    else:
        sizes = {name: known.sizes[name] for name in names}
        planned, weights = _planned(run, sizes)
        schedule, _ = schedule_of(run, planned)
        rounds = min(_PLANNED_ROUNDS, schedule.num_rounds)
        start = stop_and_go.init(tuple(task.name for task in planned))
        sections.append(("plan", plan.format_plan(schedule, start, 0, rounds)))
        sections.append(("mixture", "\n".join(_weights(names, weights, sizes.values()))))
    groups = system.groups(run.optimizer, run.system.official)
    _, optimizer = optimizer_of(run, groups)
    placement = placement_of(run, system)
    patterns = (*system.frozen, *run.optimizer.frozen)
    abstract = programs.abstract_state(system, placement, optimizer, patterns)
    frozen = programs.abstract_frozen(system, placement, patterns, run.optimizer.frozen_dtype)
    sections.append(("parameters", param_groups.describe(abstract.params, groups)))
    sections.append(("memory", _memory(system, placement, optimizer, abstract, frozen)))
    return _text(sections)


def _planned(
    run: RunConfig, sizes: Mapping[str, Size]
) -> tuple[tuple[plan.PlannedTask, ...], Sequence[float]]:
    """The streams of a run, and the weights of its tasks, none if they are not mixed."""
    mixture = run.mixture
    if not mixture.weighting:
        batches = {name: run.task[name].batch_size for name in sizes}
        return tuple(
            plan.PlannedTask(name, size.pairs, -(-size.pairs // batches[name]))
            for name, size in sizes.items()
        ), ()
    by_image = mixture.weighting == "images"
    weights = mixed.weights_of(
        mixture.weighting,
        sizes,
        temperature=mixture.temperature,
        explicit={name: run.task[name].weight for name in sizes},
    )
    count = sum(size.images if by_image else size.pairs for size in sizes.values())
    stream = plan.PlannedTask(MIXTURE, count, -(-count // mixture.batch_size))
    return (stream,), tuple(weights.values())


def _text(sections: Iterable[tuple[str, str]]) -> str:
    return "\n\n".join(f"== {title}\n{text}" for title, text in sections)


def _weights(
    names: Sequence[str], weights: Sequence[float], sizes: Iterable[Size]
) -> Iterator[str]:
    """Rows of the share of each task in a mixed stream."""
    if not weights:
        yield "every batch is of one task"
        return
    yield f"{'of which':10}  {'weight':>9}  {'pairs':>11}  {'images':>10}"
    for task, weight, (pairs, images) in zip(names, weights, sizes, strict=True):
        yield f"{task:10}  {weight:9.4f}  {pairs:11,}  {format(images, ',') if images else '?':>10}"


def _shapes(job: Job, batches: Any) -> str:
    rows = [
        f"{'stream':10}  {'examples':>9}  {'in parts of':>11}  {'loss scale':>10}  "
        f"{'MB a batch':>10}  largest inputs"
    ]
    for stream in job.streams:
        batch = batches[stream.name]
        arrays = {name: x for name, x in batch.items() if name != HOST_ONLY}
        size = sum(x.nbytes for x in arrays.values())
        largest = sorted(arrays, key=lambda name: -arrays[name].nbytes)[:2]
        shapes = (f"{name} {'x'.join(map(str, arrays[name].shape[1:]))}" for name in largest)
        count = job.train_streams[stream.name].selection.batch_size
        rows.append(
            f"{stream.name:10}  {count:9,}  {count // stream.accumulate:11,}  "
            f"{stream.loss_scale:10g}  {size * jax.process_count() / 1e6:10.1f}  "
            f"{', '.join(shapes)}"
        )
    if job.mixed:
        stream = job.train_streams[MIXTURE]
        names = [task.task.name for task in job.learnt]
        weights = stream.selection.order.stages[0].weights
        rows += _weights(names, weights, [part.images.size for part in stream.parts])
    return "\n".join(rows)


def _memory(
    system: System, placement: Placement, optimizer: Any, abstract: Any, frozen: Any
) -> str:
    """What a device holds of the state, and what it would hold if nothing were frozen."""

    def a_device(tree: Any) -> int:
        return sum(
            leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(tree)
        )

    def row(name: str, trained: int, rest: int) -> str:
        sizes = [profiling.format_bytes(size) if size else "none" for size in (trained, rest)]
        return f"{name:12}  {sizes[0]:>10}  {sizes[1]:>10}"

    params, rest, moments = map(a_device, (abstract.params, frozen, abstract.opt_state))
    lines = [
        f"{system.num_parameters:,} parameters on mesh {dict(placement.mesh.shape)}, layout "
        f"{placement.layout}; a device holds",
        f"{'':12}  {'trained':>10}  {'frozen':>10}",
        row("parameters", params, rest),
        row("gradients", params, 0),
        row("optimizer", moments, 0),
        f"{profiling.format_bytes(2 * params + moments + rest)} in all",
    ]
    if rest:
        whole = programs.abstract_state(system, placement, optimizer)
        before = 2 * a_device(whole.params) + a_device(whole.opt_state)
        lines[-1] += f", and {profiling.format_bytes(before)} if all of them were trained"
    return "\n".join(lines)


def _time(job: Job, compiled: programs.Programs, abstract: Any, frozen: Any, batches: Any) -> str:
    """Measures every step, and counts how often the plan runs it if no task stops."""
    state, rest = programs.random_state(
        job.system, job.optimizer, abstract, job.run.seed, job.frozen, frozen
    )
    key = job.placement.everywhere(jax.random.key(job.run.seed))
    flags = [job.placement.everywhere(jnp.bool_(value)) for value in (False, True)]
    expected = plan.expected_updates(job.schedule)
    rows = [
        f"{'stream':10}  {'s an update':>11}  {'updates':>9}  {'s a validation':>14}  "
        f"{'in all':>12}"
    ]
    total = 0.0
    for stream in job.streams:
        name = stream.name
        batch = job.placement.place(batches[name])
        seconds = []
        for _ in range(_REPEATS + 1):  # the first is a warm-up
            start = time.perf_counter()
            if compiled.update is None:
                state, _ = compiled.grad[name](state, batch, key, rest)
            else:
                gradient, _ = compiled.grad[name](state.params, state.step, batch, key, rest)
                state = compiled.update(state, gradient, *flags)
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - start)
        planned = next(t for t in job.schedule.tasks if t.name == name)
        times = job.schedule.num_rounds // plan.validation_interval(job.schedule, planned) + 1
        params = trees.merge(state.params, rest)
        validation = sum(
            _validation(job, compiled, params, task.task.name) for task in job.tasks_of(name)
        )
        update = min(seconds[1:])
        all_of_it = update * expected[name] + validation * times
        total += all_of_it
        rows.append(
            f"{name:10}  {update:11.4f}  {expected[name]:9,}  {validation:14.2f}  "
            f"{duration(all_of_it):>12}"
        )
    rows.append(
        f"in all {duration(total)} if nothing stops, the data keeps up, and this machine stays as "
        "idle as it is now"
    )
    return "\n".join(rows)


def _validation(job: Job, compiled: programs.Programs, params: Any, name: str) -> float:
    """Seconds of a validation of a task, from one batch."""
    stream = job.val_streams[name]
    batch = job.placement.place(stream.batch(0))
    jax.block_until_ready(compiled.evaluate[name](params, batch))
    start = time.perf_counter()
    jax.block_until_ready(compiled.evaluate[name](params, batch))
    limit, num_batches = job.run.evaluation.max_validation_examples, stream.selection.num_batches
    if limit:
        num_batches = min(num_batches, -(-limit // stream.selection.batch_size))
    return (time.perf_counter() - start) * num_batches
