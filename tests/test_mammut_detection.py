"""A detector of named things through the trainer: on any devices, after any stop, by any names."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one import configs, predict, train
from twelve_in_one.checkpoints import model_folder, state
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.models.detection.open_vocabulary import DetectorConfig
from twelve_in_one.models.mammut_sizes import paper_form
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.parallel.sharding import make_mesh, use
from twelve_in_one.systems.mammut_detector import MammutDetectorSystem, detector_of
from twelve_in_one.tasks.image_task import ImageTask
from twelve_in_one.training import steps
from twelve_in_one.world import detection

CONFIG = """
from twelve_in_one.config import image_defaults
from twelve_in_one.models.detection.open_vocabulary import DetectorConfig
from twelve_in_one.models.mammut_sizes import paper_form
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.mammut_detector import SYSTEM, detector_of

def get_config():
    encoder = ViTConfig(16, 1, 2, 32, image_size=(32, 32), patch_size=8, position_grid=(2, 2))
    model = paper_form(encoder, (16, 1, 2, 32), dict(max_tokens=16, cross_every=1))
    detector = DetectorConfig(SIZES, mask_samples=0)
    tasks = dict(
        things=dict(
            group="detect",
            source="lvis:FOLDER/lvis_v1_{split}.json,FOLDER/images",
            templates=("a {}", "{}"),
            batch_size=4,
        )
    )
    config = image_defaults.get_config(SYSTEM, detector_of(model, detector, max_boxes=8), tasks)
    config.mixture.weighting = ""
    config.compilation_cache = ""
    config.text.vocab_size = 60
    config.schedule.num_rounds = 4
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 2
    config.evaluation.batch_size, config.evaluation.pictures = 4, 2
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 2, 0
    config.log.every_rounds, config.log.tensorboard = 2, False
    config.parallel.devices = 1
    return config
