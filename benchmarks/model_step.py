"""Forward pass and training step against the machine's own matrix-product peak.

    python benchmarks/model_step.py                                # full size, 8 x 24 x 101
    python benchmarks/model_step.py --shapes all --batch_size 4    # every shape of the paper's run
    python benchmarks/model_step.py --scan_layers both             # compile time, scanned and not

Peak is the best of several large products in the same dtype, measured right before and right after
each shape, since the speed of a shared machine drifts. FLOPs are those of the model's matrix
products (`models/flops.py`), a training step counted three times. Peak RSS is the process's so far,
so of one row only the largest counts.

On Linux the process restarts itself under `launch/cpu.sh`, since a full-size training step on CPU
otherwise loses a tenth of its speed and more to page faults: glibc returns every large buffer to
the kernel, which hands it out again page by page.
`--keep_allocator` measures without.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.config.paths import local_path
from twelve_in_one.evaluators import rows as evaluators
from twelve_in_one.models.flops import forward_flops
from twelve_in_one.models.two_stream.config import (
    REMAT_POLICIES,
    SIZES,
    TwoStreamConfig,
    named_size,
)
from twelve_in_one.models.two_stream.trunk import init_params
from twelve_in_one.optim import adamw, param_groups
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.task import Task
from twelve_in_one.tasks.twelve import TWELVE
from twelve_in_one.training import steps

# One task per distinct shape; there are eight.
SHAPES = ("vqa", "vgqa", "coco", "refcoco", "visual7w", "guesswhat", "nlvr2", "snli_ve")

LAUNCHER = Path(__file__).resolve().parents[1] / "launch" / "cpu.sh"


def restart_with_allocator(keep: bool) -> None:
    """Restarts this process under `launch/cpu.sh`, on Linux and unless `keep`; see above."""
    if sys.platform == "linux" and not keep and "MALLOC_MMAP_MAX_" not in os.environ:
        sys.stdout.flush()
        os.execv(LAUNCHER, [str(LAUNCHER), sys.executable, *sys.orig_argv[1:]])


def seconds(function: Callable[[], Any], repeats: int) -> list[float]:
    """Wall seconds of each of `repeats` calls, after an uncounted one."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return times


def matmul_peak(dtype: str, repeats: int, largest: int = 8192) -> float:
    """Best FLOP/s of products of square matrices, of at most `largest` rows."""
    product = jax.jit(jnp.matmul)
    sizes = (1024, 2048, 4096) if jax.default_backend() == "cpu" else (4096, 8192)
    best = 0.0
    for n in [n for n in sizes if n <= largest] or [largest]:
        a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
        best = max(best, 2 * n**3 / min(seconds(lambda a=a, b=b: product(a, b), repeats)))
    return best


def make_batch(task: Task, config: TwoStreamConfig, rows: int) -> dict[str, np.ndarray]:
    """A full batch of `rows` trunk rows of random numbers in the shapes of `task`."""
    rng, k = np.random.default_rng(0), task.rows_per_example
    size = rows // k
    lead = (size, k) if k > 1 else (size,)
    tokens, regions = min(task.max_tokens, config.max_positions), task.max_regions
    features = rng.normal(size=(*lead, regions, config.region_feature_dim))
    batch = {
        "tokens": rng.integers(0, config.vocab_size, (*lead, tokens)).astype(np.int32),
        "token_mask": np.ones((*lead, tokens), bool),
        "regions": features.astype(np.float32),
        "boxes": rng.random((*lead, regions, 5)).astype(np.float32),
        "region_mask": np.ones((*lead, regions), bool),
        "task_id": np.int32(task.task_id),
        "_mask": np.ones(size, bool),
    }
    labels = {"vqa": config.num_vqa_answers, "gqa": config.num_gqa_answers}.get(task.head)
    labels = labels or {"image_pair": 2, "three_way": 3}.get(task.head)
    if task.kind == "match":
        batch["targets"] = np.zeros(size, np.int32)
    elif task.kind == "choice":
        shape = (size, task.num_choices)
        batch["choices"] = rng.integers(101, regions, shape).astype(np.int32)
        batch["choice_mask"] = np.ones(shape, bool)
        batch["targets"] = np.eye(task.num_choices, dtype=np.float32)[np.zeros(size, int)]
    else:
        width = regions if task.kind == "region" else labels
        batch["targets"] = np.eye(width, dtype=np.float32)[rng.integers(0, width, size)]
    return batch


