"""Regions from pixels: valid for any image, repeatable; they find and describe what is there."""

import json

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.images.load import load_image, means_stored, orientation, rgb_array
from twelve_in_one.data.regions.descriptor import lab_from_rgb
from twelve_in_one.data.regions.extractor import PixelExtractor
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.metrics.boxes import iou_matrix
from twelve_in_one.world.render import render
from twelve_in_one.world.scenes import sample_scene

EXTRACTOR = PixelExtractor()


@pytest.fixture(scope="module")
def world():
    """Pictures with their things."""
    rng = np.random.default_rng(11)
    scenes = [sample_scene(rng) for _ in range(120)]
    return [(render(scene, rng), scene.things) for scene in scenes]


def _boxes(things):
    return np.array([thing.box for thing in things], np.float32)


def _noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _check(regions, image, extractor):
    height, width = image.shape[:2]
    count = len(regions.boxes)
    assert (regions.width, regions.height) == (width, height)
    assert 1 <= count <= extractor.num_regions
    assert regions.boxes.shape == (count, 4) and regions.boxes.dtype == np.float32
    assert regions.features.shape == (count, extractor.feature_dim)
    assert regions.features.dtype == np.float32 and np.isfinite(regions.features).all()
    assert (regions.boxes[:, :2] >= 0).all()
    assert (regions.boxes[:, 2:] <= (width - 1, height - 1)).all()
    assert (regions.boxes[:, :2] < regions.boxes[:, 2:]).all()


