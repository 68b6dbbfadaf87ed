"""What is wrong with pictures, texts and classes of a run is said before it trains."""

import pytest
from PIL import Image

from twelve_in_one.checkpoints import inputs_record
from twelve_in_one.config import image_defaults
from twelve_in_one.config.check import MIXTURE, check
from twelve_in_one.data.inputs import open_inputs
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.lit_decoder import SYSTEM

CAPTIONS = [f"a {word} wall of stone" for word in ("red", "green", "blue", "white")]


def table(folder, texts):
    """A table of captions with a picture for each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["image\tcaption"]
    for i, text in enumerate(texts):
        Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(folder / f"{i}.png")
        rows.append(f"{i}.png\t{text}")
    (folder / "train.tsv").write_text("\n".join(rows) + "\n")
    return dict(source=f"tsv:{folder}/{{split}}.tsv", group="caption", random_crop=False)


def classes(folder, *names):
    for name in names:
        (folder / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "train" / name / "0.png")
    return dict(source=f"folder:{folder}/{{split}}", random_crop=False)


def opened(workdir, tasks, *, prompt="", vocab_size=30, **knobs):
    """System and training streams of a run."""
    encoder = ViTConfig(8, 1, 2, 16, image_size=(8, 8), patch_size=8)
    decoder = TextDecoderConfig(8, 1, 2, 16, max_tokens=40, encoder_dim=8)
    model = LitDecoderConfig(encoder, decoder, **{"max_prompt": 8, **knobs})
    config = image_defaults.get_config(SYSTEM, model, tasks)
    config.mixture.weighting, config.mixture.batch_size = "pairs", 4
    config.text.vocab_size = vocab_size
    for task in config.task.values():
        task.prompt = prompt
    inputs = open_inputs(check(config), workdir)
    system = inputs.system()
    return inputs, system, inputs.train_streams(system)


@pytest.mark.parametrize("others", [{}, {"look": dict(train=False)}])
def test_a_mixture_may_be_of_one_task(tmp_path, others):
    """Alone, or beside tasks that are only scored."""
    task = table(tmp_path / "said", CAPTIONS)
    _, _, streams = opened(tmp_path, {"say": task, **{n: task | o for n, o in others.items()}})
    assert set(streams) == {MIXTURE}
    batch = streams[MIXTURE].batch(0)
    assert batch["_mask"].all() and not batch["task_id"].any()


def test_captions_that_are_empty_are_counted(tmp_path):
    task = table(tmp_path / "said", [*CAPTIONS, "", "  "])
    inputs, _, streams = opened(tmp_path, {"say": task})
    (found,) = inputs.cut_texts(streams)
    assert found.num_left_out == 2 and found.num_read == 4
    assert "2 examples are left out, the first: 4.png: has no text to learn" in str(found)
    masks = [streams[MIXTURE].batch(i)["_mask"] for i in range(3)]
    assert sum(mask.sum() for mask in masks) == 8  # of two epochs of six rows


@pytest.mark.parametrize(
    ("tasks", "knobs", "named"),
    [
        (
            lambda folder: {"say": table(folder, ["", " ", ""])},
            {},
            "task say, split train: .*none of 3 examples that were tried has a text to learn, "
            "the first: 0.png",
        ),
        (
            lambda folder: {"say": table(folder, CAPTIONS)},
            {"prompt": "describe this picture in a few words:"},
            "task say, split train: 1 of 1 prompts .* model.max_prompt 8 tokens",
        ),
        (
            lambda folder: {"name": classes(folder, "big_dog", "Big dog", "cat")},
            {},
            "classes of task name: .*[Bb]ig.dog",
        ),
        (
            lambda folder: {"name": classes(folder, "dog", "cat"), "say": classes(folder / "x")},
            {},
            "task say, split train",
        ),
    ],
    ids=["no text", "prompt", "equal classes", "no pictures"],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, tasks, knobs, named):
    with pytest.raises(DataError, match=named):
        opened(tmp_path, tasks(tmp_path / "data"), **knobs)


def test_another_vocabulary_is_refused(tmp_path):
    task = {"say": table(tmp_path / "said", CAPTIONS)}
    inputs, system, _ = opened(tmp_path, task)
    inputs_record.write(tmp_path / "run", inputs.serving(system), system)
    record = inputs_record.read(tmp_path / "run")
    other, fit, _ = opened(tmp_path, task, vocab_size=34)
    assert fit.config.decoder.vocab_size == other.tokenizer.vocab_size == 34
    with pytest.raises(ValueError, match="the tokenizer is another one than in training"):
        inputs_record.check(record, other.serving(fit), other.path)
