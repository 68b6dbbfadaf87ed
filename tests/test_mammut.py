"""MaMMUT through the trainer: both passes learn, on any devices and after any stop."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from reference import mammut_step, small_pictures

from twelve_in_one import configs, predict, train
from twelve_in_one.checkpoints import model_folder, state
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.config.settings import ConfigError
from twelve_in_one.logs import metrics_writer

CONFIG = """
from twelve_in_one.config import image_defaults
from twelve_in_one.models.mammut_sizes import paper_form
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.mammut import SYSTEM, for_tasks

def get_config():
    encoder = ViTConfig(16, 1, 2, 32, image_size=(16, 16), patch_size=8)
    model = paper_form(encoder, (16, 2, 2, 32), dict(max_tokens=16), contrast="softmax")
    model = for_tasks(model, max_prompt=2, hidden_images=0.2, beams=1)
    tasks = {
        "pairs": dict(source="tsv:FOLDER/{split}.tsv", group="pairs", weight=1.0),
        "colour": dict(
            source="folder:FOLDER/colour/{split}",
            group="zero_shot",
            templates=("a wall painted {}", "{}"),
        ),
        "describe": dict(source="tsv:FOLDER/{split}.tsv", group="caption", weight=0.3),
    }
    tasks = {name: {**options, "random_crop": False} for name, options in tasks.items()}
    config = image_defaults.get_config(SYSTEM, model, tasks)
    config.images.train_side = 18
    config.mixture.weighting, config.mixture.batch_size = "explicit", 8
    config.compilation_cache = ""
    config.text.vocab_size = 60
    config.schedule.num_rounds = 60
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 30
    config.optimizer.learning_rate, config.optimizer.schedule = 1e-2, "constant"
    config.optimizer.warmup_share = 0.0
    config.evaluation.batch_size, config.evaluation.pictures = 8, 1
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 30, 0
    config.log.every_rounds, config.log.tensorboard = 15, False
    config.parallel.devices = 1
    return config
"""


pytestmark = pytest.mark.usefixtures("share_programs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures and a config."""
    folder = tmp_path_factory.mktemp("pictures")
    small_pictures.write(folder)
    (folder / "config.py").write_text(CONFIG.replace("FOLDER", str(folder)))
    return folder


@pytest.fixture(scope="module")
def trained(folder, share_programs, tmp_path_factory):
    """Workdir of a run."""
    workdir = tmp_path_factory.mktemp("mammut")
    train.train(configs.get(str(folder / "config.py")), workdir)
    return workdir


def _lines(workdir):
    path = workdir / metrics_writer.FILE
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_passes_learn(trained):
    results = json.loads((trained / "results.json").read_text())["tasks"]
    colour, pairs, described = (results[name] for name in ("colour", "pairs", "describe"))
    assert colour["score"] > 0.8 and colour["chance"] == 1 / 3 and colour["words"] == 1 / 3
    assert colour["metric"] == "top-1" and colour["metrics"]["mean_class"] > 0.8
    # Three pictures share each caption, so the first of them is found, and all are among nine.
    assert pairs["metric"] == "R@1" and pairs["metrics"]["R@5"] > 0.8 > pairs["chance"] * 5
    assert pairs["official"]["test"]["figures"]["R@10"] == 100.0
    assert described["score"] > described["words"] + 0.2
    lines = [line for line in _lines(trained) if line["event"] == "train"]
    assert set(lines[0]["loss"]) == {"pairs", "describe", "contrast", "repeated"}
    assert lines[-1]["loss"]["contrast"] < 0.5 * lines[0]["loss"]["contrast"]
    assert lines[-1]["score"]["repeated"] > 0.8  # of some six rows with three captions


def test_a_stop_makes_no_difference(folder, trained, tmp_path):
    """Resumed in the middle, with what a killed run leaves."""
    begun = tmp_path / "begun"
    shutil.copytree(trained, begun, ignore=shutil.ignore_patterns("60", "model", "results.json"))
    assert state.all_rounds(begun) == [30]
    train.train(configs.get(str(folder / "config.py")), begun)
    params = [flatten(model_folder.load(place / "model")[0]) for place in (trained, begun)]
    for path, value in params[0].items():
        np.testing.assert_array_equal(params[1][path], value)
    assert _lines(begun)[-1]["score"] == _lines(trained)[-1]["score"]


