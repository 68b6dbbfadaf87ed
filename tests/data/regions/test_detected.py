"""Detectors as extractors: photos in batches over devices, resumed, counted, drawn."""

import dataclasses
import functools
import io
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from reference.small_detector import DETECTOR, FILE, NARROW, random_params

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import centernet, detectors, efficientnet, small_detector
from twelve_in_one.data.formats.tfjs import read_weights
from twelve_in_one.data.regions import extract, extraction, open_store
from twelve_in_one.data.regions.detected import DetectorExtractor
from twelve_in_one.data.regions.extractor import PixelExtractor
from twelve_in_one.models.detection.c4 import R101, C4Detector
from twelve_in_one.models.detection.centernet import find_peaks
from twelve_in_one.models.detection.detector import Canvases, Detections
from twelve_in_one.models.detection.fpn import X152, FpnDetector
from twelve_in_one.models.efficientnet import (
    BLACK,
    EfficientNet,
    EfficientNetConfig,
    abstract_params,
)


@dataclasses.dataclass(frozen=True)
class Halves:
    """Finds the left and the right half of every photo, and describes boxes by their corners."""

    name: str = "halves-1"
    feature_dim: int = 5
    num_regions: int = 3
    class_names: tuple[str, ...] = ("left", "right")

    def preprocess(self, image):
        rows, columns = image.shape[:2]
        if rows > columns:
            raise ValueError("a photo that stands does not fit")
        side = 256 if columns > 130 else 128
        pixels = np.zeros((1, side, side, 3), np.float32)
        pixels[0, :rows, :columns] = image
        size = np.array([[rows, columns]], np.int32)
        return Canvases(pixels, size, np.ones((1, 2), np.float32), size)

    def detect(self, params, canvases):
        size = canvases.photo_sizes.astype(np.float32)
        y, x, zero = size[:, :1], size[:, 1:], jnp.zeros_like(size[:, :1])
        boxes = jnp.stack(
            [
                jnp.concatenate([zero, zero, x / 2, y], 1),
                jnp.concatenate([x / 2, zero, x, y], 1),
                jnp.zeros((len(size), 4)),
            ],
            axis=1,
        )
        full = functools.partial(jnp.broadcast_to, shape=(len(size), 3))
        return Detections(
            boxes,
            self.describe(params, canvases, boxes),
            full(jnp.array([[0.9, 0.4, 0]], jnp.float32)),
            full(jnp.array([[0, 1, 0]])),
            full(jnp.array([[True, True, False]])),
        )

    def describe(self, params, canvases, boxes):
        mean = jnp.sum(canvases.pixels, axis=(1, 2, 3))[:, None] / canvases.pixels[0].size
        mean = jnp.broadcast_to(mean, boxes.shape[:2])[..., None]
        return jnp.concatenate([boxes * params["scale"], mean], axis=-1)


