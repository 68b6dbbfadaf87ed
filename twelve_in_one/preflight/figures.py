"""Compiles the programs of a run for machines that are not here, and keeps what was found."""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

import twelve_in_one
from twelve_in_one import atomic
from twelve_in_one.config import check
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.data import outline
from twelve_in_one.logs import profiling
from twelve_in_one.models.flops import product_flops
from twelve_in_one.parallel import sharding
from twelve_in_one.parallel.placement import Placement
from twelve_in_one.preflight import hlo, topology
from twelve_in_one.preflight.hlo import Collective
from twelve_in_one.preflight.topology import Topology
from twelve_in_one.systems.base import AnyTask, System
from twelve_in_one.training import programs
from twelve_in_one.training.job import advances_within_round, optimizer_of, stream_runs

_log = logging.getLogger(__name__)
_FULL = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was found of one program; all of one device, unless it says otherwise.

    Attributes:
      name: of the program, with the streams and tasks that share it.
      kind: "update" of all or of a run of one stream, "gradient", "sum of gradients", "evaluation".
      used_by: its streams or tasks.
      rows: examples of a batch, over all devices; 0 if it takes none.
      arguments: bytes of its inputs.
      temporaries: bytes that it needs while it runs.
      total: bytes, with outputs that do not replace inputs, and its code.
      beside: bytes of the run's state that it does not take, but that are there.
      flops: dtype -> FLOPs of products.
      moved: bytes read from and written to memory; of a program compiled with little effort more
        than a run's.
      touched: bytes of inputs and outputs, which no program can avoid.
      collectives: traffic between devices.
      unknown_loops: see `hlo.Costs`.
      seconds: wall time of its compilation.
      full: what the compiler said if it does not fit into memory, else "".
    """

    name: str
    kind: str
    used_by: tuple[str, ...]
    rows: int
    arguments: int
    temporaries: int
    total: int
    beside: int
    flops: Mapping[str, float]
    moved: int
    touched: int
    collectives: tuple[Collective, ...]
    unknown_loops: int
    seconds: float
    full: str = ""

    @property
    def needed(self) -> int:
        """Bytes of memory while it runs."""
        return self.total + self.beside


@dataclasses.dataclass(frozen=True)
class Checked:
    """A run on machines.

    Attributes:
      run: the settings.
      topology: the machines.
      system: with all its sizes.
      mesh_shape: axis -> devices.
      state: bytes of parameters, frozen ones, and moments that a device holds.
      quick: whether programs were compiled with little effort.
      notes: what was assumed, or changed.
      figures: of every program.
    """

    run: RunConfig
    topology: Topology
    system: System
    mesh_shape: Mapping[str, int]
    state: Mapping[str, int]
    quick: bool
    notes: tuple[str, ...]
    figures: tuple[Figures, ...]


@dataclasses.dataclass(frozen=True)
class _Validation:
    """A validation's shapes, in the form of a stream."""

    task: AnyTask
    shapes: outline.Shapes

    def batch(self, number: int) -> outline.Shapes:
        """The arrays of every batch."""
        del number
        return self.shapes


