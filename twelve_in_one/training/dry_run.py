"""Describes a run as text: plan, shapes, cut texts, groups, programs, memory and time."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from twelve_in_one.checkpoints import trees
from twelve_in_one.config.check import MIXTURE
from twelve_in_one.logs import profiling
from twelve_in_one.logs.stopwatch import duration
from twelve_in_one.mixing import plan, stop_and_go
from twelve_in_one.optim import param_groups
from twelve_in_one.parallel.placement import HOST_ONLY
from twelve_in_one.training import programs
from twelve_in_one.training.job import Job

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
        ("memory", _memory(job, table, abstract, frozen)),
        ("time", _time(job, compiled, abstract, frozen, batches)),
    )
    return "\n\n".join(f"== {title}\n{text}" for title, text in sections)


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
        names = [task.task.name for task in job.learnt]
        selection = job.train_streams[MIXTURE].selection
        weights = selection.order.stages[0].weights
        rows.append(f"{'of which':10}  {'weight':>9}  {'pairs':>11}  {'images':>10}")
        for task, weight, part in zip(
            names, weights, job.train_streams[MIXTURE].parts, strict=True
        ):
            pairs, images = part.images.size
            rows.append(f"{task:10}  {weight:9.4f}  {pairs:11,}  {images:10,}")
    return "\n".join(rows)


def _memory(job: Job, table: Sequence[programs.Program], abstract: Any, frozen: Any) -> str:
    def a_device(tree: Any) -> int:
        return sum(
            leaf.dtype.itemsize * int(jnp.prod(jnp.array(leaf.sharding.shard_shape(leaf.shape))))
            for leaf in jax.tree.leaves(tree)
        )

    state, params = a_device(abstract), a_device(abstract.params)
    largest = max((p.memory.get("temporaries", 0) for p in table), default=0)
    lines = [
        f"{job.system.num_parameters:,} parameters on mesh "
        f"{dict(job.placement.mesh.shape)}, layout {job.placement.layout}",
        f"state {profiling.format_bytes(state)} a device, of which parameters "
        f"{profiling.format_bytes(params)}; gradients as much again as these",
        f"parameters that are not trained {profiling.format_bytes(a_device(frozen))}: no gradients "
        "and no moments",
        f"largest temporaries of a program {profiling.format_bytes(largest)}",
    ]
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
