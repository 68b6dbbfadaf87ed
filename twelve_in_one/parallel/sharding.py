"""Meshes, layouts and logical axis names: the mesh axis of each array dimension.

A layout is a table of rules from logical names (on parameters and activations) to mesh axes. The
mesh always has the two axes `data` and `model`; a layout that does not use one ignores it. Over
several slices, groups of devices with a slow network between them, it also has the axis `slice`.

* "dp": parameters replicated, the batch split over `slice` and `data`.
* "fsdp": parameters (and the optimizer's copies) also split over `slice` and `data`, along their
  width.
* "fsdp_tp": "fsdp", and heads, feed-forward width, vocabulary and labels split over `model`.
* "hsdp": "fsdp_tp" inside a slice: each slice has a copy of the parameters, and only gradients
  cross the slow network.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

SLICE, DATA, MODEL = "slice", "data", "model"
# Logical name -> mesh axes, of which a mesh may lack some.
Rules = Mapping[str, tuple[str, ...]]

BATCH = (SLICE, DATA)  # what rows are split over
# Names of activations start with "act_": a width that FSDP splits over `data` in a parameter must
# stay whole in an activation, whose batch dimension already uses `data`.
_WIDTHS = ("text_embed", "visual_embed", "fused_embed", "classifier_embed")
_SPLIT = ("heads", "mlp", "pooled", "vocab", "labels", "act_heads", "act_mlp")
_WHOLE = (
    "head_dim", "positions", "token_types", "tasks", "region_feature", "box", "layers",
    "act_length", "act_embed",
)  # fmt: skip


def _rules(widths: tuple[str, ...], split: tuple[str, ...]) -> Rules:
    table = {"act_batch": BATCH} | dict.fromkeys(_WHOLE, ())
    return table | dict.fromkeys(_WIDTHS, widths) | dict.fromkeys(_SPLIT, split)


LAYOUTS: Mapping[str, Rules] = {
    "dp": _rules((), ()),
    "fsdp": _rules(BATCH, ()),
    "fsdp_tp": _rules(BATCH, (MODEL,)),
    "hsdp": _rules((DATA,), (MODEL,)),
}


_RULES: contextvars.ContextVar[Rules | None] = contextvars.ContextVar("rules", default=None)


def make_mesh(
    *, model: int = 1, devices: Sequence[jax.Device] | None = None, slices: int = 0
) -> Mesh:
    """A mesh with axes (data, model) over `devices`, or (slice, data, model) over several slices.

    Args:
      model: devices along the `model` axis; the rest go along `data`.
      devices: the devices to use, all by default.
      slices: number of slices, see `slices_of`.

    Raises:
      ValueError: `model` does not divide the number of devices of a slice; see also `slices_of`.
    """
    devices = jax.devices() if devices is None else list(devices)
    groups = slices_of(devices, slices)
    size = len(groups[0])
    if model < 1 or size % model:
        where = " of a slice" * (len(groups) > 1)
        raise ValueError(f"model={model} does not divide the {size} devices{where}")
    shape = (size // model, model)
    # Linen's sharding annotations need Auto axes; `jax.make_mesh` would default to Explicit.
    if len(groups) == 1:
        return jax.make_mesh(shape, (DATA, MODEL), devices=devices, axis_types=(AxisType.Auto,) * 2)
    # Each slice lies as its own network wants it.
    parts = np.stack([mesh_utils.create_device_mesh(shape, group) for group in groups])
    return Mesh(parts, (SLICE, DATA, MODEL), axis_types=(AxisType.Auto,) * 3)


def slices_of(devices: Sequence[jax.Device], slices: int) -> list[list[jax.Device]]:
    """The devices of each slice, equally many in each.

    Args:
      devices: in the order of their processes.
      slices: number of slices. 0 takes those of TPUs, which know theirs, and one of other devices.
        Other devices are divided in their order unless they know of as many groups: processes stay
        together.

    Raises:
      ValueError: TPUs are of another number of slices; or `slices` does not divide the devices.
    """
    known: dict[int, list[jax.Device]] = {}
    for device in devices:
        known.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    tpu = devices[0].platform == "tpu"
    wanted = slices or (len(known) if tpu else 1)
    if tpu and len(known) != wanted:
        raise ValueError(
            f"parallel.slices is {slices}: these TPUs are of {len(known)} slices; 0 takes that"
        )
    if len(known) == wanted and len({len(group) for group in known.values()}) == 1:
        return [known[index] for index in sorted(known)]
    if len(devices) % wanted:
        raise ValueError(f"slices={wanted} does not divide the {len(devices)} devices")
    size = len(devices) // wanted
    return [list(devices[i : i + size]) for i in range(0, len(devices), size)]


def batch_axes(mesh: Any) -> tuple[str, ...]:
    """The axes of a mesh, abstract or not, over which rows are split."""
    return tuple(axis for axis in BATCH if axis in mesh.shape)


def batch_ways(mesh: Any) -> int:
    """Into how many parts these axes split a batch."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading axis is that of rows."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def layout_rules(layout: str) -> Rules:
    """The rules of a layout.

    Raises:
      ValueError: no such layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[layout]


def partition_spec(
    names: Sequence[str | None], shape: Sequence[int], mesh_shape: Mapping[str, int], rules: Rules
) -> PartitionSpec:
    """The mesh axes for the dimensions called `names` of an array of `shape`.

    A dimension that its mesh axis does not divide evenly (a 3,129-way label axis over 8 devices)
    stays whole.

    Raises:
      ValueError: a name without a rule, or two dimensions on one mesh axis.
    """
    if len(names) != len(shape):
        raise ValueError(f"{len(names)} axis names {tuple(names)} for an array of shape {shape}")
    axes: list[tuple[str, ...]] = []
    for name in names:
        if name is not None and name not in rules:
            raise ValueError(f"no sharding rule for the logical axis {name!r}")
        found = () if name is None else tuple(axis for axis in rules[name] if axis in mesh_shape)
        twice = {axis for axis in found for others in axes if axis in others}
        if twice:
            raise ValueError(
                f"axes {tuple(names)}: two dimensions map to the mesh axis {min(twice)!r}"
            )
        axes.append(found)
    even = (
        size % math.prod(mesh_shape[axis] for axis in found) == 0
        for found, size in zip(axes, shape, strict=True)
    )
    return PartitionSpec(
        *((found if fits and found else None) for found, fits in zip(axes, even, strict=True))
    )


def param_shardings(boxed: Any, mesh: Mesh, layout: str) -> Any:
    """The `NamedSharding` of every parameter.

    Args:
      boxed: tree of abstract parameters with logical axis names, from
        `System.abstract`.
      mesh: from `make_mesh`.
      layout: one of `LAYOUTS`.
    """
    rules = layout_rules(layout)

    def one(leaf: nn.LogicallyPartitioned) -> NamedSharding:
        spec = partition_spec(leaf.names, leaf.value.shape, mesh.shape, rules)
        return NamedSharding(mesh, spec)

    return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's rows: scalars replicated, leading axes split.

    Args:
      batch: host arrays; every non-scalar holds this process's share of the rows.
      mesh: from `make_mesh`.

    Raises:
      ValueError: the global number of rows is not a multiple of these axes; names the key.
    """

    def one(name: str, value: Any) -> jax.Array:
        value = np.asarray(value)
        if value.ndim == 0:
            return jax.make_array_from_process_local_data(replicated(mesh), value)
        rows = value.shape[0] * jax.process_count()
        if rows % batch_ways(mesh):
            raise ValueError(
                f"batch[{name!r}] has {rows} rows over all processes, not a multiple of the "
                f"{batch_ways(mesh)} devices along {' and '.join(map(repr, batch_axes(mesh)))}: "
                "change the batch size or pad it"
            )
        return jax.make_array_from_process_local_data(batch_sharding(mesh), value)

    return {name: one(name, value) for name, value in batch.items()}


@contextlib.contextmanager
def use(mesh: Mesh, layout: str) -> Iterator[None]:
    """Within this context `constrain` applies the layout's rules on `mesh`.

    Compiled code depends on the layout: do not call one jitted function under two layouts.
    """
    # Our own context: Linen's `logical_axis_rules` would constrain parameters during their
    # initialisation, in shapes that are not yet final.
    token = _RULES.set(layout_rules(layout))
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _RULES.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to place `x` by its logical axis names; does nothing outside `use`."""
    rules, mesh = _RULES.get(), jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names, x.shape, mesh.shape, rules))


def max_in_flight() -> int:
    """Number of programs that a loop may queue on the devices.

    Enough to keep them busy, but few enough that waiting batches do not fill their memory. None on
    several CPU devices: their collectives deadlock once programs queue up.
    """
    return 4 if jax.default_backend() != "cpu" or jax.device_count() == 1 else 0
