"""A decoder learns from stored tokens of a frozen encoder: records, named pictures, baselines."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from twelve_in_one import configs, train
from twelve_in_one.checkpoints import init_from, model_folder, weights
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.config import check
from twelve_in_one.config.settings import ConfigError, InitFrom
from twelve_in_one.data.image_inputs import ImageInputs
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.models.efficientnet import EfficientNet, EfficientNetConfig, Stage
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems import fields
from twelve_in_one.systems.image_classifier import ImageClassifierConfig, ImageClassifierSystem

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
ENCODER = EfficientNetConfig((Stage(3, 2, 1, 8, 1),), (16, 16), stem_dim=8, head_dim=16)
CONFIG = """
from twelve_in_one.config import image_defaults
from twelve_in_one.models.efficientnet import EfficientNetConfig, Stage
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.systems.lit_decoder import SYSTEM

def get_config():
    encoder = EfficientNetConfig((Stage(3, 2, 1, 8, 1),), (16, 16), stem_dim=8, head_dim=16)
    decoder = TextDecoderConfig(16, 1, 2, 32, max_tokens=20, encoder_dim=16)
    model = LitDecoderConfig(encoder, decoder, max_prompt=16, beams=2, hidden_images=0.2)
    tasks = {
        "asked": dict(group="vqa", source="jsonl:FOLDER/asked.jsonl,FOLDER/photos[{split}]"),
        "named": dict(
            source="folder:FOLDER/named/{split}",
            train_split="{smooth,noisy}[:80%]",
            val_split="{smooth,noisy}[80%:]",
            test_splits=("dark",),
        ),
    }
    tasks = {name: {**options, "random_crop": False} for name, options in tasks.items()}
    config = image_defaults.get_config(SYSTEM, model, tasks)
    config.tasks = ("asked",)
    config.init_from.path, config.init_from.include = "FOLDER/encoder", ("encoder/.*",)
    config.images.tokens = "FOLDER/tokens"
    config.mixture.weighting, config.mixture.batch_size = "equal", 12
    config.compilation_cache = ""
    config.text.vocab_size = 60
    config.schedule.num_rounds = 60
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 60
    config.optimizer.learning_rate, config.optimizer.warmup_share = 2e-2, 0.1
    config.evaluation.batch_size, config.evaluation.pictures = 8, 0
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 60, 0
    config.log.every_rounds, config.log.tensorboard = 30, False
    config.parallel.devices = 1
    return config
"""


def _picture(colour, rng, noise=40, light=1.0):
    pixels = np.array(COLOURS[colour]) * light + rng.integers(0, noise + 1, (16, 16, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _params(system):
    """Random parameters; those of `init` take seconds to compile."""
    rng = np.random.default_rng(3)

    def draw(leaf):
        return rng.normal(0, leaf.shape[0] ** -0.5, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, nn.unbox(system.abstract()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records about photos, pictures in three styles, an encoder, and a config."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    lines = []
    (folder / "photos").mkdir()
    for i in range(30):
        colour = list(COLOURS)[i % 3]
        _picture(colour, rng).save(folder / "photos" / f"{i}.png")
        split = ("train", "train", "train", "val", "test")[i // 3 % 5]
        for question, answer in (("which colour?", colour), ("is it a wall?", "yes")):
            record = {"image": f"{i}.png", "question": question, "answer": answer}
            lines.append(record | {"split": split})
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for style, options in {"smooth": (0,), "noisy": (60,), "dark": (20, 0.7)}.items():
        for colour in COLOURS:
            # One file for a name, or several in a folder of its own.
            place = folder / "named" / style / (colour if style == "noisy" else "")
            place.mkdir(parents=True, exist_ok=True)
            names = range(4) if style == "noisy" else [colour]
            for name in names:
                _picture(colour, rng, *options).save(place / f"{name}.png")
    system = ImageClassifierSystem(ImageClassifierConfig(ENCODER))
    weights.save_params(folder / "encoder", _params(system), system)
    (folder / "config.py").write_text(CONFIG.replace("FOLDER", str(folder)))
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Workdir of a run."""
    workdir = tmp_path_factory.mktemp("lit")
    train.train(configs.get(str(folder / "config.py")), workdir)
    return workdir


def test_stored_tokens_are_learnt_from(trained, folder):
    results = train.finish.Results(json.loads((trained / "results.json").read_text()), trained)
    found = results["tasks"]["asked"]
    assert found["score"] > 0.8 and found["examples"] == 12
    assert found["score"] > max(found["words"], found["shuffled"]) + 0.1, found
    assert found["neighbour"] > 0.8 and found["probe"] > 0.8
    header, *_ = str(results).splitlines()
    assert header.split()[3:] == [
        "score", "chance", "words", "majority", "shuffled", "neighbour", "probe", "examples",
    ]  # fmt: skip
    assert "<th>shuffled</th>" in (trained / "report.html").read_text()
    params, _, serving = model_folder.load(trained / "model")
    source, _, _ = weights.load_params(folder / "encoder")
    for path, value in flatten(source).items():
        np.testing.assert_array_equal(flatten(params)[path], value)
    assert serving.images["asked"]["low"] == -127 / 128


