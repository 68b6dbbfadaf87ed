"""The programs of a run, compiled ahead of time and in threads.

Tasks that differ only in id and data share a program; the update is the same for all.
"""

import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from twelve_in_one.checkpoints import trees
from twelve_in_one.config.check import TaskRun
from twelve_in_one.evaluators import suite
from twelve_in_one.logs import profiling
from twelve_in_one.parallel import sharding
from twelve_in_one.parallel.placement import HOST_ONLY, Batch, Placement
from twelve_in_one.systems.base import AnyTask, System
from twelve_in_one.training import steps


class Programs(NamedTuple):
    """Compiled functions of a run; see `steps` and `rows.make_eval_step` for their arguments.

    Attributes:
      grad: stream -> gradient step; in a run of one stream, gradient and update.
      add: sum of two gradients; None where every stream has its own update.
      update: update step; None for a run of one stream.
      evaluate: task name -> evaluation step.
    """

    grad: Mapping[str, Callable[..., Any]]
    add: Callable[..., Any] | None
    update: Callable[..., Any] | None
    evaluate: Mapping[str, Callable[..., Any]]


class StreamRun(NamedTuple):
    """A training stream as its program sees it.

    Attributes:
      name: of a task, or of the mixture of all.
      tasks: of its rows.
      loss_scale: factor on the loss.
      accumulate: parts to cut a batch into.
    """

    name: str
    tasks: tuple[AnyTask, ...]
    loss_scale: float
    accumulate: int


class Plan(NamedTuple):
    """The programs that a run executes more than once, before they are compiled.

    Attributes:
      jobs: program -> its name, and a function that traces it.
      programs: ("update" of a run of one stream, "gradient" or "evaluation", stream or task) -> the
        program that it shares with others.
    """

    jobs: Mapping[Any, tuple[str, Callable[[], jax.stages.Traced]]]
    programs: Mapping[tuple[str, str], Any]


class Program(NamedTuple):
    """One entry of the compile list.

    Attributes:
      name: its function and tasks.
      seconds: compilation time.
      memory: bytes per device, see `profiling.memory_of`.
    """

    name: str
    seconds: float
    memory: Mapping[str, int]


def abstract_state(
    system: System,
    placement: Placement,
    optimizer: optax.GradientTransformation,
    frozen: Sequence[str] = (),
) -> Any:
    """`steps.TrainState` of shapes with shardings; optimizer copies are placed like parameters.

    Args:
      system: the model to train.
      placement: of the run.
      optimizer: of the run.
      frozen: patterns of frozen parameters, see `trees.split`.
    """

    def make(key: jax.Array) -> steps.TrainState:
        return steps.init_state(trees.split(system.init(key), frozen)[0], optimizer)

    state = jax.eval_shape(make, jax.random.key(0))
    shardings, _ = trees.split(placement.params, frozen)
    whole = sharding.replicated(placement.mesh)

    def like_param(leaf: Any, param: Any, where: NamedSharding) -> Any:
        same = leaf.shape == param.shape
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where if same else whole)

    def other(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    opt_state = optax.tree.map_params(
        optimizer,
        like_param,
        state.opt_state,
        state.params,
        shardings,
        transform_non_params=other,
    )
    params = jax.tree.map(like_param, state.params, state.params, shardings)
    counters = (other(leaf) for leaf in (state.step, state.clock, state.skipped))
    return steps.TrainState(*counters, params, opt_state)


def abstract_frozen(
    system: System, placement: Placement, frozen: Sequence[str], dtype: str = "float32"
) -> Any:
    """Shapes with shardings of the frozen parameters, stored as `dtype`."""
    _, params = trees.split(nn.unbox(system.abstract()), frozen)
    _, shardings = trees.split(placement.params, frozen)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where),
        params,
        shardings,
    )


