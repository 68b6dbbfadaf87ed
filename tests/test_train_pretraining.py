"""Pretraining by the trainer: parts of the loss, resuming, devices, and what can begin with it."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from reference.small_model import SMALL_MODEL
from test_train import params_of

from twelve_in_one import configs, train
from twelve_in_one.checkpoints import weights
from twelve_in_one.convert import __main__ as convert
from twelve_in_one.convert.state_dict import to_state_dict
from twelve_in_one.logs import metrics_writer
from twelve_in_one.models.two_stream.config import PRETRAINING_HEADS, from_json
from twelve_in_one.training import loop

NAME = "conceptual_captions"
pytestmark = pytest.mark.usefixtures("share_programs")


def small_config(world, *, devices=1, rounds=4):
    config = configs.get("pretrain_cc:debug")
    config.update_from_flattened_dict(SMALL_MODEL)
    config.data.dir, config.data.raw_dir = str(world.data), str(world.raw)
    config.data.world_images = 0
    config.compilation_cache = ""  # that of all tests
    config.parallel.devices = devices
    config.schedule.num_rounds = rounds
    config.task.conceptual_captions.batch_size = 8
    config.pretraining.num_negatives = 20
    config.log.tensorboard = False
    return config


@pytest.fixture(scope="module")
def pretrained(small_world, tmp_path_factory, share_programs):
    """A finished run on one device, and its results."""
    workdir = tmp_path_factory.mktemp("pretraining")
    return workdir, train.train(small_config(small_world), workdir)


def lines_of(workdir, event):
    lines = metrics_writer.read(workdir / metrics_writer.FILE)
    return [
        {k: v for k, v in line.items() if k != "timing"} for line in lines if event in line["event"]
    ]


def test_the_log_has_every_part(pretrained):
    workdir, results = pretrained
    parts = [f"{NAME}/{head}" for head in PRETRAINING_HEADS]
    lines = lines_of(workdir, "train")
    assert len(lines) == 4
    for line in lines:
        assert list(line["loss"]) == list(line["score"]) == [NAME, *parts]
        np.testing.assert_allclose(
            line["loss"][NAME], sum(line["loss"][p] for p in parts), rtol=1e-6
        )
    found = results["tasks"][NAME]
    assert found["metric"] == "masked words"
    assert set(found["metrics"]) == {
        f"{head}_{x}" for head in PRETRAINING_HEADS for x in ("loss", "score")
    }
    losses = [found["metrics"][f"{head}_loss"] for head in PRETRAINING_HEADS]
    np.testing.assert_allclose(found["loss"], sum(losses), rtol=1e-6)
    assert found["score"] == found["metrics"]["masked_language_score"]
    assert json.loads((workdir / "results.json").read_text()) == results


def test_eight_devices_and_a_stop_change_nothing(pretrained, small_world, tmp_path, monkeypatch):
    """Negatives come from the whole batch, however it is spread."""
    workdir, _ = pretrained
    config = small_config(small_world, devices=8)
    save = loop.state.Checkpoints.save
    with monkeypatch.context() as patch:

        def stop_after_two(self, state, progress):
            save(self, state, progress)
            raise KeyboardInterrupt

        patch.setattr(loop.state.Checkpoints, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / "run")
    train.train(config, tmp_path / "run")
    for one, eight in zip(
        lines_of(workdir, "train"), lines_of(tmp_path / "run", "train"), strict=True
    ):
        for name, loss in one["loss"].items():
            np.testing.assert_allclose(eight["loss"][name], loss, rtol=1e-4, err_msg=name)


def test_the_tasks_begin_with_it(pretrained, small_world, tmp_path):
    """All of the trunk is taken over but the table of task tokens, which pretraining lacks."""
    workdir, _ = pretrained
    config = configs.get("world:debug")
    config.update_from_flattened_dict(SMALL_MODEL)
    config.tasks = config.model.heads = ("vqa",)
    config.parallel.devices = 1
    config.data = small_config(small_world).data
    config.compilation_cache = ""  # that of all tests
    config.schedule.num_rounds, config.optimizer.learning_rate = 1, 0.0
    config.init_from.path = str(workdir)
    config.init_from.allow_missing = ("heads/.*", "trunk/text_embedding/task/embedding")
    config.evaluation.max_test_examples, config.evaluation.pictures = 8, 0
    config.log.tensorboard = False
    train.train(config, tmp_path / "tuned")
    before, after = params_of(workdir), params_of(tmp_path / "tuned")
    trunk = {path for path in after if path[0] == "trunk"}
    missing = {path for path in trunk if path not in before}
    assert missing == {("trunk", "text_embedding", "task", "embedding")}
    for path in trunk - missing:
        np.testing.assert_array_equal(after[path], before[path], err_msg="/".join(path))


def test_a_bert_begins_the_text_stream(pretrained, small_world, tmp_path):
    """As the README says it: converted, then named by `init_from`."""
    model = pretrained[0] / "model"
    config = from_json((model / "config.json").read_text())
    released = dict(to_state_dict(config, weights.load_params(model)[0], {}))
    text = ("bert.embeddings.", "bert.encoder.layer.", "cls.predictions.")
    rng = np.random.default_rng(0)
    bert = {
        name: rng.normal(0, 0.1, tensor.shape).astype(np.float32)
        for name, tensor in released.items()
        if name.startswith(text) and "decoder" not in name
    }
    safetensors.numpy.save_file(bert, tmp_path / "bert.safetensors")
    arguments = ["bert.safetensors", "start", "--config", "sizes.json"]
    shutil.copy(model / "config.json", tmp_path / "sizes.json")
    assert convert.main([x if "-" in x else str(tmp_path / x) for x in arguments]) == 0
    run = small_config(small_world, rounds=1)
    run.init_from.path, run.optimizer.learning_rate = str(tmp_path / "start"), 0.0
    train.train(run, tmp_path / "run")
    after = dict(to_state_dict(config, weights.load_params(tmp_path / "run" / "model")[0], {}))
    for name, tensor in bert.items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)