"""
SIZES = dict(
    pyramid_dim=8, proposal_layers=1, anchor_samples=8, train_before=8, train_proposals=8,
    test_before=8, test_proposals=8, box_samples=4, box_layers=1, hidden_dim=16, detections=6,
    before_suppression=20,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("share_programs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures and a config."""
    folder = tmp_path_factory.mktemp("things") / "set"
    detection.make(folder, 20)
    sizes = ", ".join(f"{name}={value}" for name, value in SIZES.items())
    text = CONFIG.replace("FOLDER", str(folder)).replace("SIZES", sizes)
    (folder.parent / "config.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def trained(folder, share_programs, tmp_path_factory):
    """Workdir of a run."""
    workdir = tmp_path_factory.mktemp("detector")
    train.train(configs.get(str(folder.parent / "config.py")), workdir)
    return workdir


def test_what_a_run_leaves(trained):
    found = json.loads((trained / "results.json").read_text())["tasks"]["things"]
    assert found["metric"] == "AP_r" and 0 <= found["score"] <= 1 and found["examples"] == 4
    assert found["chance"] is not None and "proposal_recall_0.5" in found["metrics"]
    assert {"AP", "AP_c", "AP_f", "AP_r_low", "AP_r_high"} <= set(found["metrics"])
    params, system, serving = model_folder.load(trained / "model")
    assert len(serving.answers["things"]) == system.config.num_classes == 80
    assert len(system.config.novel) == 20 and system.config.novel[0] == 0
    # Vectors of names are those of the text pass, and are not trained.
    assert np.allclose(np.linalg.norm(params["vocabulary"], axis=1), 1, atol=1e-5)
    assert any("decoder" in pattern for pattern in system.frozen)
    assert (trained / "report.html").stat().st_size > 10_000


def test_a_stop_makes_no_difference(folder, trained, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(trained, begun, ignore=shutil.ignore_patterns("4", "model", "results.json"))
    assert state.all_rounds(begun) == [2]
    train.train(configs.get(str(folder.parent / "config.py")), begun)
    params = [flatten(model_folder.load(place / "model")[0]) for place in (trained, begun)]
    for path, value in params[0].items():
        np.testing.assert_array_equal(params[1][path], value)


def test_any_names(trained, folder, tmp_path, capsys):
    from twelve_in_one.predict.__main__ import main

    model = predict.load(trained)
    files = sorted((folder / "images").glob("test_*.jpg"))[:2]
    learnt = model.detect(files[0])
    assert set(learnt.names) <= set(model.serving.answers["things"])
    several = ["red", "blue", "star cross", "a tower", "one ring"]
    for names in (["red star"], ["red star", "Red Star", "blue cow"], several):
        found = model.detect(files, names, top=4)
        assert len(found) == 2 and all(set(one.names) <= set(names) for one in found)
        for one in found:
            assert len(one.names) == len(one.scores) == len(one.boxes) <= 4
            assert (np.diff(one.scores) <= 0).all() and (one.boxes[:, 2] <= 160).all()
    alone = model.detect(files[0], ["red star", "blue cow"], top=4)
    both = model.detect(files, ["red star", "Red Star", "blue cow"], top=4)[0]
    np.testing.assert_allclose(alone.scores, both.scores, rtol=1e-4, atol=1e-6)
    for names, message in (
        ([], "at least one"),
        (["  "], "is empty"),
        ("star", "should be a list"),
    ):
        with pytest.raises(ValueError, match=message):
            model.detect(files[0], names)
    with pytest.warns(UserWarning, match="cannot write all of 日本"):
        model.detect(files[0], ["日本"])
    drawn = tmp_path / "drawn.png"
    arguments = ["--model", str(trained), "--image", str(files[0]), "--picture", str(drawn)]
    assert main(["detect", *arguments, "--names", "red star", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["names"]) <= {"red star"} and drawn.is_file()


def test_eight_devices_make_no_difference():
    encoder = ViTConfig(16, 1, 2, 32, image_size=(32, 32), patch_size=8)
    model = paper_form(encoder, (16, 1, 2, 32), dict(max_tokens=7, vocab_size=20, cross_every=1))
    # A norm over two channels would magnify rounding.
    detector = DetectorConfig(**SIZES | dict(pyramid_dim=32), mask_samples=2, mask_layers=1)
    system = MammutDetectorSystem(detector_of(model, detector, num_classes=3, novel=(2,)))
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 16, (8, 3, 2))
    batch = {
        "images": rng.normal(size=(8, 32, 32, 3)).astype(np.float32),
        "size": np.tile(np.float32([28, 32]), (8, 1)),
        "boxes": np.concatenate([low, low + 9], axis=2).astype(np.float32),
        "classes": rng.integers(-1, 2, (8, 3)).astype(np.int32),
        "masks": rng.integers(0, 2, (8, 3, 28, 28)).astype(np.uint8),
        "task_id": np.zeros(8, np.int32),
        "_mask": np.arange(8) < 7,
    }
    objective = system.objective([ImageTask("things", "", "detect", 0, "boxes", 8)])
    assert objective.parts == ("proposals", "proposal_boxes", "classes", "boxes", "masks")
    params = jax.jit(system.init)(jax.random.key(0))
    # Cosines are divided by a hundredth of it: from 1 the rounding of sums would grow with them.
    params["temperature"] = jnp.float32(100)
    found = []
    for devices in (1, 8):
        mesh = make_mesh(devices=jax.devices()[:devices])
        with use(mesh, "dp"):
            split = jax.NamedSharding(mesh, jax.P("data"))
            placed = {name: jax.device_put(x, split) for name, x in batch.items()}
            step = jax.jit(steps.make_grad_step(objective))
            found.append(jax.device_get(step(params, 0, placed, jax.random.key(1))))
    (one, metrics), (eight, others) = found
    for ours, theirs in zip(metrics.sums, others.sums, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    for path, value in flatten(one.grads).items():
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(flatten(eight.grads)[path], value, rtol=0, atol=1e-4 * scale)
    assert one.ok and (metrics.sums.count == 7).all() and (metrics.sums.loss > 0).all()
    assert np.abs(flatten(one.grads)[("encoder", "position")]).max() > 0
