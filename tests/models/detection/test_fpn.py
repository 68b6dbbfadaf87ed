"""12-in-1's detector from a photo to rows of regions, against recorded arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.convert.faster_rcnn import from_state_dict
from twelve_in_one.models.detection import fpn
from twelve_in_one.models.detection.detector import Canvases
from twelve_in_one.models.detection.fpn import FpnDetector
from twelve_in_one.models.detection.proposals import ProposalConfig
from twelve_in_one.models.detection.resize import Resizing


@pytest.fixture(scope="module")
def recorded(shared_dir):
    with np.load(shared_dir / "fixtures/pixels.npz") as arrays:
        return {name: arrays[name] for name in arrays.files if name.startswith("e2e")}


def test_regions_of_a_photo(recorded):
    state = {n.partition("__")[2]: v for n, v in recorded.items() if n.startswith("e2e_sd")}
    config, params, _ = from_state_dict("fpn", state)
    image = recorded["e2e__rgb_image"]
    boxes = recorded["e2e_imgclip__top20_boxes"]
    # The recorded features are of boxes that were cut elsewhere; these lie within the photo.
    inside = recorded["e2e_padclip__top20_boxes"][:, 2] <= 215
    given, expected = (recorded[f"e2e_padclip__{n}"][inside] for n in ("top20_boxes", "top20_fc6"))
    assert len(given) >= 3
    detector = FpnDetector(
        config,
        num_regions=len(boxes),
        canvases=((192, 224), (160, 352)),
        resizing=Resizing(160, 216),
        proposals=ProposalConfig(60, 30, 110),
    )
    canvases = detector.preprocess(image)
    assert canvases.pixels.shape == (1, 192, 224, 3)  # the smaller one
    with jax.default_matmul_precision("highest"):
        found, described = jax.jit(
            lambda params, boxes: (
                detector.detect(params, canvases),
                detector.describe(params, canvases, boxes),
            )
        )(params, jnp.asarray(given)[None])
    assert found.valid.all()
    np.testing.assert_allclose(found.boxes[0], boxes, atol=2e-4)
    np.testing.assert_allclose(described[0], expected, atol=1e-4 * expected.max())
    # Ranked by another measure than the score.
    assert (np.diff(found.scores[0]) > 0).any()
    best = np.asarray(found.class_probs[0, :, 1:])
    np.testing.assert_array_equal(found.classes[0], best.argmax(1))
    np.testing.assert_array_equal(found.scores[0], best.max(1))


def test_full_size():
    """Shapes and types at the size of the released weights; nothing is computed."""
    body = dataclasses.replace(fpn.X152.body, dtype="bfloat16")
    detector = FpnDetector(dataclasses.replace(fpn.X152, body=body))
    canvases = Canvases(
        *(
            jax.ShapeDtypeStruct(shape, kind)
            for shape, kind in (
                ((2, 800, 1088, 3), jnp.float32),
                ((2, 2), jnp.int32),
                ((2, 2), jnp.float32),
                ((2, 2), jnp.int32),
            )
        )
    )
    params = fpn.abstract_params(detector.config)
    found = jax.eval_shape(detector.detect, params, canvases)
    sizes = {"boxes": (4,), "features": (2048,), "scores": (), "class_probs": (1601,)}
    for name, size in sizes.items():
        value = getattr(found, name)
        assert (value.shape, value.dtype) == ((2, 100, *size), jnp.float32)


def test_photos_that_fit_no_canvas():
    detector = FpnDetector(fpn.X152)
    with pytest.raises(ValueError, match="a photo 9000 wide and 2 high becomes 1333 x 0"):
        detector.preprocess(np.zeros((2, 9000, 3), np.uint8))
    with pytest.raises(ValueError, match=r"must be uint8\[H, W, 3\], is float32\[4, 4, 3\]"):
        detector.preprocess(np.zeros((4, 4, 3), np.float32))
