"""Model folders: what was saved comes back whole, and what is damaged is named."""

import dataclasses
import json

import numpy as np
import pytest

from twelve_in_one.checkpoints.model_folder import load, save
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.data.encode.text import SPECIALS, Tokenizer
from twelve_in_one.data.serving import (
    PREPROCESSING_FILE,
    TASKS_FILE,
    WORDS_FILE,
    Serving,
    load_serving,
)
from twelve_in_one.data.stored.preprocessing import Preprocessing
from twelve_in_one.models.two_stream.encoder import stack_layers
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.twelve import TWELVE

TASKS = tuple(
    dataclasses.replace(task, max_tokens=7, max_regions=9, batch_size=3, learning_rate=0.0)
    for task in TWELVE
    if task.name in ("vqa", "gqa", "refcoco+", "guesswhat")
)
TEXTS = (
    "preprocessing.json", "tasks.json", "vocab.txt", "answers-vqa.json", "answers-gqa.json"
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(
        visual=dict(num_layers=1),
        text_connections=(2,),
        visual_connections=(0,),
        num_tasks=20,
        heads=("vqa", "gqa", "region_score"),
    )


@pytest.fixture(scope="module")
def serving(config):
    words = (*SPECIALS, "##é", *(f"word{i}" for i in range(config.vocab_size - len(SPECIALS) - 1)))
    tokenizer = Tokenizer(words)
    preprocessing = Preprocessing(
        vocab_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        lower_case=True,
        max_tokens={task.name: task.max_tokens for task in TASKS},
        max_regions={task.name: task.max_regions for task in TASKS},
        region_feature_dim=config.region_feature_dim,
        region_source="boxes",
    )
    answers = {"vqa": ("yes", "no", "grün", 'a "quoted" one', "two\nlines"), "gqa": ("left",)}
    return Serving(TASKS, tokenizer, answers, preprocessing)


@pytest.fixture
def folder(tmp_path, config, random_params, serving):
    save(tmp_path / "model", random_params(config), Vilbert(config), serving)
    return tmp_path / "model"


def refused(folder, name, reader=load_serving):
    with pytest.raises(ValueError) as caught:
        reader(folder)
    assert str(folder / name) in str(caught.value)
    return str(caught.value)


def test_lower_case_travels_with_the_model(tmp_path, config, random_params, serving):
    words = (*SPECIALS, *(f"Word{i}" for i in range(config.vocab_size - len(SPECIALS))))
    tokenizer = Tokenizer(words, lower_case=False)
    cased = dataclasses.replace(
        serving.preprocessing, lower_case=False, vocab_sha256=tokenizer.sha256
    )
    other = dataclasses.replace(serving, tokenizer=tokenizer, preprocessing=cased)
    folder = tmp_path / "model"
    save(folder, random_params(config), Vilbert(config), other)
    assert load_serving(folder).tokenizer.tokenize("Word3 word3") == ["Word3", "[UNK]"]
    (folder / "preprocessing.json").write_text(
        dataclasses.replace(cased, lower_case=True).to_json()
    )
    assert "capital letters, such as 'Word" in refused(folder, "vocab.txt")


@pytest.mark.parametrize("scan_layers", [False, True])
def test_round_trip(tmp_path, config, random_params, serving, scan_layers):
    params, saved = random_params(config), dataclasses.replace(config, scan_layers=scan_layers)
    laid_out = stack_layers(config, params) if scan_layers else params
    save(tmp_path / "new" / "model", laid_out, Vilbert(saved), serving)
    loaded, loaded_config, loaded_serving = load(tmp_path / "new" / "model")
    assert (loaded_config, loaded_serving) == (Vilbert(config), serving)
    assert load_serving(tmp_path / "new" / "model") == serving
    ours, theirs = flatten(loaded), flatten(params)
    assert set(ours) == set(theirs)
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path])
    _, scanned, _ = load(tmp_path / "new" / "model", scan_layers=True)
    assert scanned.scanned