def examine(
    run: RunConfig,
    machines: Topology,
    *,
    examples_per_chip: int = 0,
    training_only: bool = False,
    cache: Path | None = None,
    workers: int = 0,
) -> Checked:
    """Compiles every program of a run, or takes its figures from an earlier call.

    Args:
      run: the settings.
      machines: to compile for.
      examples_per_chip: instead of the run's batch sizes, so many times the devices that rows are
        split over; 0 keeps them, rounded up to a multiple of these.
      training_only: leave out validations.
      cache: folder of the figures; None keeps none.
      workers: programs to compile at a time; 0 for one per core.

    Raises:
      ValueError: settings and machines do not fit each other.
    """
    tasks = check.task_runs(run)
    system, assumed = outline.assumed_system(run)
    notes = [f"assumed, as there is no data: {', '.join(assumed)}"] if assumed else []
    options = run.parallel
    mesh = sharding.make_mesh(
        model=options.model, devices=topology.devices(machines), slices=options.slices
    )
    placement = Placement.on(mesh, system.abstract(), options.layout)
    ways = sharding.batch_ways(mesh)
    streams = stream_runs(run, tasks)
    accumulate = {stream.name: stream.accumulate for stream in streams}
    batches = {
        name: _fitted(name, shapes, ways * accumulate[name], examples_per_chip * ways, notes)
        for name, shapes in outline.batch_shapes(run, system).items()
    }
    validations = {
        name: _fitted(f"validation of {name}", shapes, ways, examples_per_chip * ways, notes)
        for name, shapes in outline.validation_shapes(run, system).items()
    }
    validated = () if training_only else tasks
    _, optimizer = optimizer_of(run, system.groups(run.optimizer, run.system.official))
    patterns = (*system.frozen, *run.optimizer.frozen)
    state = programs.abstract_state(system, placement, optimizer, patterns)
    frozen = programs.abstract_frozen(system, placement, patterns, run.optimizer.frozen_dtype)
    fused = run.optimizer.update == "fused"
    planned = programs.plan_all(
        system,
        placement,
        streams,
        validated,
        optimizer,
        state,
        frozen,
        batches,
        {t.task.name: _Validation(t.task, validations[t.task.name]) for t in validated},
        clip_norm=run.optimizer.clip_norm,
        fused=fused,
        official_schedule=advances_within_round(run),
    )
    held = {
        "parameters": _bytes(state.params),
        "frozen": _bytes(frozen),
        "moments": _bytes(state.opt_state),
    }
    beside = {
        "gradient": held["moments"] + (held["parameters"] if fused else 0),
        "evaluation": held["moments"],
        "sum of gradients": sum(held.values()),
        "update": held["frozen"] if len(streams) > 1 else 0,
    }
    of = _users(planned)
    rows = {name: _rows(shapes) for name, shapes in batches.items()}
    rows |= {("evaluation", name): _rows(shapes) for name, shapes in validations.items()}
    key = _key(run, machines, examples_per_chip)

    def described(program: Any, label: str) -> Figures:
        kind, users = of.get(program, ("sum of gradients" if program == "add" else "update", ()))
        size = (rows[("evaluation", n) if kind == "evaluation" else n] for n in users)
        return Figures(
            label, kind, users, max(size, default=0), 0, 0, 0, beside[kind], {}, 0, 0, (), 0, 0.0
        )

    jobs = [(described(p, label), trace) for p, (label, trace) in planned.jobs.items()]
    measure = functools.partial(_measured, placement, machines)
    found = _all(jobs, measure, key, cache, workers or os.cpu_count() or 1)
    return Checked(
        run,
        machines,
        system,
        dict(mesh.shape),
        held,
        topology.is_quick(),
        tuple(dict.fromkeys(notes)),
        found,
    )