@pytest.fixture(scope="module")
def extractor():
    params = {"scale": np.float32(2)}
    return DetectorExtractor(Halves(), params, devices=jax.devices()[:2], batch_size=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Files of five photos lying, as the smaller canvas takes them; two cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        coarse = np.random.default_rng(number).integers(0, 256, (7, 9, 3), np.uint8)
        size = (200 - 20 * number, 140 - 15 * number)
        Image.fromarray(coarse).resize(size).save(folder / f"{number}.png")
    (folder / "5.png").write_bytes(b"<html>")
    Image.new("RGB", (16, 100)).save(folder / "6.png")
    return folder


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_features_are_what_the_maps_show(photos):
    """Against loops over samples and cells in NumPy, for found and given boxes."""
    canvas = DETECTOR.preprocess(pixels(photos / "0.png"))
    assert canvas.pixels.shape == (1, 96, 128, 3) and canvas.sizes.tolist() == [[90, 128]]
    config = dataclasses.replace(DETECTOR.encoder, image_size=(96, 128))
    given = np.array([[10, 20, 90, 100], [0, 0, 199, 139], [120, 60, 128, 66]], np.float32)

    @jax.jit
    def run(params):
        maps = DETECTOR._propose(params, canvas)
        shown = (np.arange(96) < 90)[None, :, None, None] * (canvas.pixels / 128 + BLACK)
        tokens, aux = EfficientNet(config).apply({"params": params["encoder"]}, shown)
        found = DETECTOR.detect(params, canvas)
        described = DETECTOR.describe(params, canvas, given[None])
        seen = maps, find_peaks(maps, 6), tokens.reshape(*config.grid, -1), aux["block_1"][0]
        return found, described[0], seen

    found, described, seen = jax.tree.map(np.asarray, run(random_params()))
    maps, peaks, coarse, fine = seen
    assert found.features.shape == (1, 6, DETECTOR.feature_dim) and found.valid.sum() > 2
    limits = [128, 90, 128, 90]
    for name in ("scores", "classes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(peaks, name))
    np.testing.assert_allclose(found.boxes[0], np.clip(peaks.boxes[0], 0, limits) / 0.64, rtol=1e-5)
    heat = 1 / (1 + np.exp(-maps.heat[0]))

    def mean(cells, stride, box):
        rows, columns = -(-90 // stride), -(-128 // stride)
        total = 0
        for i in range(14):
            for j in range(14):
                y = np.clip(box[1] + (i + 0.5) / 14 * (box[3] - box[1]) - 0.5, 0, rows - 1)
                x = np.clip(box[0] + (j + 0.5) / 14 * (box[2] - box[0]) - 0.5, 0, columns - 1)
                for row in {int(y), min(int(y) + 1, rows - 1)}:
                    for column in {int(x), min(int(x) + 1, columns - 1)}:
                        share = (1 - abs(y - row)) * (1 - abs(x - column))
                        total = total + share * cells[row, column]
        return total / 196

    def expected(box):
        box = np.clip(box * 0.64, 0, [128, 90, 128, 90])
        third = (box[2:] - box[:2]) / 3
        low = np.floor((box[:2] + third) / 4 + 0.5).astype(int)
        high = np.floor((box[2:] - third) / 4 + 0.5).astype(int) + 1
        peak = heat[low[1] : min(high[1], 23), low[0] : min(high[0], 32)].max((0, 1))
        parts = [
            mean(coarse, 32, box / 32) / 0.5,
            mean(fine, 16, box / 16) / 3,
            mean(maps.deep[0], 32, box / 32) / 0.4,
            np.sqrt(peak) / 0.1,
        ]
        return np.concatenate(parts)

    given = np.array([[10, 20, 90, 100], [0, 0, 199, 139], [120, 60, 128, 66]], np.float32)
    boxes = np.concatenate([found.boxes[0], given])
    features = np.concatenate([found.features[0], described])
    for box, feature in zip(boxes, features, strict=True):
        wanted = expected(box)
        np.testing.assert_allclose(feature, wanted, atol=1e-4 * np.abs(wanted).max())


def test_given_boxes(extractor, photos):
    image = pixels(photos / "0.png")
    given = np.array([[10, 20, 90, 100], [0, 0, 199, 139.5]], np.float32)
    described = extractor.describe(image, given)
    np.testing.assert_array_equal(described[:, :4], 2 * np.minimum(given, [199, 139, 199, 139]))
    assert extractor.describe(image, np.zeros((0, 4))).shape == (0, 5)
    many = np.tile(given, (17, 1))  # more than a step of boxes
    np.testing.assert_array_equal(extractor.describe(image, many)[32:], described)
    for box, message in (([9, 5, 5, 9], "box 0 .* x1 <= x2"), ([0, 0, 1, 1], "normalised")):
        with pytest.raises(ValueError, match=message):
            extractor.describe(image, np.array([box], np.float32))
    with pytest.raises(ValueError, match="a photo that stands"):
        extractor.extract(image.transpose(1, 0, 2))


def test_command(extractor, photos, tmp_path, monkeypatch, capsys):
    """Batches, a run that is resumed, what cannot be read, and pictures of what was found."""
    monkeypatch.setattr(detectors, "open_detector", lambda spec, **options: extractor)
    monkeypatch.setattr(extract, "_DETECTOR_SHARD", 3)
    out, drawn = tmp_path / "regions", tmp_path / "drawn"
    command = ["--images", str(photos), "--out", str(out), "--detector", "small"]
    assert extract.main([*command, "--picture", str(drawn)]) == 0
    printed = capsys.readouterr()
    assert "5 images, 2 skipped, regions of halves-1" in printed.out
    assert "7/7 images, 2 unreadable, " in printed.err
    assert (
        "skipped 5: " in printed.err and "skipped 6: " in printed.err and "6.png: " in printed.err
    )
    assert sorted(path.name for path in drawn.iterdir()) == [f"{i}.png" for i in range(5)]
    assert (pixels(drawn / "0.png") != pixels(photos / "0.png")).any()
    assert json.loads((out / "extraction.json").read_text())["extractor"] == "halves-1"
    with open_store(f"records:{out}") as store:
        assert store.extractor == "halves-1" and len(store) == 5
        for number in range(5):
            alone = extractor.extract(pixels(photos / f"{number}.png"))
            got = store.get(str(number))
            assert (got.width, got.height) == (alone.width, alone.height)
            assert len(alone.boxes) == 2
            np.testing.assert_array_equal(got.boxes, alone.boxes)
            np.testing.assert_allclose(got.features, alone.features, rtol=1e-3)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    shard = sorted(out.glob("*.safetensors"))[0]
    shard.unlink()
    monkeypatch.setattr(extraction, "_SECONDS", 0.0)  # a line for every image
    assert extract.main(command) == 0
    assert len(capsys.readouterr().err.splitlines()) > 3
    again = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert again.keys() == times.keys()
    changed = {path.name for path in again if again[path] != times[path]}
    assert changed == {shard.name, f"images-{shard.name[8:13]}.json"}


def test_command_with_given_boxes(extractor, photos, tmp_path, monkeypatch, capsys):
    """Batches of photos of two canvases and of several numbers of boxes; other photos stay out."""
    monkeypatch.setattr(detectors, "open_detector", lambda spec, **options: extractor)
    given = {
        "0": [[10, 20, 90, 100], [0, 0, 199, 139.5]],
        "3": [[1, 1, 20, 20]] * 17,
        "4": [[5, 6, 7, 8]],
        "2": [],
        "1": [[500, 500, 600, 600]],
        "5": [[1, 2, 3, 4]],
    }
    path, out = tmp_path / "boxes.json", tmp_path / "boxes"
    path.write_text(json.dumps(given))
    command = ["--images", str(photos), "--out", str(out), "--detector", "small"]
    command += ["--boxes", str(path)]
    assert extract.main(command) == 0
    printed = capsys.readouterr()
    assert "3 images, 2 skipped, 2 without boxes left out, given boxes of halves-1" in printed.out
    assert "skipped 1: " in printed.err and "1.png: box 0 [500" in printed.err
    with open_store(f"records:{out}") as store:
        assert store.extractor == "halves-1" and sorted(store.ids()) == ["0", "3", "4"]
        for name in store.ids():
            got, boxes = store.get(name), np.array(given[name], np.float32)
            np.testing.assert_array_equal(got.boxes, boxes)
            described = extractor.describe(pixels(photos / f"{name}.png"), boxes)
            np.testing.assert_allclose(got.features, described, rtol=1e-3)
    path.write_text(json.dumps(given | {"4": [[5, 6, 7, 9]]}))
    assert extract.main(command) == 1
    assert "begun with boxes " in capsys.readouterr().err
    for wrong, message in (
        ({"9": []}, "boxes.json: '9' is no image of the folder"),
        ({"0": [1, 2, 3, 4]}, "boxes.json: '0': [1, 2, 3, 4] is no list of [x1, y1, x2, y2]"),
        ({"0": "x"}, "'0': 'x' is no list of"),
        ({"0": 3}, "'0': 3 is no list of"),
    ):
        path.write_text(json.dumps(wrong))
        assert extract.main(command) == 1
        assert message in capsys.readouterr().err
    pixels_out = ["--images", str(photos), "--out", str(tmp_path / "pixels"), "--boxes", str(path)]
    path.write_text(json.dumps({"0": given["0"]}))
    assert extract.main(pixels_out) == 0
    with open_store(f"records:{tmp_path / 'pixels'}") as store:
        described = PixelExtractor().describe(pixels(photos / "0.png"), np.array(given["0"]))
        np.testing.assert_allclose(store.get("0").features, described, rtol=1e-3, atol=1e-3)


def _picture(width, height, *, cut=None):
    data = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(data, "jpeg")
    return data.getvalue()[:cut]


def test_hostile_pictures(extractor, tmp_path):
    """Each is named, and stops no other."""
    hostile = {
        "page": b"<!doctype html><html>404</html>",
        "nothing": b"",
        "dot": _picture(1, 1),
        "cut": _picture(100, 90, cut=-300),
        "hair": _picture(16, 60_000),
    }
    images = {name: tmp_path / f"{name}.jpg" for name in (*hostile, "good")}
    for name, path in images.items():
        path.write_bytes(hostile.get(name, _picture(100, 90)))
    skipped = extraction.extract_folder(images, tmp_path / "out", extractor)
    assert {skip.record for skip in skipped} == {*hostile}
    assert all(f"{skip.record}.jpg: " in skip.reason for skip in skipped)
    with open_store(f"records:{tmp_path / 'out'}") as store:
        assert [*store.ids()] == ["good"]


@pytest.mark.parametrize("detector", [DETECTOR, FpnDetector(X152), C4Detector(R101)])
def test_pictures_that_vanish_when_they_are_resized(detector):
    with pytest.raises(ValueError, match=r"60000 wide and 16 high becomes \d+ x 0, which does not"):
        detector.preprocess(np.zeros((16, 60_000, 3), np.uint8))


@pytest.mark.parametrize("part", ["centernet.bin", "lite0"])
def test_weights_that_are_no_numbers(part, tmp_path):
    """Neither package's files may bring them in."""
    with np.load(FILE) as recorded:
        listing, data = json.loads(recorded["listing"].tobytes()), recorded["numbers"].tobytes()
    if part == "centernet.bin":
        start = 0
        for entry in listing["weightsManifest"][0]["weights"]:
            if entry["name"] == "tower_0/extern1/Conv2D_weights":
                data = data[:start] + np.float16("nan").tobytes() + data[start + 2 :]
            size = 2 if "quantization" in entry else 4
            start += int(np.prod(entry["shape"])) * size
        (tmp_path / "centernet.json").write_text(json.dumps(listing))
        (tmp_path / "centernet.bin").write_bytes(data)
        tensors = read_weights(tmp_path, "centernet")
        with pytest.raises(ValueError, match="not finite.*tower_0/extern1/Conv2D_weights"):
            centernet.from_tfjs(NARROW, tensors)
        return
    config = EfficientNetConfig(((3, 1, 1, 4, 1),), stem_dim=4, head_dim=5)
    shapes = efficientnet.sources(flatten(nn.unbox(abstract_params(config))))
    names = {name for entry in shapes.values() for name in entry}
    widths = {"_conv_stem.weight": (4, 3, 3, 3), "_conv_head.weight": (5, 4, 1, 1)}
    widths |= {"_blocks.0._depthwise_conv.weight": (4, 1, 3, 3)}
    widths |= {"_blocks.0._project_conv.weight": (4, 4, 1, 1)}
    state = {
        name: np.ones(widths.get(name, (5,) if name.startswith("_bn1") else (4,)), np.float32)
        for name in names
    }
    assert efficientnet.from_torch(config, state).report.ok
    state["_bn0.running_var"][2] = -7
    with pytest.raises(ValueError, match=r"not finite.*_bn0\.running_var"):
        efficientnet.from_torch(config, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "x153:a.pth"], "detector 'x153:a.pth' should be KIND:FILE .*x152 "),
        (["--detector", "x152"], "detector 'x152' should be KIND:FILE"),
        (["--detector", "x152:nowhere.pth"], "nowhere.pth"),
        (["--detector", "small:nowhere"], "nowhere: no such file or folder"),
        (["--detector", "small"], "npm pack @vladmandic/human@3.3.6"),
        (["--detector", "small", "--jobs", "2"], "--jobs: not an option of --detector small"),
        (["--dtype", "bfloat16"], "--dtype: not an option of --detector pixels"),
    ],
)
def test_refused_commands(photos, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert extract.main(["--images", str(photos), "--out", "out", *options]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_the_package_is_found_where_npm_puts_it(tmp_path):
    archive = tmp_path / "vladmandic-human-3.3.6.tgz"
    archive.touch()
    assert small_detector.find_package(tmp_path) == archive
    (tmp_path / "node_modules" / "@vladmandic" / "human").mkdir(parents=True)
    with pytest.raises(ValueError, match="are both there: name one"):
        small_detector.find_package(tmp_path)
    archive.unlink()
    assert small_detector.find_package(tmp_path).name == "human"


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("small-1-100-54ddaf3e", "small"),
        ("c4-1-36-abc", "c4:FILE"),
        ("c4-10-100-1-100-abc", "c4-10-100:FILE"),
        ("x152", "x152:FILE"),
        ("pixels-1-ground-16", ""),
    ],
)
def test_specification_of_a_name(name, spec):
    assert detectors.spec_of(name) == spec