def measure(task: Task, config: TwoStreamConfig, params: Any, args: argparse.Namespace) -> Any:
    """Times of one shape: [(name, compile seconds, step seconds, FLOPs)]."""
    rows = max(
        task.rows_per_example, args.batch_size // task.rows_per_example * task.rows_per_example
    )
    batch = jax.device_put(make_batch(task, config, rows))
    tokens = batch["tokens"].shape[-1]
    flops = rows * forward_flops(config, tokens, task.max_regions, (task.head,))
    results = []

    def compiled(function: Any, *inputs: Any, **options: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        executable = jax.jit(function, **options).lower(*inputs).compile()
        return executable, time.perf_counter() - start

    evaluate = evaluators.make_eval_step(Vilbert(config), task)
    forward, compile_seconds = compiled(evaluate, params, batch)
    times = seconds(lambda: forward(params, batch), args.repeats)
    results.append(("forward", compile_seconds, times, flops))

    groups = param_groups.two_stream(head_learning_rate=5.0, weight_decay=0.01)
    optimizer = adamw.adamw(2e-5, groups)
    # The step donates its state: give it a copy, the next shape needs the parameters again.
    holder = [steps.init_state(jax.tree.map(jnp.copy, params), optimizer)]
    step, compile_seconds = compiled(
        steps.make_train_step(Vilbert(config).objective((task,)), optimizer),
        holder[0],
        batch,
        jax.random.key(0),
        donate_argnums=0,
    )

    def update() -> Any:
        holder[0], sums = step(holder[0], batch, jax.random.key(0))
        return sums, holder[0].step

    times = seconds(update, args.repeats)
    results.append(("train step", compile_seconds, times, 3 * flops))
    return rows, tokens + bool(config.num_tasks), results


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="base_6l", help=f"one of {', '.join(SIZES)}")
    parser.add_argument("--batch_size", type=int, default=8, help="trunk rows (default 8)")
    parser.add_argument("--shapes", default="vqa", help=f"all, or of {','.join(SHAPES)}")
    parser.add_argument("--dtype", default="float32", help="compute dtype (default float32)")
    parser.add_argument("--remat", choices=REMAT_POLICIES, default="none")
    parser.add_argument("--scan_layers", choices=("no", "yes", "both"), default="no")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the rows to FILE"
    )
    parser.add_argument("--keep_allocator", action="store_true", help="do not restart, see above")
    args = parser.parse_args()
    restart_with_allocator(args.keep_allocator)
    shapes = SHAPES if args.shapes == "all" else args.shapes.split(",")
    tasks = {task.name: task for task in TWELVE}
    if unknown := [name for name in shapes if name not in tasks]:
        parser.error(f"--shapes: unknown {unknown}; known: all, {', '.join(SHAPES)}")

    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {args.dtype}, "
        f"median of {args.repeats}"
    )
    print(
        f"{'shape':13}  {'task':9}  {'scan':5}  {'what':10}  {'seconds':>7}  {'rows/s':>7}  "
        f"{'GFLOP/s':>7}  {'peak':>6}  {'of peak':>7}  {'compile':>7}  {'RSS GB':>6}"
    )
    records = []
    for scan in {"no": (False,), "yes": (True,), "both": (False, True)}[args.scan_layers]:
        config = dataclasses.replace(
            named_size(args.size), dtype=args.dtype, remat=args.remat, scan_layers=scan
        )
        params = init_params(config, jax.random.key(0))
        for name in shapes:
            peak = matmul_peak(args.dtype, args.repeats)
            rows, length, results = measure(tasks[name], config, params, args)
            peak = max(peak, matmul_peak(args.dtype, args.repeats))
            for kind, compile_seconds, times, flops in results:
                median = statistics.median(times)
                r = {
                    "shape": f"{rows}x{length}x{tasks[name].max_regions}",
                    "task": name,
                    "scan": scan,
                    "what": kind,
                    "seconds": median,
                    "rows_per_s": rows / median,
                    "gflops_per_s": flops / 1e9 / median,
                    "peak_gflops_per_s": peak / 1e9,
                    "share_of_peak": flops / median / peak,
                    "compile": compile_seconds,
                    "rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                }
                records.append(r)
                print(
                    f"{r['shape']:13}  {r['task']:9}  {r['scan']!s:5}  {r['what']:10}  "
                    f"{r['seconds']:7.3f}  {r['rows_per_s']:7.1f}  {r['gflops_per_s']:7.0f}  "
                    f"{r['peak_gflops_per_s']:6.0f}  {r['share_of_peak']:7.1%}  "
                    f"{r['compile']:5.1f} s  {r['rss_gb']:6.2f}",
                    flush=True,
                )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(records, file, indent=2)


if __name__ == "__main__":
    sys.exit(main())