def _fitted(
    name: str, shapes: outline.Shapes, multiple: int, rows: int, notes: list[str]
) -> outline.Shapes:
    """Shapes of `rows` examples, or of as many as given; always of a multiple."""
    given = _rows(shapes)
    wanted = -(-(rows or given) // multiple) * multiple
    if rows and wanted != rows:
        notes.append(f"{name}: {wanted:,} examples a batch, as it is cut into {multiple:,} parts")
    elif not rows and wanted != given:
        notes.append(
            f"{name}: its batch of {given:,} examples is no multiple of {multiple:,}, and would be "
            f"refused; looked at with {wanted:,}"
        )
    return outline.resized(shapes, wanted)


def _rows(shapes: outline.Shapes) -> int:
    return shapes["_mask"].shape[0]


def _bytes(tree: Any) -> int:
    """Of one device."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def _users(planned: programs.Plan) -> dict[Any, tuple[str, tuple[str, ...]]]:
    """Program -> its kind, and the streams or tasks that share it."""
    found: dict[Any, tuple[str, tuple[str, ...]]] = {}
    for (kind, name), program in planned.programs.items():
        found[program] = (kind, (*found.get(program, (kind, ()))[1], name))
    return found


def _measured(
    placement: Placement, machines: Topology, empty: Figures, trace: Callable[[], Any]
) -> Figures:
    """The figures of one program."""
    begun, chips = time.perf_counter(), machines.chips
    with sharding.use(placement.mesh, placement.layout):
        traced = trace()
        flops = {dtype: n / chips for dtype, n in product_flops(traced.jaxpr).items()}
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed = _FULL.search(str(error))
            total = int(float(needed[1]) * _UNITS[needed[2]]) if needed else 0
            return dataclasses.replace(
                empty,
                total=total,
                flops=flops,
                seconds=time.perf_counter() - begun,
                full=needed[0] if needed else "it does not fit into memory",
            )
    costs = hlo.costs(compiled.as_text(), placement.mesh.shape, machines.island)
    memory = profiling.memory_of(compiled)
    return dataclasses.replace(
        empty,
        arguments=memory["arguments"],
        temporaries=memory["temporaries"],
        total=memory["total"],
        flops=flops,
        moved=costs.moved,
        touched=memory["arguments"] + memory["outputs"],
        collectives=summed(costs.collectives),
        unknown_loops=costs.unknown_loops,
        seconds=time.perf_counter() - begun,
    )


def summed(collectives: Sequence[Collective]) -> tuple[Collective, ...]:
    """Those of one kind and along the same axes as one, run once, of the sum of their bytes.

    It has the source of the largest.
    """
    found: dict[Any, Collective] = {}
    for item in sorted(collectives, key=lambda item: -item.bytes * item.times):
        if item.ways == 1:
            continue  # sends nothing
        group = (item.kind, item.axes, item.ways, item.islands)
        size = item.bytes * item.times
        first = found.setdefault(group, dataclasses.replace(item, bytes=0, times=1))
        found[group] = dataclasses.replace(first, bytes=first.bytes + size)
    return tuple(sorted(found.values(), key=lambda item: -item.bytes))


# --------------------------------------------------------------------------- keeping


def _all(
    jobs: Sequence[tuple[Figures, Callable[[], Any]]],
    measure: Callable[[Figures, Callable[[], Any]], Figures],
    key: str,
    cache: Path | None,
    workers: int,
) -> tuple[Figures, ...]:
    """The figures of all programs, each kept as soon as it is known."""
    done, start, lock = itertools.count(1), time.perf_counter(), threading.Lock()

    def one(job: tuple[Figures, Callable[[], Any]]) -> Figures:
        empty, trace = job
        name = hashlib.sha256(repr((key, empty)).encode()).hexdigest()[:24]
        file = cache / f"{name}.json" if cache else None
        found = _read(file)
        kept = found is not None
        if found is None:
            found = measure(empty, trace)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                atomic.write(file, json.dumps(dataclasses.asdict(found)))
        with lock:
            number = next(done)
            each = (time.perf_counter() - start) / number
            how = "known" if kept else f"compiled in {found.seconds:.1f} s"
            left = each * (len(jobs) - number)
            _log.info("%d/%d  %s  %s  ETA %.0f s", number, len(jobs), empty.name, how, left)
        return found

    with ThreadPoolExecutor(max_workers=min(workers, len(jobs))) as pool:
        return tuple(pool.map(one, jobs))


def _read(file: Path | None) -> Figures | None:
    """Kept figures; None if there are none that can be read."""
    if file is None or not file.exists():
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        collectives = tuple(
            Collective(**{**item, "axes": tuple(item["axes"])}) for item in raw["collectives"]
        )
        used_by = tuple(raw["used_by"])
        return Figures(**{**raw, "collectives": collectives, "used_by": used_by})
    except (ValueError, TypeError, KeyError) as error:
        _log.warning("%s: not the figures of a program (%s); compiled again", file, error)
        return None


def _key(run: RunConfig, machines: Topology, examples_per_chip: int) -> str:
    """What figures depend on, beside the program's name: settings, machines, compiler and code."""
    options = ("jax_disable_most_optimizations", "jax_exec_time_optimization_effort")
    return repr(
        (run, machines, examples_per_chip, topology.compiler(machines), _code())
        + (*(jax.config.values[name] for name in options), os.environ.get("XLA_FLAGS", ""))
    )


@functools.cache
def _code() -> str:
    """A hash of this package."""
    found = hashlib.sha256()
    for file in sorted(Path(twelve_in_one.__file__).parent.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()
