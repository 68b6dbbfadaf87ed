"""Shapes and numbers of the published detector, without computing it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one import configs
from twelve_in_one.models import mammut_detector
from twelve_in_one.models.detection import class_free_proposals, pyramid, region_heads
from twelve_in_one.models.detection.open_vocabulary import DetectorConfig
from twelve_in_one.models.detection.pyramid import SimplePyramid
from twelve_in_one.models.mammut_detector import MammutDetector
from twelve_in_one.systems import fields
from twelve_in_one.systems.mammut_detector import MammutDetectorSystemConfig


def test_the_pyramid_of_a_large_picture():
    cells = jax.ShapeDtypeStruct((1, 64, 64, 768), jnp.float32)
    for extra, sides in ((False, (256, 128, 64, 32)), (True, (256, 128, 64, 32, 16))):
        model = SimplePyramid(256, extra)
        maps, params = jax.eval_shape(
            lambda x, m=model: m.init_with_output(jax.random.key(0), x), cells
        )
        assert [x.shape for x in maps] == [(1, side, side, 256) for side in sides]
        assert pyramid.strides(16, extra) == (4, 8, 16, 32, 64)[: len(sides)]
    found = params["params"]
    assert found["p2_up_0"]["cells"]["kernel"].shape == (768, 4 * 128)
    assert found["p2_up_1"]["cells"]["kernel"].shape == (128, 4 * 64)
    assert "bias" not in found["p3_conv_3"] and found["p6_conv_1"]["kernel"].shape[2:] == (768, 256)


def test_enlarging_is_a_transposed_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    model = pyramid.Enlarge(6)
    params = model.init(jax.random.key(1), x)["params"]
    dense = params["cells"]["kernel"]
    # [W, 2 * 2 * D] -> [2, 2, W, D]; Flax applies it turned by half a circle.
    kernel = jnp.moveaxis(dense.reshape(4, 2, 2, 6), 0, 2)[::-1, ::-1]
    same = nn.ConvTranspose(6, (2, 2), (2, 2))
    wanted = same.apply({"params": {"kernel": kernel, "bias": jnp.zeros(6)}}, x)
    found = model.apply({"params": params}, x)
    turned = same.apply({"params": {"kernel": kernel[::-1, ::-1], "bias": jnp.zeros(6)}}, x)
    differences = [float(jnp.abs(found - y).max()) for y in (wanted, turned)]
    assert min(differences) < 1e-5 < max(differences)


def test_anchors_of_both_kinds():
    one = class_free_proposals.anchors("centerness", (1024, 1024), (4, 8, 16, 32), 8.0)
    assert one.counts == (65536, 16384, 4096, 1024)
    sides = one.boxes[:, 2:] - one.boxes[:, :2]
    assert np.unique(sides).tolist() == [32, 64, 128, 256]  # 8 * 2 ** level
    assert one.centers[0].tolist() == [2, 2]
    three = class_free_proposals.anchors("plain", (1024, 1024), (4, 8, 16, 32), 8.0)
    assert len(three.boxes) == 3 * 87040


def test_the_published_model():
    config = configs.get("mammut_detection:full").model.to_dict()
    config = config | {"num_classes": 1203, "decoder": config["decoder"] | {"vocab_size": 32_000}}
    built = fields.build(MammutDetectorSystemConfig, config)
    params = mammut_detector.abstract_params(built)
    assert params["vocabulary"].value.shape == (1203, 1024)
    assert params["encoder"]["position"].value.shape == (14 * 14, 768)
    heads = params["detector"]
    assert heads["box_head"]["hidden"]["kernel"].value.shape == (7 * 7 * 256, 1024)
    assert heads["box_head"]["embedding"].value.shape == (1024, 1024)
    assert heads["proposal_head"]["score"]["kernel"].value.shape == (1, 1, 256, 1)
    assert {name for name in heads["mask_head"] if name.startswith("conv")} == {
        f"conv_{i}" for i in range(4)
    }

    def detect(params, images, size):
        return MammutDetector(built).apply({"params": params}, images, size, None, method="detect")

    images = jax.ShapeDtypeStruct((2, 1024, 1024, 3), jnp.float32)
    size = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    found, proposals = jax.eval_shape(detect, nn.unbox(params), images, size)
    assert found.boxes.shape == (2, 300, 4) and proposals.shape == (2, 1000, 4)


def test_a_normalised_layer_forgets_scales():
    head = region_heads.BoxHead(4, 1, 8, 6, True)
    pooled = jax.random.normal(jax.random.key(0), (3, 7, 7, 4))
    params = head.init(jax.random.key(1), pooled)["params"]
    vectors = head.apply({"params": params}, pooled)[1]
    larger = {**params, "embedding": params["embedding"] * 5}
    np.testing.assert_allclose(head.apply({"params": larger}, pooled)[1], vectors, rtol=1e-4)
    assert np.abs(np.asarray(vectors)).max() <= 20
    # Cosines over 0.01: a vector that is a class's own scores 100, whatever its length.
    classes = jnp.eye(6)[:2]
    logits = region_heads.class_logits(jnp.eye(6)[:1] * 7, jnp.eye(6)[5], classes, jnp.float32(1))
    np.testing.assert_allclose(logits, [[0, 100, 0]], atol=1e-3)


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="proposals 'fancy' is none of centerness, plain"):
        DetectorConfig(proposals="fancy")
    with pytest.raises(ValueError, match="pyramid_dim 6 should be a multiple of 4"):
        DetectorConfig(pyramid_dim=6)
    with pytest.raises(ValueError, match="jitter .2.0, 0.1. should be two ascending"):
        DetectorConfig(jitter=(2.0, 0.1))
    assert DetectorConfig().overlaps == (0.1, 0.3)
    assert DetectorConfig(proposals="plain").overlaps == (0.3, 0.7)
