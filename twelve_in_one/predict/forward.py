"""Runs the model on batches of few different sizes, over the devices of one process.

Batches are padded to a power of two (times the devices along `data`), so that a head is compiled
for a handful of sizes, for any number of examples. Letters as in `tasks/task.py`; M captions,
N images.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.models.two_stream.grid import PICTURE_KEYS
from twelve_in_one.models.two_stream.trunk import TwoStreamModel, abstract_params
from twelve_in_one.parallel.sharding import DATA, make_mesh, param_shardings, replicated, use
from twelve_in_one.systems.vilbert import TRUNK_KEYS, trunk_inputs
from twelve_in_one.tasks.task import Task

Maps = dict[str, np.ndarray]
_PREFIX = "attention/"


class Forward:
    """A model on its devices.

    Attributes:
      config: of the model.
      params: on the devices.
    """

    def __init__(
        self,
        params: Any,
        config: TwoStreamConfig,
        *,
        layout: str = "dp",
        model: int = 1,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Puts the parameters on the devices; arguments as in `load`."""
        self.config = config
        self._layout = layout
        # Only this process's devices: each process may predict something else.
        self._mesh = make_mesh(
            model=model, devices=jax.local_devices() if devices is None else devices
        )
        shardings = param_shardings(abstract_params(config), self._mesh, layout)
        self.params = jax.device_put(params, shardings)

    def padded_size(self, count: int) -> int:
        """Smallest batch size that holds `count` examples."""
        size = self._mesh.shape[DATA]
        while size < count:
            size *= 2
        return size

    def logits(
        self, task: Task, batch: Mapping[str, Any], *, attention: bool = False
    ) -> tuple[np.ndarray, Maps]:
        """The output of a task's head.

        Args:
          task: of the batch.
          batch: see `tasks/task.py`; B must come from `padded_size`.
          attention: return attention maps.

        Returns:
          float32 logits of all rows, and {name: float32[B * k, heads, queries, keys]} with the
          names of `TwoStreamTrunk` without "attention/"; empty without `attention`.
        """
        inputs = trunk_inputs(task, batch)
        return self._run(inputs, (), head=task.head, attention=attention, all_pairs=False)

    def pair_scores(self, task: Task, inputs: Mapping[str, Any]) -> np.ndarray:
        """float32[M, N], every caption against every image; layers before the first connection run
        once per caption and once per image.

        Args:
          task: of kind "match".
          inputs: the trunk's, with M rows of tokens and N rows of regions; N must come from
            `padded_size`.
        """
        whole = ("tokens", "token_mask")
        scores, _ = self._run(inputs, whole, head=task.head, attention=False, all_pairs=True)
        return scores.reshape(len(inputs["tokens"]), -1)

    def _run(
        self, inputs: Mapping[str, Any], whole: Sequence[str], **options: Any
    ) -> tuple[np.ndarray, Maps]:
        """Arrays named in `whole` go to every device; rows of the others are distributed."""
        rows, everywhere = NamedSharding(self._mesh, PartitionSpec(DATA)), replicated(self._mesh)
        placed = {}
        pictures = [key for key in PICTURE_KEYS if key in inputs]
        for key in (*TRUNK_KEYS, *pictures, "task_id"):
            sharding = everywhere if key in (*whole, "task_id") else rows
            placed[key] = jax.device_put(np.asarray(inputs[key]), sharding)
        with use(self._mesh, self._layout):
            logits, maps = _apply(
                self.params, placed, config=self.config, layout=self._layout, **options
            )
        return np.asarray(logits), {name: np.asarray(value) for name, value in maps.items()}


@functools.partial(jax.jit, static_argnames=("config", "layout", "head", "attention", "all_pairs"))
def _apply(
    params: Any,
    inputs: Mapping[str, jax.Array],
    *,
    config: TwoStreamConfig,
    layout: str,
    head: str,
    attention: bool,
    all_pairs: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Predictors of one model size share compiled programs, unless their `layout` differs: the
    constraints inside depend on it.
    """
    out, aux = TwoStreamModel(config).apply(
        {"params": params},
        **inputs,
        heads=(head,),
        all_pairs=all_pairs,
        return_attention=attention,
    )
    maps = {
        name.removeprefix(_PREFIX): value.astype(jnp.float32)
        for name, value in aux.items()
        if name.startswith(_PREFIX)
    }
    return out[head].astype(jnp.float32), maps