def shardings_of(tree: Any) -> Any:
    """The shardings of a tree of abstract arrays."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def random_state(
    system: System,
    optimizer: optax.GradientTransformation,
    state: Any,
    seed: int,
    frozen: Sequence[str] = (),
    abstract: Any = None,
) -> tuple[steps.TrainState, Any]:
    """Draws a first state and the frozen parameters, directly in their final placement.

    Args:
      system: the model to train.
      optimizer: of the run.
      state: from `abstract_state`.
      seed: of the run.
      frozen: patterns of frozen parameters.
      abstract: from `abstract_frozen`; nothing if None.
    """

    def make(key: jax.Array) -> tuple[steps.TrainState, Any]:
        trained, rest = trees.split(system.init(key), frozen)
        return steps.init_state(trained, optimizer), trees.as_dtypes_of(rest, abstract or {})

    where = shardings_of((state, abstract or {}))
    return jax.jit(make, out_shardings=where)(jax.random.key(seed))


def plan_all(
    system: System,
    placement: Placement,
    streams: Sequence[StreamRun],
    tasks: Sequence[TaskRun],
    optimizer: optax.GradientTransformation,
    state: Any,
    frozen: Any,
    batches: Mapping[str, Batch],
    eval_streams: Mapping[str, Any],
    *,
    clip_norm: float,
    fused: bool,
    official_schedule: bool,
) -> Plan:
    """Every program that a run executes more than once, to be traced within `sharding.use`.

    Args:
      system: the model to train.
      placement: of the run.
      streams: that it trains on.
      tasks: that it is evaluated on.
      optimizer: of the run.
      state: from `abstract_state`.
      frozen: from `abstract_frozen`.
      batches: stream -> a training batch of this process, or its shapes.
      eval_streams: task name -> its validation, whose first batch has the shapes of all.
      clip_norm: see `steps.make_update_step`.
      fused: also compile the sum of gradients.
      official_schedule: see `steps.make_update_step`.
    """
    eval_batches = {name: stream.batch(0) for name, stream in eval_streams.items()}
    whole = sharding.replicated(placement.mesh)
    key = _abstract(jax.eval_shape(lambda: jax.random.key(0)), whole)
    flag = jax.ShapeDtypeStruct((), jnp.bool_, sharding=whole)
    gradient = steps.Gradient(state.params, flag)
    grads_out = shardings_of(gradient)
    everything = trees.merge(state.params, frozen)
    alone = len(streams) == 1
    train = "update" if alone else "gradient"

    def update() -> Any:
        step = steps.make_update_step(
            optimizer, clip_norm=clip_norm, official_schedule=official_schedule
        )
        jitted = jax.jit(step, donate_argnums=0, out_shardings=shardings_of(state))
        return jitted.trace(state, gradient, flag, flag)

    def add() -> Any:
        jitted = jax.jit(steps.add_gradients, donate_argnums=0, out_shardings=grads_out)
        return jitted.trace(gradient, gradient)

    def grad(run: StreamRun) -> Any:
        batch = _specs(placement, batches[run.name])
        options = dict(loss_scale=run.loss_scale, accumulate=run.accumulate)
        objective = system.objective(run.tasks)
        if alone:
            both = steps.make_train_step(
                objective,
                optimizer,
                clip_norm=clip_norm,
                official_schedule=official_schedule,
                **options,
            )
            where = (shardings_of(state), whole)
            jitted = jax.jit(both, donate_argnums=0, out_shardings=where)
            return jitted.trace(state, batch, key, frozen)
        step = steps.make_grad_step(objective, **options)
        jitted = jax.jit(step, out_shardings=(grads_out, whole))
        return jitted.trace(state.params, state.step, batch, key, frozen)

    def evaluate(run: TaskRun) -> Any:
        step = suite.make_step(system, eval_streams[run.task.name])
        jitted = jax.jit(step, out_shardings=whole)
        return jitted.trace(everything, _specs(placement, eval_batches[run.task.name]))

    jobs: dict[Any, tuple[str, Callable[[], Any]]] = {} if alone else {"update": ("update", update)}
    if fused and not alone:
        jobs["add"] = ("sum of gradients", add)
    keys: dict[tuple[str, str], Any] = {}

    def plan(kind: str, name: str, program: Any, trace: Callable[[], Any]) -> None:
        keys[kind, name] = program
        label = jobs[program][0] + f", {name}" if program in jobs else f"{kind} of {name}"
        jobs[program] = (label, jobs[program][1] if program in jobs else trace)

    for stream in streams:
        own = (stream.loss_scale, stream.accumulate, system.objective(stream.tasks).key)
        program = (train, *own, *_shapes(batches[stream.name]))
        plan(train, stream.name, program, functools.partial(grad, stream))
    for run in tasks:
        name = run.task.name
        own = (system.validation_key(run.task),)
        program = ("evaluation", *own, *_shapes(eval_batches[name]))
        plan("evaluation", name, program, functools.partial(evaluate, run))
    return Plan(jobs, keys)


def compile_all(
    planned: Plan, placement: Placement, log: Callable[[str], None]
) -> tuple[Programs, tuple[Program, ...]]:
    """Compiles a plan, several programs at a time; also returns the compile list.

    Args:
      planned: from `plan_all`.
      placement: of the run.
      log: called with one line per program.
    """
    compiled, table = _compile(placement, planned.jobs, log)

    def of(*kinds: str) -> dict[str, Any]:
        return {
            name: compiled[program]
            for (kind, name), program in planned.programs.items()
            if kind in kinds
        }

    gradients = of("update", "gradient")
    return Programs(gradients, compiled.get("add"), compiled.get("update"), of("evaluation")), table


def compile_list(table: Sequence[Program]) -> str:
    """The programs as text, one per row."""
    unknown = "?"
    rows = [f"{'compile s':>9}  {'arguments':>10}  {'temporary':>10}  {'in all':>10}  program"]
    for program in table:
        sizes = [
            profiling.format_bytes(program.memory[kind]) if program.memory else unknown
            for kind in ("arguments", "temporaries", "total")
        ]
        columns = "  ".join(f"{size:>10}" for size in sizes)
        rows.append(f"{program.seconds:9.1f}  {columns}  {program.name}")
    return "\n".join(rows)


def _compile(
    placement: Placement,
    jobs: Mapping[Any, tuple[str, Callable[[], Any]]],
    log: Callable[[str], None],
) -> tuple[dict[Any, Any], tuple[Program, ...]]:
    start, done = time.perf_counter(), itertools.count(1)

    def one(job: tuple[str, Callable[[], Any]]) -> tuple[Any, Program]:
        label, trace = job
        begun = time.perf_counter()
        with sharding.use(placement.mesh, placement.layout):
            compiled = trace().lower().compile()
        now, number = time.perf_counter(), next(done)
        left = (now - start) / number * (len(jobs) - number)
        log(f"compiled {number}/{len(jobs)}  {label}  {now - begun:.1f} s  ETA {left:.0f} s")
        return compiled, Program(label, now - begun, profiling.memory_of(compiled))

    with ThreadPoolExecutor(max_workers=min(len(jobs), os.cpu_count() or 1)) as pool:
        results = list(pool.map(one, jobs.values()))
    compiled = {key: result[0] for key, result in zip(jobs, results, strict=True)}
    return compiled, tuple(result[1] for result in results)


def _shapes(batch: Batch) -> list[tuple[Any, ...]]:
    return sorted((name, x.shape, str(x.dtype)) for name, x in batch.items() if name != HOST_ONLY)


def _specs(placement: Placement, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
    """Global shapes of a batch, from this process's rows."""
    split = sharding.batch_sharding(placement.mesh)
    whole = sharding.replicated(placement.mesh)

    def one(value: Any) -> jax.ShapeDtypeStruct:
        if value.ndim == 0:
            return jax.ShapeDtypeStruct((), value.dtype, sharding=whole)
        shape = (value.shape[0] * jax.process_count(), *value.shape[1:])
        return jax.ShapeDtypeStruct(shape, value.dtype, sharding=split)

    return {name: one(value) for name, value in batch.items() if name != HOST_ONLY}


def _abstract(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