def test_eight_devices_make_no_difference():
    (one, metrics), (eight, others) = (mammut_step.gradient(devices) for devices in (1, 8))
    for path, value in one.items():
        np.testing.assert_allclose(eight[path], value, rtol=0, atol=2e-6)
    for ours, theirs in zip(metrics.sums, others.sums, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    batch = mammut_step.whole_batch()
    pairs = batch["_mask"] & (batch["task_id"] == 0)
    texts = [tuple(x) for x in batch["tokens"][pairs].tolist()]
    assert metrics.sums.score[3] == sum(texts.count(text) > 1 for text in texts) > 0
    assert metrics.sums.count[2:].tolist() == [pairs.sum()] * 2


def test_two_processes_make_no_difference(tmp_path):
    """The loss of all pairs, as it is and in a ring, is that of eight devices of one process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    pair = [
        subprocess.Popen(
            [sys.executable, mammut_step.__file__, coordinator, str(i), str(tmp_path / f"{i}.npz")],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    wanted = {chunk: mammut_step.gradient(8, chunk) for chunk in mammut_step.CHUNKS}
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)[-5000:]
    for i in range(2):
        with np.load(tmp_path / f"{i}.npz") as found:
            for chunk, (grads, metrics) in wanted.items():
                for name, value in grads.items():
                    np.testing.assert_allclose(found[f"{chunk}/{name}"], value, rtol=0, atol=2e-6)
                for name, value in metrics.sums._asdict().items():
                    np.testing.assert_allclose(found[f"{chunk}/sums.{name}"], value, rtol=1e-5)


def test_ranks_are_those_of_brute_force(trained, folder):
    model = predict.load(trained)
    rows = [line.split("\t") for line in (folder / "test.tsv").read_text().splitlines()[1:]]
    files, texts = zip(*((folder / name, text) for name, text in rows), strict=True)
    cosines = model.embed_text(list(texts)) @ model.embed_image(list(files)).T
    found = json.loads((trained / "results.json").read_text())["tasks"]
    places = [list(np.argsort(-row, kind="stable")).index(i) for i, row in enumerate(cosines)]
    others = [list(np.argsort(-row, kind="stable")).index(i) for i, row in enumerate(cosines.T)]
    for name, ranks in (("R@", places), ("text_R@", others)):
        for k in (1, 5, 10):
            share = np.mean(np.array(ranks) < k)
            assert found["pairs"]["metrics"][f"{name}{k}"] == pytest.approx(share)
    pictures = sorted((folder / "colour" / "test").glob("*/*.png"))
    classes = [one.answer for one in model.classify(pictures)]
    right = [name == file.parent.name for name, file in zip(classes, pictures, strict=True)]
    assert found["colour"]["score"] == pytest.approx(np.mean(right))
    own = model.classify(pictures[0], ["a red wall", "something"], templates=["{}"], top=1)
    assert len(own.top) == 1 and 0 < own.probability < 1
    assert model.caption(files[0]).answer.startswith("a wall")


def test_an_index_is_searched_by_the_model_that_made_it(trained, folder, tmp_path, capsys):
    from twelve_in_one.predict.__main__ import main

    files = sorted((folder / "colour" / "test").glob("*/*.png"))
    index, start = tmp_path / "index.npz", ["--model", str(trained), "--index"]
    assert main(["index", *start, str(index), "--image", *map(str, files)]) == 0
    wanted = [*start, str(index), "--text", "a wall painted red"]
    assert main(["retrieve", *wanted, "--top", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["found"]
    assert all("/red/" in name for name, _ in found) and len(found) == 3
    with np.load(index) as arrays:
        np.savez(index, **{**arrays, "model": np.array("other")})
    assert main(["retrieve", *wanted]) == 1
    index.write_bytes(b"PK spoiled")
    assert main(["retrieve", *wanted]) == 1
    told = capsys.readouterr().err
    assert "made by another model (other)" in told and "is no index, or a damaged one" in told


def test_settings_that_do_not_fit(folder, tmp_path):
    config = configs.get(str(folder / "config.py"))
    config.images.train_side = 8
    with pytest.raises(ConfigError, match="train_side: 8 is less than the model's side 16"):
        train.train(config, tmp_path)
    config.mixture.weighting = ""
    with pytest.raises(ConfigError, match="some tasks are scored but not trained on"):
        train.train(config, tmp_path)


def test_checkpoints_are_evaluated(trained, tmp_path):
    from twelve_in_one.evaluate import main

    out, files = tmp_path / "found.json", tmp_path / "files"
    arguments = ["--workdir", str(trained), "--split", "val", "--tasks", "pairs,colour"]
    assert main([*arguments, "--output", str(out), "--submissions", str(files)]) == 0
    last = json.loads((trained / "results.json").read_text())["tasks"]
    for name, found in json.loads(out.read_text())["tasks"].items():
        assert found["score"] == last[name]["validation"], name
    nearest = json.loads((files / "pairs-val.json").read_text())
    assert len(nearest) == 6 and set(nearest.values()) <= {
        f"a wall painted {colour}" for colour in small_pictures.COLOURS
    }
