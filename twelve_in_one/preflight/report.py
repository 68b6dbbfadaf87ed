"""What was found of a run, as text and as JSON: does it fit, how long, and what holds it up."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from twelve_in_one.config.check import MIXTURE
from twelve_in_one.config.settings import task_key
from twelve_in_one.logs.profiling import format_bytes
from twelve_in_one.logs.stopwatch import duration
from twelve_in_one.mixing import plan
from twelve_in_one.parallel.sharding import SLICE
from twelve_in_one.preflight import roofline, topology
from twelve_in_one.preflight.figures import Checked, Figures
from twelve_in_one.preflight.roofline import Bound
from twelve_in_one.training.job import schedule_of

_MOST_SHOWN = 4  # collectives of a program


@dataclasses.dataclass(frozen=True)
class StreamTime:
    """The least time of a training stream.

    Attributes:
      name: of the stream.
      rows: examples of an update.
      seconds: of an update.
      by: what bounds its gradient.
      updates: of the whole plan; None if that depends on the data.
    """

    name: str
    rows: int
    seconds: float
    by: str
    updates: int | None


def bounds(checked: Checked) -> dict[str, Bound]:
    """Name of each program -> its bound, of those that fit into memory.

    Raises:
      ValueError: see `roofline.bound`.
    """
    chip = checked.topology.chip
    return {
        item.name: roofline.bound(
            chip, item.flops, item.touched if checked.quick else item.moved, item.collectives
        )
        for item in checked.figures
        if not item.full
    }


def stream_times(checked: Checked) -> tuple[StreamTime, ...]:
    """The least times of all training streams; without those whose programs do not fit."""
    least, run = bounds(checked), checked.run
    step = {item.kind: least[item.name].step for item in checked.figures if item.name in least}
    trained = [f for f in checked.figures if f.kind in ("gradient", "update") and f.used_by]
    streams = [name for item in trained for name in item.used_by]
    updates = _updates(checked, streams)
    found = []
    for item in trained:
        if item.name not in least:
            continue
        seconds = least[item.name].step
        if item.kind == "gradient" and run.optimizer.update == "fused":
            # One update a round, and all but one gradient are added to others.
            seconds += step.get("update", 0.0) / len(streams)
            seconds += step.get("sum of gradients", 0.0) * (len(streams) - 1) / len(streams)
        elif item.kind == "gradient":
            seconds += step.get("update", 0.0)
        for name in item.used_by:
            by = least[item.name].by
            found.append(StreamTime(name, item.rows, seconds, by, updates.get(name)))
    order = {name: i for i, name in enumerate((*run.tasks, MIXTURE))}
    return tuple(sorted(found, key=lambda time: order[time.name]))


def _updates(checked: Checked, streams: Sequence[str]) -> Mapping[str, int]:
    """Updates of each stream if no task stops; nothing where that depends on the data's sizes."""
    run = checked.run
    if run.schedule.kind in ("proportional", "temperature"):
        return {}
    planned = tuple(plan.PlannedTask(name, 1, 1) for name in streams)
    return plan.expected_updates(schedule_of(run, planned)[0])


def describe(checked: Checked) -> str:
    """All of it as text."""
    sections = (
        ("machines", _machines(checked)),
        ("memory of a chip", _memory(checked)),
        ("costs of a step, on a chip", _costs(checked)),
        ("traffic between chips", _traffic(checked)),
        ("training", _training(checked)),
        ("what to change", "\n".join(advice(checked)) or "nothing: it fits"),
    )
    return "\n\n".join(f"== {title}\n{text}" for title, text in sections)


def as_json(checked: Checked) -> dict[str, Any]:
    """The same as data."""
    least = bounds(checked)
    return {
        "topology": checked.topology.name,
        "slices": checked.topology.slices,
        "chips": checked.topology.chips,
        "compiler": topology.compiler(checked.topology),
        "mesh": dict(checked.mesh_shape),
        "layout": checked.run.parallel.layout,
        "parameters": checked.system.num_parameters,
        "state": dict(checked.state),
        "notes": list(checked.notes),
        "programs": [
            dataclasses.asdict(item)
            | {"bound": dict(least[item.name].seconds) if item.name in least else None}
            for item in checked.figures
        ],
        "streams": [dataclasses.asdict(time) for time in stream_times(checked)],
        "advice": list(advice(checked)),
    }