def test_an_encoder_is_read_from_the_workdir_once_it_is_there(trained, folder):
    source = InitFrom("nowhere")
    found = init_from.encoder_of(source, trained)
    start = init_from.encoder_of(InitFrom(str(folder / "encoder")), folder)
    for path, value in flatten(start).items():
        np.testing.assert_array_equal(flatten(found)[path], value)
    with pytest.raises(ValueError, match="nowhere"):
        init_from.encoder_of(source, folder)


def test_batches_of_pictures_and_of_stored_tokens_are_alike(trained, folder):
    """Of a mixture in training, and of a style that is only tested on."""
    config = configs.get(str(folder / "config.py"))
    config.tasks = ("asked", "named")
    run = check.check(config)
    inputs = ImageInputs(run, check.task_runs(run), trained)
    system, task = inputs.system(), inputs.tasks[1]
    assert inputs.features(task, "dark", system) is None

    def batches():
        (mixed,) = inputs.train_streams(system).values()
        return mixed.batch(2), inputs.evaluation_stream(task, "dark", system).batch(0)

    pictures = batches()
    inputs.use_encoder(init_from.encoder_of(run.init_from, trained))
    encode = jax.jit(EfficientNet(ENCODER).apply)
    for seen, stored in zip(pictures, batches(), strict=True):
        assert stored["image_tokens"].shape[1:] == inputs.features(task, "dark", system).shape
        tokens, _ = encode({"params": inputs._encoder}, seen["images"])
        real = seen["_mask"]
        np.testing.assert_allclose(stored["image_tokens"][real], tokens[real], atol=4e-3)
        assert stored.keys() - seen.keys() == {"image_tokens"}
        for name in seen.keys() - {"images"}:
            np.testing.assert_array_equal(stored[name], seen[name])
    assert real.sum() == 3


def test_what_stored_tokens_do_not_go_with(folder, tmp_path):
    config = configs.get(str(folder / "config.py"))
    config.task.asked.flip, config.init_from.path = True, ""
    config.model.freeze_encoder = False
    with pytest.raises(ConfigError) as caught:
        train.train(config, tmp_path)
    errors = "\n".join(caught.value.errors)
    assert "task.asked.flip: stored tokens" in errors and "a frozen encoder" in errors
    assert "init_from.path should name the encoder's weights" in errors


def test_missing_sources_are_all_named(folder, tmp_path):
    config = configs.get(str(folder / "config.py"))
    config.tasks = ("asked", "named")
    config.task.asked.source = "jsonl:{samples_dir}/a.jsonl,photos[{split}]"
    config.task.named.source = "folder:nowhere/{split}"
    config.task.named.obtain = "draw some"
    with pytest.raises(DataError) as caught:
        train.train(config, tmp_path)
    assert "task asked, split train: jsonl:{samples_dir}/a.jsonl" in str(caught.value)
    assert "config.data.samples_dir is empty" in str(caught.value)
    assert "nowhere/smooth: no such folder; draw some" in str(caught.value)


def test_the_config_of_photos_takes_any_encoder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TWELVE_IN_ONE_SAMPLES", "")
    vit = ViTConfig(24, 1, 2, 32, image_size=(32, 32), patch_size=8)
    system = ImageClassifierSystem(ImageClassifierConfig(vit))
    weights.save_params(tmp_path / "vit", _params(system), system)
    for encoder, width in ((tmp_path / "vit", 24), (folder / "encoder", 16)):
        run = check.check(configs.get(f"lit_decoder_photos:{encoder}"))
        assert run.model["decoder"]["encoder_dim"] == width
        assert (run.init_from.path, run.images.encoder) == (str(encoder), "")
    with pytest.raises(ValueError, match="nowhere"):
        configs.get("lit_decoder_photos:nowhere")
    # All that is missing is said at once, with what to do.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        train.train(configs.get(f"lit_decoder_photos:{tmp_path / 'vit'}"), tmp_path / "run")
    assert "set TWELVE_IN_ONE_SAMPLES to a folder with coco/" in str(caught.value)
    assert "pip install --no-deps --target photos/easy_vqa easy-vqa" in str(caught.value)


def test_configs_of_either_encoder_survive_json():
    decoder = TextDecoderConfig(16, 1, 2, 32, max_tokens=16, encoder_dim=16, vocab_size=40)
    for encoder in (ENCODER, ViTConfig(16, 1, 2, 32, image_size=(16, 16), patch_size=8)):
        config = LitDecoderConfig(encoder, decoder)
        raw = json.loads(json.dumps(dataclasses.asdict(config)))
        assert fields.build(LitDecoderConfig, raw) == config
