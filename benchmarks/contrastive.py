"""What a contrastive loss and MaMMUT's two passes cost: memory, FLOPs and time.

    python benchmarks/contrastive.py                                    # open-B/16, 8 pairs
    python benchmarks/contrastive.py --what memory --pairs 1024,4096,16384
    python benchmarks/contrastive.py --what passes --model ablation --no_times

memory: the temporary memory of the compiled loss with its gradients, for pairs of vectors alone, as
one matrix and in chunks of columns. Nothing is run.
passes: one update's gradient with both losses against that with the contrastive loss alone, on the
same batch; and the generative loss alone. FLOPs are those of XLA's cost analysis of the program as
traced, before it is compiled.
cache: the gradient of a batch in parts (GradCache: every part runs forward twice) against that of
the whole batch, time and temporary memory. FLOPs of loops are not analysed.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from model_step import restart_with_allocator, seconds

from twelve_in_one.models.mammut_sizes import named_mammut
from twelve_in_one.systems.mammut import MammutSystem, for_tasks
from twelve_in_one.tasks.contrastive import contrastive_loss
from twelve_in_one.tasks.image_task import ImageTask
from twelve_in_one.training import steps

TASK = ImageTask("pairs", "Pairs", "pairs", 0, "pairs", batch_size=0)
WHAT = ("memory", "passes", "cache")


def megabytes(executable: Any) -> float:
    """Temporary memory of a compiled program, in 10^6 bytes."""
    return executable.memory_analysis().temp_size_in_bytes / 1e6


def show_memory(args: argparse.Namespace) -> None:
    """Temporary memory of the loss, by number of pairs and size of chunks."""
    print(f"\nloss with gradients, vectors of {args.width}: temporary memory, MB")
    chunks = (0, *args.chunk)
    names = ["one matrix", *(f"chunks of {chunk}" for chunk in args.chunk)]
    print(f"{'pairs':>8}  {'loss':8}" + "".join(f"  {name:>15}" for name in names))
    for pairs in args.pairs:
        vectors = jax.ShapeDtypeStruct((pairs, args.width), np.float32)
        inputs = (vectors, vectors, jax.ShapeDtypeStruct((), np.float32), np.ones(pairs, bool))
        for form in ("softmax", "focal"):
            row = []
            for chunk in chunks:

                def loss(*inputs: Any, form: str = form, chunk: int = chunk) -> jax.Array:
                    return contrastive_loss(*inputs, form=form, chunk=chunk).sums.mean_loss()

                gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
                row.append(megabytes(gradient.lower(*inputs).compile()))
            print(f"{pairs:8,}  {form:8}" + "".join(f"  {x:15,.1f}" for x in row), flush=True)


def make_system(args: argparse.Namespace, **fields: Any) -> MammutSystem:
    """The system of `--model`."""
    both = dict(dtype=args.dtype, remat=args.remat, num_layers=args.layers)
    side = args.image_size and (args.image_size, args.image_size)
    decoder = dict(max_tokens=args.tokens, vocab_size=args.vocab_size)

    def changed(part: Any, **wanted: Any) -> Any:
        return dataclasses.replace(part, **{k: v for k, v in wanted.items() if v is not None})

    model = named_mammut(args.model)
    model = dataclasses.replace(
        model,
        encoder=changed(model.encoder, image_size=side, **both),
        decoder=changed(model.decoder, **decoder, **both),
    )
    return MammutSystem(for_tasks(model, **fields))


def make_batch(system: MammutSystem, rows: int) -> dict[str, Any]:
    """Random pairs, with texts of the full length."""
    rng, config = np.random.default_rng(0), system.config
    tokens = rng.integers(2, config.decoder.vocab_size, (rows, config.text_length))
    tokens = np.where(tokens == config.eos_id, 2, tokens)
    tokens[:, -1] = config.eos_id
    images = rng.normal(size=(rows, *config.encoder.image_size, 3))
    return {
        "images": jnp.asarray(images, jnp.float32),
        "tokens": jnp.asarray(tokens, jnp.int32),
        "prompt_length": jnp.zeros(rows, jnp.int32),
        "task_id": jnp.zeros(rows, jnp.int32),
        "_mask": jnp.ones(rows, bool),
    }


def traced(system: MammutSystem, batch: Any, accumulate: int = 1) -> Any:
    """The gradient step of a batch, lowered."""
    step = steps.make_grad_step(system.objective((TASK,)), accumulate=accumulate)
    params = nn.unbox(system.abstract())
    return jax.jit(step).lower(params, jnp.int32(0), batch, jax.random.key(0))


def time_of(executable: Any, params: Any, batch: Any, repeats: int) -> float:
    """Median seconds of a step."""
    run: Callable[[], Any] = functools.partial(
        executable, params, jnp.int32(0), batch, jax.random.key(0)
    )
    return statistics.median(seconds(run, repeats))


def show_passes(args: argparse.Namespace) -> None:
    """FLOPs and time of the losses, together and alone."""
    print(f"\n{args.model}, {args.batch_size} pairs: gradient of one update")
    print(f"{'losses':12}  {'GFLOPs':>10}  {'ratio':>7}  {'seconds':>8}  {'ratio':>7}")
    params, first = None, None
    for name, weights in (
        ("contrast", dict(caption_weight=0.0)),
        ("both", {}),
        ("captions", dict(contrast_weight=0.0)),
    ):
        system = make_system(args, **weights)
        batch = make_batch(system, args.batch_size)
        lowered = traced(system, batch)
        flops, took = lowered.cost_analysis()["flops"], None
        if not args.no_times:
            if params is None:
                params = jax.jit(system.init)(jax.random.key(0))
            took = time_of(lowered.compile(), params, batch, args.repeats)
        first = first or (flops, took)
        times = "" if took is None else f"  {took:8.3f}  {took / first[1]:7.3f}"
        print(f"{name:12}  {flops / 1e9:10,.1f}  {flops / first[0]:7.3f}{times}", flush=True)


def show_cache(args: argparse.Namespace) -> None:
    """Time and memory of a batch in parts."""
    print(f"\n{args.model}, {args.batch_size} pairs: gradient of one update, in parts")
    print(f"{'parts':>6}  {'temporary MB':>12}  {'seconds':>8}  {'ratio':>8}")
    system = make_system(args)
    batch, params, whole = make_batch(system, args.batch_size), None, None
    for parts in (1, *args.parts):
        executable = traced(system, batch, parts).compile()
        times = ""
        if not args.no_times:
            if params is None:
                params = jax.jit(system.init)(jax.random.key(0))
            took = time_of(executable, params, batch, args.repeats)
            whole = whole or took
            times = f"  {took:8.3f}  {took / whole:8.3f}"
        print(f"{parts:6}  {megabytes(executable):12,.1f}{times}", flush=True)


def numbers(text: str) -> list[int]:
    """Of a flag."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--what", default="all", help=f"all, or of {','.join(WHAT)}")
    add("--pairs", type=numbers, default=[1024, 4096, 8192], help="of the loss (1024,4096,8192)")
    add("--width", type=int, default=768, help="of its vectors (default 768)")
    add("--chunk", type=numbers, default=[256, 1024], help="columns of a chunk (256,1024)")
    add("--model", default="open-B/16", help="a size of models/mammut_sizes.py (open-B/16)")
    add("--layers", type=int, help="of encoder and decoder (the model's)")
    add("--vocab_size", type=int, help="(the model's)")
    add("--image_size", type=int, help="side of the pictures in pixels (the model's)")
    add("--tokens", type=int, help="of a text, its start included (the model's)")
    add("--batch_size", type=int, default=8, help="pairs of an update (default 8)")
    add("--parts", type=numbers, default=[2, 4], help="to cut a batch into (2,4)")
    add("--dtype", default="float32", help="compute dtype (default float32)")
    add("--remat", default="none", help="rematerialisation (default none)")
    add("--repeats", type=int, default=5, help="of timed steps (default 5)")
    add("--no_times", action="store_true", help="only FLOPs and memory")
    add("--keep_allocator", action="store_true", help="do not restart, see model_step.py")
    args = parser.parse_args()
    wanted = WHAT if args.what == "all" else args.what.split(",")
    if unknown := [what for what in wanted if what not in WHAT]:
        parser.error(f"--what: unknown {unknown}; known: all, {', '.join(WHAT)}")
    restart_with_allocator(args.keep_allocator)
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {args.dtype}")
    for what, show in zip(WHAT, (show_memory, show_passes, show_cache), strict=True):
        if what in wanted:
            show(args)


if __name__ == "__main__":
    sys.exit(main())
