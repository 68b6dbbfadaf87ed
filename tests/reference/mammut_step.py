"""The gradient of one batch of a small MaMMUT, on the devices of one process or of two.

python mammut_step.py COORDINATOR PROCESS OUT.npz: one of two processes, each with half of the rows.
"""

import sys

import jax
import numpy as np

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.models.mammut_sizes import paper_form
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.parallel import processes, sharding
from twelve_in_one.systems.mammut import MammutSystem, for_tasks
from twelve_in_one.tasks.image_task import ImageTask
from twelve_in_one.training import steps

TASKS = (
    ImageTask("pairs", "", "pairs", 0, "pairs", 8),
    ImageTask("vqa", "", "vqa", 1, "text", 8),
)
CHUNKS = (0, 2)  # the matrix of pairs as it is, or in a ring, two columns at a time


def whole_batch() -> dict[str, np.ndarray]:
    """Sixteen rows of both tasks; the last is empty, and three have the same text."""
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.normal(size=(16, 16, 16, 3)).astype(np.float32),
        "tokens": rng.integers(1, 3, (16, 6)).astype(np.int32),  # 1 ends them
        "prompt_length": rng.integers(0, 2, 16).astype(np.int32),
        "task_id": np.arange(16, dtype=np.int32) % 2,
        "_mask": np.arange(16) < 15,
    }
    batch["tokens"][[2, 10]] = batch["tokens"][0]  # on several devices
    return batch


def gradient(devices: int, chunk: int = 0) -> tuple[dict[str, np.ndarray], steps.TaskMetrics]:
    """Gradients by "/"-joined name, and metrics.

    Args:
      devices: of all processes together, the first ones.
      chunk: see `MammutConfig.contrast_chunk`.
    """
    encoder = ViTConfig(16, 1, 2, 32, image_size=(16, 16), patch_size=8)
    decoder = dict(max_tokens=7, vocab_size=20)
    model = paper_form(encoder, (16, 2, 2, 32), decoder, contrast_chunk=chunk)
    system = MammutSystem(for_tasks(model, max_prompt=2))
    objective = system.objective(TASKS)
    assert objective.parts == ("pairs", "vqa", "contrast", "repeated")
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    whole, count = sharding.replicated(mesh), jax.process_count()
    rows = slice(jax.process_index() * 16 // count, (jax.process_index() + 1) * 16 // count)
    local = {name: array[rows] for name, array in whole_batch().items()}
    with sharding.use(mesh, "dp"):
        params = jax.jit(system.init, out_shardings=whole)(jax.random.key(0))
        step = jax.jit(steps.make_grad_step(objective), out_shardings=whole)
        found, metrics = step(params, 0, sharding.shard_batch(local, mesh), jax.random.key(1))
    grads = {"/".join(path): np.asarray(leaf) for path, leaf in flatten(found.grads).items()}
    return grads, jax.device_get(metrics)


def main() -> None:
    """Joins the other process, and writes what it finds."""
    coordinator, me, out = sys.argv[1:]
    processes.initialize(coordinator=coordinator, num_processes=2, process_id=int(me))
    arrays = {}
    for chunk in CHUNKS:
        grads, metrics = gradient(jax.device_count(), chunk)
        arrays |= {f"{chunk}/{name}": array for name, array in grads.items()}
        arrays |= {f"{chunk}/sums.{name}": x for name, x in metrics.sums._asdict().items()}
    np.savez(out, **arrays)
    processes.barrier("end")


if __name__ == "__main__":
    main()