def _machines(checked: Checked) -> str:
    machines, chip = checked.topology, checked.topology.chip
    slow = f", {chip.slow / 1e9:.4g} GB/s to other islands" if chip.slow else ""
    rows = [
        f"{machines}: {machines.chips:,} chips, mesh {dict(checked.mesh_shape)}, layout "
        f"{checked.run.parallel.layout}",
        f"a chip: {chip.flops / 1e12:.4g} TFLOP/s (float32 {chip.flops_float32 / 1e12:.4g}), "
        f"{format_bytes(int(chip.memory))} at {chip.memory_bandwidth / 1e9:.4g} GB/s, "
        f"{chip.fast / 1e9:.4g} GB/s to its neighbours{slow} (see preflight/chips.py)",
        f"compiled with {topology.compiler(machines)}; {checked.system.num_parameters:,} "
        f"parameters of {checked.system.name}",
    ]
    if machines.gpu:
        rows.append(
            "traffic and products are those of the program that GPUs would run; temporaries and "
            "bytes moved are the CPU compiler's, which computes in float32, and only a hint"
        )
    if checked.quick:
        rows.append(
            "compiled with --effort=low: temporaries and bytes moved are more than a run's, and "
            "the time of memory is that of inputs and outputs alone; --effort=full takes several "
            "times as long"
        )
    return "\n".join((*rows, *checked.notes))


def _memory(checked: Checked) -> str:
    held = checked.state
    rows = [
        "the run's state: "
        + ", ".join(f"{name} {format_bytes(size)}" for name, size in held.items() if size),
        f"{'arguments':>10}  {'temporary':>10}  {'with all':>10}  {'of chip':>8}  program",
    ]
    limit = checked.topology.chip.memory
    for item in checked.figures:
        sizes = (format_bytes(x) for x in (item.arguments, item.temporaries, item.needed))
        columns = "  ".join(f"{size:>10}" for size in sizes)
        rows.append(
            f"{columns}  {item.needed / limit:8.0%}  {item.name}"
            + (
                f"  DOES NOT FIT: {item.full or 'more than the chip has'}"
                * (not _fits(checked, item))
            )
        )
    return "\n".join(rows)


def _fits(checked: Checked, item: Figures) -> bool:
    return not item.full and item.needed <= checked.topology.chip.memory


def fits(checked: Checked) -> bool:
    """Whether all programs fit into memory."""
    return all(_fits(checked, item) for item in checked.figures)


def _costs(checked: Checked) -> str:
    parts = (roofline.COMPUTE, roofline.MEMORY, roofline.FAST, roofline.SLOW)
    rows = [
        f"{'examples':>8}  {'TFLOP':>8}  {'moved':>9}  "
        + "  ".join(f"{'ms ' + part:>15}" for part in parts)
        + "  bound by      program"
    ]
    for item in checked.figures:
        least = bounds(checked).get(item.name)
        if least is None:
            continue
        times = "  ".join(f"{1e3 * least.seconds[part]:15.3f}" for part in parts)
        rows.append(
            f"{item.rows:8,}  {sum(item.flops.values()) / 1e12:8.3f}  "
            f"{format_bytes(item.moved):>9}  {times}  {least.by:12}  {item.name}"
        )
        if item.unknown_loops:
            rows.append(
                f"          its {item.unknown_loops} loop(s) of unknown length count as one turn: "
                "it takes longer"
            )
    return "\n".join(rows)


def _traffic(checked: Checked) -> str:
    rows = []
    for item in checked.figures:
        for collective in item.collectives[:_MOST_SHOWN]:
            near, far = roofline.sent(collective)
            sends = format_bytes(int(near + far))
            where = " and ".join(collective.axes) or "none"
            crosses = f", {format_bytes(int(far))} of it between islands" if far else ""
            rows.append(
                f"{format_bytes(collective.bytes):>10}  {collective.kind:18} of "
                f"{collective.ways:,} along {where}: sends {sends}{crosses}; "
                f"{_short(collective.source)}  [{item.name}]"
            )
        rest = item.collectives[_MOST_SHOWN:]
        if rest:
            size = format_bytes(sum(collective.bytes for collective in rest))
            rows.append(f"{size:>10}  in {len(rest)} smaller ones  [{item.name}]")
    if SLICE in checked.mesh_shape:
        crossing = [
            (item, collective)
            for item in checked.figures
            for collective in item.collectives
            if SLICE in collective.axes
        ]
        total = sum(roofline.sent(collective)[1] for _, collective in crossing)
        rows.append(f"between slices a chip sends {format_bytes(int(total))} in all these programs")
    return "\n".join(rows) or "none"


def _short(source: str) -> str:
    """The end of a name of an operation."""
    return "/".join(source.split("/")[-3:]) or "without a name"


