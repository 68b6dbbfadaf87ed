"""Forward pass of a frozen Vision Transformer against the machine's own matrix-product peak.

    python benchmarks/vit_forward.py                                # ViT-B/16, 8 pictures of 224
    python benchmarks/vit_forward.py --model L/16 --dtype bfloat16

Peak and FLOPs as in `model_step.py`: products in the same dtype, measured right before and right
after. `attention` says which kernel attends.
"""

import argparse
import statistics
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from model_step import matmul_peak, restart_with_allocator, seconds

from twelve_in_one.models.flops import vit_forward_flops
from twelve_in_one.models.layers import attention_kernel
from twelve_in_one.models.vit import ViT, init_params, named_vit


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="B/16", help="SIZE/PATCH (default B/16)")
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels (default 224)")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures (default 8)")
    parser.add_argument("--dtype", default="float32", help="compute dtype (default float32)")
    parser.add_argument("--scan_layers", action="store_true", help="run the blocks in a scan")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep_allocator", action="store_true", help="do not restart, see there")
    args = parser.parse_args()
    restart_with_allocator(args.keep_allocator)

    side = (args.image_size,) * 2
    config = named_vit(args.model, image_size=side, dtype=args.dtype, scan_layers=args.scan_layers)
    params = nn.unbox(init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda x: x.astype(args.dtype), params)  # frozen: needs no wider copy
    images = jax.random.normal(jax.random.key(1), (args.batch_size, *side, 3), jnp.float32)
    forward = jax.jit(lambda params, images: ViT(config).apply({"params": params}, images)[0])

    peak = matmul_peak(args.dtype, args.repeats)
    times = seconds(lambda: forward(params, images), args.repeats)
    peak = max(peak, matmul_peak(args.dtype, args.repeats))
    flops = args.batch_size * vit_forward_flops(config)
    median, device = statistics.median(times), jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}, ViT-{args.model}, "
        f"{args.batch_size} x {side[0]} x {side[1]}, {args.dtype}, "
        f"attention: {attention_kernel(args.dtype)}"
    )
    for name, time in (("median", median), ("best", min(times))):
        print(
            f"{name} of {args.repeats}: {time:.3f} s, {args.batch_size / time:.1f} images/s, "
            f"{flops / time / 1e9:.0f} GFLOP/s, {flops / time / peak:.1%} of the peak of "
            f"{peak / 1e9:.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
