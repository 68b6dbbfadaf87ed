"""Devices of a run, and the placement of arrays on them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from twelve_in_one.parallel import sharding

Batch = Mapping[str, Any]
HOST_ONLY = "example_id"  # a batch key that never goes to a device


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices of a run and the placement of arrays on them.

    Attributes:
      mesh: see `sharding.make_mesh`.
      layout: one of `sharding.LAYOUTS`.
      params: tree of the parameters' shardings.
    """

    mesh: Mesh
    layout: str
    params: Any

    @classmethod
    def make(
        cls,
        abstract_params: Any,
        layout: str,
        model_axis: int,
        *,
        devices: int = 0,
        slices: int = 0,
    ) -> "Placement":
        """Over all devices, or the first `devices` of them.

        Args:
          abstract_params: shapes with logical axis names, from `System.abstract`.
          layout: one of `sharding.LAYOUTS`.
          model_axis: devices along the mesh's model axis.
          devices: their number; 0 takes all.
          slices: of the devices, see `sharding.slices_of`.

        Raises:
          ValueError: `model_axis` or `slices` does not divide their number, or there are too few.
        """
        found = jax.devices()
        if devices and (devices > len(found) or jax.process_count() > 1):
            raise ValueError(
                f"parallel.devices is {devices}: there are {len(found)}, and it is for one process"
            )
        found = found[: devices or None]
        mesh = sharding.make_mesh(model=model_axis, devices=found, slices=slices)
        return cls.on(mesh, abstract_params, layout)

    @classmethod
    def on(cls, mesh: Mesh, abstract_params: Any, layout: str) -> "Placement":
        """Over the devices of a mesh, see `make`."""
        return cls(mesh, layout, sharding.param_shardings(abstract_params, mesh, layout))

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """This process's rows of a batch as global arrays, without host-only keys."""
        arrays = {name: value for name, value in batch.items() if name != HOST_ONLY}
        # Intended; with several processes the guard would reject it.
        with jax.transfer_guard_host_to_device("allow"):
            return sharding.shard_batch(arrays, self.mesh)

    def everywhere(self, value: Any) -> Any:
        """Copies host values to every device."""
        return jax.device_put(value, sharding.replicated(self.mesh))