def _training(checked: Checked) -> str:
    times = stream_times(checked)
    rows = [
        f"{'stream':12}  {'ms an update':>12}  {'examples/s':>10}  {'updates':>10}  "
        f"{'at least':>12}"
    ]
    for time in times:
        updates = "?" if time.updates is None else f"{time.updates:,}"
        all_of_it = "?" if time.updates is None else duration(time.updates * time.seconds)
        rows.append(
            f"{time.name:12}  {1e3 * time.seconds:12.3f}  {time.rows / time.seconds:10,.0f}  "
            f"{updates:>10}  {all_of_it:>12}"
        )
    if times and all(time.updates is not None for time in times):
        hours = sum(time.updates * time.seconds for time in times) / 3600
        rows.append(
            f"the plan: {hours:.3g} h, {hours * checked.topology.chips:,.4g} chip-hours at least: "
            "no task stops, each part works at its published peak while the others do, and "
            "validations, input and checkpoints take nothing"
        )
    else:
        rows.append("the number of updates of the plan depends on the data's sizes")
    return "\n".join(rows)


def advice(checked: Checked) -> Iterator[str]:
    """What to change, most important first; nothing if all is well."""
    run, chip = checked.run, checked.topology.chip
    for note in checked.notes:
        if "would be refused" in note:
            yield f"{note}: set that, or fewer chips"
    tight = [item for item in checked.figures if not _fits(checked, item)]
    if tight:
        state = sum(checked.state.values())
        ways = math.prod(checked.mesh_shape.values())
        if run.parallel.layout == "dp" and ways > 1 and state > chip.memory / 4:
            layout = "hsdp" if SLICE in checked.mesh_shape else "fsdp"
            yield (
                f"--config.parallel.layout={layout}: parameters and moments, now "
                f"{format_bytes(state)} of {format_bytes(int(chip.memory))}, are split"
            )
        if not run.model.get("scan_layers", True):
            yield "--config.model.scan_layers=True: one layer's temporaries at a time"
        for path in _without_remat(run.model):
            yield f"--config.{path}=full: activations are computed again instead of kept"
        for item in tight:
            yield from _smaller(checked, item)
    least = bounds(checked)
    for item in checked.figures:
        bound = least.get(item.name)
        if bound is None or not item.rows or item.kind == "evaluation":
            continue
        if bound.by in (roofline.FAST, roofline.SLOW):
            factor = bound.step / max(bound.seconds[roofline.COMPUTE], 1e-12)
            yield (
                f"{item.name}: the {bound.by} holds it up; a batch {factor:.2g} times as large "
                "would keep the chips busy"
            )
    if len(checked.figures) > 1 and run.optimizer.update == "in_turn" and _alternates(checked):
        yield (
            "--config.optimizer.update=fused: one update for all tasks of a round; now each task's "
            "is as long as half of its gradient, or longer"
        )


def _alternates(checked: Checked) -> bool:
    """Whether updates take long beside gradients."""
    least = bounds(checked)
    update = [least[f.name].step for f in checked.figures if f.kind == "update" and not f.used_by]
    update = [x for x in update if x]
    steps = [
        least[f.name].step for f in checked.figures if f.kind == "gradient" and f.name in least
    ]
    return bool(update and steps) and update[0] > min(steps) / 2


def _without_remat(model: Mapping[str, Any], path: str = "model") -> Iterator[str]:
    """Settings that could turn rematerialisation on."""
    for name, value in model.items():
        if name == "remat" and value == "none":
            yield f"{path}.remat"
        elif isinstance(value, Mapping):
            yield from _without_remat(value, f"{path}.{name}")


def _smaller(checked: Checked, item: Figures) -> Iterable[str]:
    """How to make the batch of a program smaller."""
    if item.kind == "evaluation":
        yield f"--config.evaluation.batch_size below {item.rows:,}: {item.name}"
        return
    room = checked.topology.chip.memory - (item.needed - item.temporaries)
    ways = math.prod(n for axis, n in checked.mesh_shape.items() if axis != "model")
    for name in item.used_by:
        mixed = name == MIXTURE
        path = "mixture" if mixed else f"task.{task_key(name)}"
        options = checked.run.mixture if mixed else checked.run.task[name]
        parts = options.accumulate
        wanted = 2 if item.full or room <= 0 else math.ceil(item.temporaries / room)
        fitting = [n for n in range(parts * wanted, item.rows + 1) if item.rows % (n * ways) == 0]
        if fitting:
            yield (
                f"--config.{path}.accumulate={fitting[0]} (now {parts}): parts of "
                f"{item.rows // fitting[0]:,} of its {item.rows:,} examples need less at a time"
            )
        else:
            yield (
                f"--config.{path}.batch_size below {item.rows:,}, or --config.parallel.model=2: a "
                "chip has one example at a time already"
            )
