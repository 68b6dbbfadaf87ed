"""MaMMUT learns clips from the weights of pictures, and is asked about files and folders."""

import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from twelve_in_one import configs, predict, train
from twelve_in_one.checkpoints import model_folder
from twelve_in_one.models.mammut_sizes import paper_form
from twelve_in_one.models.tubes import ClipConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.parallel.sharding import make_mesh, use
from twelve_in_one.systems.mammut import MammutSystem, for_tasks
from twelve_in_one.tasks.image_task import ImageTask
from twelve_in_one.training import steps

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
CONFIG = """
from twelve_in_one.config import image_defaults
from twelve_in_one.models.mammut_sizes import paper_form
from twelve_in_one.models.tubes import ClipConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.mammut import SYSTEM, for_tasks
from twelve_in_one.tasks.mammut import VIDEO_TASKS

def get_config():
    clip = ClipConfig(frames=4, every=4, tubes=((2, 8, 8, 2, 8, 8, 0, 0, 0),))
    encoder = ViTConfig(16, 1, 2, 32, image_size=(16, 16), patch_size=8, clip=clip)
    model = paper_form(encoder, (16, 2, 2, 32), dict(max_tokens=24))
    model = for_tasks(model, max_prompt=16, hidden_images=0.1, beams=1)
    tasks = {"msrvtt_qa": VIDEO_TASKS["msrvtt_qa"] | dict(random_crop=False, batch_size=12)}
    config = image_defaults.get_config(SYSTEM, model, tasks)
    config.data.raw_dir = "FOLDER"
    config.mixture.weighting = ""
    config.compilation_cache = ""
    config.text.vocab_size = 40
    config.schedule.num_rounds = 300
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 300
    config.optimizer.learning_rate, config.optimizer.schedule = 1e-2, "constant"
    config.optimizer.warmup_share = 0.0
    config.evaluation.batch_size, config.evaluation.pictures = 18, 1
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 300, 0
    config.log.every_rounds, config.log.tensorboard = 60, False
    config.parallel.devices = 1
    return config
"""

