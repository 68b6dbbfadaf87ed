"""12-in-1's detector around its network; `tests/parity` compares what it finds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.models.detection import fpn
from twelve_in_one.models.detection.detector import Canvases
from twelve_in_one.models.detection.fpn import FpnConfig, FpnDetector
from twelve_in_one.models.detection.resnet import ResNetConfig


def test_shapes_and_types():
    """Of a batch, with convolutions of bfloat16; nothing is computed."""
    config = FpnConfig(ResNetConfig((1, 1, 1, 1), 8, 8, 16, 4, dtype="bfloat16"), 16, 32, 10)
    detector = dataclasses.replace(FpnDetector(config), num_regions=7)
    sides = {"pixels": (64, 96, 3), "sizes": (2,), "scales": (2,), "photo_sizes": (2,)}
    whole = ("sizes", "photo_sizes")
    canvases = Canvases(
        **{
            name: jax.ShapeDtypeStruct((2, *shape), jnp.int32 if name in whole else jnp.float32)
            for name, shape in sides.items()
        }
    )
    params = fpn.abstract_params(config)
    found = jax.eval_shape(detector.detect, params, canvases)
    sizes = {"boxes": (4,), "features": (32,), "scores": (), "class_probs": (11,)}
    for name, size in sizes.items():
        value = getattr(found, name)
        assert (value.shape, value.dtype) == ((2, 7, *size), jnp.float32)
    boxes = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    described = jax.eval_shape(detector.describe, params, canvases, boxes)
    assert (described.shape, described.dtype) == ((2, 3, 32), jnp.float32)


def test_photos_that_fit_no_canvas():
    detector = FpnDetector(fpn.X152)
    with pytest.raises(ValueError, match="a photo 9000 wide and 2 high becomes 1333 x 0"):
        detector.preprocess(np.zeros((2, 9000, 3), np.uint8))
    with pytest.raises(ValueError, match=r"must be uint8\[H, W, 3\], is float32\[4, 4, 3\]"):
        detector.preprocess(np.zeros((4, 4, 3), np.float32))