def test_existing_folders_are_kept_unless_asked(folder, config, random_params, serving):
    other = dataclasses.replace(serving, answers={"vqa": ("maybe",), "gqa": ("right",)})
    with pytest.raises(FileExistsError, match="model exists"):
        save(folder, random_params(config), Vilbert(config), other)
    assert load(folder)[2] == serving
    save(folder, random_params(config, 1), Vilbert(config), other, overwrite=True)
    assert load(folder)[2] == other
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_task_by_name(serving):
    assert serving.task("refcoco+") == TASKS[2]
    words = "was not trained on 'nlvr2', but on vqa, gqa, refcoco\\+, guesswhat"
    with pytest.raises(ValueError, match=words):
        serving.task("nlvr2")


@pytest.mark.parametrize("name", [*TEXTS, "params", "config.json", "files.json"])
def test_missing_files_are_named(folder, name):
    (folder / name).rename(folder.parent / "elsewhere")
    with pytest.raises(ValueError, match=str(folder)) as caught:
        load(folder)
    assert name in str(caught.value)
    if name in TEXTS:
        refused(folder, name)


def test_no_folder(tmp_path):
    assert "what training saves as model/" in refused(tmp_path / "none", "preprocessing.json")


@pytest.mark.parametrize(
    "name, content",
    [
        ("preprocessing.json", b"{"),
        ("preprocessing.json", b"[]"),
        ("preprocessing.json", b'{"vocab_size": 3}'),
        ("preprocessing.json", b"\xff\xfe"),
        ("tasks.json", b"{"),
        ("tasks.json", b"null"),
        ("tasks.json", b"[3]"),
        ("tasks.json", b'{"vqa": {}}'),
        ("tasks.json", b'[{"name": "vqa"}]'),
        ("vocab.txt", b""),
        ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nmore\n"),
        ("vocab.txt", b"[PAD]\n[PAD]\n"),
        ("vocab.txt", b"\xff"),
        ("answers-vqa.json", b"["),
        ("answers-vqa.json", b'{"yes": 0}'),
        ("answers-gqa.json", b'["left", 3]'),
        ("answers-gqa.json", b"\xff"),
    ],
)
def test_damaged_files_are_named(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name)
    refused(folder, name, load)


@pytest.mark.parametrize(
    "field, value", [("max_tokens", "7"), ("name", 3), ("unheard_of", 1), ("num_choices", None)]
)
def test_damaged_tasks(folder, field, value):
    tasks = json.loads((folder / "tasks.json").read_text())
    tasks[1][field] = value
    (folder / "tasks.json").write_text(json.dumps(tasks))
    assert field in refused(folder, "tasks.json")


def test_a_vocabulary_of_other_weights(folder):
    words = (folder / "vocab.txt").read_text().splitlines()
    words[-1], words[-2] = words[-2], words[-1]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    message = refused(folder, "vocab.txt")
    assert "is not the vocabulary that the weights were trained with" in message


def test_copies_that_broke_off(folder):
    largest = max(
        (path for path in (folder / "params").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged or was not copied whole: params/"):
        load(folder)


@pytest.mark.parametrize("head, size", [("vqa", 11), ("gqa", 9)])
def test_more_answers_than_labels(tmp_path, config, random_params, serving, head, size):
    answers = {**serving.answers, head: tuple(map(str, range(size)))}
    params = random_params(config)
    save(tmp_path / "fits", params, Vilbert(config), dataclasses.replace(serving, answers=answers))
    assert load(tmp_path / "fits")[2].answers == answers
    answers[head] += ("one more",)
    save(tmp_path / "not", params, Vilbert(config), dataclasses.replace(serving, answers=answers))
    with pytest.raises(ValueError, match=f"answers-{head}.json: {size + 1} answers, .* {size} lab"):
        load(tmp_path / "not")


def test_nothing_is_left_of_what_does_not_fit(
    tmp_path, tiny_config, config, random_params, serving
):
    with pytest.raises(ValueError, match="do not fit the config"):
        save(tmp_path / "a" / "model", random_params(tiny_config()), Vilbert(config), serving)
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_the_files(folder):
    found = {path.name for path in folder.iterdir()}
    assert found == {*TEXTS, "params", "config.json", "files.json"}
    assert {PREPROCESSING_FILE, TASKS_FILE, WORDS_FILE} < set(TEXTS)
