"""Meshes, layouts and logical axis names: the mesh axis of each array dimension.

A layout is a table of rules from logical names (on parameters and activations) to mesh axes. The
mesh always has the two axes `data` and `model`; a layout that does not use one ignores it.

* "dp": parameters replicated, the batch split over `data`.
* "fsdp": parameters (and the optimizer's copies) also split over `data`, along their width.
* "fsdp_tp": "fsdp", and heads, feed-forward width, vocabulary and labels split over `model`.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, MODEL = "data", "model"
Rules = Mapping[str, str | None]

# Names of activations start with "act_": a width that FSDP splits over `data` in a parameter must
# stay whole in an activation, whose batch dimension already uses `data`.
_WIDTHS = ("text_embed", "visual_embed", "fused_embed", "classifier_embed")
_SPLIT = ("heads", "mlp", "pooled", "vocab", "labels", "act_heads", "act_mlp")
_WHOLE = (
    "head_dim", "positions", "token_types", "tasks", "region_feature", "box", "layers",
    "act_length", "act_embed",
)  # fmt: skip


def _rules(widths: str | None, split: str | None) -> Rules:
    table = {"act_batch": DATA} | dict.fromkeys(_WHOLE)
    return table | dict.fromkeys(_WIDTHS, widths) | dict.fromkeys(_SPLIT, split)


LAYOUTS: Mapping[str, Rules] = {
    "dp": _rules(None, None),
    "fsdp": _rules(DATA, None),
    "fsdp_tp": _rules(DATA, MODEL),
}


_RULES: contextvars.ContextVar[Rules | None] = contextvars.ContextVar("rules", default=None)


def make_mesh(*, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes (data, model) over `devices` (all of them by default).

    Args:
      model: devices along the `model` axis; the rest go along `data`.
      devices: the devices to use.

    Raises:
      ValueError: `model` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if model < 1 or len(devices) % model:
        raise ValueError(f"model={model} does not divide the {len(devices)} devices")
    shape = (len(devices) // model, model)
    # Linen's sharding annotations need Auto axes; `jax.make_mesh` would default to Explicit.
    return jax.make_mesh(shape, (DATA, MODEL), devices=devices, axis_types=(AxisType.Auto,) * 2)


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
    axes: list[str | None] = []
    for name in names:
        if name is not None and name not in rules:
            raise ValueError(f"no sharding rule for the logical axis {name!r}")
        axis = None if name is None else rules[name]
        if axis is not None and axis in axes:
            raise ValueError(f"axes {tuple(names)}: two dimensions map to the mesh axis {axis!r}")
        axes.append(axis)
    return PartitionSpec(
        *(
            axis if axis is not None and size % mesh_shape[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
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
    """Global arrays from this process's rows: scalars replicated, leading axes over `data`.

    Args:
      batch: host arrays; every non-scalar holds this process's share of the rows.
      mesh: from `make_mesh`.

    Raises:
      ValueError: the global number of rows is not a multiple of the `data` axis; names the key.
    """

    def one(name: str, value: Any) -> jax.Array:
        value = np.asarray(value)
        if value.ndim == 0:
            return jax.make_array_from_process_local_data(replicated(mesh), value)
        rows = value.shape[0] * jax.process_count()
        if rows % mesh.shape[DATA]:
            raise ValueError(
                f"batch[{name!r}] has {rows} rows over all processes, not a multiple of the "
                f"{mesh.shape[DATA]} devices along {DATA!r}: change the batch size or pad it"
            )
        sharding = NamedSharding(mesh, PartitionSpec(DATA))
        return jax.make_array_from_process_local_data(sharding, value)

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