@pytest.mark.parametrize("extractor", [EXTRACTOR, PixelExtractor(3), PixelExtractor(36, True)])
@pytest.mark.parametrize("size", [(16, 16), (17, 331), (401, 19), (97, 61), (480, 641)])
@pytest.mark.parametrize("content", ["noise", "black", "white", "halves", "gradient"])
def test_valid_for_any_image(extractor, size, content):
    image = _noise(*size)
    if content != "noise":
        image[:] = 255 if content == "white" else 0
    if content == "halves":
        image[: size[0] // 2] = (200, 90, 20)
    if content == "gradient":
        image[:] = np.linspace(0, 255, size[1]).astype(np.uint8)[:, None]
    _check(extractor.extract(image), image, extractor)


def test_large_image():
    image = np.full((3000, 4000, 3), (120, 160, 90), np.uint8)
    image[1000:1600, 500:1300] = (220, 30, 30)
    image[400:900, 2500:2900] = (30, 30, 200)
    regions = EXTRACTOR.extract(image)
    _check(regions, image, EXTRACTOR)
    truth = np.array([[500, 1000, 1299, 1599], [2500, 400, 2899, 899]], np.float32)
    assert (iou_matrix(truth, regions.boxes).max(1) > 0.85).all()


def test_repeats_and_describes_its_own_boxes(world):
    for image, _ in world[:5]:
        first, second = EXTRACTOR.extract(image), EXTRACTOR.extract(image.copy())
        np.testing.assert_array_equal(first.boxes, second.boxes)
        np.testing.assert_array_equal(first.features, second.features)
        np.testing.assert_array_equal(EXTRACTOR.describe(image, first.boxes), first.features)
        # A box's features do not depend on the other boxes, nor on their order.
        one_by_one = [EXTRACTOR.describe(image, box[None])[0] for box in first.boxes[::-1]]
        np.testing.assert_allclose(one_by_one[::-1], first.features, rtol=0, atol=1e-4)


def test_image_is_left_as_it_is(world):
    image = world[0][0].copy()
    image.flags.writeable = False
    EXTRACTOR.extract(image)
    view = np.asfortranarray(world[0][0])[:, ::1]
    np.testing.assert_array_equal(EXTRACTOR.extract(view).boxes, EXTRACTOR.extract(image).boxes)


def test_mirrored_image_gives_mirrored_boxes(world):
    overlaps = []
    for image, _ in world[:20]:
        boxes = EXTRACTOR.extract(image).boxes
        mirrored = EXTRACTOR.extract(np.ascontiguousarray(image[:, ::-1])).boxes
        last = image.shape[1] - 1
        back = np.stack([last - mirrored[:, 2], mirrored[:, 1], last - mirrored[:, 0]], 1)
        back = np.concatenate([back, mirrored[:, 3:]], axis=1)
        overlaps.extend(iou_matrix(boxes, back).max(1))
    assert np.mean(np.array(overlaps) > 0.7) > 0.8


def test_finds_the_things_of_scenes(world):
    best, spurious = [], []
    for image, things in world[:60]:
        overlap = iou_matrix(_boxes(things), EXTRACTOR.extract(image).boxes)
        best.extend(overlap.max(1))
        spurious.append((overlap.max(0) <= 0.5).sum())
    assert np.mean(np.array(best) > 0.5) >= 0.95
    assert np.mean(best) >= 0.82
    assert np.mean(spurious) < 4


def test_finds_touching_things():
    """Things in contact are proposed apart if their colours differ or they have an outline."""
    image = np.full((128, 160, 3), (150, 184, 112), np.uint8)
    y, x = np.mgrid[:128, :160]
    colours = [(200, 40, 40), (230, 200, 50), (40, 60, 200), (40, 60, 200)]
    centres = np.array([[40, 60], [71, 60], [110, 30], [110, 61]])
    for (cx, cy), colour in zip(centres, colours, strict=True):
        distance = np.hypot(x - cx, y - cy)
        image[distance <= 16] = np.array(colour) // 2
        image[distance <= 14] = colour
    boxes = np.concatenate([centres - 16, centres + 16], axis=1).astype(np.float32)
    assert (iou_matrix(boxes, EXTRACTOR.extract(image).boxes).max(1) > 0.5).all()


@pytest.mark.parametrize(
    ("name", "least"), [("shaded", 0.97), ("shape", 0.9), ("colour", 0.9), ("pattern", 0.9)]
)
def test_features_tell_looks_apart(world, name, least):
    """By ridge regression on what is so, from few pictures, a quarter of which is held out."""

    def examples(pictures):
        features, labels = [], []
        for image, things in pictures:
            described = EXTRACTOR.describe(image, _boxes(things))
            for feature, thing in zip(described, things, strict=True):
                if name in ("shaded", "shape") or not thing.shaded:
                    features.append(np.append(feature, 1))
                    labels.append(str(getattr(thing, name)))
        return np.array(features, np.float64), np.array(labels)

    features, labels = examples(world[:90])
    classes = np.unique(labels)
    moments = features.T @ features + 30 * np.eye(features.shape[1])
    weights = np.linalg.solve(moments, features.T @ (labels[:, None] == classes))
    features, labels = examples(world[90:])
    assert np.mean(classes[(features @ weights).argmax(1)] == labels) >= least


def test_features_are_scaled(world):
    features = np.concatenate([EXTRACTOR.extract(image).features for image, _ in world[:20]])
    assert np.abs(features.mean(0)).max() < 1.5
    assert 0.4 < features.std() < 1.6
    assert np.abs(features).max() < 30  # far from where float16 ends


def test_photos(samples_dir):
    folder = samples_dir / "coco"
    records = json.loads((folder / "annotations/instances_subset.json").read_text())
    truth = {}
    for record in records["annotations"]:
        x, y, width, height = record["bbox"]
        truth.setdefault(record["image_id"], []).append((x, y, x + width, y + height))
    extractor = PixelExtractor(100, cluttered=True)
    best = []
    for record in [record for record in records["images"] if record["id"] in truth][:4]:
        image = load_image(folder / "images" / record["file_name"])
        assert image.shape == (record["height"], record["width"], 3)
        regions = extractor.extract(image)
        _check(regions, image, extractor)
        assert len(regions.boxes) == 100
        assert len(np.unique(regions.boxes, axis=0)) > 80
        boxes = np.array(truth[record["id"]], np.float32)
        best.extend(iou_matrix(boxes, regions.boxes).max(1))
    assert np.mean(np.array(best) > 0.5) > 0.15


def test_lab_of_known_colours():
    rgb = np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255], [119, 119, 119]], np.uint8)
    expected = [[100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    np.testing.assert_allclose(lab_from_rgb(rgb), expected, atol=0.15)


def test_boxes_of_users_are_cut():
    image = _noise(40, 50)
    got = EXTRACTOR.describe(image, np.array([[-9, -9, 70, 60], [3, 4, 3, 4]]))
    whole = EXTRACTOR.describe(image, np.array([[0, 0, 49, 39]]))
    np.testing.assert_allclose(got[:1], whole, atol=1e-5)
    assert np.isfinite(got).all()
    assert EXTRACTOR.describe(image, np.zeros((0, 4))).shape == (0, EXTRACTOR.feature_dim)


@pytest.mark.parametrize(
    "box", [[5, 5, 4, 9], [5, np.nan, 6, 9], [50, 3, 60, 9], [-9, 3, -1, 9], [0, 0, np.inf, 9]]
)
def test_boxes_that_mean_nothing(box):
    with pytest.raises(ValueError, match=r"box 1 \[.*in pixels of an image 50 wide and 40 high"):
        EXTRACTOR.describe(_noise(40, 50), np.array([[0, 0, 9, 9], box], np.float32))


def test_normalised_boxes():
    with pytest.raises(ValueError, match="normalised: multiply x by 50 and y by 40"):
        EXTRACTOR.describe(_noise(40, 50), np.array([[0, 0, 0.5, 1], [0.2, 0.3, 1, 0.8]]))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"must be uint8\[H, W, 3\], is float64"):
        EXTRACTOR.extract(np.zeros((40, 40, 3)))
    with pytest.raises(ValueError, match="16 pixels a side"):
        EXTRACTOR.extract(_noise(15, 40))
    with pytest.raises(ValueError, match=r"must have shape \(N, 4\)"):
        EXTRACTOR.describe(_noise(40, 50), np.zeros(4))
    with pytest.raises(ValueError, match="num_regions must be positive"):
        PixelExtractor(0)


def test_names_differ_with_what_they_do():
    made = [PixelExtractor(), PixelExtractor(36), PixelExtractor(36, True)]
    assert len({extractor.name for extractor in made}) == 3


def _save(picture, path, **options):
    picture.save(path, **options)
    return load_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "YCbCr"])
