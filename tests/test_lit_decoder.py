"""LiT-decoder through the trainer: frozen encoder, texts written and scored, the study's knobs."""

import dataclasses
import json
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from reference import small_pictures
from safetensors.numpy import load_file

from twelve_in_one import configs, export, predict, train
from twelve_in_one.checkpoints import model_folder
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.data.serving import load_serving
from twelve_in_one.data.texts import tokenizer_files
from twelve_in_one.exporting import run_exported
from twelve_in_one.logs import profiling
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.vit import ViTConfig, abstract_params
from twelve_in_one.systems.lit_decoder import LitDecoderSystem
from twelve_in_one.tasks.image_task import ImageTask

ENCODER = ViTConfig(16, 1, 2, 32, image_size=(16, 16), patch_size=8)
DECODER = TextDecoderConfig(16, 1, 2, 32, max_tokens=16, encoder_dim=16, vocab_size=40)
CONFIG = """
import dataclasses
from twelve_in_one.config import image_defaults
from twelve_in_one.data.serving import load_serving
from twelve_in_one.data.texts import tokenizer_files
from twelve_in_one.exporting import run_exported
from twelve_in_one.logs import profiling
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.vit import ViTConfig, abstract_params
from twelve_in_one.systems.lit_decoder import SYSTEM

def get_config():
    encoder = ViTConfig(16, 1, 2, 32, image_size=(16, 16), patch_size=8)
    decoder = TextDecoderConfig(16, 1, 2, 32, max_tokens=16, encoder_dim=16)
    model = LitDecoderConfig(encoder, decoder, max_prompt=6, beams=2, hidden_images=0.2)
    tasks = {{
        "colour": dict(source="folder:{folder}/colour/{{split}}", random_crop=False),
        "describe": dict(
            source="tsv:{folder}/{{split}}.tsv", group="caption", random_crop=False
        ),
    }}
    config = image_defaults.get_config(SYSTEM, model, tasks)
    config.mixture.weighting, config.mixture.batch_size = "equal", 8
    config.compilation_cache = ""
    config.text.vocab_size = 60
    config.schedule.num_rounds = 60
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 30
    config.optimizer.learning_rate, config.optimizer.warmup_share = 2e-2, 0.1
    config.optimizer.frozen_dtype = "bfloat16"
    config.evaluation.batch_size, config.evaluation.pictures = 8, 1
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 30, 0
    config.log.every_rounds, config.log.tensorboard = 20, False
    config.parallel.devices = 1
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of three colours in class folders, and in a table with a caption each."""
    folder = tmp_path_factory.mktemp("pictures")
    small_pictures.write(folder)
    path = folder / "config.py"
    path.write_text(CONFIG.replace("{folder}", str(folder)).replace("{{", "{").replace("}}", "}"))
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Workdir of a run."""
    workdir = tmp_path_factory.mktemp("lit")
    train.train(configs.get(str(folder / "config.py")), workdir)
    return workdir


def test_texts_are_learnt_from_the_pictures(trained):
    results = json.loads((trained / "results.json").read_text())["tasks"]
    for name, bar in (("colour", 0.6), ("describe", 1.0)):
        found = results[name]
        assert found["score"] > bar and found["score"] > found["words"] + 0.2, found
        assert found["metrics"]["loss_with_other_pictures"] > found["loss"] + 0.1
    assert results["colour"]["metric"] == "top-1" and results["colour"]["chance"] == 1 / 3
    assert results["colour"]["metrics"]["ranked"] > 0.6
    assert results["describe"]["metric"] == "CIDEr-D"


def test_the_encoder_is_as_it_was(trained):
    params, system, serving = model_folder.load(trained / "model")
    start = flatten(jax.device_get(jax.jit(system.init)(jax.random.key(0))))
    for path, value in flatten(params).items():
        frozen = path[0] == "encoder"
        assert value.dtype == ("bfloat16" if frozen else "float32"), path
        same = np.array_equal(value, start[path].astype(value.dtype))
        assert same == frozen or not value.any(), path
    assert serving.tokenizer.vocab_size == system.config.decoder.vocab_size
    assert serving.answers == {"colour": ("blue", "green", "red")}


def test_a_run_is_described_without_its_data(folder, tmp_path, capsys):
    config = configs.get(str(folder / "config.py"))
    config.task.colour.source = "folder:nowhere/{split}"
    config.task.colour.published_pairs = config.task.colour.published_images = 54
    config.mixture.weighting, config.text.vocab_size = "pairs", 40
    train.train(config, tmp_path / "never", only_describe=True)
    said = capsys.readouterr().out
    assert "== missing\ntask colour, split train: nowhere" in said
    rows = {row[0]: row[1:] for line in said.splitlines() if (row := line.split())}
    assert rows["colour"] == ["0.7500", "54", "54"] and rows["describe"] == ["0.2500", "18", "18"]
    assert rows["mixture"][:2] == ["72", "9"]
    encoder = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(abstract_params(ENCODER))))
    assert rows["parameters"][2:] == profiling.format_bytes(2 * encoder).split()
    assert rows["gradients"][2:] == rows["optimizer"][2:] == ["none"]
    assert not (tmp_path / "never").exists()


def test_one_image_and_many_get_the_same_texts(trained, folder):
    model = predict.load(trained)
    files = sorted((folder / "colour" / "test").glob("*/*.png"))
    many = model.caption(files)
    alone = [model.caption(file) for file in files[:3]]
    assert [x.answer for x in alone] == [x.answer for x in many[:3]]
    for one, other in zip(alone, many, strict=False):
        assert one.probability == pytest.approx(other.probability, rel=1e-4)
        total = sum(log_probability for _, log_probability in one.tokens)
        assert np.exp(total) == pytest.approx(one.probability, rel=1e-4)
        assert one.finished and one.tokens[-1][0] == ""
    ranked = model.classify(files, top=3)
    right = [one.answer == file.parent.name for one, file in zip(ranked, files, strict=True)]
    assert np.mean(right) > 0.6
    chosen = model.classify(files[0], ["a red wall", "blue"])
    assert chosen.answer in ("a red wall", "blue") and len(chosen.top) == 2
    with pytest.raises(ValueError, match="no task  of group vqa or ocr: it learnt colour"):
        model.answer(files[0], "why?")
    with pytest.raises(ValueError, match="'red' .0. and 'Red' .1. "):
        model.classify(files[0], ["red", "Red"])


def test_the_command_line(trained, folder, capsys, tmp_path):
    from twelve_in_one.predict.__main__ import main

    file = next((folder / "colour" / "test").glob("red/*.png"))
    assert main(["caption", "--model", str(trained), "--image", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == [str(file)] and found["tokens"]
    assert main(["ground", "--model", str(trained), "--image", str(file), "--text", "x"]) == 1
    assert "this model cannot ground, but answer, caption" in capsys.readouterr().err
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"image": str(file), "text": "x", "top": 2}))
    assert main(["answer", "--model", str(trained), "--requests", str(requests)]) == 1
    assert "this model's answer does not take top" in capsys.readouterr().out
    given = ["caption", "--model", str(trained), "--image", str(file), "--attention"]
    assert main(given) == 1
    assert "--attention: this model's caption takes --task" in capsys.readouterr().err


def test_checkpoints_are_evaluated(trained, folder, tmp_path):
    from twelve_in_one.evaluate import main

    out = tmp_path / "found.json"
    arguments = ["--workdir", str(trained), "--split", "val", "--output", str(out)]
    assert main([*arguments, "--submissions", str(tmp_path / "files")]) == 0
    found, files = json.loads(out.read_text())["tasks"], tmp_path / "files"
    last = json.loads((trained / "results.json").read_text())["tasks"]
    # Validation has seen the same model and examples, but wrote greedily.
    assert found["colour"]["score"] == last["colour"]["validation"]
    written = json.loads((files / "describe-val.json").read_text())
    assert len(written) == 6 and all(key.endswith(".png") for key in written)
    assert main([*arguments, "--candidates", "detected"]) == 1


def test_exported_programs_write_as_the_model_does(trained, folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "exported"
    given = ["--from", str(trained), "--to", str(out), "--format", "jax", "--platforms", "cpu"]
    assert export.main(given) == 0
    model = predict.load(trained)
    files = sorted((folder / "colour" / "test").glob("*/*.png"))[:3]
    written = model.caption(files, beams=1)
    encode, _ = run_exported.load(out, "encode")
    write, entry = run_exported.load(out, "describe")
    assert entry["file"] == "write.jaxexport" and entry["task_ids"] == {"colour": 0, "describe": 1}
    pixels = [model._prepare("describe")(np.asarray(Image.open(file))) for file in files]
    words = tokenizer_files.load(out)
    prompt = np.full((3, 6), words.pad_id, np.int32)
    ids = words.encode("describe:")
    prompt[:, : len(ids)] = ids
    encoded = encode({"images": np.stack(pixels)})
    number = np.full(3, entry["task_ids"]["describe"], np.int32)
    found = write({"encoded": encoded, "prompt": prompt, "condition": number})
    for row, text in enumerate(written):
        assert words.decode(found["tokens"][row, len(ids) :]) == text.answer
        total = found["log_probabilities"][row].sum()
        assert np.exp(total) == pytest.approx(text.probability, rel=1e-4)
    for name in ("encode", "describe"):
        monkeypatch.setattr("sys.argv", ["run.py", name])
        runpy.run_path(str(out / "run.py"), run_name="__main__")
    assert "log_probabilities" in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_weights_are_exported(trained, tmp_path):
    params, system, serving = model_folder.load(trained / "model")
    for name in ("params", "safetensors"):
        given = ["--from", str(trained), "--to", str(tmp_path / name), "--format", name]
        assert export.main(given) == 0
    again, same, _ = model_folder.load(tmp_path / "params")
    stored = load_file(tmp_path / "safetensors" / "model.safetensors")
    assert same == system.for_inference() and load_serving(tmp_path / "safetensors") == serving
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(flatten(again)[path], value)
        np.testing.assert_array_equal(stored["/".join(path)], value)


KNOBS = [
    dict(conditioning="none"),
    dict(conditioning="embedding", specificity="group"),
    dict(conditioning="token", question="encoder", question_layers=1, max_question=5),
    dict(question="prefix_lm", per_token=True),
    dict(freeze_encoder=False, hidden_images=0.5),
]


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: "-".join(map(str, knobs.values())))
def test_the_first_loss_is_that_of_a_guess(knobs):
    """Exactly ln(vocabulary), as logits start at zero, whatever tells the decoder its task."""
    config = LitDecoderConfig(ENCODER, DECODER, max_prompt=4, label_smoothing=0.0, num_tasks=4)
    system = LitDecoderSystem(dataclasses.replace(config, **knobs))
    tasks = [ImageTask(name, name, "vqa", i, "text", 2) for i, name in enumerate("ab")]
    batch = {
        "images": jnp.zeros((3, 16, 16, 3)),
        "tokens": jnp.array([[5, 6, 7, 1] + [0] * 12, [8, 9, 1] + [0] * 13, [0] * 16]),
        "prompt_length": jnp.array([1, 0, 0]),
        "condition": jnp.array([0, 1, 1]),
        "question": jnp.full((3, 5), 4),
        "task_id": jnp.array([0, 1, 1]),
        "_mask": jnp.array([True, True, False]),
    }
    objective = system.objective(tasks)
    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"))  # compiles fast
    sums = jax.jit(lambda: objective.loss(system.init(keys[0]), batch, keys[1]))()
    counted = [3, 3] if knobs.get("per_token") else [1, 1]
    np.testing.assert_allclose(sums.loss, np.log(40) * np.array(counted), rtol=1e-5)
    assert sums.count.tolist() == counted
    assert objective.count(batch).tolist() == [sum(counted)] * 2
    assert set(system.frozen) == (set() if "freeze_encoder" in knobs else {"encoder/.*"})
