"""A narrow small detector with random weights."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from twelve_in_one.convert import centernet
from twelve_in_one.models.detection.centernet import Block, CenterNetConfig
from twelve_in_one.models.detection.small import SmallDetector
from twelve_in_one.models.efficientnet import EfficientNetConfig, abstract_params

FILE = Path(__file__).with_name("centernet.npz")
NARROW = CenterNetConfig(
    blocks=(
        Block(3, 1, 0, 4, 0, False),
        Block(3, 2, 6, 5, 0, False),
        Block(3, 1, 7, 5, 0, False),
        Block(5, 2, 7, 6, 2, False),
        Block(5, 1, 8, 6, 3, False),
        Block(5, 1, 9, 6, 2, False),
        Block(3, 2, 8, 7, 0, True),
        Block(3, 1, 9, 7, 0, True),
        Block(3, 1, 10, 7, 0, True),
        Block(3, 1, 8, 7, 0, True),
        Block(3, 1, 9, 8, 2, True),
        Block(3, 1, 10, 8, 3, True),
        Block(5, 2, 9, 7, 2, True),
        Block(5, 1, 8, 7, 3, True),
        Block(5, 1, 9, 7, 2, True),
    ),
    stem_dim=4,
    deep_dim=12,
    lateral_dims=(5, 4, 3),
    merge_dims=(8, 6, 7),
    gate_dim=3,
    num_classes=3,
)
ENCODER = EfficientNetConfig(
    ((3, 4, 1, 4, 1), (3, 2, 2, 6, 1), (3, 2, 2, 5, 1)), stem_dim=4, head_dim=9
)
DETECTOR = SmallDetector(NARROW, ENCODER, "0123abcd", fine_block=1, num_regions=6, side=128)


def random_params():
    """Parameters of `DETECTOR`."""
    with np.load(FILE) as recorded:
        listing, data = json.loads(recorded["listing"].tobytes()), recorded["numbers"].tobytes()
    tensors, start = {}, 0
    for entry in listing["weightsManifest"][0]["weights"]:
        dtype = np.dtype("<f2" if "quantization" in entry else "<i4")
        count = int(np.prod(entry["shape"]))
        tensors[entry["name"]] = np.frombuffer(data, dtype, count, start).reshape(entry["shape"])
        start += count * dtype.itemsize
    rng = np.random.default_rng(3)
    encoder = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        nn.unbox(abstract_params(ENCODER)),
    )
    proposer = centernet.from_tfjs(NARROW, tensors).params
    proposer["distances"]["pointwise"]["bias"] = np.full(4, 1.5, np.float32)  # boxes of 48 pixels
    return {"proposer": proposer, "encoder": encoder}