def test_modes_of_image_files(tmp_path, mode):
    grey = np.full((20, 30, 3), 255, np.uint8)
    grey[:, :15] = 0
    picture = Image.fromarray(grey).convert(mode)
    if mode in ("CMYK", "YCbCr"):  # of which Pillow 12 cannot read what it writes uncompressed
        got = _save(picture, tmp_path / "x.tif", compression="tiff_lzw")
    else:
        got = _save(picture, tmp_path / "x.png")
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got.astype(int), grey, atol=3)


def test_transparent_is_white_and_deep_grey_is_reduced(tmp_path):
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[:, 15:, 3] = 255
    got = _save(Image.fromarray(pixels), tmp_path / "x.png")
    assert (got[:, :15] == 255).all() and (got[:, 15:] == 0).all()
    deep = np.tile(np.arange(30, dtype=np.uint16) * 2000, (20, 1))
    got = _save(Image.fromarray(deep), tmp_path / "deep.png")
    np.testing.assert_array_equal(got[..., 1], deep >> 8)


@pytest.mark.parametrize(
    ("mode", "values", "wanted"),
    [
        ("I", [0, 7, 255], [0, 7, 255]),
        ("I", [0, 256, 65_535], [0, 1, 255]),
        ("I;16", [0, 7, 255], [0, 7, 255]),
        ("I;16", [0, 256, 65_535], [0, 1, 255]),
        ("F", [0, 0.5, 1], [0, 128, 255]),
        ("F", [0, 0.5, 255], [0, 0, 255]),
        ("I", [0, 7, 65_536], None),
        ("I", [-1, 7, 9], None),
        ("F", [0, 7, 256], None),
        ("F", [-0.1, 0, 1], None),
        ("F", [0, 1, np.nan], None),
    ],
)
def test_numbers_are_scaled_by_their_range(tmp_path, mode, values, wanted):
    dtype = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]
    picture = Image.fromarray(np.resize(np.array(values, dtype), (21, 30)))
    assert picture.mode == mode
    path = tmp_path / "x.tif"
    picture.save(path)
    if wanted is None:
        with pytest.raises(DataError, match=r"x\.tif: .*values from .* convert it to 8 bits"):
            load_image(path)
        with pytest.raises(ValueError, match="values from .* to .* are not 0 to"):
            rgb_array(picture)
        return
    for got in (load_image(path), rgb_array(picture)):
        assert got.shape == (21, 30, 3) and got.dtype == np.uint8
        np.testing.assert_array_equal(got[0, :3], np.repeat(np.array(wanted)[:, None], 3, 1))


# Orientation, size that is stated, whether there are boxes: is the stored frame of 30 x 20 meant?
@pytest.mark.parametrize(
    ("turned", "size", "has_boxes", "stored"),
    [
        (6, (30, 20), True, True),
        (6, (30, 20), False, True),
        (8, (20, 30), True, False),
        (5, (0, 0), True, True),
        (7, (0, 0), False, False),
        (6, (99, 99), True, True),
        (3, (30, 20), True, True),
        (3, (30, 20), False, False),
        (2, (0, 0), True, True),
        (1, (20, 30), True, False),
        (None, (30, 20), True, False),
        (99, (30, 20), True, False),
    ],
)
def test_frame_that_annotations_mean(tmp_path, turned, size, has_boxes, stored):
    image, exif, path = _noise(20, 30), Image.Exif(), tmp_path / "x.png"
    if turned is not None:
        exif[0x0112] = turned
    Image.fromarray(image).save(path, exif=exif)
    assert orientation(path) == (turned if turned in range(1, 9) else 1)
    assert means_stored(path, size, has_boxes) == stored
    np.testing.assert_array_equal(load_image(path, upright=False), image)


def test_orientation_is_applied(tmp_path):
    image = _noise(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    got = _save(Image.fromarray(image), tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(got, np.rot90(image, -1))


def test_unusable_files_are_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(_noise(60, 60)).save(whole)
    data = whole.read_bytes()
    for name, side in (("large", 8001), ("larger", 10_000), ("bomb", 60_000)):
        (tmp_path / f"{name}.ppm").write_bytes(b"P6 %d %d 255\n" % (side, side))
    Image.new("L", (15, 40)).save(tmp_path / "tiny.png")
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for path in sorted(tmp_path.iterdir()):
        if path != whole:
            with pytest.raises(DataError, match=path.name):
                load_image(path)
    with pytest.raises(DataError, match="missing.png"):
        load_image(tmp_path / "missing.png")
