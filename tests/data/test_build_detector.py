"""Data sets built on a detector's regions of the pictures, and pointing with boxes of a user."""

import re
import shutil

import jax
import numpy as np
import pytest
from reference.small_detector import DETECTOR
from reference.small_detector import random_params as detector_params

from twelve_in_one import predict
from twelve_in_one.checkpoints import model_folder
from twelve_in_one.convert import detectors
from twelve_in_one.data.builders.region_inputs import picture_files
from twelve_in_one.data.images.load import load_image
from twelve_in_one.data.regions import extraction
from twelve_in_one.data.regions.detected import DetectorExtractor
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.reader import built_folder, open_split, read_build_info
from twelve_in_one.data.streams import open_folder, preprocessing_of
from twelve_in_one.predict.__main__ import main as ask
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.twelve import TASKS


@pytest.fixture(scope="module")
def extractor():
    return DetectorExtractor(DETECTOR, detector_params(), devices=jax.devices()[:2], batch_size=4)


@pytest.fixture(scope="module")
def opened(extractor):
    """Specifications of detectors that were opened; all of them give the small one."""
    specs = []

    def open_detector(spec, **options):
        specs.append(spec)
        return extractor

    from twelve_in_one.data import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detectors, "open_detector", open_detector)
        build._open_detector.cache_clear()
        yield specs
    build._open_detector.cache_clear()


@pytest.fixture(scope="module")
def built(small_world, run_build, opened, tmp_path_factory):
    """Data folder of Visual7W, whose pictures are two dozen, and what the command printed."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "raw" / "images").mkdir(parents=True)
    for name in ("visual7w", "images/visual_genome"):
        (folder / "raw" / name).symlink_to(small_world.raw / name)
    outcome = run_build("visual7w", folder / "raw", folder / "data", "--features", "small")
    assert outcome.code == 0, outcome.err
    return folder, outcome


def test_regions_and_annotated_boxes_are_the_detectors(built, opened, extractor):
    folder, outcome = built
    assert opened == ["small"] and " images, " in outcome.err
    data = built_folder(folder / "data", "visual7w", "detected")
    assert read_build_info(data)["made_of"]["extractor"] == DETECTOR.name
    reader = open_split(data, "train")
    record = reader.record(0)
    name = reader.index.record_ids[0]
    pictures, _ = picture_files(folder / "raw/images/visual_genome")
    pixels = load_image(pictures[name])
    found, rows = extractor.extract(pixels), record.images[0]
    np.testing.assert_allclose(rows.boxes[1:], found.boxes, atol=1e-3)
    np.testing.assert_allclose(rows.features, found.features, rtol=2e-3, atol=1e-3)
    given = record.annotated
    described = extractor.describe(pixels, given.boxes)
    assert len(given) > 1 and given.features.shape == described.shape
    np.testing.assert_allclose(given.features, described, rtol=2e-3, atol=1e-3)


def test_again_nothing_is_extracted(built, run_build, extractor, monkeypatch):
    """Also if the data set itself is to be built again, as after a kill."""
    folder, _ = built
    monkeypatch.setattr(extraction, "_results", None)
    command = "visual7w", folder / "raw", folder / "data", "--features", "small"
    again = run_build(*command)
    assert again.code == 0 and "was there" in again.out
    shutil.rmtree(folder / "data" / "visual7w")
    again = run_build(*command)
    assert again.code == 0 and not re.search("^visual7w .*was there", again.out, re.M), again.err
    stores = sorted(path.name for path in (folder / "data/regions" / DETECTOR.name).iterdir())
    assert len(stores) == 2 and stores[1].startswith("visual_genome-boxes-")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--features", "small", "--annotated_features", "records:a"],
            "the detector of --features",
        ),
        (["--features", "small", "--num_regions", "3"], "a detector has its own number"),
    ],
)
def test_refused(small_world, run_build, tmp_path, options, message):
    outcome = run_build("visual7w", small_world.raw, tmp_path / "data", *options)
    assert outcome.code != 0 and message in outcome.err


def test_pointing_with_boxes_of_a_user(built, extractor, tiny_config, random_params, capsys):
    """A model that knows the detector's regions chooses among given boxes of a photo."""
    folder, _ = built
    data, task = open_folder(folder / "data", "detected"), TASKS["visual7w"]
    preprocessing = preprocessing_of(data, [task], DETECTOR.feature_dim)
    assert preprocessing.image_descriptor == DETECTOR.name
    config = tiny_config(
        text={"num_layers": 1},
        visual={"num_layers": 1},
        text_connections=(0,),
        visual_connections=(0,),
        vocab_size=data.tokenizer.vocab_size,
        max_positions=40,
        num_tasks=20,
        region_feature_dim=DETECTOR.feature_dim,
    )
    serving = Serving((task,), data.tokenizer, {}, preprocessing)
    model_folder.save(folder / "model", random_params(config), Vilbert(config), serving)
    photo = next((folder / "raw/images/visual_genome").rglob("*.*"))
    boxes = [(2, 2, 30, 40), (10, 5, 60, 50), (0, 0, 20, 20)]
    model = predict.load(folder / "model", detector="small")
    pointed = model.point(photo, "which is red?", boxes)
    assert pointed.candidates.tolist() == [list(map(float, box)) for box in boxes]
    seen = model._engine.reader.boxes(model.read(photo), boxes)
    expected = extractor.describe(load_image(photo), np.array(boxes, np.float32))
    np.testing.assert_allclose(seen.features, expected, rtol=1e-5)
    command = ["point", "--model", str(folder / "model"), "--detector", "small"]
    command += ["--image", str(photo), "--text", "which is red?", "--boxes"]
    assert ask([*command, *(",".join(map(str, box)) for box in boxes)]) == 0
    assert str(pointed.box[0])[:2] in capsys.readouterr().out
