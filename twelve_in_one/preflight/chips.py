"""Chips and their published peaks.

| figure | source |
|---|---|
| v4 | docs.cloud.google.com/tpu/docs/v4; its six links of 50 GB/s: Jouppi et al. 2023, "TPU v4" |
| v5e, v5p, v6e | docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e, tables of key specifications |
| network of v5e, v6e | there: 6.4 and 25.6 Tbit/s a pod of 256 chips |
| a100, h100, h200 | NVIDIA's data sheets, without sparsity; NVLink in one direction |
| network of GPUs | data sheets of DGX A100 and DGX H100/H200: a port of 200 or 400 Gbit/s each |

Google publishes the bandwidth between chips of both directions together: half of it is used here.
On TPUs float32 products run as bfloat16 unless asked otherwise (`jax.default_matmul_precision`), on
GPUs as TF32, at half the speed.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip.

    Attributes:
      flops: a second, of bfloat16 products.
      flops_float32: a second, of float32 products as JAX runs them by default.
      memory: bytes.
      memory_bandwidth: bytes a second.
      fast: bytes a second to other chips of its slice or machine, in one direction, over all links.
      slow: bytes a second to chips of other slices or machines; 0 if no figure is public.
    """

    flops: float
    flops_float32: float
    memory: float
    memory_bandwidth: float
    fast: float
    slow: float


_GIB = 2**30
TPUS: Mapping[str, Chip] = {
    "v4": Chip(275e12, 275e12, 32 * _GIB, 1_200e9, 300e9, 0.0),
    "v5e": Chip(197e12, 197e12, 16 * _GIB, 819e9, 200e9, 6.4e12 / 8 / 256),
    "v5p": Chip(459e12, 459e12, 95 * _GIB, 2_765e9, 600e9, 50e9 / 8),
    "v6e": Chip(918e12, 918e12, 32 * _GIB, 1_638e9, 400e9, 25.6e12 / 8 / 256),
}
GPUS: Mapping[str, Chip] = {
    "a100": Chip(312e12, 156e12, 80e9, 2_039e9, 300e9, 25e9),
    "h100": Chip(989.4e12, 494.7e12, 80e9, 3_350e9, 450e9, 50e9),
    "h200": Chip(989.4e12, 494.7e12, 141e9, 4_800e9, 450e9, 50e9),
}