pytestmark = pytest.mark.usefixtures("share_programs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of two colours, one after the other: the middle frame is of the second."""
    folder = tmp_path_factory.mktemp("clips")
    records = []
    for video, pair in enumerate(itertools.product(COLOURS, repeat=2)):
        place = folder / f"msrvtt/videos/video{video}"
        place.mkdir(parents=True)
        for frame in range(4):
            pixels = np.full((16, 16, 3), COLOURS[pair[frame // 2]], np.uint8)
            Image.fromarray(pixels).save(place / f"{frame}.png")
        for when, answer in zip(("first", "last"), pair, strict=True):
            question = f"what comes {when}?"
            record = {"id": len(records), "video_id": video, "question": question}
            records.append(record | {"answer": answer})
    for split in ("train", "val", "test"):
        (folder / f"msrvtt/{split}_qa.json").write_text(json.dumps(records))
    (folder / "config.py").write_text(CONFIG.replace("FOLDER", str(folder)))
    return folder


@pytest.fixture(scope="module")
def trained(folder, share_programs, tmp_path_factory):
    """Workdirs of a model of single frames, and of one of clips that begins with its weights."""
    pictures, clips = (tmp_path_factory.mktemp(name) for name in ("pictures", "clips"))
    config = configs.get(str(folder / "config.py"))
    config.model.encoder.clip.frames = 0
    config.schedule.num_rounds = 2
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 2
    config.evaluation.pictures = 0
    train.train(config, pictures)
    config = configs.get(str(folder / "config.py"))
    config.text.tokenizer = str(pictures / "model")
    config.init_from.path = str(pictures)
    config.init_from.allow_missing = ("encoder/clip/.*",)
    train.train(config, clips)
    return pictures, clips


def test_clips_are_learnt_and_one_frame_is_not_enough(trained):
    pictures, clips = trained
    found = json.loads((clips / "results.json").read_text())["tasks"]["msrvtt_qa"]
    assert found["metric"] == "exact match" and found["score"] > 0.9
    assert found["frame"] < 0.8 and found["words"] < 0.6
    metrics = found["metrics"]
    assert metrics["above_frame"] == pytest.approx(found["score"] - found["frame"])
    assert 0 < metrics["above_frame_95"] < metrics["above_frame"]
    assert "frame" not in json.loads((pictures / "results.json").read_text())["tasks"]["msrvtt_qa"]
    ours, theirs = (model_folder.load(place / "model")[0] for place in (clips, pictures))
    assert set(ours["encoder"]) == set(theirs["encoder"]) | {"clip"}
    assert float(ours["encoder"]["clip"]["gate"]) != 0.0


def test_asking_about_videos(trained, folder, capsys):
    from twelve_in_one.predict.__main__ import main

    model = predict.load(trained[1])
    video = folder / "msrvtt/videos/video1"  # red, then green
    asked = ["what comes first?", "what comes last?"]
    answers = model.answer_video(video, asked)
    assert [one.answer for one in answers] == ["red", "green"]
    frames = np.stack([np.asarray(Image.open(path)) for path in sorted(video.iterdir())])
    assert model.answer_video(frames, asked[0]).answer == "red"
    assert model.answer_video(frames, asked[0], answers=["blue", "green"]).answer != "red"
    assert answers[0].images[0].pixels().shape == (16, 4 * 16, 3)
    command = ["answer_video", "--model", str(trained[1]), "--json"]
    assert main([*command, "--video", str(video), "--text", asked[1]]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "green"
    requests = folder / "requests.jsonl"
    line = {"video": str(video), "text": asked[0]}
    requests.write_text(f"{json.dumps(line)}\n{json.dumps(line | {'video': 'nowhere'})}\n")
    assert main([*command, "--requests", str(requests)]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["answer"] == "red" and "nowhere" in second["error"]
    with pytest.raises(ValueError, match="reads single pictures: it was not trained on clips"):
        predict.load(trained[0]).answer_video(video, asked[0])


def test_eight_devices_make_no_difference():
    clip = ClipConfig(frames=3, every=2, tubes=((2, 4, 4, 1, 4, 4, 0, 0, 0),))
    encoder = ViTConfig(12, 1, 2, 16, image_size=(8, 8), patch_size=4, clip=clip)
    model = paper_form(encoder, (16, 2, 2, 32), dict(max_tokens=7, vocab_size=20))
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.normal(size=(16, 3, 8, 8, 3)).astype(np.float32),
        "tokens": rng.integers(1, 20, (16, 6)).astype(np.int32),
        "prompt_length": rng.integers(0, 2, 16).astype(np.int32),
        "task_id": np.zeros(16, np.int32),
        "_mask": np.arange(16) < 15,
    }
    system = MammutSystem(for_tasks(model, max_prompt=2))
    objective = system.objective([ImageTask("msrvtt_qa", "", "ocr", 0, "text", 16)])
    step, found = steps.make_grad_step(objective), []
    # At first the scores of tokens are zeros, and the encoder has no gradient.
    params = jax.tree.map(
        lambda x: x + rng.normal(0, 0.2, x.shape).astype(np.float32),
        jax.device_get(jax.jit(system.init)(jax.random.key(0))),
    )
    for devices in (1, 8):
        mesh = make_mesh(devices=jax.devices()[:devices])
        with use(mesh, "dp"):
            split = jax.NamedSharding(mesh, jax.P("data"))
            placed = {name: jax.device_put(x, split) for name, x in batch.items()}
            found.append(jax.device_get(jax.jit(step)(params, 0, placed, jax.random.key(1))))
    (one, metrics), (eight, others) = found
    ours, theirs = (x.grads["encoder"]["clip"] for x in (one, eight))
    for path in ("tube_0", "gate"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6),
            *(jax.tree.leaves(x[path]) for x in (ours, theirs)),
        )
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(ours[path]))
        assert largest > 1e-4, (path, largest)
    np.testing.assert_allclose(others.sums.loss, metrics.sums.loss, rtol=1e-5)
