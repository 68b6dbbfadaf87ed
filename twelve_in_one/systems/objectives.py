"""Objectives of streams whose rows are of one task, or of several.

Letters: B rows.
"""

from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp

from twelve_in_one.systems.base import AnyTask, Batch, Objective, Params
from twelve_in_one.tasks import losses
from twelve_in_one.tasks.losses import Sums

# (params, batch, dropout key, part of each row int32[B]) -> loss, score and what counts of each
# row, [B] each; None counts every row once.
Rows = Callable[
    [Params, Batch, jax.Array | None, jax.Array], tuple[jax.Array, jax.Array, jax.Array | None]
]


def part_of_rows(tasks: Sequence[AnyTask], batch: Batch) -> jax.Array:
    """int32[B], place of each row's task among the tasks."""
    task_ids = jnp.array([task.task_id for task in tasks])
    return jnp.argmax(batch["task_id"][:, None] == task_ids[None], axis=1)


def of_rows(
    key: Hashable,
    tasks: Sequence[AnyTask],
    rows: Rows,
    counted: Callable[[Batch], jax.Array] = lambda batch: batch["_mask"],
) -> Objective:
    """The objective whose loss is a sum over rows; its parts are the tasks, if there are several.

    Args:
      key: of the model; streams of other tasks have other keys.
      tasks: of the stream.
      rows: see `Rows`.
      counted: batch -> bool array of what counts, by whose number the loss is divided.
    """
    names = tuple(task.name for task in tasks)
    mixed = len(names) > 1

    def loss(params: Params, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        part = part_of_rows(tasks, batch)
        loss, score, counts = rows(params, batch, dropout_key, part)
        sums = losses.by_part(loss, score, batch["_mask"], part, len(names), counts)
        return sums if mixed else jax.tree.map(lambda x: x[0], sums)

    def count(batch: Batch) -> jax.Array:
        total = jnp.sum(counted(batch), dtype=jnp.float32)
        return jnp.full(len(names), total) if mixed else total

    return Objective((key, names), names if mixed else (), loss, count, mixed)
