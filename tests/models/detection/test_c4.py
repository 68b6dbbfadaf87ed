"""Bottom-up attention's detector against PyTorch and plain loops, from a file of weights on.

Two photos of different sizes share a batch and a canvas that is larger than both.
"""

import pickle

import jax
import numpy as np
import pytest
from PIL import Image
from reference.c4_detector import AFTER, BEFORE, BLOCKS, INNER, MOST, Reference, random_state

from twelve_in_one.convert import faster_rcnn
from twelve_in_one.models.detection.c4 import BestOfClasses, C4Detector, Sweep
from twelve_in_one.models.detection.fpn import MEAN_BGR
from twelve_in_one.models.detection.nms import confident_boxes
from twelve_in_one.models.detection.proposals import ProposalConfig
from twelve_in_one.models.detection.resize import Resizing

SIZES = ((88, 130), (112, 96))  # rows and columns of the photos
RESIZING = Resizing(96, 144, "up", "antialiased", steps_by_scale=False)


def photo(size, seed):
    """Coarse random colours, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def loaded(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("c4") / "faster_rcnn_from_caffe.pkl"
    path.write_bytes(pickle.dumps({"model": state, "matching_heuristics": True}, protocol=2))
    return faster_rcnn.read(path, "c4")


def test_detects_what_the_ports_detect(state, loaded):
    detector = C4Detector(
        loaded.detector.config,
        choice=Sweep(most=MOST),
        canvases=((160, 176),),
        resizing=RESIZING,
        proposals=ProposalConfig(BEFORE, AFTER, AFTER, inclusive=False),
    )
    assert detector.config.body.blocks == BLOCKS and detector.feature_dim == 16 * INNER * 2
    photos = [photo(size, seed) for seed, size in enumerate(SIZES)]
    single = [detector.preprocess(image) for image in photos]
    batch = jax.tree.map(lambda *parts: np.concatenate(parts), *single)
    boxes = np.array([[[0, 0, 130, 88], [10, 20, 70, 60]], [[0, 0, 96, 112], [5, 5, 50, 9]]])
    boxes = boxes.astype(np.float32)
    with jax.default_matmul_precision("highest"):
        found, described = jax.jit(
            lambda params: (
                detector.detect(params, batch),
                detector.describe(params, batch, boxes),
            )
        )(loaded.params)
    reference = Reference(state)
    for i, (image, size) in enumerate(zip(photos, SIZES, strict=True)):
        rows, columns, _ = RESIZING.size(*size)
        assert batch.sizes[i].tolist() == [rows, columns]
        assert batch.photo_sizes[i].tolist() == list(size)
        pixels = np.asarray(batch.pixels[i])
        assert not pixels[rows:].any() and not pixels[:, columns:].any()
        resized = np.rint(pixels[:rows, :columns] + np.array(MEAN_BGR, np.float32))[..., ::-1]
        theirs = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resized, theirs)
        expected, features, probs = reference.detect(resized, size)
        scale = np.array([columns / size[1], rows / size[0]] * 2, np.float32)
        wanted = reference.features(reference.map(resized), boxes[i] * scale).numpy()
        count = len(expected)
        assert count == MOST and found.valid[i].tolist() == [True] * count
        np.testing.assert_allclose(found.boxes[i], expected, atol=1e-2)
        np.testing.assert_allclose(found.features[i], features, atol=1e-4 * features.max())
        np.testing.assert_allclose(found.class_probs[i], np.roll(probs, 1, 1), atol=1e-4)
        np.testing.assert_array_equal(found.classes[i], probs[:, :-1].argmax(1))
        np.testing.assert_allclose(found.scores[i], probs[:, :-1].max(1), atol=1e-4)
        np.testing.assert_allclose(described[i], wanted, atol=1e-4 * wanted.max())


@pytest.mark.parametrize(
    ("confident", "expected"),
    [
        (2, [5, 1, 6]),  # too few: the best
        (3, [1, 5, 6]),  # enough: as they come
        (4, [1, 2, 5, 6]),
        (5, [5, 1, 6, 2]),  # too many: the best
    ],
)
def test_script_of_bottom_up_attention(confident, expected):
    confidence = np.array([0.1, 0.7, 0.4, -1.0, 0.2, 0.8, 0.5], np.float32)
    least = np.sort(confidence)[-confident]
    order, filled = confident_boxes(confidence, least, fewest=3, most=4)
    assert order[filled].tolist() == expected


def test_entries_are_accounted_for(state, loaded):
    used = {n for n in state if "num_batches" not in n and "cell" not in n and "attr" not in n}
    assert set(loaded.report.loaded) == used
    assert set(loaded.report.unused) == set(state) - used
    assert loaded.detector.name == f"c4-1-36-{faster_rcnn.fingerprint(loaded.params)}"
    assert loaded.detector.class_names == tuple("012345")
    other = faster_rcnn.USES["c4-10-100"][1]["choice"]
    assert other == BestOfClasses(10, 100, 0.2, 0.3)
